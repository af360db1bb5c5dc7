"""Hundreds of damaged files: a clip of the right shape or one of two exceptions, and no more.

Reading runs in processes of its own, so that one that dies or hangs is a case that failed.
"""

import multiprocessing
import resource
import struct
import traceback
import wave
from collections import Counter
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from media_files import SIDE, clicks, write

from mmssl import BadMedia, Media, MissingModality, Modality, Sample, Window
from mmssl.data.time_limit import time_limit
from mmssl_media.audio import Audio
from mmssl_media.video import Video

MODALITIES: list[Modality] = [
    Video(frames=4, short_side=SIDE, crop=SIDE),
    Video(frames=4, fps=5, short_side=SIDE, crop=SIDE),
    Audio(seconds=0.5),
]
# Seconds for one file of a few kilobytes, on a machine with other work to do.
_LIMIT = 30.0
# Bytes by which reading a small file may make the process larger, whatever its header says.
_ROOM = 600 * 2**20

Damage = Callable[[bytes, np.random.Generator], bytes]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """By name, with its ending: files of 1.5 seconds, most of both sight and sound."""
    return make_good(tmp_path_factory.mktemp("media"))


def make_good(folder: Path) -> dict[str, bytes]:
    sound = clicks([0.5, 1.2], 1.5, 48_000)
    both: dict[str, Any] = {"frames": 45, "gop": 12, "sound": sound, "rate": 48_000}
    fragments = {"movflags": "frag_keyframe+empty_moov"}
    made = [
        write(folder / "h264.mp4", b_frames=2, **both),
        write(folder / "fragments.mp4", b_frames=2, options=fragments, **both),
        write(folder / "h265.mkv", codec="libx265", b_frames=2, sound_codec="libopus", **both),
        write(folder / "vp9.webm", codec="libvpx-vp9", sound_codec="libopus", **both),
        write(folder / "av1.mp4", codec="libsvtav1", **both),
        write(folder / "mpeg4.avi", codec="mpeg4", b_frames=2, sound_codec="libmp3lame", **both),
        write(folder / "mjpeg.mov", codec="mjpeg", sound_codec="pcm_s16le", **both),
        write(folder / "ffv1.mkv", codec="ffv1", sound_codec="flac", **both),
        write(folder / "h264.ts", **both),
        write(folder / "sound.wav", sound=sound, rate=48_000, sound_codec="pcm_f32le"),
        write(folder / "sound.mp3", sound=sound, rate=48_000, sound_codec="libmp3lame"),
        write(folder / "sound.flac", sound=sound, rate=48_000, sound_codec="flac"),
    ]
    return {path.name: path.read_bytes() for path in made}


def outcome(path: Path, modality: Modality, share: float) -> str:
    """What came of it, in a word. Any exception but the two that are promised passes through."""
    with Media(Sample("x", str(path))) as media:
        try:
            start = share * max(0.0, media.end - modality.seconds)
            clip = modality.read(media, Window(start, modality.seconds), np.random.default_rng(0))
        except MissingModality:
            return "missing"
        except BadMedia as error:
            return "took too long" if "took longer" in str(error) else "bad"
    assert clip.shape == modality.empty().shape
    assert clip.dtype == modality.empty().dtype
    assert not clip.is_floating_point() or bool(torch.isfinite(clip).all())
    return "read"


def _read_all(cases: Iterable[tuple[str, bytes]], folder: Path, results: Connection) -> None:
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, data in cases:
        path = folder / f"damaged{Path(name.split()[0]).suffix}"
        path.write_bytes(data)
        found = []
        for modality in MODALITIES:
            for share in [0.0, 1.0]:
                results.send((name, "reading"))
                try:
                    with time_limit(_LIMIT, expendable=True):
                        found.append(outcome(path, modality, share))
                except Exception:
                    results.send((name, f"{type(modality)} at {share}: {traceback.format_exc()}"))
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - size) * 1024
        if grown > _ROOM:
            results.send((name, f"took {grown / 2**20:.0f} MB"))
            size += grown // 1024
        results.send((name, found))
    results.close()


