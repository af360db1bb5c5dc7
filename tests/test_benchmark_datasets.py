"""Published datasets, in tiny trees of their official formats."""

import csv
import io
import json
import os
import pickle
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import media_files
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Picture
from scipy.io import savemat
from small_runs import RECIPE
from typer.testing import CliRunner

from mmssl import UserError
from mmssl.cli import app
from mmssl.contracts import IGNORE, Dataset
from mmssl.data.loading import ClipReader, Views
from mmssl.recipe import load
from mmssl.registry import discover
from mmssl.training.progress import Advance, Silent
from mmssl_media.benchmarks import howto100m
from mmssl_media.benchmarks.audioset import AudioSet
from mmssl_media.benchmarks.charades import Charades, Interval, intervals
from mmssl_media.benchmarks.dcase2014 import DCASE2014
from mmssl_media.benchmarks.esc50 import ESC50
from mmssl_media.benchmarks.hmdb51 import HMDB51
from mmssl_media.benchmarks.howto100m import HowTo100M
from mmssl_media.benchmarks.imagenet import ImageNet
from mmssl_media.benchmarks.kinetics import SOUNDS, Kinetics, KineticsSounds
from mmssl_media.benchmarks.moments import MomentsInTime
from mmssl_media.benchmarks.msrvtt import MSRVTT
from mmssl_media.benchmarks.ucf101 import UCF101
from mmssl_media.benchmarks.youcook2 import YouCook2
from mmssl_media.video import Video


class Said(Silent):
    """Whoever watches, and writes down what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.read = 0

    def say(self, text: str) -> None:
        self.lines.append(text)

    def task(self, title: str, total: int, done: int = 0) -> AbstractContextManager[Advance]:
        def advance(count: int = 1, **figures: str) -> None:
            self.read += count

        return nullcontext(advance)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MMSSL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def touch(folder: Path, *names: str) -> None:
    """Files of no media: datasets read none."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def write(folder: Path, name: str, text: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8", newline="")


def ids(data: Dataset) -> list[str]:
    return [data.sample(row).id for row in range(len(data))]


def classes_of(data: Dataset) -> list[str]:
    """The class of each row by name."""
    found = [data.sample(row).label for row in range(len(data))]
    assert data.labels().tolist() == [IGNORE if label is None else label for label in found]
    return ["" if label is None else data.classes[label] for label in found]


def all_of(data: Dataset) -> list[set[str] | None]:
    """The classes of each row by name."""
    found = [data.sample(row).labels for row in range(len(data))]
    assert data.labels().tolist() == [IGNORE] * len(data)
    return [None if several is None else {data.classes[n] for n in several} for several in found]


# The trees -----------------------------------------------------------------------------------

HOSTILE = 'v_"Punch", ü; #1_g01_c01'


def ucf101(folder: Path) -> Path:
    write(folder, "ucfTrainTestlist/classInd.txt", "1 YoYo\r\n2 Archery\r\n3 HandstandPushups\r\n")
    for fold in "123":
        train = [f"YoYo/v_YoYo_g0{fold}_c01.avi 1", "HandstandPushups/v_HandStandPushups_g1.avi 3"]
        test = [f"YoYo/{HOSTILE}.avi", "Archery/v_Archery_g01_c01.avi"]
        write(folder, f"ucfTrainTestlist/trainlist0{fold}.txt", "\r\n".join(train) + "\r\n")
        write(folder, f"ucfTrainTestlist/testlist0{fold}.txt", "\r\n".join(test) + "\r\n")
    touch(
        folder / "UCF-101",
        *[f"YoYo/v_YoYo_g0{fold}_c01.avi" for fold in "123"],
        f"YoYo/{HOSTILE}.avi",
        "HandstandPushups/v_HandStandPushups_g1.avi",
        "Archery/v_Archery_g01_c01.avi",
    )
    return folder


def hmdb51(folder: Path) -> Path:
    splits = folder / "testTrainMulti_7030_splits"
    # A name that two classes have, as only the folder tells them apart.
    names = ["#437_How_To_(1)_0.avi", "same_1.avi", "c_2.avi", "unused_3.avi"]
    for label in ("wave", "brush_hair"):
        for fold in (1, 2, 3):
            uses = [*np.roll([1, 1, 2], fold).tolist(), 0]
            text = "".join(f"{name} {use} \n" for name, use in zip(names, uses, strict=True))
            write(splits, f"{label}_test_split{fold}.txt", text)
        touch(folder / "videos" / label, *names)
    return folder


def esc50(folder: Path) -> Path:
    rows = ["filename,fold,target,category,esc10,src_file,take"]
    for target, name in ((2, "vacuum_cleaner"), (0, "dog"), (1, "chirping_birds")):
        for fold in range(1, 6):
            rows.append(f"{fold}-100-A-{target}.wav,{fold},{target},{name},True,100,A")
            touch(folder, f"audio/{fold}-100-A-{target}.wav")
    write(folder, "meta/esc50.csv", "\n".join(rows) + "\n")
    return folder


def dcase2014(folder: Path) -> Path:
    touch(folder / "scenes_stereo", "bus01.wav", "busystreet07.wav", "tube03.wav")
    touch(folder / "scenes_stereo_testset", "tubestation10.wav", "bus02.wav")
    return folder


def kinetics(folder: Path) -> Path:
    header = "label,youtube_id,time_start,time_end,split,is_cc"
    train = [
        "singing,--aaaaaaaaa,5,15,train,0",
        '"massaging person\'s head",bbbbbbbbbbb,0,10,train,0',
        "tap dancing,ccccccccccc,100,110,train,1",
        "zumba,deleted0000,3,13,train,0",
    ]
    val = ["tap dancing,ddddddddddd,7,17,val,0", "abseiling,eeeeeeeeeee,0,10,val,0"]
    write(folder, "train.csv", "\n".join([header, *train]) + "\n")
    write(folder, "validate.csv", "\n".join([header, *val]) + "\n")
    write(folder, "test.csv", "youtube_id,time_start,time_end,split\nfffffffffff,1,11,test\n")
    touch(
        folder / "train",
        "singing/--aaaaaaaaa_000005_000015.mp4",
        "massaging person's head/bbbbbbbbbbb_000000_000010.mkv",
        "ccccccccccc_000100_000110.mp4",
        "ccccccccccc_000101_000111.mp4",
    )
    touch(folder, "val/ddddddddddd_000007_000017.mp4", "val/x/eeeeeeeeeee_000000_000010.webm")
    touch(folder, "test/fffffffffff_000001_000011.mp4")
    return folder


