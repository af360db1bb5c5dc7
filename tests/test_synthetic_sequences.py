"""Made-up sequences: real files of twelve classes that only the order of events tells apart."""

from collections import Counter
from collections.abc import Callable
from itertools import permutations
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from mmssl.contracts import Window
from mmssl.data.media import Media
from mmssl.training.progress import Silent
from mmssl_media.audio import Audio
from mmssl_media.synthetic_clips import Format
from mmssl_media.synthetic_sequences import (
    ORDERS,
    SyntheticSequences,
    draw_heard,
    draw_sight,
    events_of,
    orders_of,
)
from mmssl_media.video import Video

CLASS_COUNT = 12
SECONDS = 9


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MMSSL_CACHE", str(tmp_path))
    return tmp_path


def test_orders_are_the_six_of_three_and_neighbours_differ_by_an_exchange() -> None:
    assert sorted(ORDERS) == sorted(permutations(range(3)))
    for here, following in zip(ORDERS, [*ORDERS[1:], ORDERS[0]], strict=True):
        differ = [i for i in range(3) if here[i] != following[i]]
        assert differ in ([0, 1], [1, 2])


def test_each_order_in_one_modality_leaves_two_classes_and_both_leave_one() -> None:
    orders = [orders_of(label) for label in range(CLASS_COUNT)]
    assert len(set(orders)) == CLASS_COUNT
    for modality in (0, 1):
        assert set(Counter(pair[modality] for pair in orders).values()) == {2}


@pytest.mark.parametrize("seconds", [SECONDS, 2 * SECONDS])
def test_no_second_and_no_bag_of_seconds_tells_the_class(seconds: int) -> None:
    bags = []
    for label in range(CLASS_COUNT):
        seen, heard = events_of(label, seconds)
        assert len(seen) == len(heard) == seconds
        bags.append(Counter(zip(seen, heard, strict=True)))
    # Every class has the same bag, of all nine pairs of a sight and a sound alike.
    assert all(bag == bags[0] for bag in bags)
    assert set(bags[0].values()) == {seconds // 9}
    assert len(bags[0]) == 9


def test_events_follow_their_orders() -> None:
    names = SyntheticSequences().classes
    assert len(set(names)) == CLASS_COUNT
    seen, heard = events_of(names.index("see CAB, hear cba"), SECONDS)
    assert "".join("ABC"[i] for i in seen) == "CABCABCAB"
    assert "".join("abc"[i] for i in heard) == "cccbbbaaa"


def test_every_class_stands_once_in_each_run_of_twelve() -> None:
    dataset = SyntheticSequences(videos=48, seed=3)
    labels = [dataset.sample(i).label for i in range(48)]
    runs = [labels[i : i + 12] for i in range(0, 48, 12)]
    assert all(sorted(run) == list(range(12)) for run in runs)  # type: ignore[type-var]
    assert len({tuple(run) for run in runs}) == 4


def test_videos_are_a_function_of_split_seed_and_row() -> None:
    first, again = SyntheticSequences(), SyntheticSequences(videos=3)
    for one, other in zip(first.draw(2), again.draw(2), strict=True):
        assert np.array_equal(one, other)
    frames, sound = first.draw(2)
    assert (frames.shape, frames.dtype) == ((36, 16, 16, 3), np.uint8)
    assert (sound.shape, sound.dtype) == ((72_000,), np.float32)
    assert np.abs(sound).max() <= 1
    others = [(SyntheticSequences(split="test"), 2), (SyntheticSequences(seed=1), 2), (first, 3)]
    for dataset, row in others:
        for one, other in zip(first.draw(2), dataset.draw(row), strict=True):
            assert not np.array_equal(one, other)


def test_splits_seeds_and_formats_have_folders_of_their_own(cache: Path) -> None:
    others: list[dict[str, object]] = [
        {},
        {"split": "test"},
        {"seed": 1},
        {"fps": 8},
        {"side": 18},
        {"seconds": 18},
        {"rate": 16_000},
    ]
    folders = {SyntheticSequences(**fields).folder for fields in others}  # type: ignore[arg-type]
    assert len(folders) == len(others)
    assert all(folder.is_relative_to(cache) for folder in folders)
    assert SyntheticSequences(videos=5).folder == SyntheticSequences(videos=6).folder


def test_no_two_seconds_look_or_sound_alike() -> None:
    frames, sound = SyntheticSequences().draw(0)
    seconds = [frames[4 * t : 4 * t + 4].tobytes() for t in range(SECONDS)]
    assert len(set(seconds)) == SECONDS
    rate = 8000
    assert len({sound[rate * t : rate * t + rate].tobytes() for t in range(SECONDS)}) == SECONDS
    # No sound reaches into the next second.
    edges = [abs(sound[rate * t + at]) for t in range(SECONDS) for at in (0, -1)]
    assert max(edges) < 0.01 * np.abs(sound).max()


def test_only_missing_files_are_written_and_they_come_out_alike(cache: Path) -> None:
    dataset = SyntheticSequences(videos=3)
    dataset.materialise(Silent())
    paths = [Path(str(dataset.sample(i).media)) for i in range(3)]
    assert sorted(dataset.folder.iterdir()) == paths
    before = [(path.stat().st_mtime_ns, path.read_bytes()) for path in paths]
    paths[1].unlink()
    SyntheticSequences(videos=3).materialise(Silent())
    after = [(path.stat().st_mtime_ns, path.read_bytes()) for path in paths]
    assert [b for _, b in before] == [a for _, a in after]
    assert [i for i in range(3) if before[i][0] != after[i][0]] == [1]


def test_both_orders_can_be_read_from_the_files(cache: Path) -> None:
    dataset = SyntheticSequences(videos=24, side=32, fps=8)
    dataset.materialise(Silent())
    look, listen = _reader(_looks), _reader(_sounds)
    right = 0
    for row in range(len(dataset)):
        sample = dataset.sample(row)
        frames, sound = _decoded(str(sample.media))
        assert (sample.start, sample.end) == (1, 10)  # before it is nothing
        assert frames.shape == (80, 32, 32, 3)
        assert frames[:8].mean() < 5
        frames, sound = frames[8:], sound[8000:]
        seen = [look(frames[8 * t : 8 * t + 8]) for t in range(SECONDS)]
        heard = [listen(sound[8000 * t : 8000 * t + 8000]) for t in range(SECONDS)]
        orders = (_order(seen, [0, 1, 2] * 3), _order(heard, [0, 0, 0, 1, 1, 1, 2, 2, 2]))
        right += orders == orders_of(sample.label or 0)
    assert right >= 23


def test_seconds_are_read_as_they_were_drawn_the_first_like_the_others(cache: Path) -> None:
    dataset = SyntheticSequences(videos=4)
    dataset.materialise(Silent())
    video = Video(frames=36, fps=4, short_side=16, crop=16)
    audio = Audio(seconds=SECONDS, rate=8000, mels=20, window_ms=40, hop_ms=40)
    apart = []
    for row in range(4):
        frames, sound = dataset.draw(row)
        window = Window(start=1, seconds=SECONDS)
        with Media(dataset.sample(row)) as media:
            seen = video.read(media, window, None).numpy()
            heard = audio.read(media, window, None)
        spectra = audio.prepare(torch.stack([heard, torch.from_numpy(sound)]), None)
        assert spectra.shape == (2, 1, 20, 25 * SECONDS)
        looks = np.abs(seen.astype(int) - frames).mean((1, 2, 3)).reshape(SECONDS, 4).mean(1)
        sounds = (spectra[0] - spectra[1]).abs().mean((0, 1)).reshape(SECONDS, 25).amax(1)
        apart.append([looks, sounds.numpy()])
    looks, sounds = np.array(apart).mean(0)
    assert max(looks) < 15
    assert looks[0] < 1.5 * max(looks[1:])
    assert sounds[0] < 0.3  # a lost beginning is 1 or more
    assert max(sounds) < 0.6


def _decoded(path: str) -> tuple[np.ndarray, np.ndarray]:
    with av.open(path) as file:
        video, audio = file.streams.video[0], file.streams.audio[0]
        assert (video.codec_context.name, audio.codec_context.name) == ("h264", "aac")
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video)]
    with av.open(path) as file:
        heard = list(file.decode(audio=0))
    sound = np.concatenate([frame.to_ndarray()[0] for frame in heard])
    early = -(heard[0].pts or 0)  # what the coder puts before the beginning
    return np.stack(frames), sound[early : early + 8000 * (1 + SECONDS)]


