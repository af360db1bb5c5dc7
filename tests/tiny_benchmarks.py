"""Published datasets' folders with a sample or two a class and empty files: enough for a plan."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mmssl_media.benchmarks.kinetics import SOUNDS


def _write(file: Path, lines: Sequence[str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines) + "\n")


def _touch(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()


def _kinetics(folder: Path) -> None:
    classes = [*SOUNDS, *(f"class {number:03d}" for number in range(len(SOUNDS), 400))]
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


def _charades(folder: Path) -> None:
    classes = [f"c{number:03d} Doing {number}" for number in range(157)]
    _write(folder / "Charades_v1_classes.txt", classes)
    for split in ("train", "test"):
        rows = [f"{split}1,c000 0.00 9.00;c156 1.00 2.00", f"{split}2,c001 0.00 30.00"]
        _write(folder / f"Charades_v1_{split}.csv", ["id,actions", *rows])
        for number in (1, 2):
            _touch(folder / f"Charades_v1_480/{split}{number}.mp4")


def _moments_in_time(folder: Path) -> None:
    classes = [f"class {number:03d}" for number in range(339)]
    _write(folder / "moments_categories.txt", [f"{name},{n}" for n, name in enumerate(classes)])
    for split in ("training", "validation"):
        rows = [f"{name}/{split}.mp4,{name},1,0" for name in classes]
        _write(folder / f"{split}Set.csv", rows)
        for name in classes:
            _touch(folder / split / f"{name}/{split}.mp4")


def _howto100m(folder: Path) -> None:
    narration = {"start": [0, 4, 8], "end": [4, 8, 12], "text": ["peel it", "cut it", "eat it"]}
    _write(folder / "caption.json", [json.dumps({"one": narration, "two": narration})])
    for video in ("one", "two"):
        _touch(folder / f"videos/{video}.mp4")


def _youcook2(folder: Path) -> None:
    steps = [{"segment": [0, 9], "sentence": "peel it"}, {"segment": [9, 20], "sentence": "cut it"}]
    videos = {"one": {"subset": "validation", "annotations": steps}}
    _write(folder / "youcookii_annotations_trainval.json", [json.dumps({"database": videos})])
    _touch(folder / "raw_videos/one.mp4")


def _msrvtt(folder: Path) -> None:
    rows = ["key,vid_key,video_id,sentence", "0,msr1,video1,a cook", "1,msr2,video2,a dog"]
    _write(folder / "MSRVTT_JSFUSION_test.csv", rows)
    for number in (1, 2):
        _touch(folder / f"videos/video{number}.mp4")


def _vocabulary(file: Path) -> None:
    _write(file, ["it", "cut", "peel", "eat", "cook", "dog"])


def _word2vec(file: Path) -> None:
    """As many vectors as VATT has, all zeros: a file without contents on most disks."""
    memory = np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=(2**16, 300))
    memory.flush()


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
    "CHARADES": _charades,
    "MOMENTS_IN_TIME": _moments_in_time,
    "HOWTO100M": _howto100m,
    "YOUCOOK2": _youcook2,
    "MSRVTT": _msrvtt,
    "VOCABULARY": _vocabulary,
    "WORD2VEC": _word2vec,
    "IG65M_TRAIN": _ig65m,
}


def benchmarks(folder: Path) -> dict[str, str]:
    """Where `make_benchmarks` puts what recipes read, by the variables that they name."""
    places = {name: folder / name.lower() for name in _MAKERS}
    places["IG65M_TRAIN"] = folder / "ig65m.csv"
    places["VOCABULARY"] = folder / "words.txt"
    places["WORD2VEC"] = folder / "vectors.npy"
    for name in ("KINETICS600", "KINETICS700", "KINETICS_30S"):
        places[name] = places["KINETICS"]
    return {name: str(place) for name, place in places.items()}


def make_benchmarks(folder: Path) -> dict[str, str]:
    """Make them, and say where."""
    places = benchmarks(folder)
    for name, make in _MAKERS.items():
        make(Path(places[name]))
    return places