AUDIO_CLASSES = """\
index,mid,display_name
0,/m/09x0r,"Speech"
1,/m/05zppz,"Male speech, man speaking"
2,/m/04rlf,Music
"""
SEGMENTS = """\
# Segments csv created Sun Mar  5 10:54:31 2017
# num_ytids=3, num_segs=3, num_unique_labels=3, num_positive_labels=5
# YTID, start_seconds, end_seconds, positive_labels
"""


def audioset(folder: Path) -> Path:
    write(folder, "class_labels_indices.csv", AUDIO_CLASSES)
    rows = {
        "balanced_train": '--PJHxphWEs, 30.000, 40.000, "/m/09x0r,/m/05zppz"\n'
        'Yxxxxxxxxx0, 0.000, 10.000, "/m/04rlf"\n'
        'deleted0000, 0.000, 10.000, "/m/04rlf"\n',
        "unbalanced_train": 'zzzzzzzzzzQ, 3.500, 13.500, "/m/04rlf,/m/09x0r"\n',
        "eval": '-0DLPzsiXXE, 20.000, 30.000, "/m/04rlf"\n',
    }
    for split, text in rows.items():
        write(folder, f"{split}_segments.csv", SEGMENTS + text)
    touch(
        folder,
        "clips/--PJHxphWEs.wav",
        "clips/--PJHxphWEs_30.000_40.000.mp4",
        "clips/Yxxxxxxxxx0_0_10.wav",
        "clips/YzzzzzzzzzzQ_3500_13500.flac",
        "eval/-0DLPzsiXXE.mp4",
    )
    return folder


def charades(folder: Path) -> Path:
    text = "c001 Closing; or opening a door\nc000 Holding some clothes\nc002 Sitting/standing\n"
    write(folder, "Charades_v1_classes.txt", text)
    header = ["id", "subject", "script", "actions", "length"]
    train = [
        ["46GP8", "HR43", 'A person, "cooking".\nThen not.', "c002 11.90 21.20;c000 0.00 12.60", 9],
        ["N11GT", "0KZ7", "", "", "18.33"],
    ]
    test = [["0IH69", "IQ9J", "x", "c000 0.00 13.00;c000 20 21", "30.58"]]
    for split, rows in (("train", train), ("test", test)):
        table = io.StringIO()
        csv.writer(table).writerows([header, *rows])
        write(folder, f"Charades_v1_{split}.csv", table.getvalue())
    touch(folder / "Charades_v1_480", "46GP8.mp4", "N11GT.mp4", "0IH69.mp4")
    return folder


def moments_in_time(folder: Path) -> Path:
    write(folder, "moments_categories.txt", "clapping,2\nadult+female+singing,1\nzipping,0\n")
    train = "clapping/getty-1.mp4,clapping,3,1\nadult+female+singing/a b.mp4,adult+female+singing,3"
    write(folder, "trainingSet.csv", train + ",0\n")
    write(folder, "validationSet.csv", "clapping/v.mp4,clapping,3,1\n")
    touch(folder / "training", "clapping/getty-1.mp4", "adult+female+singing/a b.mp4")
    touch(folder / "validation", "clapping/v.mp4")
    return folder


def captions(*rows: tuple[float, float, str]) -> dict[str, list[Any]]:
    start, end, text = zip(*rows, strict=True)
    return {"start": list(start), "end": list(end), "text": list(text)}


CAPTIONS = {
    "aaaaaaaaaaa": captions(
        (9.26, 12.5, 'cut "it", then\nserve'),
        (0.1, 4, "first"),
        (20, 30.125, "Käse"),
        (31, 30, "x"),
    ),
    "deleted0000": captions((0, 1, "gone")),
    "bbbbbbbbbbb": captions((5, 6, "other video"), (6, 7, " ")),
}


def howto(folder: Path) -> Path:
    write(folder, "caption.json", json.dumps(CAPTIONS))
    touch(folder, "videos/x/aaaaaaaaaaa.mp4", "videos/bbbbbbbbbbb.webm")
    return folder


def youcook2(folder: Path) -> Path:
    def entry(subset: str, *steps: tuple[list[int], str]) -> dict[str, Any]:
        annotations = [
            {"segment": segment, "id": number, "sentence": sentence}
            for number, (segment, sentence) in enumerate(steps)
        ]
        return {
            "duration": 100.0,
            "subset": subset,
            "recipe_type": "101",
            "annotations": annotations,
        }

    database = {
        "yyyyyyyyyyy": entry("training", ([41, 54], "grill the tomatoes"), ([60, 61], "eat, now")),
        "deleted0000": entry("training", ([1, 2], "gone")),
        "vvvvvvvvvvv": entry("validation", ([0, 3], "wash")),
    }
    write(folder, "youcookii_annotations_trainval.json", json.dumps({"database": database}))
    touch(folder / "raw_videos", "training/101/yyyyyyyyyyy.mkv", "validation/101/vvvvvvvvvvv.mp4")
    return folder


def msrvtt(folder: Path) -> Path:
    header = "key,vid_key,video_id,sentence\n"
    rows = 'ret0,msr9770,video9770,a person is connecting\nret1,msr7020,video7020,"one, two"\n'
    write(folder, "MSRVTT_JSFUSION_test.csv", header + rows)
    numbers = [("video0", 1), ("video0", 2), ("video9770", 3), ("video1", 4)]
    sentences = [
        {"caption": f"sentence {number}", "video_id": video, "sen_id": number}
        for video, number in numbers
    ]
    write(folder, "annotation/MSRVTT_data.json", json.dumps({"videos": [], "sentences": sentences}))
    touch(folder / "videos/all", *[f"video{n}.mp4" for n in (0, 1, 9770, 7020)])
    return folder


WNIDS = ["n01440764", "n01443537", "n02012849"]


def imagenet(folder: Path) -> Path:
    touch(folder / "train", *[f"{w}/{w}_{n}.JPEG" for w in WNIDS for n in (1, 2)])
    touch(folder / "val", f"{WNIDS[2]}/ILSVRC2012_val_00000001.JPEG")
    touch(folder / "val", f"{WNIDS[0]}/ILSVRC2012_val_00000002.JPEG")
    return folder


def devkit(folder: Path) -> None:
    """Numbers of the classes, which are not in the order of the wnids; 4 is a group of classes."""
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")]
    rows = [(1, WNIDS[2], "crane", 0), (2, WNIDS[0], "tench, Tinca tinca", 0)]
    rows += [(3, WNIDS[1], "goldfish", 0), (4, "n00000004", "fish", 2)]
    data = folder / "ILSVRC2012_devkit_t12/data"
    data.mkdir(parents=True)
    savemat(data / "meta.mat", {"synsets": np.array(rows, kinds)})
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text("2\n1\n3\n")


