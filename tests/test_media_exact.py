"""Every codec in every container, and what files may have besides: the right frames and sound.

Frames carry their number k and belong to second k / 30; sound clicks at known seconds. How much
later something is found than it was put in is its lag: files may have one, but the same for sight
and sound.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from media_files import SIDE, click_times, clicks, number_of, numbered_frame, write

from mmssl import Media, Sample, Window
from mmssl_media.audio import Audio
from mmssl_media.decode import frames_from, pcm
from mmssl_media.video import Video

FPS = 30
FRAMES = 60
CLICKS = [0.25, 0.6, 1.1, 1.45, 1.8]

VIDEO_CODECS: dict[str, dict[str, Any]] = {
    "h264": {"codec": "libx264", "b_frames": 3, "encoder": {"b-pyramid": "normal"}},
    "h265": {"codec": "libx265", "b_frames": 3},
    "vp9": {"codec": "libvpx-vp9"},
    "av1": {"codec": "libsvtav1"},
    "mpeg4": {"codec": "mpeg4", "b_frames": 2},
    "mjpeg": {"codec": "mjpeg"},
}
SOUND_CODECS: dict[str, dict[str, Any]] = {
    "aac": {"sound_codec": "aac", "rate": 48_000},
    "opus": {"sound_codec": "libopus", "rate": 48_000},
    "mp3": {"sound_codec": "libmp3lame", "rate": 44_100},
    "flac": {"sound_codec": "flac", "rate": 44_100},
    "pcm": {"sound_codec": "pcm_s16le", "rate": 44_100},
}
# What the containers allow, of those.
CONTAINERS = {
    "mp4": (list(VIDEO_CODECS), list(SOUND_CODECS)),
    "mkv": (list(VIDEO_CODECS), list(SOUND_CODECS)),
    "webm": (["vp9", "av1"], ["opus"]),
    "avi": (["h264", "vp9", "av1", "mpeg4", "mjpeg"], ["aac", "mp3", "pcm"]),
    "mov": (["h264", "h265", "mpeg4", "mjpeg"], ["aac", "mp3", "pcm"]),
}


def media(path: Path) -> Media:
    return Media(Sample("x", str(path)))


def make(path: Path, sight: str, sound: str, **more: Any) -> Path:
    """Two seconds of frames and clicks."""
    parameters = {**VIDEO_CODECS[sight], **SOUND_CODECS[sound], **more}
    return write(
        path,
        frames=FRAMES,
        fps=FPS,
        gop=parameters.pop("gop", 24),
        sound=clicks(CLICKS, FRAMES / FPS, parameters["rate"]),
        **parameters,
    )


def shown_at(file: Media, time: float) -> tuple[float, int]:
    """When the frame shown at a time began, and its number."""
    began, frame = next(frames_from(file, time))
    return began, number_of(frame.to_ndarray(format="rgb24"))


def sight_lag(file: Media, times: Iterable[float]) -> tuple[float, float]:
    """The smallest and the largest lag of the frames shown at some times, sought one by one."""
    lags = [began - number / FPS for began, number in (shown_at(file, t) for t in times)]
    return min(lags), max(lags)


def sound_lag(file: Media, starts: Iterable[float], expected: float = 0.0) -> tuple[float, float]:
    """The smallest and the largest lag of the clicks in sound of 0.8 s from some times on.

    A click that is heard is the one whose lag is nearest to what is expected.
    """
    lags = []
    for start in starts:
        heard = [start + t for t in click_times(pcm(file, start, 12_800, 16_000), 16_000)]
        lags += [min((t - c for c in CLICKS), key=lambda lag: abs(lag - expected)) for t in heard]
    assert len(lags) > 4
    return min(lags), max(lags)


@pytest.mark.parametrize(
    ("ending", "sight", "sound"),
    [
        (ending, sight, sound)
        for ending, (sights, sounds) in CONTAINERS.items()
        for sight in sights
        for sound in sounds
    ],
)
def test_every_codec_in_every_container(
    tmp_path: Path, ending: str, sight: str, sound: str
) -> None:
    path = make(tmp_path / f"a.{ending}", sight, sound)
    # AVI has no times but places: what the sound's encoder puts before second 0 stays there, and
    # before the pictures go as many milliseconds, in whole frames, or with B-frames none.
    delay = {"aac": 1024 / 48_000, "mp3": 1105 / 44_100}.get(sound, 0.0) if ending == "avi" else 0.0
    with media(path) as file:
        assert file.origin == 0.0
        begin = shown_at(file, 0.1)[0] - shown_at(file, 0.1)[1] / FPS
        assert begin == pytest.approx(0.0, abs=1e-3) or (delay and abs(begin - 1 / FPS) < 1e-3)
        # The beginning, on the frame, around keyframes and between them, near the end.
        for number in [2, 5, 23, 24, 25, 37, 47, 48, 58]:
            for offset, expected in [
                (0.0, number),
                (0.5 / FPS, number),
                (-0.002, number - 1),
                (0.002, number),
            ]:
                began, found = shown_at(file, number / FPS + begin + offset)
                assert found == expected
                assert began == pytest.approx(found / FPS + begin, abs=1e-3)
        low, high = sound_lag(file, [0.0, 0.1, 0.5, 0.93, 1.2])
        assert high - low < 2e-3  # Matroska rounds to milliseconds
        assert low == pytest.approx(delay, abs=2e-3)
        assert delay or abs(low - begin) < 0.02


@pytest.mark.parametrize("ending", list(CONTAINERS))
def test_a_clip_sees_and_hears_the_same_seconds(tmp_path: Path, ending: str) -> None:
    sights, sounds = CONTAINERS[ending]
    path = make(tmp_path / f"a.{ending}", sights[0], sounds[-1])
    video = Video(frames=15, fps=15, short_side=SIDE, crop=SIDE)
    audio = Audio(seconds=1.0)
    with media(path) as file:
        for start in [0.0, 0.3, 0.35, 0.7, 1.0]:
            window = Window(start, 1.0)
            shown = [number_of(frame) for frame in video.read(file, window, None).numpy()]
            assert shown == [int((start + k / 15) * FPS + 0.01) for k in range(15)]
            heard = click_times(audio.read(file, window, None).numpy().copy(), 16_000)
            expected = [t - start for t in CLICKS if start + 0.005 < t < start + 0.995]
            assert heard == pytest.approx(expected, abs=0.002)


X264_OPEN = {
    "preset": "veryfast",
    "x264-params": "open-gop=1:keyint=12:min-keyint=12:scenecut=0:bframes=3:b-pyramid=normal",
}
X265_OPEN = {
    "x265-params": "log-level=none:pools=none:frame-threads=1:open-gop=1:keyint=12:min-keyint=12"
    ":bframes=4:b-pyramid=1"
}


@pytest.mark.parametrize(
    ("ending", "sight", "encoder"),
    [
        *[(ending, "h264", X264_OPEN) for ending in ["mp4", "mkv", "mov", "avi", "ts"]],
        *[(ending, "h265", X265_OPEN) for ending in ["mp4", "mkv", "mov", "ts"]],
    ],
)
def test_open_groups_of_pictures(
    tmp_path: Path, ending: str, sight: str, encoder: dict[str, str]
) -> None:
    path = make(tmp_path / f"a.{ending}", sight, "aac", encoder=encoder)
    with av.open(str(path)) as container:
        packets = [p for p in container.demux(container.streams.video[0]) if p.size]
    if ending in ("mp4", "mkv"):
        # After a keyframe come pictures that are shown before it.
        keys = [i for i, packet in enumerate(packets) if packet.is_keyframe]
        assert len(keys) > 3
        assert packets[keys[1] + 1].pts < packets[keys[1]].pts
    with av.open(str(path)) as container:
        in_order = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
    assert [number_of(frame) for frame in in_order] == list(range(FRAMES))
    with media(path) as file:
        lag = sight_lag(file, [1.0])[0]
        for number in range(FRAMES):
            _, frame = next(frames_from(file, number / FPS + lag + 0.01))
            assert np.array_equal(frame.to_ndarray(format="rgb24"), in_order[number])


FRAGMENTED = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}


# Container, sound, the container's options, and whether it can tell when its streams begin.
LAYOUTS: list[tuple[str, str, dict[str, str], bool]] = [
    # With an edit list that takes back what B-frames and the encoder's start put before 0.
    ("mp4", "aac", {}, True),
    ("mp4", "aac", {"movflags": "faststart"}, True),
    ("mp4", "aac", {"movflags": "negative_cts_offsets"}, True),
    ("mp4", "aac", {"movflags": "frag_keyframe+delay_moov"}, True),
    ("mov", "pcm", {}, True),
    # Without one, all begins that much later, and no video begins late.
    ("mp4", "aac", {"use_editlist": "0"}, False),
    ("mp4", "aac", FRAGMENTED, False),
    ("mov", "aac", FRAGMENTED, False),
    ("mkv", "opus", {}, True),
    ("mkv", "flac", {"live": "1"}, True),
    ("mkv", "aac", {"cues_to_front": "1"}, True),
    ("webm", "opus", {}, True),
]
STARTS = [(0.0, 0.0), (0.0, 0.3), (0.0, 1.0), (5.0, 5.3), (0.3, 0.0), (1.0, 0.0), (5.3, 5.0)]


@pytest.mark.parametrize(
    ("ending", "sound", "options", "exact", "video_start", "sound_start"),
    [
        (*layout, *starts)
        for layout in LAYOUTS
        for starts in STARTS
        if layout[3] or starts[0] <= starts[1]
    ],
)
def test_streams_that_begin_apart(
    tmp_path: Path,
    ending: str,
    sound: str,
    options: dict[str, str],
    exact: bool,
    video_start: float,
    sound_start: float,
) -> None:
    sight = "vp9" if ending == "webm" else "h264"
    path = make(
        tmp_path / f"a.{ending}",
        sight,
        sound,
        video_start=video_start,
        sound_start=sound_start,
        options=options,
    )
    first = min(video_start, sound_start)
    with media(path) as file:
        ahead = video_start - first
        seen = sight_lag(file, np.arange(ahead, ahead + 1.9, 0.09))
        assert seen[1] - seen[0] < 2e-3
        later = sound_start - first
        heard = sound_lag(file, [later + start for start in [0.0, 0.5, 0.93, 1.2]], later)
        assert heard[1] - heard[0] < 2e-3
        assert heard[0] - later == pytest.approx(seen[0] - ahead, abs=3e-3)
        # Files that begin anywhere count from their own beginning, but for encoders' delays.
        if exact:
            assert seen[0] - ahead == pytest.approx(0.0, abs=0.025)
        assert file.length == pytest.approx(2.0 + abs(video_start - sound_start), abs=0.08)


@pytest.mark.parametrize("cut", [0.1, 0.5, 1.0])
def test_an_edit_list_that_cuts_off_the_beginning(tmp_path: Path, cut: float) -> None:
    path = make(tmp_path / "a.mp4", "h264", "pcm")
    with media(path) as file:
        unit = file.container.streams.video[0].time_base
    data = bytearray(path.read_bytes())
    # Version, count, how long it lasts, and where in the stream it begins: the video's is first.
    at = data.index(b"elst") + 16
    begin = int.from_bytes(data[at : at + 4], "big") + round(cut / unit)
    data[at : at + 4] = begin.to_bytes(4, "big")
    path.write_bytes(bytes(data))
    with media(path) as file:
        for number in range(round(cut * FPS), FRAMES, 2):
            began, found = shown_at(file, number / FPS - cut + 0.01)
            assert found == number
            assert began == pytest.approx(number / FPS - cut, abs=1e-3)
        low, high = sound_lag(file, [0.0, 0.1, 0.5, 0.93, 1.2])
        assert max(abs(low), abs(high)) < 2e-3  # the sound's list is as it was


@pytest.mark.parametrize(("sight", "sound"), [("h264", "aac"), ("h265", "mp3"), ("mpeg4", "aac")])
def test_mpeg_ts_begins_anywhere(tmp_path: Path, sight: str, sound: str) -> None:
    path = make(tmp_path / "a.ts", sight, sound, video_start=7.5, sound_start=7.5, gop=12)
    with media(path) as file:
        assert file.origin > 7
        seen = sight_lag(file, np.arange(0.04, 1.9, 0.037))
        heard = sound_lag(file, [0.0, 0.3, 0.5, 0.93, 1.1])
        assert max(*seen, *heard) - min(*seen, *heard) < 2e-3
        # Before the first sound is what its encoder put before it.
        assert seen[0] == pytest.approx(0.0, abs=0.03)


@pytest.mark.parametrize(("ending", "sight"), [("mkv", "h265"), ("mp4", "av1"), ("webm", "vp9")])
def test_a_rate_that_varies(tmp_path: Path, ending: str, sight: str) -> None:
    gaps = np.random.default_rng(0).choice([0.01, 0.02, 0.033, 0.05, 0.2], FRAMES - 1)
    times = np.concatenate([[0.0], np.cumsum(gaps)])
    path = write(
        tmp_path / f"a.{ending}", frames=FRAMES, times=list(times), gop=24, **VIDEO_CODECS[sight]
    )
    with media(path) as file:
        for number in range(0, FRAMES - 1, 3):
            for time in [times[number], times[number] + 0.005, times[number + 1] - 0.005]:
                assert shown_at(file, time) == (pytest.approx(times[number], abs=2e-3), number)


@pytest.mark.parametrize(
    ("ending", "parameters"),
    [
        ("mp4", {"codec": "libx264", "pixels": "yuv444p"}),
        # x265 and SVT-AV1 make none so small.
        ("mkv", {"codec": "libx265", "pixels": "yuv444p", "size": (97, 71)}),
        ("webm", {"codec": "libvpx-vp9"}),
        ("mp4", {"codec": "libsvtav1", "size": (99, 77)}),
        ("avi", {"codec": "mpeg4", "b_frames": 2}),
        ("mov", {"codec": "mjpeg"}),
        ("mkv", {"codec": "ffv1", "pixels": "yuv420p"}),
    ],
)
@pytest.mark.parametrize("size", [(63, 47), (47, 81)])
def test_odd_sizes(
    tmp_path: Path, ending: str, parameters: dict[str, Any], size: tuple[int, int]
) -> None:
    path = write(tmp_path / f"a.{ending}", frames=9, **{"size": size, **parameters})
    whole = min(parameters.get("size", size))
    with media(path) as file:
        assert (file.container.streams.video[0].width % 2) == 1
        clip = Video(frames=9, short_side=whole, crop=whole).read(file, Window(0.0, 0.0), None)
    # The square from the middle holds the same blocks of the short side, others of the long one.
    side = parameters.get("size", size)
    expected = [numbered_frame(number, *side) for number in range(9)]
    top, left = (side[1] - whole) // 2, (side[0] - whole) // 2
    for frame, full in zip(clip.numpy(), expected, strict=True):
        cut = full[top : top + whole, left : left + whole]
        assert np.abs(frame.astype(int) - cut).mean() < 12


@pytest.mark.parametrize(
    ("ending", "codec", "pixels"),
    [
        ("mp4", "libx264", "yuv420p10le"),
        ("mp4", "libx265", "yuv420p10le"),
        ("mkv", "libx265", "yuv422p12le"),
        ("webm", "libsvtav1", "yuv420p10le"),
        ("mov", "prores_ks", "yuv422p10le"),
        ("mkv", "ffv1", "yuv444p16le"),
        ("mkv", "ffv1", "gray"),
    ],
)
def test_ten_bits_and_other_depths(tmp_path: Path, ending: str, codec: str, pixels: str) -> None:
    path = write(tmp_path / f"a.{ending}", frames=30, codec=codec, pixels=pixels)
    with media(path) as file:
        _, frame = next(frames_from(file, 0.0))
        assert frame.format.name == pixels
        clip = Video(frames=30, short_side=SIDE, crop=SIDE).read(file, Window(0.0, 0.0), None)
    assert [number_of(frame) for frame in clip.numpy()] == list(range(30))
    assert abs(float(clip[5][:16, :16].float().mean()) - 225) < 6  # bit 0 of 5 is white
    assert abs(float(clip[4][:16, :16].float().mean()) - 25) < 6


@pytest.mark.parametrize(
    ("ending", "codec", "encoder"),
    [
        ("mp4", "libx264", {"x264-params": "interlaced=1"}),
        ("ts", "mpeg2video", {"flags": "+ildct+ilme"}),
        ("mov", "prores_ks", {"flags": "+ildct"}),
    ],
)
def test_interlaced(tmp_path: Path, ending: str, codec: str, encoder: dict[str, str]) -> None:
    pixels = "yuv422p10le" if codec == "prores_ks" else "yuv420p"
    path = write(tmp_path / f"a.{ending}", frames=60, codec=codec, pixels=pixels, encoder=encoder)
    with media(path) as file:
        _, frame = next(frames_from(file, 0.5))
        assert frame.interlaced_frame
        for number in [0, 13, 30, 58]:
            assert shown_at(file, number / FPS) == (pytest.approx(number / FPS, abs=1e-3), number)


COLOURS = np.array([[200, 40, 40], [40, 180, 60], [50, 60, 210], [230, 230, 40], [128, 128, 128]])
_KR_KB = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722), "bt2020": (0.2627, 0.0593)}
# As ITU-T H.273 numbers them.
_MATRIX = {"bt601": 6, "bt709": 1, "bt2020": 9}


def yuv(rgb: np.ndarray, matrix: str, full: bool) -> np.ndarray:
    """``[3]`` uint8: the definition of BT.601, 709 and 2020, of limited or full range."""
    kr, kb = _KR_KB[matrix]
    red, green, blue = rgb / 255
    luma = kr * red + (1 - kr - kb) * green + kb * blue
    chroma = np.array([(blue - luma) / (2 - 2 * kb), (red - luma) / (2 - 2 * kr)])
    y, uv = (255 * luma, 255 * chroma) if full else (16 + 219 * luma, 224 * chroma)
    return np.round(np.array([y, *(uv + 128)])).astype(np.uint8)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("matrix", list(_KR_KB))
def test_colours_by_matrix_and_range(tmp_path: Path, matrix: str, full: bool) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=FPS, options={"qp": "1", "preset": "ultrafast"})
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        stream.codec_context.colorspace = _MATRIX[matrix]
        stream.codec_context.color_range = 2 if full else 1
        for colour in COLOURS:
            planes = [
                np.full((side, side), value, np.uint8)
                for value, side in zip(
                    yuv(colour, matrix, full), [SIDE, SIDE // 2, SIDE // 2], strict=True
                )
            ]
            frame = av.VideoFrame.from_ndarray(
                np.concatenate([plane.reshape(-1, SIDE) for plane in planes]), format="yuv420p"
            )
            frame.colorspace, frame.color_range = _MATRIX[matrix], 2 if full else 1
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    with media(path) as file:
        _, frame = next(frames_from(file, 0.0))
        assert (frame.colorspace, frame.color_range) == (_MATRIX[matrix], 2 if full else 1)
        clip = Video(frames=len(COLOURS), short_side=SIDE, crop=SIDE).read(
            file, Window(0.0, 0.0), None
        )
    found = clip.numpy().astype(float).mean((1, 2))
    assert np.abs(found - COLOURS).max() < 4


def test_pixels_that_are_not_square(tmp_path: Path) -> None:
    # 64 by 64 pixels, shown as 128 by 64: the middle square is the middle half of the columns.
    path = tmp_path / "a.mp4"
    image = numbered_frame(0b0110_1010_0110_1100)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=FPS, options={"preset": "ultrafast"})
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        stream.codec_context.sample_aspect_ratio = stream.sample_aspect_ratio = 2
        out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        out.mux(stream.encode(None))
    with media(path) as file:
        clip = Video(frames=1, short_side=SIDE, crop=SIDE).read(file, Window(0.0, 0.0), None)
    expected = np.repeat(image[:, SIDE // 4 : -SIDE // 4], 2, axis=1)
    assert np.abs(clip[0].numpy().astype(int) - expected).mean() < 12


RATES = [8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000]


@pytest.mark.parametrize(
    ("ending", "codec", "layout", "rate"),
    [
        (*form, layout, rate)
        for form in [("mp4", "aac"), ("mkv", "flac"), ("mov", "pcm_s16le"), ("avi", "libmp3lame")]
        for layout in ["mono", "stereo", "5.1"]
        for rate in RATES
        # MP3 has neither more channels than two nor higher rates.
        if form[1] != "libmp3lame" or (rate <= 48_000 and layout != "5.1")
    ],
)
def test_sampling_rates_and_channels(
    tmp_path: Path, ending: str, codec: str, rate: int, layout: str
) -> None:
    channels = {"mono": 1, "stereo": 2, "5.1": 6}[layout]
    # Each channel has clicks of its own, so that none is lost and none alone counts.
    sound = np.stack([clicks([0.2 + 0.25 * c, 1.9], 2.5, rate) for c in range(channels)])
    path = write(tmp_path / f"a.{ending}", sound=sound, rate=rate, sound_codec=codec, layout=layout)
    expected = [0.2 + 0.25 * c for c in range(channels)]
    with media(path) as file:
        heard = pcm(file, 0.0, 40_000, 16_000)
        loud = np.abs(heard).max()
        delay = 0.0
        if ending == "avi":  # which keeps the encoder's delay, 1105 samples or half a frame more
            delay = click_times(heard, 16_000)[-1] - 1.9
            assert 0 <= delay < 1_700 / rate
        for time in expected:
            near = np.abs(heard[int((time + delay - 0.01) * 16_000) :][:320])
            if channels == 6 and codec == "aac" and time == expected[3]:
                continue  # the fourth is for low notes only, and AAC keeps no others there
            assert near.max() > 0.3 * loud / channels
            assert int(near.argmax()) / 16_000 - 0.01 == pytest.approx(0.0, abs=2e-3)


def test_the_first_of_several_sound_tracks(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as out:
        streams = [out.add_stream("flac", rate=16_000, layout="mono") for _ in range(2)]
        for stream, time in zip(streams, [0.5, 1.5], strict=True):
            pulse = (clicks([time], 2.0, 16_000) * 32_000).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(pulse[None], format="s16", layout="mono")
            frame.sample_rate, frame.pts = 16_000, 0
            out.mux([*stream.encode(frame), *stream.encode(None)])
    with media(path) as file:
        assert len(file.container.streams.audio) == 2
        heard = click_times(pcm(file, 0.0, 32_000, 16_000), 16_000)
    assert heard == pytest.approx([0.5], abs=1e-3)


def test_a_picture_before_the_video_is_passed_over(tmp_path: Path) -> None:
    plain = make(tmp_path / "plain.mp4", "h264", "aac")
    path = tmp_path / "a.mp4"
    with av.open(str(plain)) as source, av.open(str(path), "w") as out:
        picture = out.add_stream("mjpeg", rate=1)
        picture.width, picture.height, picture.pix_fmt = 32, 32, "yuvj420p"
        picture.disposition = av.stream.Disposition.attached_pic
        copies = [out.add_stream_from_template(stream) for stream in source.streams]
        out.mux(picture.encode(av.VideoFrame(32, 32, "yuvj420p")))
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = copies[packet.stream_index]
                out.mux(packet)
    with media(path) as file:
        pictures = [
            bool(stream.disposition & av.stream.Disposition.attached_pic)
            for stream in file.container.streams.video
        ]
        assert sorted(pictures) == [False, True]
        for number in [0, 20, 50]:
            assert shown_at(file, number / FPS)[1] == number


def test_sound_that_goes_on_after_the_video_in_matroska(tmp_path: Path) -> None:
    """Which says only among its tags when a stream ends: the clip stays within the frames."""
    path = write(tmp_path / "a.mkv", frames=30, sound=clicks([0.5, 1.5], 1.8, 16_000), rate=16_000)
    video = Video(frames=8, fps=30, short_side=SIDE, crop=SIDE)
    with media(path) as file:
        assert file.container.streams.video[0].duration is None
        shown = video.read(file, Window(1.3, 8 / 30), None).numpy()
    assert [number_of(frame) for frame in shown] == list(range(22, 30))


@pytest.mark.parametrize("rotation", [90, 180, -90])
@pytest.mark.parametrize("ending", ["mp4", "mov", "mkv"])
def test_rotation_is_turned_back(tmp_path: Path, ending: str, rotation: int) -> None:
    path = write(tmp_path / f"a.{ending}", frames=5, rotation=rotation)
    with media(path) as file:
        clip = Video(frames=5, short_side=SIDE, crop=SIDE).read(file, Window(0.0, 0.0), None)
    # Display rotation is counter-clockwise, as numpy's from rows to columns.
    turned = np.rot90(clip.numpy(), -rotation // 90, axes=(1, 2))
    assert [number_of(frame) for frame in turned] == list(range(5))
