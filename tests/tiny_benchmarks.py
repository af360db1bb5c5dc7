"""Published datasets' folders with a sample or two a class and empty files: enough for a plan."""

from collections.abc import Sequence
from pathlib import Path


def _write(file: Path, lines: Sequence[str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines) + "\n")


def _touch(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()


def _kinetics(folder: Path) -> None:
    classes = [f"class {number:03d}" for number in range(400)]
    for split in ("train", "val"):
        rows = [f"{name},{split}_{n:04d},0,10,{split}" for n, name in enumerate(classes)]
        header = "label,youtube_id,time_start,time_end,split"
        _write(folder / f"{split}.csv", [header, *rows])
        for number in range(len(classes)):
            _touch(folder / split / f"{split}_{number:04d}_000000_000010.mp4")


def _audioset(folder: Path) -> None:
    ids = [f"/m/{number:05d}" for number in range(527)]
    named = [f'{n},{mid},"Sound {n}"' for n, mid in enumerate(ids)]
    _write(folder / "class_labels_indices.csv", ["index,mid,display_name", *named])
    for letter, split in zip("bue", ("balanced_train", "unbalanced_train", "eval"), strict=True):
        videos = [f"{letter}{number:010d}" for number in range(2)]
        rows = [f'{video}, 0.000, 10.000, "{ids[n]},{ids[-1]}"' for n, video in enumerate(videos)]
        _write(folder / f"{split}_segments.csv", ["# YTID, start, end, labels", *rows])
        for video in videos:
            _touch(folder / split / f"{video}.mp4")


def _imagenet(folder: Path) -> None:
    for split in ("train", "val"):
        for wnid in ("n00000001", "n00000002"):
            _touch(folder / split / wnid / f"{wnid}_{split}.JPEG")


def _ucf101(folder: Path) -> None:
    classes = [f"Action{number:03d}" for number in range(101)]
    numbered = list(enumerate(classes, 1))
    _write(folder / "ucfTrainTestlist/classInd.txt", [f"{n} {name}" for n, name in numbered])
    for fold in (1, 2, 3):
        train = [f"{name}/v_{name}_train.avi {n}" for n, name in numbered]
        test = [f"{name}/v_{name}_test.avi" for name in classes]
        _write(folder / f"ucfTrainTestlist/trainlist0{fold}.txt", train)
        _write(folder / f"ucfTrainTestlist/testlist0{fold}.txt", test)
    for name in classes:
        for split in ("train", "test"):
            _touch(folder / f"UCF-101/{name}/v_{name}_{split}.avi")


def _hmdb51(folder: Path) -> None:
    for name in [f"action_{number:02d}" for number in range(51)]:
        for fold in (1, 2, 3):
            file = folder / f"testTrainMulti_7030_splits/{name}_test_split{fold}.txt"
            _write(file, [f"{name}_a.avi 1 ", f"{name}_b.avi 2 "])
        for video in "ab":
            _touch(folder / f"videos/{name}/{name}_{video}.avi")


def _esc50(folder: Path) -> None:
    rows = ["filename,fold,target,category,esc10,src_file,take"]
    for fold in range(1, 6):
        for target in range(50):
            name = f"{fold}-{target:03d}-A-{target}.wav"
            rows.append(f"{name},{fold},{target},sound {target},False,0,A")
            _touch(folder / "audio" / name)
    _write(folder / "meta/esc50.csv", rows)


def _dcase(folder: Path) -> None:
    for part in ("scenes_stereo", "scenes_stereo_testset"):
        for name in ("bus", "busystreet", "office", "openairmarket", "park", "quietstreet"):
            _touch(folder / part / f"{name}01.wav")
        for name in ("restaurant", "supermarket", "tube", "tubestation"):
            _touch(folder / part / f"{name}01.wav")


def _ig65m(file: Path) -> None:
    _write(file, ["path", "a.mp4", "b.mp4"])


_MAKERS = {
    "KINETICS": _kinetics,
    "AUDIOSET": _audioset,
    "IMAGENET": _imagenet,
    "UCF101": _ucf101,
    "HMDB51": _hmdb51,
    "ESC50": _esc50,
    "DCASE": _dcase,
    "IG65M_TRAIN": _ig65m,
}


def benchmarks(folder: Path) -> dict[str, str]:
    """Where `make_benchmarks` puts what XDC's recipes read, by the variables that they name."""
    places = {name: folder / name.lower() for name in _MAKERS}
    places["IG65M_TRAIN"] = folder / "ig65m.csv"
    return {name: str(place) for name, place in places.items()}


def make_benchmarks(folder: Path) -> dict[str, str]:
    """Make them, and say where."""
    places = benchmarks(folder)
    for name, make in _MAKERS.items():
        make(Path(places[name]))
    return places