TREES: dict[str, tuple[Callable[[Path], Path], list[dict[str, Any]]]] = {
    "ucf101": (ucf101, [{"split": s, "fold": f} for s in ("train", "test") for f in (1, 2, 3)]),
    "hmdb51": (hmdb51, [{"split": s, "fold": f} for s in ("train", "test") for f in (1, 2, 3)]),
    "esc50": (esc50, [{"split": s, "fold": f} for s in ("train", "test") for f in range(1, 6)]),
    "dcase2014": (dcase2014, [{"split": s} for s in ("train", "test")]),
    "kinetics": (kinetics, [{"split": s} for s in ("train", "val", "test")]),
    "kinetics_sounds": (kinetics, [{"split": s} for s in ("train", "val")]),
    "audioset": (audioset, [{"split": s} for s in ("train", "balanced_train", "eval")]),
    "charades": (charades, [{"split": s} for s in ("train", "test")]),
    "moments_in_time": (moments_in_time, [{"split": s} for s in ("train", "val")]),
    "howto100m": (howto, [{}]),
    "youcook2": (youcook2, [{"split": s} for s in ("train", "val")]),
    "msrvtt": (msrvtt, [{"split": s} for s in ("train", "test")]),
    "imagenet": (imagenet, [{"split": s} for s in ("train", "val")]),
}


# What is true of all of them -------------------------------------------------------------------


def make(name: str, /, **parameters: Any) -> Dataset:
    made: Dataset = discover().resolve("datasets", name).load()(**parameters)
    return made


@pytest.mark.parametrize("name", TREES)
def test_all(name: str, tmp_path: Path) -> None:
    build, parameters = TREES[name]
    folder = build(tmp_path / "data, ü")
    by_split: dict[str, set[str]] = {}
    for chosen in parameters:
        data = make(name, path=folder, **chosen)
        again = make(name, path=folder, **chosen)
        data.materialise(Silent())
        copy = pickle.loads(pickle.dumps(data))  # noqa: S301
        named = ids(data)
        assert len(set(named)) == len(named) == len(data) > 0
        assert ids(again) == named
        assert data.digest() == again.digest()
        for row in range(len(data)):
            sample = data.sample(row)
            assert copy.sample(row) == sample
            assert sample.media is not None
            assert Path(sample.media).is_file()
        # The same classes whatever the split.
        assert by_split.setdefault("classes", set(data.classes)) == set(data.classes)
        if chosen.get("fold", 1) == 1:
            by_split[chosen.get("split", "")] = set(named)
    disjoint = [by_split[split] for split in ("train", "val", "test", "eval") if split in by_split]
    assert sum(map(len, disjoint)) == len(set().union(*disjoint))


@pytest.mark.parametrize("name", TREES)
def test_all_are_described(name: str) -> None:
    done = CliRunner().invoke(app, ["describe", "dataset", name])
    assert done.exit_code == 0, done.output
    assert f"dataset {name}, from mmssl_media" in done.output
    assert "path: the path of a folder; required" in done.output


@pytest.mark.parametrize("name", TREES)
def test_all_are_used_in_recipes(name: str, tmp_path: Path) -> None:
    build, parameters = TREES[name]
    train = {"use": name, "path": str(build(tmp_path / "data")), **parameters[0]}
    (tmp_path / "r.yaml").write_text(RECIPE)
    recipe = load(str(tmp_path / "r.yaml"), [f"data.train={json.dumps(train)}"])
    assert len(recipe.data.train.build()) > 0
    with pytest.raises(UserError, match=r"data\.train\.path.*folder"):
        load(
            str(tmp_path / "r.yaml"),
            [f"data.train={json.dumps(train | {'path': str(tmp_path / 'none')})}"],
        )


# What is wrong ---------------------------------------------------------------------------------

MISSING = [
    ("ucf101", "ucfTrainTestlist", "UCF101TrainTestSplits-RecognitionTask.zip contains it"),
    ("ucf101", "ucfTrainTestlist/classInd.txt", "RecognitionTask.zip contains it"),
    ("ucf101", "ucfTrainTestlist/trainlist01.txt", "RecognitionTask.zip contains it"),
    ("ucf101", "UCF-101", "has no UCF-101 or videos; UCF101.rar contains it"),
    ("ucf101", "UCF-101/YoYo/v_YoYo_g01_c01.avi", "such as YoYo/v_YoYo_g01_c01.mp4; UCF101.rar"),
    ("hmdb51", "testTrainMulti_7030_splits", "test_train_splits.rar contains it"),
    ("hmdb51", "testTrainMulti_7030_splits/*_split1.txt", "has no <class>_test_split1.txt; test_"),
    ("hmdb51", "videos/wave/c_2.avi", "1 of the 4 files that .* lists are not below it.*org.rar"),
    ("esc50", "meta/esc50.csv", "has no meta/esc50.csv; ESC-50-master.zip contains it"),
    ("esc50", "audio", "has no audio; ESC-50-master.zip contains it"),
    ("esc50", "audio/2-100-A-0.wav", "1 of the 12 files that .*such as 2-100-A-0.wav; ESC-50-mas"),
    ("dcase2014", "scenes_stereo", "has no scenes_stereo; scenes_stereo.zip contains it"),
    (
        "kinetics",
        "train.csv",
        r"has no train.csv; the official archive, such as kinetics700.tar.gz",
    ),
    (
        "kinetics",
        "train",
        "4 of the 4 files that .*such as --aaaaaaaaa_000005_000015.mp4; is `path`",
    ),
    ("kinetics_sounds", "train.csv", "has no train.csv; the official archive"),
    ("audioset", "class_labels_indices.csv", "has no class_labels_indices.csv; it is published"),
    ("audioset", "balanced_train_segments.csv", "has no balanced_train_segments.csv"),
    ("audioset", "clips", "4 of the 4 files .*such as --PJHxphWEs.mp4; is `path` the folder"),
    (
        "charades",
        "Charades_v1_classes.txt",
        "has no Charades_v1_classes.txt; Charades.zip contains",
    ),
    ("charades", "Charades_v1_train.csv", "has no Charades_v1_train.csv; Charades.zip contains it"),
    (
        "charades",
        "Charades_v1_480",
        "has no Charades_v1_480 or Charades_v1 or videos; Charades_v1_",
    ),
    ("charades", "Charades_v1_480/N11GT.mp4", "1 of the 2 files .*N11GT.mp4; Charades_v1_480.zip"),
    ("moments_in_time", "moments_categories.txt", "Moments_in_Time_Raw.zip contains it"),
    ("moments_in_time", "trainingSet.csv", "Moments_in_Time_Raw.zip contains it"),
    ("moments_in_time", "training", "has no training; Moments_in_Time_Raw.zip contains it"),
    (
        "moments_in_time",
        "training/clapping",
        "1 of the 2 files .*clapping/getty-1.mp4; Moments_in_",
    ),
    (
        "howto100m",
        "caption.json",
        "has no caption.json or raw_caption.json; the archive of captions",
    ),
    ("howto100m", "videos", "5 of the 5 files that .*such as aaaaaaaaaaa.mp4"),
    (
        "youcook2",
        "youcookii_annotations_trainval.json",
        "youcookii_annotations_trainval.tar.gz con",
    ),
    ("youcook2", "raw_videos", "3 of the 3 files that .*such as deleted0000.mp4; are they named"),
    (
        "msrvtt",
        "MSRVTT_JSFUSION_test.csv",
        "has no MSRVTT_JSFUSION_test.csv; it is the list of the",
    ),
    ("msrvtt", "annotation", "has no MSRVTT_data.json or train_val_videodatainfo.json; MSRVTT.zip"),
    ("msrvtt", "videos/all/video0.mp4", "2 of the 3 files that .*such as video0.mp4; MSRVTT.zip"),
    ("imagenet", "train", "has no train; ILSVRC2012_img_train.tar contains what belongs there"),
    (
        "imagenet",
        "train/*",
        "has no folder of a class, such as n01440764; ILSVRC2012_img_train.tar",
    ),
]