def _looks(clip: np.ndarray) -> np.ndarray:
    """How a second's grey values change over time, across and down, and how they are spread."""
    grey = clip.mean(3)
    grey = (grey - grey.mean()) / (grey.std() + 1e-6)
    changes = [np.abs(np.diff(grey, axis=axis)).mean() for axis in (0, 1, 2)]
    return np.log(
        [*changes, grey.mean((1, 2)).std() + 1e-3, grey.mean(1).std(), grey.mean(2).std()]
    )


def _sounds(clip: np.ndarray) -> np.ndarray:
    """How flat a second's spectrum is, how it varies, and how its loudness does."""
    frames = clip[: len(clip) // 250 * 250].reshape(-1, 250)
    power = np.abs(np.fft.rfft(frames * np.hanning(250))) ** 2 + 1e-9
    bands = np.log(power[:, 1:121].reshape(len(frames), 24, 5).mean(2))
    level = bands.mean(1)
    peak = bands.argmax(1)
    return np.array(
        [level.std(), bands.std(1).mean(), bands.std(0).mean(), peak.std(), peak.mean()]
    )


def _reader(
    measure: Callable[[np.ndarray], np.ndarray],
) -> Callable[[np.ndarray], np.ndarray]:
    """How well a second fits each of three events: its distance from measures of other clips."""
    form = Format(32, 8, 1.0, 8000)
    draw = draw_sight if measure is _looks else draw_heard
    known = np.array([[measure(draw(form, 99, i, event)) for i in range(60)] for event in range(3)])
    centres, spread = known.mean(1), known.std(1).mean(0)
    return lambda clip: -(((measure(clip) - centres) / spread) ** 2).sum(1)


def _order(scores: list[np.ndarray], places: list[int]) -> int:
    """The index of the order that fits best, of which each second shows a place."""
    fits = [
        sum(each[order[place]] for each, place in zip(scores, places, strict=True))
        for order in ORDERS
    ]
    return int(np.argmax(fits))