def survive(cases: list[tuple[str, bytes]], folder: Path) -> Counter[str]:
    """Read every case; how often each outcome was seen.

    Raises:
        AssertionError: naming each case that raised what it may not, died or hung.
    """
    seen: Counter[str] = Counter()
    failed: list[str] = []
    context = multiprocessing.get_context("fork")
    left = cases
    while left:
        receiving, sending = context.Pipe(duplex=False)
        process = context.Process(target=_read_all, args=(left, folder, sending), daemon=True)
        process.start()
        sending.close()
        done, current = 0, ""
        try:
            while True:
                current, result = receiving.recv()
                if isinstance(result, list):
                    seen.update(result)
                    done += 1
                elif result != "reading":
                    failed.append(f"{current}: {result}")
        except EOFError:
            process.join()
        if process.exitcode:
            failed.append(f"{current}: ended its process with {process.exitcode}")
            done += 1  # go on behind it
        left = left[done:] if process.exitcode else []
    assert not failed, "\n".join(failed)
    assert "took too long" not in seen
    return seen


def truncated(data: bytes, rng: np.random.Generator) -> bytes:
    return data[: rng.integers(0, len(data))]


def flipped(data: bytes, rng: np.random.Generator) -> bytes:
    """Some bytes changed, half of them near the ends, where headers are."""
    bad = np.frombuffer(data, np.uint8).copy()
    count = int(rng.integers(1, 30))
    near = rng.integers(0, min(2000, len(bad)), count)
    places = rng.integers(0, len(bad), count)
    places = np.where(rng.random(count) < 0.25, near, places)
    places = np.where(rng.random(count) < 0.25, len(bad) - 1 - near, places)
    bad[places] ^= rng.integers(1, 256, count).astype(np.uint8)
    return bad.tobytes()


def holed(data: bytes, rng: np.random.Generator) -> bytes:
    """A stretch lost, zero, doubled or moved."""
    first, last = np.sort(rng.integers(0, len(data), 2))
    last = min(last, first + int(rng.integers(1, 5000)))
    before, part, after = data[:first], data[first:last], data[last:]
    other = int(rng.integers(0, len(after) + 1))
    return [
        before + after,
        before + bytes(len(part)) + after,
        before + part + part + after,
        before + after[:other] + part + after[other:],
    ][rng.integers(4)]


def lying(data: bytes, rng: np.random.Generator) -> bytes:
    """Numbers near the ends replaced by the extremes of their size."""
    bad = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        size = int(rng.choice([1, 2, 4, 8]))
        place = int(rng.integers(0, max(1, min(2500, len(bad)) - size)))
        if rng.random() < 0.5:
            place = max(0, len(bad) - size - place)
        extreme = [b"\x00" * size, b"\xff" * size, b"\x7f" + b"\xff" * (size - 1)]
        extreme += [extreme[2][::-1], (1).to_bytes(size, "big"), (1).to_bytes(size, "little")]
        bad[place : place + size] = extreme[rng.integers(len(extreme))]
    return bytes(bad)


DAMAGES: list[Damage] = [truncated, flipped, holed, lying]