@pytest.mark.parametrize(("name", "gone", "message"), MISSING)
def test_what_is_missing(name: str, gone: str, message: str, tmp_path: Path) -> None:
    build, parameters = TREES[name]
    folder = build(tmp_path / "data")
    found = list(folder.glob(gone))
    assert found
    for path in found:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    with pytest.raises(UserError, match=message) as error:
        len(make(name, path=folder, **parameters[0]))
    assert str(error.value).startswith(str(folder))
    assert "\n" not in str(error.value)


WRONG = [
    (
        "ucf101",
        "ucfTrainTestlist/classInd.txt",
        "1 A\nB\n",
        r"classInd.txt:2: 'B' is no number and",
    ),
    (
        "esc50",
        "meta/esc50.csv",
        "filename,fold,target,category\n1-100-A-0.wav,2,0,x\n1-100-A-1.wav,2,1,x\n",
        "two classes are named 'x'",
    ),
    (
        "ucf101",
        "ucfTrainTestlist/trainlist01.txt",
        "\nYoYa/a.avi 1\n",
        r"t01.txt:2: 'YoYa/a.avi 1'",
    ),
    ("ucf101", "ucfTrainTestlist/trainlist01.txt", "YoYo/a.avi 3\n", "t01.txt:1: .*names no class"),
    (
        "hmdb51",
        "testTrainMulti_7030_splits/wave_test_split1.txt",
        "a.avi 3\n",
        "split1.txt:1: 'a.a",
    ),
    (
        "esc50",
        "meta/esc50.csv",
        "filename,fold,target\n",
        r"esc50.csv:1: no column 'category'; the",
    ),
    (
        "esc50",
        "meta/esc50.csv",
        "filename,fold,target,category\na,6,0,x\n",
        "esc50.csv:2: fold: '6'",
    ),
    (
        "esc50",
        "meta/esc50.csv",
        "filename,fold,target,category\na,1,x,x\n",
        "csv:2: target: 'x' is",
    ),
    ("esc50", "meta/esc50.csv", "filename,fold,target,category\na,1,0\n", "csv:2: 3 values for 4"),
    (
        "kinetics",
        "train.csv",
        "label,youtube_id,time_start,time_end\na,b,3,x\n",
        "train.csv:2: '3' ",
    ),
    ("kinetics", "train.csv", "youtube_id,time_start\n", "train.csv:1: no column 'time_end'; the"),
    ("kinetics", "train.csv", "", "train.csv:1: no column 'youtube_id'; the columns are none"),
    (
        "audioset",
        "class_labels_indices.csv",
        "index,mid,display_name\nx,y,z\n",
        "csv:2: index: 'x'",
    ),
    ("audioset", "balanced_train_segments.csv", "# a\nb, 1, 2, x, y\n", "csv:2: 5 values instead"),
    (
        "audioset",
        "balanced_train_segments.csv",
        '# a\nb, 1, 2, "/m/0"\n',
        "csv:2: '/m/0' is not in",
    ),
    (
        "audioset",
        "balanced_train_segments.csv",
        '# a\nb, -1, 2, "/m/0"\n',
        "csv:2: '-1' to '2' are",
    ),
    ("audioset", "balanced_train_segments.csv", 'b, 1, 2, "/m', r"csv:\d: unexpected end of data"),
    ("charades", "Charades_v1_classes.txt", "c000\n", "classes.txt:1: 'c000' is no number"),
    ("charades", "Charades_v1_classes.txt", "\n", "classes.txt: names no classes"),
    (
        "charades",
        "Charades_v1_train.csv",
        "id,actions\na,c001 1\n",
        "csv:2: actions: 'c001 1' is no c",
    ),
    (
        "charades",
        "Charades_v1_train.csv",
        "id,actions\na,c999 1 2\n",
        "csv:2: 'c999' is not in Char",
    ),
    ("moments_in_time", "moments_categories.txt", "a,0\nb\n", "categories.txt:2: 'b' is no name"),
    ("moments_in_time", "trainingSet.csv", "clapping/a.mp4\n", "Set.csv:1: is no path and class"),
    ("moments_in_time", "trainingSet.csv", "x/a.mp4,x,1\n", "Set.csv:1: 'x' is not in moments_cat"),
    (
        "howto100m",
        "caption.json",
        "[1]",
        "caption.json: is not JSON of captions by video, from its",
    ),
    (
        "howto100m",
        "caption.json",
        "",
        "caption.json: is not JSON of captions by video, from its begin",
    ),
    (
        "howto100m",
        "caption.json",
        '{"a": {"start": [], "end": [], "text": []}, "b": {',
        "after the",
    ),
    (
        "howto100m",
        "caption.json",
        '{"a": {"start": [1], "end": []}}',
        "'a' has no lists start, end",
    ),
    ("howto100m", "caption.json", '{"a": {"start": [1], "end": [], "text": []}}', "of one length"),
    ("youcook2", "youcookii_annotations_trainval.json", "{\n,", "trainval.json:2: is not JSON"),
    ("youcook2", "youcookii_annotations_trainval.json", "{}", "trainval.json: has no 'database'"),
    (
        "youcook2",
        "youcookii_annotations_trainval.json",
        '{"database": {"v": {}}}',
        "'v' has no sub",
    ),
    (
        "youcook2",
        "youcookii_annotations_trainval.json",
        '{"database": []}',
        "'database' holds no videos",
    ),
    ("msrvtt", "MSRVTT_JSFUSION_test.csv", "key,video_id\n", "test.csv:1: no column 'sentence'"),
    ("msrvtt", "annotation/MSRVTT_data.json", '{"sentences": [{}]}', "sentence 0 has no video_id"),
]


