"""What is read is what was asked for: frame numbers, clicks, presentation times."""

from itertools import islice
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.frame import PictureType
from media_files import SIDE, click_times, clicks, number_of, write

from mmssl import BadMedia, Media, MissingModality, Sample, Window
from mmssl.data.loading import Views, training_window
from mmssl_media.audio import Audio
from mmssl_media.decode import frames_from, pcm
from mmssl_media.video import Video

CLICKS = [0.2, 0.5, 1.1, 1.9, 2.6, 3.3, 4.7]


def media(path: Path, start: float = 0.0, end: float | None = None) -> Media:
    return Media(Sample("x", str(path), start, end))


def small_video(**parameters: object) -> Video:
    return Video(short_side=SIDE, crop=SIDE, **parameters)  # type: ignore[arg-type]


def numbers(clip: object) -> list[int]:
    return [number_of(frame) for frame in np.asarray(clip)]


@pytest.mark.parametrize(
    ("ending", "codec", "gop", "b_frames"),
    [
        ("mp4", "libx264", 12, 0),
        ("mp4", "libx264", 250, 3),
        ("mp4", "libx264", 12, 2),
        ("mkv", "libx264", 250, 3),
        ("webm", "libvpx-vp9", 30, 0),
        ("avi", "mpeg4", 12, 0),
        ("mov", "mjpeg", 1, 0),
        ("ts", "libx264", 12, 0),
        ("ts", "libx264", 250, 3),
    ],
)
def test_every_frame_is_found_by_its_time(
    tmp_path: Path, ending: str, codec: str, gop: int, b_frames: int
) -> None:
    path = write(
        tmp_path / f"a.{ending}", frames=90, fps=30, codec=codec, gop=gop, b_frames=b_frames
    )
    with media(path) as file:
        for wanted in [0, 1, 11, 12, 13, 44, 60, 88]:
            frames = frames_from(file, wanted / 30)
            found = [number_of(next(frames)[1].to_ndarray(format="rgb24")) for _ in range(2)]
            assert found == [wanted, wanted + 1]


@pytest.mark.parametrize(
    ("ending", "codec", "b_frames"),
    [("mp4", "libx264", 3), ("mkv", "libx264", 2), ("avi", "mpeg4", 2)],
)
def test_a_frame_that_was_sought_equals_the_one_decoded_in_order(
    tmp_path: Path, ending: str, codec: str, b_frames: int
) -> None:
    path = write(
        tmp_path / f"a.{ending}", frames=90, fps=30, codec=codec, gop=250, b_frames=b_frames
    )
    with av.open(str(path)) as container:
        decoded = list(container.decode(video=0))
        in_order = [frame.to_ndarray(format="rgb24") for frame in decoded]
    assert len(in_order) == 90
    assert PictureType.B in {frame.pict_type for frame in decoded}
    with media(path) as file:
        for wanted in range(0, 90, 7):
            (_, first), (_, second) = islice(frames_from(file, wanted / 30), 2)
            at = number_of(first.to_ndarray(format="rgb24"))
            assert np.array_equal(first.to_ndarray(format="rgb24"), in_order[at])
            assert np.array_equal(second.to_ndarray(format="rgb24"), in_order[at + 1])
            assert at == wanted


@pytest.mark.parametrize(("gop", "b_frames"), [(12, 0), (250, 3)])
def test_clip_is_consecutive_frames_around_the_windows_middle(
    tmp_path: Path, gop: int, b_frames: int
) -> None:
    path = write(tmp_path / "a.mp4", frames=90, fps=30, gop=gop, b_frames=b_frames)
    video = small_video(frames=8)
    with media(path) as file:
        for middle in [0.5, 1.0, 2.1]:
            first = round(middle * 30) - 4
            clip = video.read(file, Window(middle - 1.0, 2.0), None)
            assert numbers(clip) == list(range(first, first + 8))
        # At the ends of the file the clip stays inside.
        assert numbers(video.read(file, Window(0.0, 0.0), None)) == list(range(8))
        assert numbers(video.read(file, Window(3.0, 0.0), None)) == list(range(82, 90))