def damaged(good: dict[str, bytes], seeds: Iterable[int]) -> list[tuple[str, bytes]]:
    """By seed, one file with one damage: all files and damages come in turn."""
    cases = []
    for seed in seeds:
        name = list(good)[seed % len(good)]
        damage = DAMAGES[seed // len(good) % len(DAMAGES)]
        data = damage(good[name], np.random.default_rng(seed))
        cases.append((f"{name} {damage.__name__} by seed {seed}", data))
    return cases


def test_what_is_good(good: dict[str, bytes], tmp_path: Path) -> None:
    seen = survive(list(good.items()), tmp_path)
    # Three of the files have no video, for two modalities at two places.
    assert seen == {"read": 12 * 6 - 3 * 4, "missing": 3 * 4}


@pytest.mark.parametrize("batch", range(6))
def test_damaged_bytes(good: dict[str, bytes], tmp_path: Path, batch: int) -> None:
    seen = survive(damaged(good, range(batch * 96, (batch + 1) * 96)), tmp_path)
    assert sum(seen.values()) == 96 * 6
    # Not all was lost, nor was all the damage without effect.
    assert seen["read"] > 50
    assert seen["bad"] > 50


def remuxed(data: bytes, name: str, folder: Path, rng: np.random.Generator) -> bytes:
    """The same packets but for some, which are dropped, doubled, or change places."""
    source_path, path = folder / f"source-{name}", folder / f"remuxed-{name}"
    source_path.write_bytes(data)
    kind = rng.integers(4)
    with av.open(str(source_path)) as source, av.open(str(path), "w") as out:
        copies = [out.add_stream_from_template(s, opaque=True) for s in source.streams]
        packets = [packet for packet in source.demux() if packet.dts is not None]
        # Times stay in order, contents do not: containers refuse the former.
        order = np.arange(len(packets))
        if kind == 0:
            order = order[rng.random(len(order)) > rng.uniform(0.05, 0.9)]
        elif kind == 1:
            first, last = np.sort(rng.integers(0, len(order), 2))
            order = np.concatenate([order[:first], order[last:]])
        elif kind == 2:
            order = np.sort(np.concatenate([order, rng.choice(order, 5)]))
        else:
            places = rng.choice(order, 6)
            order[places] = order[rng.permutation(places)]
        for i in order:
            packet = packets[i]
            packet.stream = copies[packet.stream_index]
            try:
                out.mux(packet)
            except av.FFmpegError:
                continue  # not even a broken writer would have written this
    return path.read_bytes()


@pytest.mark.parametrize("batch", range(2))
def test_packets_lost_doubled_and_out_of_order(
    good: dict[str, bytes], tmp_path: Path, batch: int
) -> None:
    names = [name for name in good if not name.startswith("sound")]
    cases = []
    for seed in range(batch * 36, (batch + 1) * 36):
        name = names[seed % len(names)]
        data = remuxed(good[name], name, tmp_path, np.random.default_rng(seed))
        cases.append((f"{name} remuxed by seed {seed}", data))
    seen = survive(cases, tmp_path)
    assert seen["read"] > 36


def patched(data: bytes, name: bytes, offset: int, value: bytes) -> bytes:
    """Bytes at some distance from each place where a box's name stands."""
    bad, at = bytearray(data), data.find(name)
    assert at >= 0
    while at >= 0:
        bad[at + offset : at + offset + len(value)] = value
        at = data.find(name, at + 1)
    return bytes(bad)


def test_headers_that_lie(good: dict[str, bytes], tmp_path: Path) -> None:
    mp4, avi, av1 = good["h264.mp4"], good["mpeg4.avi"], good["av1.mp4"]

    def big(number: int) -> bytes:
        return struct.pack(">I", number)

    def little(number: int) -> bytes:
        return struct.pack("<I", number)

    cases = []
    # A box's name, where in it the number stands, and the lie.
    for label, box, offset, value in [
        ("lasts 10^9 s", b"mvhd", 20, big(0xFFFFFFF0)),
        ("streams last 10^9 s", b"mdhd", 20, big(0xFFFFFFF0)),
        ("its unit of time is 0", b"mvhd", 16, big(0)),
        ("its streams' unit of time is 0", b"mdhd", 16, big(0)),
        ("its streams' unit of time is 1", b"mdhd", 16, big(1)),
        ("its streams' unit of time is 2^32", b"mdhd", 16, big(0xFFFFFFFF)),
        ("its frames take no time", b"stts", 16, big(0)),
        ("its frames take for ever", b"stts", 16, big(0x7FFFFFFF)),
        ("it has 2^32 frames", b"stts", 12, big(0xFFFFFFFF)),
        ("frames are 2^32 bytes", b"stsz", 12, big(0xFFFFFFFF)),
        ("frames are nowhere", b"stco", 12, big(0xFFFFFFFF)),
        ("no frame is a keyframe", b"stss", 8, big(0)),
        ("its edit list begins late", b"elst", 16, big(0x7FFFFFFF)),
        ("it is 65535 by 65535", b"avc1", 28, b"\xff\xff\xff\xff"),
        ("it is 0 by 0", b"avc1", 28, b"\x00\x00\x00\x00"),
        ("it has 255 channels", b"mp4a", 20, b"\x00\xff"),
        ("it has 0 channels", b"mp4a", 20, b"\x00\x00"),
        ("it has a rate of 0", b"mp4a", 28, big(0)),
        ("it has a rate of 65535", b"mp4a", 28, b"\xff\xff\xff\xff"),
    ]:
        cases.append((f"h264.mp4 says {label}", patched(mp4, box, offset, value)))
    cases.append(
        ("av1.mp4 says it is 65535 by 65535", patched(av1, b"av01", 28, b"\xff\xff\xff\xff"))
    )
    for label, box, offset, value in [
        ("0 frames a second", b"strh", 28, little(0)),
        ("a frame takes no time", b"strh", 32, little(0)),
        ("2^32 frames a second", b"strh", 32, little(0xFFFFFFFF)),
        ("a frame takes for ever", b"strh", 28, little(0xFFFFFFFF)),
        ("2^32 frames", b"strh", 40, little(0xFFFFFFFF)),
        ("0 microseconds a frame", b"avih", 8, little(0)),
        ("65535 by 65535", b"strf", 12, little(65535) + little(65535)),
        ("2^31 by 2^31", b"strf", 12, little(2**31 - 1) + little(2**31 - 1)),
    ]:
        cases.append((f"mpeg4.avi says {label}", patched(avi, box, offset, value)))
    for channels, rate, width in [
        (255, 16_000, 2),
        (1, 0, 2),
        (1, 10**9, 2),
        (0, 16_000, 2),
        (65_535, 2**32 - 1, 4),
        (1, 1, 1),
    ]:
        header = struct.pack(
            "<4sI4s4sIHHIIHH4sI",
            *(b"RIFF", 36 + 32_000, b"WAVE", b"fmt ", 16, 1, channels, rate),
            *(rate * channels * width % 2**32, channels * width % 2**16, 8 * width),
            *(b"data", 32_000),
        )
        cases.append((f"a.wav of {channels} channels at {rate} Hz", header + bytes(32_000)))
    survive(cases, tmp_path)


def test_numbers_that_are_none(tmp_path: Path) -> None:
    for value in [np.nan, np.inf, -np.inf, 3e38]:
        for codec in ["pcm_f32le", "pcm_f64le"]:
            sound = clicks([0.5], 2.0, 16_000)
            sound[100:30_000:5_000] = value
            path = write(tmp_path / "a.wav", sound=sound, rate=16_000, sound_codec=codec)
            for rate in [16_000, 8_000]:
                audio = Audio(seconds=1.0, rate=rate)
                for share in [0.0, 1.0]:
                    found = outcome(path, audio, share)
                    assert found == "bad" or (found == "read" and value == 3e38)


def test_playlists_open_nothing(tmp_path: Path) -> None:
    """Text that FFmpeg would take for a list of other files, under a video's name."""
    target = write(
        tmp_path / "secret.mp4", frames=10, sound=clicks([0.1], 0.5, 16_000), rate=16_000
    )
    stream = write(tmp_path / "secret.ts", frames=10)
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{stream}\n#EXT-X-ENDLIST\n"
    lists = {
        "hls.mp4": playlist,
        "hls.m3u8": playlist,
        "web.mp4": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n"
        "#EXT-X-ENDLIST\n",
        "concat.mp4": f"ffconcat version 1.0\nfile '{target}'\n",
        "dash.mp4": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
        'mediaPresentationDuration="PT1S"><Period><AdaptationSet><Representation id="1" '
        f'bandwidth="1"><BaseURL>{target}</BaseURL></Representation></AdaptationSet></Period></MPD>',
        "sdp.mp4": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
        "m=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    }
    for name, text in lists.items():
        path = tmp_path / name
        path.write_text(text)
        for modality in MODALITIES:
            with Media(Sample("x", str(path))) as media, pytest.raises(BadMedia):
                modality.read(media, Window(media.start, media.end - media.start), None)
    # FFmpeg, left alone, would have followed them.
    for name, options in [
        ("hls.m3u8", {}),
        ("concat.mp4", {"safe": "0"}),
    ]:
        with av.open(str(tmp_path / name), options=options) as container:
            assert container.streams.video


def test_a_name_with_a_pattern_is_a_name(tmp_path: Path) -> None:
    path = write(tmp_path / "100%d sure.mp4", frames=10)
    assert outcome(path, MODALITIES[0], 0.0) == "read"
    with av.open(str(tmp_path / "frame0.png"), "w", options={"update": "1"}) as out:
        picture = out.add_stream("png", rate=1)
        picture.width, picture.height, picture.pix_fmt = SIDE, SIDE, "rgb24"
        out.mux([*picture.encode(av.VideoFrame(SIDE, SIDE, "rgb24")), *picture.encode(None)])
    pattern = tmp_path / "frame%d.png"
    pattern.write_text("no picture")
    assert outcome(pattern, MODALITIES[0], 0.0) == "bad"
    pattern.write_bytes((tmp_path / "frame0.png").read_bytes())
    assert outcome(pattern, MODALITIES[0], 0.0) == "read"


def test_sound_of_a_stranger_s_making(tmp_path: Path) -> None:
    """A file by Python's own writer, with a length in its header that is a lie."""
    path = tmp_path / "a.wav"
    with wave.open(str(path), "wb") as out:
        out.setnchannels(2)
        out.setsampwidth(2)
        out.setframerate(16_000)
        out.writeframes(bytes(64_000))
    data = bytearray(path.read_bytes())
    data[40:44] = struct.pack("<I", 0xFFFFFFF0)
    path.write_bytes(bytes(data))
    assert outcome(path, MODALITIES[2], 0.0) == "read"