@pytest.mark.parametrize(("name", "file", "text", "message"), WRONG)
def test_what_is_malformed(name: str, file: str, text: str, message: str, tmp_path: Path) -> None:
    build, parameters = TREES[name]
    folder = build(tmp_path / "data")
    (folder / file).write_text(text)
    with pytest.raises(UserError, match=message) as error:
        len(make(name, path=folder, **parameters[0]))
    assert str(error.value).startswith(str(folder))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "file", "line"),
    [
        ("ucf101", "ucfTrainTestlist/trainlist01.txt", 3),
        ("kinetics", "train.csv", 6),
        ("moments_in_time", "trainingSet.csv", 3),
    ],
)
def test_what_is_no_text(name: str, file: str, line: int, tmp_path: Path) -> None:
    build, parameters = TREES[name]
    path = build(tmp_path / "data") / file
    path.write_bytes(path.read_bytes() + b"\xff\xfe\n")
    with pytest.raises(UserError, match=rf"{file}:{line}: is not UTF-8 text"):
        len(make(name, path=tmp_path / "data", **parameters[0]))


def test_a_sample_that_is_listed_twice(tmp_path: Path) -> None:
    folder = esc50(tmp_path)
    with open(folder / "meta/esc50.csv", "a") as file:
        file.write("2-100-A-0.wav,2,0,dog,True,100,A\n")
    with pytest.raises(UserError, match=r"esc50.csv: sample 13: .* is listed already in sample 5"):
        len(ESC50(path=folder, split="train"))


def test_rows_that_a_list_of_the_web_holds_twice(tmp_path: Path) -> None:
    folder = kinetics(tmp_path / "kinetics")
    before = ids(Kinetics(path=folder, split="train"))
    with open(folder / "train.csv", "a") as file:
        file.write("singing,--aaaaaaaaa,5,15,train,0\nzumba,unknown0000,-1,-1,train,0\n")
    data = Kinetics(path=folder, split="train")
    data.materialise(said := Said())
    assert ids(data) == before
    assert said.lines[:2] == [
        f"{folder}/train.csv: 1 rows have no time but -1, and are left out",
        f"{folder}/train.csv: 1 of 5 rows are listed a second time, and are left out",
    ]
    # With another class the same clip is a contradiction.
    with open(folder / "train.csv", "a") as file:
        file.write("zumba,--aaaaaaaaa,5,15,train,0\n")
    with pytest.raises(UserError, match="is listed already in sample 1"):
        len(Kinetics(path=folder, split="train"))
    folder = audioset(tmp_path / "audioset")
    before = ids(AudioSet(path=folder, split="eval"))
    with open(folder / "eval_segments.csv", "a") as file:
        file.write('-0DLPzsiXXE, 20.000, 30.000, "/m/04rlf"\n')
    data = AudioSet(path=folder, split="eval")
    data.materialise(said := Said())
    assert ids(data) == before
    assert "1 of 2 rows are listed a second time" in said.lines[0]


def test_folders_that_are_links(tmp_path: Path) -> None:
    real = imagenet(tmp_path / "real")
    folder = tmp_path / "part"
    (folder / "train").mkdir(parents=True)
    for wnid in WNIDS[:2]:
        (folder / "train" / wnid).symlink_to(real / "train" / wnid)
    data = ImageNet(path=folder, split="train")
    assert classes_of(data) == [wnid for wnid in WNIDS[:2] for _ in (1, 2)]
    assert ids(data) == ids(ImageNet(path=real, split="train"))[:4]
    # Links in circles, to what is found anyway, and to where the folder itself is.
    (folder / "train/again").symlink_to(folder / "train" / WNIDS[0])
    (folder / "train/up").symlink_to(tmp_path)
    (real / "train" / WNIDS[0] / "circle").symlink_to(real / "train" / WNIDS[0])
    (real / "train" / WNIDS[1] / "other").symlink_to(real / "train" / WNIDS[0])
    assert ids(ImageNet(path=folder, split="train")) == ids(data)
    (folder / "train" / WNIDS[2]).mkdir()
    with pytest.raises(
        UserError, match=rf"1 folders of classes hold no picture, such as {WNIDS[2]}"
    ):
        len(ImageNet(path=folder, split="train"))