def test_stride_and_rate_choose_frames(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", frames=90, fps=30)
    with media(path) as file:
        strided = small_video(frames=4, stride=3).read(file, Window(1.0, 0.4), None)
        assert numbers(strided) == [30, 33, 36, 39]
        # At 12 fps the instants 1 + k / 12 show frame floor(30 + 2.5 k).
        resampled = small_video(frames=6, fps=12).read(file, Window(1.0, 0.5), None)
        assert numbers(resampled) == [30, 32, 35, 37, 40, 42]
        # Faster than the file: frames repeat.
        repeated = small_video(frames=4, fps=60).read(file, Window(1.0, 4 / 60), None)
        assert numbers(repeated) == [30, 30, 31, 31]


@pytest.mark.parametrize(("gop", "b_frames"), [(4, 0), (250, 3)])
def test_variable_frame_rate_shows_what_is_on_screen(
    tmp_path: Path, gop: int, b_frames: int
) -> None:
    times = [0.0, 0.1, 0.2, 1.0, 1.05, 1.1, 2.0, 2.5]
    path = write(tmp_path / "a.mp4", frames=8, times=times, gop=gop, b_frames=b_frames)
    with media(path) as file:
        clip = small_video(frames=10, fps=5).read(file, Window(0.0, 2.0), None)
        instants = np.arange(10) / 5
        expected = [max(i for i, t in enumerate(times) if t <= x + 1e-6) for x in instants]
        assert numbers(clip) == expected


def test_short_video_goes_on_with_its_last_frame(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", frames=3, fps=30)
    with media(path) as file:
        assert numbers(small_video(frames=6).read(file, Window(0.0, 1.0), None)) == [
            *[0, 1, 2],
            *[2, 2, 2],
        ]
        assert numbers(small_video(frames=6, fps=15).read(file, Window(0.0, 1.0), None)) == [
            *[0, 2, 2],
            *[2, 2, 2],
        ]


def test_clip_holds_nothing_from_outside_its_sample(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.mp4", frames=90, fps=30, sound=clicks([0.5, 1.5, 2.5], 3, 16_000), rate=16_000
    )
    with media(path, start=1.0, end=1.1) as file:
        assert file.end == pytest.approx(1.1)
        clip = small_video(frames=6).read(file, Window(1.0, 2.0), None)
        assert numbers(clip) == [30, 31, 32, 32, 32, 32]
    with media(path, start=1.0, end=2.0) as file:
        sound = Audio(seconds=2.0).read(file, Window(1.0, 2.0), None).numpy()
        assert click_times(sound.copy(), 16_000) == pytest.approx([0.5], abs=1e-3)
        assert not sound[16_000:].any()
    with media(path, start=5.0) as file, pytest.raises(BadMedia, match="ends at 3"):
        file.end  # noqa: B018


@pytest.mark.parametrize("rate", [{}, {"fps": 6}, {"fps": 30}, {"stride": 5}])
def test_clip_ends_with_its_sample(tmp_path: Path, rate: dict[str, float]) -> None:
    path = write(tmp_path / "a.mp4", frames=90, fps=30)
    video = small_video(frames=20, **rate)
    for start in [0.0, 1.0]:
        with media(path, start=start, end=start + 0.5) as file:
            shown = numbers(video.read(file, Window(start, video.seconds), None))
        step = 30 // rate["fps"] if "fps" in rate else rate.get("stride", 1)
        first = round(start * 30)
        # By the clock the sample's last frame goes on, else the last one of the stride.
        last = first + (14 if "fps" in rate else 15 - step)
        assert shown == [min(first + k * step, last) for k in range(20)]


@pytest.mark.parametrize("rate", [{}, {"fps": 10}])
@pytest.mark.parametrize("ending", ["mkv", "mp4"])
def test_sample_before_the_video_begins(
    tmp_path: Path, ending: str, rate: dict[str, float]
) -> None:
    path = write(
        tmp_path / f"a.{ending}",
        frames=30,
        times=[5.0 + k / 30 for k in range(30)],
        sound=clicks([0.5], 6.0, 16_000),
        rate=16_000,
    )
    video = small_video(frames=4, **rate)
    for start, end in [(0.0, 0.5), (0.0, 2.0), (4.5, 4.8), (0.0, None)]:
        for seconds in [video.seconds, 0.5]:
            if (end, seconds) == (None, 0.0):
                continue  # a point in the whole file is mapped onto its frames
            with (
                media(path, start, end) as file,
                pytest.raises(MissingModality, match="no video between"),
            ):
                video.read(file, Window(start, seconds), None)
    with media(path) as file:
        assert numbers(small_video(frames=4).read(file, Window(0.0, 0.0), None)) == [0, 1, 2, 3]


@pytest.mark.parametrize("rate", [{}, {"fps": 15}])
@pytest.mark.parametrize("ending", ["mkv", "mp4"])
def test_sight_is_missing_where_it_is_far_from_the_sound(
    tmp_path: Path, ending: str, rate: dict[str, float]
) -> None:
    path = write(
        tmp_path / f"a.{ending}",
        frames=60,
        times=[2.0 + k / 30 for k in range(60)],
        sound=clicks([0.5, 5.5], 6.0, 16_000),
        rate=16_000,
    )
    # The clip of about half a second is in the middle of two, the frames between 2 and 4 s.
    video = small_video(frames=round(0.5 * rate.get("fps", 30)), **rate)
    read, missing = [], []
    with media(path) as file:
        for tenth in range(41):
            window = Window(tenth / 10, 2.0)
            assert Audio(seconds=2.0).read(file, window, None).shape == (32_000,)
            try:
                shown = numbers(video.read(file, window, None))
            except MissingModality as error:
                assert "no video" in str(error)  # noqa: PT017
                missing.append(tenth)
                continue
            read.append(tenth)
            wanted = tenth / 10 + 0.75
            assert 2.0 + shown[0] / 30 == pytest.approx(wanted, abs=1.05)
            if 2.0 <= wanted <= 3.5:
                assert 2.0 + shown[0] / 30 == pytest.approx(wanted, abs=0.04)
    # Within 1 s of the frames.
    assert read == list(range(read[0], read[-1] + 1))
    assert read[0] in (3, 4)
    assert read[-1] in (37, 38)
    assert len(read) + len(missing) == 41


def test_views_of_a_recipe_without_windows_are_evenly_spaced(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", frames=90, fps=30)
    video = small_video(frames=32)
    with media(path) as file:
        firsts, drawn = [], []
        for view in range(10):
            window = Views(10).window(view, file.start, file.end, video.seconds)
            shown = numbers(video.read(file, window, None))
            assert shown == list(range(shown[0], shown[0] + 32))
            firsts.append(shown[0])
        rng = np.random.default_rng(0)
        for _ in range(40):
            window = training_window(file.start, file.end, video.seconds, rng)
            drawn.append(numbers(video.read(file, window, None))[0])
    assert firsts[0] == 0
    assert firsts[-1] == 58
    assert set(np.diff(firsts)) <= {6, 7}
    assert sum(first in (0, 58) for first in drawn) <= 4


def test_clip_longer_than_the_window_covers_it(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", frames=90, fps=30)
    with media(path) as file:
        for tenth in range(26):
            start = tenth / 10
            shown = numbers(small_video(frames=30).read(file, Window(start, 0.5), None))
            assert shown[0] == pytest.approx(start / 2.5 * 60, abs=1)
            assert shown[0] / 30 <= start + 0.001
            assert shown[-1] / 30 + 1 / 30 >= start + 0.5 - 0.034


def test_central_clip_of_a_file_shorter_than_the_window(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", frames=30, fps=30, sound=clicks([0.5], 1.0, 44_100))
    with media(path, end=1.0) as file:
        window = Views().window(0, file.start, file.end, 2.0)
        assert numbers(small_video(frames=8).read(file, window, None)) == list(range(11, 19))
        sound = Audio(seconds=2.0).read(file, window, None).numpy()
        assert click_times(sound, 16_000) == pytest.approx([0.5], abs=1e-3)
        rng = np.random.default_rng(0)
        firsts = set()
        for _ in range(20):
            window = training_window(file.start, file.end, 2.0, rng)
            firsts.add(numbers(small_video(frames=8).read(file, window, None))[0])
    assert len(firsts) > 8


@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_rotated_video_is_turned_upright(tmp_path: Path, rotation: int) -> None:
    size = (2 * SIDE, SIDE)
    plain = write(tmp_path / "plain.mp4", frames=5, size=size)
    turned = write(tmp_path / "turned.mp4", frames=5, size=size, rotation=rotation)
    video = small_video(frames=4)
    with media(plain) as file:
        expected = video.read(file, Window(0.0, 0.0), None)
    with media(turned) as file:
        clip = video.read(file, Window(0.0, 0.0), None)
    # Display rotation is counter-clockwise, as numpy's from rows to columns.
    assert np.array_equal(clip, np.rot90(expected, rotation // 90, axes=(1, 2)))


@pytest.mark.parametrize(
    ("ending", "codec", "rate", "layout"),
    [
        ("mp4", "aac", 44_100, "mono"),
        ("mp4", "aac", 16_000, "mono"),
        ("mp4", "aac", 48_000, "stereo"),
        ("mp4", "aac", 48_000, "5.1"),
        ("mkv", "libopus", 48_000, "mono"),
        ("mkv", "flac", 44_100, "stereo"),
        ("mp3", "libmp3lame", 44_100, "stereo"),
        ("wav", "pcm_s16le", 8_000, "mono"),
        ("wav", "pcm_u8", 22_050, "mono"),
        ("wav", "pcm_f32le", 96_000, "stereo"),
    ],
)
def test_sound_is_on_time(tmp_path: Path, ending: str, codec: str, rate: int, layout: str) -> None:
    channels = {"mono": 1, "stereo": 2, "5.1": 6}[layout]
    sound = np.tile(clicks(CLICKS, 5.0, rate), (channels, 1))
    path = write(tmp_path / f"a.{ending}", sound=sound, rate=rate, sound_codec=codec, layout=layout)
    with media(path) as file:
        for start in [0.0, 0.37, 1.0, 1.62, 2.9]:
            found = pcm(file, start, 32_000, 16_000)
            assert found.shape == (32_000,)
            assert found.dtype == np.float32
            expected = [t for t in CLICKS if start + 0.005 < t < start + 1.995]
            times = [start + t for t in click_times(found.copy(), 16_000)]
            # Matroska rounds both the times and Opus's delay to a millisecond.
            error = 1.5e-3 if codec == "libopus" else 1e-3
            assert times == pytest.approx(expected, abs=error)


def test_sound_is_exact_where_nothing_is_lossy(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sound = np.round(rng.uniform(-0.9, 0.9, (2, 80_000)) * 32768).astype(np.float32) / 32768
    path = write(
        tmp_path / "a.wav", sound=sound, rate=16_000, sound_codec="pcm_s16le", layout="stereo"
    )
    with media(path) as file:
        for start in [0, 12_345, 70_000]:
            expected = np.zeros(16_000, np.float32)
            part = sound.mean(0)[start : start + 16_000]
            expected[: len(part)] = part
            found = pcm(file, start / 16_000, 16_000, 16_000)
            assert np.abs(found - expected).max() < 1e-6


def test_resampling_keeps_a_tone(tmp_path: Path) -> None:
    at = np.arange(5 * 44_100) / 44_100
    path = write(
        tmp_path / "a.wav", sound=0.5 * np.sin(2 * np.pi * 440 * at), sound_codec="pcm_f32le"
    )
    with media(path) as file:
        for start in [0.0, 1.2345]:
            found = pcm(file, start, 16_000, 16_000)
            wanted = 0.5 * np.sin(2 * np.pi * 440 * (start + np.arange(16_000) / 16_000))
            # Within the native sample that the start is rounded to.
            assert np.abs(found[200:-200] - wanted[200:-200]).max() < 0.02


def test_sight_and_sound_of_a_clip_cover_the_same_seconds(tmp_path: Path) -> None:
    sound = clicks(CLICKS, 5.0, 44_100)
    path = write(tmp_path / "a.mp4", frames=150, fps=30, gop=250, b_frames=3, sound=sound)
    video, audio = small_video(frames=20, fps=10), Audio(seconds=2.0)
    with media(path) as file:
        for start in [0.0, 0.9, 1.7, 3.0]:
            window = Window(start, 2.0)
            shown = np.array(numbers(video.read(file, window, None))) / 30
            assert shown == pytest.approx(start + np.arange(20) / 10, abs=0.001)
            heard = click_times(audio.read(file, window, None).numpy(), 16_000)
            expected = [t for t in CLICKS if start + 0.005 < t < start + 1.995]
            assert [start + t for t in heard] == pytest.approx(expected, abs=0.001)


def test_modalities_share_one_open_file(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.mp4", frames=60, fps=30, sound=clicks([1.0], 2.0, 16_000), rate=16_000
    )
    video, audio = small_video(frames=8), Audio(seconds=1.0)
    with media(path) as file:
        container = file.container
        clips = [video.read(file, Window(0.5, 1.0), None) for _ in range(2)]
        sounds = [audio.read(file, Window(0.5, 1.0), None) for _ in range(2)]
        assert file.container is container
    assert np.array_equal(*clips)
    assert np.array_equal(*sounds)
    with pytest.raises(AssertionError, match="not open"):
        container.seek(0)


def test_cover_art_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "a.mp3"
    plain = write(
        tmp_path / "plain.mp3", sound=clicks([0.5], 1.0, 44_100), sound_codec="libmp3lame"
    )
    with av.open(str(plain)) as source, av.open(str(path), "w", format="mp3") as out:
        copy = out.add_stream_from_template(source.streams.audio[0])
        picture = out.add_stream("mjpeg", rate=1)
        picture.width, picture.height, picture.pix_fmt = 64, 64, "yuvj420p"
        picture.disposition = av.stream.Disposition.attached_pic
        for packet in picture.encode(av.VideoFrame(64, 64, "yuvj420p")):
            out.mux(packet)
        for packet in source.demux(source.streams.audio[0]):
            if packet.dts is not None:
                packet.stream = copy
                out.mux(packet)
    with media(path) as file:
        assert len(file.container.streams.video) == 1
        with pytest.raises(MissingModality):
            small_video().read(file, Window(0.0, 1.0), None)
        assert Audio(seconds=1.0).read(file, Window(0.0, 1.0), None).abs().max() > 0.3


def test_clip_is_moved_to_a_video_that_begins_late(tmp_path: Path) -> None:
    sound = clicks([0.5, 2.0], 3.0, 16_000)
    path = write(
        tmp_path / "a.mkv",
        frames=30,
        times=[1.0 + k / 30 for k in range(30)],
        sound=sound,
        rate=16_000,
        sound_codec="flac",
    )
    with media(path) as file:
        assert file.origin == 0.0
        clip = small_video(frames=4, fps=5).read(file, Window(0.6, 0.8), None)
        assert numbers(clip) == [0, 6, 12, 18]
        heard = Audio(seconds=1.0).read(file, Window(1.5, 1.0), None).numpy()
        assert click_times(heard, 16_000) == pytest.approx([0.5], abs=1e-3)


def test_length_of_a_streamed_file_without_duration(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mkv", frames=60, fps=30, options={"live": "1"})
    with media(path) as file:
        assert file.container.duration is None
        assert file.end == pytest.approx(2.0, abs=0.05)
        assert numbers(small_video(frames=4).read(file, Window(1.0, 0.0), None)) == [28, 29, 30, 31]


def test_a_seek_that_lands_within_a_frame_of_sound(tmp_path: Path) -> None:
    """MPEG-PS has no index: the first piece after a seek may be the rest of a frame."""
    sound = clicks([0.5, 1.5, 2.5], 3.0, 44_100)
    path = write(tmp_path / "a.mpg", frames=90, codec="mpeg2video", sound=sound, sound_codec="mp2")
    for start, expected in [(0.3, 0.5), (1.0, 1.5), (1.4, 1.5), (2.0, 2.5)]:
        with Media(Sample("x", str(path))) as media:
            (found,) = click_times(pcm(media, start, 12_800, 16_000), 16_000)
        # The encoder's own delay, 481 samples, is nowhere in the file.
        assert found + start == pytest.approx(expected + 481 / 44_100, abs=0.002)


def write_sound(path: Path, codec: str, sound: np.ndarray, bit_rate: int) -> Path:
    """As `write` does, mono of 44100 Hz, for encoders that want a bit rate."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=44_100, layout="mono", bit_rate=bit_rate)
        frame = av.AudioFrame.from_ndarray(sound[None].astype(np.float32), "fltp", "mono")
        frame.sample_rate = 44_100
        resampler = av.AudioResampler(format=stream.format, layout="mono", rate=44_100)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            out.mux(stream.encode(part))
        out.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("bit_rate", [0, 128_000, 192_000])
def test_sound_of_mpeg_ps_is_complete_from_anywhere(tmp_path: Path, bit_rate: int) -> None:
    """What looks like the beginning of a frame, within one, is none."""
    at = np.arange(4 * 44_100) / 44_100
    tone = 0.125 * np.sin(2 * np.pi * 440 * at)
    path = tmp_path / "a.mpg"
    if bit_rate:
        write_sound(path, "mp2", tone, bit_rate)
    else:
        write(
            path,
            frames=120,
            codec="mpeg2video",
            sound=np.stack([tone, tone]),
            sound_codec="mp2",
            layout="stereo",
        )
    with media(path) as file:
        whole = pcm(file, 0.0, 4 * 44_100, 44_100)
        for start in range(0, 3 * 44_100, 2205):
            found = pcm(file, start / 44_100, 11_025, 44_100)
            assert np.abs(found - whole[start : start + 11_025]).max() < 1e-3, start


@pytest.mark.parametrize(("ending", "codec"), [("wma", "wmav2"), ("wav", "adpcm_ms")])
def test_sound_without_a_time_follows_the_one_before(
    tmp_path: Path, ending: str, codec: str
) -> None:
    """A packet's second frame, and the one that the decoder kept until the end."""
    path = write_sound(
        tmp_path / f"a.{ending}", codec, clicks([0.5, 1.5, 2.97], 3.0, 44_100), 128_000
    )
    with av.open(str(path)) as container:
        decoded = list(container.decode(audio=0))
    assert None in {frame.pts for frame in decoded}
    with media(path) as file:
        whole = pcm(file, 0.0, round(3.3 * 44_100), 44_100)
        delay = 2048 / 44_100 if codec == "wmav2" else 0.0  # the encoder's, nowhere in the file
        assert click_times(whole.copy(), 44_100)[:2] == pytest.approx(
            [0.5 + delay, 1.5 + delay], abs=0.002
        )
        for start in [0.4, 1.4, 2.6, 2.8]:
            found = pcm(file, start, round(0.4 * 44_100), 44_100)
            first = round(start * 44_100)
            assert click_times(found.copy(), 44_100) == pytest.approx(
                click_times(whole[first : first + len(found)].copy(), 44_100), abs=0.002
            )


def test_video_that_begins_after_the_sound_in_flv(tmp_path: Path) -> None:
    """FLV cannot seek to before a stream's first packet."""
    path = write(
        tmp_path / "a.flv",
        frames=60,
        codec="flv1",
        sound=clicks([0.5], 2.0, 44_100),
        sound_codec="libmp3lame",
        video_start=0.025,
    )
    with media(path) as file:
        assert file.container.streams.video[0].start_time > 0
        for time, expected in [(0.0, 0), (0.02, 0), (1.06, 30), (0.01, 0)]:
            _, frame = next(frames_from(file, time))
            assert number_of(frame.to_ndarray(format="rgb24")) == expected
        assert numbers(small_video(frames=4).read(file, Window(0.0, 0.0), None)) == [0, 1, 2, 3]