def test_a_folder_that_cannot_be_listed_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = kinetics(tmp_path)
    scandir = os.scandir

    def refusing(path: str) -> Any:
        if str(path).endswith("lost+found"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    (folder / "val/lost+found").mkdir()
    monkeypatch.setattr(os, "scandir", refusing)
    data = Kinetics(path=folder, split="val")
    data.materialise(said := Said())
    assert said.lines == [
        f"{folder}/val/lost+found cannot be listed (Permission denied): what is in it is left out"
    ]


# Each of them ----------------------------------------------------------------------------------


def test_ucf101(tmp_path: Path) -> None:
    folder = ucf101(tmp_path)
    train = UCF101(path=folder, split="train", fold=2)
    assert train.classes == ("YoYo", "Archery", "HandstandPushups")
    assert ids(train) == ["YoYo/v_YoYo_g02_c01.avi", "HandstandPushups/v_HandStandPushups_g1.avi"]
    assert classes_of(train) == ["YoYo", "HandstandPushups"]
    test = UCF101(path=folder, split="test")
    assert ids(test) == [f"YoYo/{HOSTILE}.avi", "Archery/v_Archery_g01_c01.avi"]
    assert test.sample(0).media == str(folder / "UCF-101/YoYo" / f"{HOSTILE}.avi")
    assert classes_of(test) == ["YoYo", "Archery"]
    # Copies in another format, in the folder that tools call so.
    (folder / "UCF-101").rename(folder / "videos")
    for path in list((folder / "videos").glob("*/*")):
        path.rename(path.with_suffix(".mp4"))
    assert ids(UCF101(path=folder, split="test"))[1] == "Archery/v_Archery_g01_c01.mp4"


def test_hmdb51(tmp_path: Path) -> None:
    folder = hmdb51(tmp_path)
    train = HMDB51(path=folder, split="train", fold=3)
    assert train.classes == ("brush_hair", "wave")
    assert ids(train) == [
        f"{label}/{name}"
        for label in train.classes
        for name in ("#437_How_To_(1)_0.avi", "same_1.avi")
    ]
    assert classes_of(train) == ["brush_hair"] * 2 + ["wave"] * 2
    assert ids(HMDB51(path=folder, split="test", fold=3)) == [f"{c}/c_2.avi" for c in train.classes]
    # In folders of classes beside the lists, too.
    for path in list((folder / "videos").iterdir()):
        path.rename(folder / path.name)
    (folder / "videos").rmdir()
    assert ids(HMDB51(path=folder, split="train", fold=3)) == ids(train)


def test_esc50(tmp_path: Path) -> None:
    folder = esc50(tmp_path)
    train, test = (ESC50(path=folder, split=split, fold=4) for split in ("train", "test"))
    assert train.classes == test.classes == ("dog", "chirping_birds", "vacuum_cleaner")
    assert ids(test) == ["4-100-A-2.wav", "4-100-A-0.wav", "4-100-A-1.wav"]
    assert test.labels().tolist() == [2, 0, 1]
    assert len(train) == 12
    assert not any(name.startswith("4") for name in ids(train))


def test_dcase2014(tmp_path: Path) -> None:
    folder = dcase2014(tmp_path)
    train, test = (DCASE2014(path=folder, split=split) for split in ("train", "test"))
    assert len(train.classes) == 10
    assert train.classes == test.classes == tuple(sorted(train.classes))
    assert classes_of(train) == ["bus", "busystreet", "tube"]
    assert classes_of(test) == ["bus", "tubestation"]
    touch(folder, "scenes_stereo/buss01.wav")
    with pytest.raises(UserError, match=r"buss01.wav is not named by a class"):
        len(DCASE2014(path=folder, split="train"))


def test_kinetics(tmp_path: Path) -> None:
    folder = kinetics(tmp_path)
    train = Kinetics(path=folder, split="train")
    said = Said()
    train.materialise(said)
    assert said.lines == [
        f"{folder}/train.csv: 1 of 4 are left out, as their files are not below {folder}/train, "
        "such as deleted0000_000003_000013.mp4"
    ]
    assert train.classes == (
        "abseiling", "massaging person's head", "singing", "tap dancing", "zumba"
    )  # fmt: skip
    assert ids(train) == [
        "--aaaaaaaaa_000005_000015", "bbbbbbbbbbb_000000_000010", "ccccccccccc_000100_000110"
    ]  # fmt: skip
    assert classes_of(train) == ["singing", "massaging person's head", "tap dancing"]
    sample = train.sample(1)
    assert sample.media is not None
    assert sample.media.endswith("/train/massaging person's head/bbbbbbbbbbb_000000_000010.mkv")
    assert (sample.start, sample.end) == (0.0, None)
    val = Kinetics(path=folder, split="val")
    val.materialise(silent := Said())
    assert silent.lines == []
    assert classes_of(val) == ["tap dancing", "abseiling"]
    assert val.classes == train.classes
    test = Kinetics(path=folder, split="test")
    assert classes_of(test) == [""]
    assert test.classes == train.classes


def test_kinetics_with_lists_and_videos_in_other_folders(tmp_path: Path) -> None:
    folder = kinetics(tmp_path)
    expected = ids(Kinetics(path=folder, split="train"))
    (folder / "annotations").mkdir()
    for path in list(folder.glob("*.csv")):
        path.rename(folder / "annotations" / path.name)
    (folder / "train").rename(folder / "videos")
    assert ids(Kinetics(path=folder, split="train")) == expected


def test_kinetics_sounds(tmp_path: Path) -> None:
    assert len(set(SOUNDS)) == len(SOUNDS) == 32
    assert sorted(SOUNDS) == SOUNDS
    folder = kinetics(tmp_path)
    train, val = (KineticsSounds(path=folder, split=split) for split in ("train", "val"))
    assert train.classes == val.classes == tuple(SOUNDS)
    assert classes_of(train) == ["singing", "tap dancing"]
    assert classes_of(val) == ["tap dancing"]


def test_audioset(tmp_path: Path) -> None:
    folder = audioset(tmp_path)
    train = AudioSet(path=folder, split="balanced_train")
    assert train.multilabel
    assert train.classes == ("Speech", "Male speech, man speaking", "Music")
    assert ids(train) == ["--PJHxphWEs", "Yxxxxxxxxx0"]
    assert all_of(train) == [{"Speech", "Male speech, man speaking"}, {"Music"}]
    # Of a video and a sound the video.
    assert train.sample(0).media == str(folder / "clips/--PJHxphWEs_30.000_40.000.mp4")
    train.materialise(said := Said())
    assert len(said.lines) == 1
    assert "1 of 3 are left out" in said.lines[0]
    assert ids(AudioSet(path=folder, split="train")) == [*ids(train), "zzzzzzzzzzQ"]
    assert all_of(AudioSet(path=folder, split="unbalanced_train")) == [{"Music", "Speech"}]
    test = AudioSet(path=folder, split="eval")
    assert (ids(test), all_of(test)) == (["-0DLPzsiXXE"], [{"Music"}])
    assert test.root == str(folder / "eval")


def test_charades(tmp_path: Path) -> None:
    folder = charades(tmp_path)
    train, test = (Charades(path=folder, split=split) for split in ("train", "test"))
    names = ("Holding some clothes", "Closing, or opening a door", "Sitting/standing")
    assert train.classes == test.classes == names
    assert ids(train) == ["46GP8", "N11GT"]
    assert all_of(train) == [{names[0], names[2]}, None]
    assert all_of(test) == [{names[0]}]
    assert intervals(train.sample(0).fields["actions"]) == [
        Interval("c002", 11.9, 21.2), Interval("c000", 0.0, 12.6)
    ]  # fmt: skip
    assert len(intervals(test.sample(0).fields["actions"])) == 2


def test_moments_in_time(tmp_path: Path) -> None:
    folder = moments_in_time(tmp_path)
    train, val = (MomentsInTime(path=folder, split=split) for split in ("train", "val"))
    assert train.classes == val.classes == ("zipping", "adult+female+singing", "clapping")
    assert ids(train) == ["clapping/getty-1.mp4", "adult+female+singing/a b.mp4"]
    assert classes_of(train) == ["clapping", "adult+female+singing"]
    assert classes_of(val) == ["clapping"]


def test_howto100m(tmp_path: Path, cache: Path) -> None:
    folder = howto(tmp_path)
    data = HowTo100M(path=folder, context=1)
    data.materialise(said := Said())
    assert said.read == (folder / "caption.json").stat().st_size
    assert len(said.lines) == 2
    assert "2 of 7 captions have no text or no time" in said.lines[0]
    assert "1 of 5 are left out" in said.lines[1]
    assert not data.multilabel
    assert data.classes == ()
    assert ids(data) == ["aaaaaaaaaaa/1", "aaaaaaaaaaa/0", "aaaaaaaaaaa/2", "bbbbbbbbbbb/0"]
    first, second, third, other = (data.sample(row) for row in range(4))
    assert (second.start, second.end) == (9.26, 12.5)
    assert second.media == str(folder / "videos/x/aaaaaaaaaaa.mp4")
    assert second.fields["text"] == 'cut "it", then serve'
    assert json.loads(second.fields["texts"]) == ['cut "it", then serve', "first"]
    assert json.loads(third.fields["texts"]) == ["Käse", 'cut "it", then serve']
    assert json.loads(other.fields["texts"]) == ["other video"]
    assert json.loads(first.fields["texts"]) == ["first", 'cut "it", then serve']
    # The list is written once: it is mapped, not held.
    (listed,) = (cache / "lists").glob("*.csv")
    assert data._text == listed
    before = listed.stat().st_mtime_ns
    again = HowTo100M(path=folder)
    assert ids(again) == ids(data)
    assert listed.stat().st_mtime_ns == before
    # What is left out is said whenever it is used.
    again.materialise(repeated := Said())
    assert repeated.lines == said.lines
    assert repeated.read == 0


def test_the_lists_of_earlier_captions_are_removed(tmp_path: Path, cache: Path) -> None:
    folder, other = howto(tmp_path / "one"), howto(tmp_path / "other")
    assert len(HowTo100M(path=other)) == len(HowTo100M(path=folder)) == 4
    lists = cache / "lists"
    (killed, at_work) = (lists / f".howto100m-0-0.csv.{n}.tmp" for n in (1, 2))
    killed.touch()
    at_work.touch()
    os.utime(killed, (0, 0))
    before = set(lists.glob("howto100m-*"))
    assert len(before) == 4
    # Another video makes another list.
    touch(folder, "videos/deleted0000.mp4")
    data = HowTo100M(path=folder)
    assert len(data) == 5
    after = set(lists.glob("howto100m-*"))
    assert len(after) == 4
    assert {path.suffix for path in after - before} == {".csv", ".json"}
    assert len(after & before) == 2  # those of the other folder
    assert (killed.exists(), at_work.exists()) == (False, True)
    data.materialise(said := Said())
    assert ["captions have no text or no time" in line for line in said.lines] == [True]


def test_captions_that_are_no_text(tmp_path: Path) -> None:
    # Half of an emoji, a zero byte and a line separator: in JSON all may be.
    text = '{"aaaaaaaaaaa": {"start": [1], "end": [2], "text": ["a \\ud83d b\\u0000c\\u2028d"]}}'
    write(tmp_path, "caption.json", text)
    touch(tmp_path, "aaaaaaaaaaa.mp4")
    assert HowTo100M(path=tmp_path).sample(0).fields["text"] == "a ? b c\u2028d"


def test_the_captions_that_are_nearest_in_time(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    starts = np.round(draw.uniform(0, 100, 60), 2)
    videos = {
        name: captions(*[(float(s), float(s) + 1, f"{name} {s}") for s in starts[rows]])
        for name, rows in (("aaaaaaaaaaa", slice(0, 25)), ("bbbbbbbbbbb", slice(25, 60)))
    }
    write(tmp_path, "caption.json", json.dumps(videos))
    touch(tmp_path, *[f"{name}.mp4" for name in videos])
    data = HowTo100M(path=tmp_path, context=3)
    for row in range(60):
        sample = data.sample(row)
        video = videos[sample.id.partition("/")[0]]
        order = sorted(
            range(len(video["start"])), key=lambda n: (abs(video["start"][n] - sample.start), n)
        )
        expected = [video["text"][n] for n in order]
        found = json.loads(sample.fields["texts"])
        assert found[0] == sample.fields["text"] == expected[0]
        assert set(found) == set(expected[:4])
        assert len(found) == 4


def test_youcook2(tmp_path: Path) -> None:
    folder = youcook2(tmp_path)
    train, val = (YouCook2(path=folder, split=split) for split in ("train", "val"))
    assert ids(train) == ["yyyyyyyyyyy/0", "yyyyyyyyyyy/1"]
    sample = train.sample(1)
    assert (sample.start, sample.end, dict(sample.fields)) == (60.0, 61.0, {"text": "eat, now"})
    assert sample.media == str(folder / "raw_videos/training/101/yyyyyyyyyyy.mkv")
    assert ids(val) == ["vvvvvvvvvvv/0"]
    assert train.classes == ()
    train.materialise(said := Said())
    assert "1 of 3 are left out" in said.lines[0]


def test_msrvtt(tmp_path: Path) -> None:
    folder = msrvtt(tmp_path)
    test = MSRVTT(path=folder, split="test")
    assert ids(test) == ["video9770", "video7020"]
    assert [test.sample(row).fields["text"] for row in range(2)] == [
        "a person is connecting", "one, two"
    ]  # fmt: skip
    train = MSRVTT(path=folder, split="train")
    assert ids(train) == ["video0/1", "video0/2", "video1/4"]
    assert train.sample(1).fields == {"text": "sentence 2"}
    assert train.sample(1).media == str(folder / "videos/all/video0.mp4")


def test_imagenet(tmp_path: Path) -> None:
    folder = imagenet(tmp_path)
    train, val = (ImageNet(path=folder, split=split) for split in ("train", "val"))
    assert train.classes == val.classes == tuple(WNIDS)
    assert ids(train) == [f"{wnid}/{wnid}_{n}.JPEG" for wnid in WNIDS for n in (1, 2)]
    assert classes_of(train) == [wnid for wnid in WNIDS for _ in (1, 2)]
    assert classes_of(val) == [WNIDS[0], WNIDS[2]]
    write(
        folder, "words.txt", f"{WNIDS[0]}\ttench, Tinca tinca\n{WNIDS[2]}\tcrane\nn00000004\tfish\n"
    )
    named = ImageNet(path=folder, split="val")
    assert named.classes == ("n01440764 tench", "n01443537", "n02012849 crane")
    assert named.labels().tolist() == val.labels().tolist()
    (folder / "train" / WNIDS[0]).rename(folder / "gone")
    with pytest.raises(UserError, match=rf"class {WNIDS[0]} is not in .*train"):
        len(ImageNet(path=folder, split="val"))


def test_imagenet_as_it_comes_from_the_archive(tmp_path: Path) -> None:
    folder = imagenet(tmp_path)
    shutil.rmtree(folder / "val")
    touch(folder / "val", *[f"ILSVRC2012_val_{n:08d}.JPEG" for n in (1, 2, 3)])
    with pytest.raises(UserError, match=r"ILSVRC2012_devkit_t12.tar.gz contains it"):
        ImageNet(path=folder, split="val")
    devkit(folder)
    val = ImageNet(path=folder, split="val")
    assert classes_of(val) == [WNIDS[0], WNIDS[2], WNIDS[1]]
    assert val.classes == tuple(WNIDS)
    shutil.rmtree(folder / "train")
    assert ImageNet(path=folder, split="val").classes == tuple(WNIDS)
    truth = folder / "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"
    truth.write_text("2\n4\n1\n")
    with pytest.raises(UserError, match=r"ground_truth.txt:2: '4' is no class's number"):
        len(ImageNet(path=folder, split="val"))
    (truth.parent / "meta.mat").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"meta.mat: is not the table of classes"):
        len(ImageNet(path=folder, split="val"))


# Media are read --------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["JPEG", "png"])
@pytest.mark.parametrize("rate", [{"fps": 10.0}, {"stride": 2}, {}])
def test_a_picture_is_a_clip_in_which_nothing_moves(
    tmp_path: Path, ending: str, rate: Mapping[str, Any]
) -> None:
    pixels = (
        np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    )
    folder = tmp_path / "train" / WNIDS[0]
    folder.mkdir(parents=True)
    # All of the colour is kept, as decoders differ in how they spread what there is of it.
    options: dict[str, Any] = {"quality": 95, "subsampling": 0} if ending == "JPEG" else {}
    Picture.fromarray(pixels).save(folder / f"a.{ending}", **options)
    data = ImageNet(path=tmp_path, split="train")
    video = Video(frames=6, short_side=48, crop=48, **rate)
    reader = ClipReader(data, {"video": video}, seed=0, views=Views(clips=3))
    middle = np.asarray(Picture.open(folder / f"a.{ending}").convert("RGB"))[:, 12:60]
    for view in range(3):
        clip, unreadable = reader[view]
        assert unreadable == []
        frames = clip.tensors["video"]
        assert frames.shape == (6, 48, 48, 3)
        assert torch.equal(frames, frames[:1].expand_as(frames))
        assert np.abs(frames[0].numpy().astype(int) - middle).mean() < 6


def test_a_video_of_a_benchmark_is_read(tmp_path: Path) -> None:
    folder = ucf101(tmp_path)
    media_files.write(folder / "UCF-101/YoYo" / f"{HOSTILE}.avi", frames=12, fps=10, codec="mpeg4")
    data = UCF101(path=folder, split="test")
    reader = ClipReader(data, {"video": Video(frames=2, short_side=64, crop=64)}, seed=0)
    clip, unreadable = reader[0]
    assert unreadable == []
    assert int(clip.label) == data.sample(0).label
    assert [media_files.number_of(frame.numpy()) for frame in clip.tensors["video"]] == [5, 6]


# The parsers, of anything that may be written --------------------------------------------------

words = st.text(st.characters(blacklist_categories=("Cs", "Cc", "Zl", "Zp")), max_size=12)
times = st.floats(0, 1e5, allow_nan=False).map(lambda value: round(value, 2))
video_ids = st.text("abcXYZ019-_", min_size=10, max_size=10).map(lambda name: name + "Q")


def many(of: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(video_ids, of, min_size=1, max_size=12)


@settings(max_examples=40, deadline=None)
@given(
    names=st.lists(
        words.filter(lambda name: name.strip() == name != "").map(lambda n: n.replace(";", ",")),
        min_size=1, max_size=5, unique=True,
    ),
    videos=many(st.tuples(times, st.sets(st.integers(0, 4), min_size=1))),
)  # fmt: skip
def test_any_audioset_is_read(
    tmp_path_factory: pytest.TempPathFactory,
    names: list[str],
    videos: dict[str, tuple[float, set[int]]],
) -> None:
    folder = tmp_path_factory.mktemp("audioset")
    table = io.StringIO()
    csv.writer(table).writerows(
        [["index", "mid", "display_name"], *[[n, f"/m/{n}", name] for n, name in enumerate(names)]]
    )
    write(folder, "class_labels_indices.csv", table.getvalue())
    expected = {
        video: {names[n % len(names)] for n in numbers} for video, (_, numbers) in videos.items()
    }
    rows = [
        f'{video}, {start:.3f}, {start + 10:.3f}, "'
        + ",".join(f"/m/{n}" for n in {n % len(names) for n in numbers})
        + '"\n'
        for video, (start, numbers) in videos.items()
    ]
    write(folder, "eval_segments.csv", SEGMENTS + "".join(rows))
    touch(folder, *[f"clips/{video}.mp4" for video in videos])
    data = AudioSet(path=folder, split="eval")
    assert data.classes == tuple(names)
    assert dict(zip(ids(data), all_of(data), strict=True)) == expected
    assert ids(data) == list(videos)


@given(st.lists(st.builds(Interval, st.integers(0, 156).map("c{:03d}".format), times, times)))
def test_any_actions_are_read(actions: list[Interval]) -> None:
    text = ";".join(f"{one.action} {one.start:.2f} {one.end:.2f}" for one in actions)
    assert intervals(text) == actions


@pytest.mark.parametrize(
    "text", ["c001", "c001 1", "c001 1 x", "c001 1 2 3", "c001 -1 2", "c1 1 nan"]
)
def test_wrong_actions_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no class and two times in seconds"):
        intervals(f"c000 0 1;{text}")


@settings(max_examples=40, deadline=None)
@given(
    rows=many(st.tuples(words.map(str.lstrip), st.integers(0, 10**6 - 11))),
    quoting=st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
    ending=st.sampled_from(["\n", "\r\n"]),
)
def test_any_kinetics_is_read(
    tmp_path_factory: pytest.TempPathFactory,
    rows: dict[str, tuple[str, int]],
    quoting: Any,
    ending: str,
) -> None:
    folder = tmp_path_factory.mktemp("kinetics")
    text = io.StringIO()
    writer = csv.writer(text, quoting=quoting, lineterminator=ending)
    writer.writerow(["label", "youtube_id", "time_start", "time_end", "split"])
    writer.writerows([label, v, start, start + 10, "train"] for v, (label, start) in rows.items())
    write(folder, "train.csv", text.getvalue())
    named = {f"{v}_{start:06d}_{start + 10:06d}": label for v, (label, start) in rows.items()}
    touch(folder, *[f"train/{name}.mp4" for name in named])
    data = Kinetics(path=folder, split="train")
    assert dict(zip(ids(data), classes_of(data), strict=True)) == named


@settings(max_examples=60, deadline=None)
@given(
    videos=st.dictionaries(words, st.recursive(words | times, st.lists, max_leaves=6), max_size=8),
    chunk=st.integers(1, 40),
    indent=st.none() | st.integers(0, 2),
    escaped=st.booleans(),
)
def test_any_object_is_read_in_parts(
    tmp_path_factory: pytest.TempPathFactory,
    videos: dict[str, Any],
    chunk: int,
    indent: int | None,
    escaped: bool,
) -> None:
    path = tmp_path_factory.mktemp("json") / "a.json"
    path.write_text(json.dumps(videos, indent=indent, ensure_ascii=escaped), encoding="utf-8")
    read: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(howto100m, "_CHUNK", chunk)
        assert list(howto100m.entries(path, read.append)) == list(videos.items())
    assert 0 < sum(read) <= path.stat().st_size
