"""Lists of samples: what is read, what is refused and where it is said to be wrong."""

import csv
import io
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmssl import UserError
from mmssl.contracts import IGNORE
from mmssl_media.manifest import Manifest


def manifest(
    folder: Path, text: str | bytes, name: str = "a.csv", **parameters: object
) -> Manifest:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return Manifest(path=path, **parameters)  # type: ignore[arg-type]


def test_columns(tmp_path: Path) -> None:
    data = manifest(
        tmp_path,
        "imu,path,label,start,end\n"
        "x.npy,a.mp4,dog,,\n"
        'y.npy,"b, c.mp4",cat,1.5,\n'
        ",/abs/d.mp4,,2,4.25\n",
    )
    assert len(data) == 3
    assert data.classes == ("cat", "dog")
    first, second, third = (data.sample(i) for i in range(3))
    assert (first.id, first.media) == ("a.mp4", str(tmp_path / "a.mp4"))
    assert (first.start, first.end, first.label) == (0.0, None, 1)
    assert first.fields == {"imu": "x.npy"}
    assert (second.id, second.media) == ("b, c.mp4#1.5-", str(tmp_path / "b, c.mp4"))
    assert (second.start, second.end, second.label) == (1.5, None, 0)
    assert (third.id, third.media) == ("/abs/d.mp4#2-4.25", "/abs/d.mp4")
    assert (third.start, third.end, third.label) == (2.0, 4.25, None)
    assert data.labels().dtype == np.int32
    assert data.labels().tolist() == [1, 0, IGNORE]
    with pytest.raises(IndexError):
        data.sample(3)
    with pytest.raises(IndexError):
        data.sample(-1)


def test_root_and_relative_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "media"
    root.mkdir()
    assert manifest(tmp_path, "path\na.mp4\n", root=root).sample(0).media == str(root / "a.mp4")
    monkeypatch.chdir(tmp_path)
    assert Manifest(path=Path("a.csv")).sample(0).media == str(tmp_path / "a.mp4")


def test_unlabelled(tmp_path: Path) -> None:
    data = manifest(tmp_path, "path\na.mp4\nb.mp4\n")
    assert data.classes == ()
    assert data.labels().tolist() == [IGNORE, IGNORE]
    assert data.sample(0).label is None


def test_whole_numbers_are_the_indices_of_classes(tmp_path: Path) -> None:
    data = manifest(tmp_path, "path,label\na,10\nb,2\nc,\nd,02\n")
    assert len(data.classes) == 11
    assert data.classes[10] == "10"
    assert data.labels().tolist() == [10, 2, IGNORE, 2]


@pytest.mark.parametrize(
    ("labels", "wrong"),
    [("0 1 -1", "-1"), ("3.0 1.0", "3.0"), ("2 nan 1", "nan"), ("1 1e3", "1e3")],
)
def test_numbers_that_are_no_indices_are_refused(tmp_path: Path, labels: str, wrong: str) -> None:
    rows = "".join(f"{row},{label}\n" for row, label in enumerate(labels.split()))
    with pytest.raises(UserError) as error:
        len(manifest(tmp_path, "path,label\n" + rows))
    assert str(error.value).endswith(
        f"label: {wrong!r} is no class's index; "
        "write whole numbers from 0, leave unlabelled ones empty"
    )
    names = sorted(set(labels.split()))
    assert manifest(tmp_path, "path,label\n" + rows, classes=names).classes == tuple(names)


def test_names_among_numbers_make_names_of_all(tmp_path: Path) -> None:
    assert manifest(tmp_path, "path,label\na,-1\nb,cat\n").classes == ("-1", "cat")
    assert manifest(tmp_path, "path,label\na,1_0\nb,2_1\n").classes == ("1_0", "2_1")


def test_rows_without_a_file_of_their_own(tmp_path: Path) -> None:
    text = "id,path,start,imu\nwalk,,1,w.npy\nrun,r.mp4,,r.npy\n,s.mp4,2,\n"
    data = manifest(tmp_path, text)
    walk, run, third = (data.sample(row) for row in range(3))
    assert (walk.id, walk.media, walk.start) == ("walk", None, 1.0)
    assert walk.fields == {"imu": "w.npy"}
    assert walk.root == str(tmp_path)
    assert (run.id, run.media) == ("run", str(tmp_path / "r.mp4"))
    assert (third.id, third.media) == ("s.mp4#2-", str(tmp_path / "s.mp4"))
    only = manifest(tmp_path, "id,imu\nwalk,w.npy\n").sample(0)
    assert (only.id, only.media) == ("walk", None)
    # One file in two rows of different names is two samples.
    assert len(manifest(tmp_path, "id,path\na,x.mp4\nb,x.mp4\n")) == 2


def test_given_classes_fix_the_order(tmp_path: Path) -> None:
    names = ["dog", "cat", "emu"]
    data = manifest(tmp_path, "path,label\na,cat\nb,dog\n", classes=names)
    assert data.classes == ("dog", "cat", "emu")
    assert data.labels().tolist() == [1, 0]
    with pytest.raises(UserError, match=r"a\.csv:3: label: 'gnu' is not among the classes"):
        len(manifest(tmp_path, "path,label\na,cat\nb,gnu\n", classes=names))
    with pytest.raises(UserError, match="named twice"):
        manifest(tmp_path, "path\na\n", classes=["a", "a"])


def test_forms_of_text(tmp_path: Path) -> None:
    data = manifest(tmp_path, b"\xef\xbb\xbfpath,label\r\n\r\nst\xc3\xbcck.mp4,1\r\n\r\nb.mp4,0")
    assert [data.sample(i).id for i in range(len(data))] == ["stück.mp4", "b.mp4"]
    assert data.labels().tolist() == [1, 0]
    data = manifest(tmp_path, "path\tlabel\na,b.mp4\tx y\n", name="a.tsv")
    assert data.sample(0).id == "a,b.mp4"
    assert data.classes == ("x y",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"a\.csv: is empty; its first line must name the columns"),
        ("\n\n", r"a\.csv: is empty"),
        ("path,label\n", r"a\.csv: lists no samples"),
        ("file,label\na,b\n", r"a\.csv:1: no column 'path' among 'file', 'label'"),
        ("path,path\na,b\n", r"a\.csv:1: two columns are named 'path'"),
        ("path,start\na,\nb,abc\n", r"a\.csv:3: start: 'abc' is not a number"),
        ("path,start\na,-1\n", r"a\.csv:2: start: -1 is not a time in seconds"),
        ("path,end\n\na,nan\n", r"a\.csv:3: end: nan is not a time in seconds"),
        ("path,start,end\na,3,2\n", r"a\.csv:2: end: 2 is not after start, 3"),
        ("path,label\na,b,c\n", r"a\.csv:2: 3 values for 2 columns; put quotes"),
        ("path,label\na\n", r"a\.csv:2: 1 values for 2 columns"),
        ("path,label\n,b\n", r"a\.csv:2: path: is empty; a row without a file needs an id"),
        ("id,path\nx,a\n,\n", r"a\.csv:3: path: is empty"),
        ("path,label\n ,b\n", r"a\.csv:2: path: ' ' is no file's name"),
        ("id,path\nx,a\nx,b\n", r"a\.csv:3: 'x' is listed already in line 2"),
        ("path\na\nb\n\na\n", r"a\.csv:5: 'a' is listed already in line 2"),
        ("path,start\na,1\na,2\na,1\n", r"a\.csv:4: 'a#1-' is listed already in line 2"),
        ('path,text\na,"one\ntwo"\n', r"a\.csv:2: a quoted value goes on in the next line"),
        ('path,text\na,"one\n', r"a\.csv:2: "),
        ('path\n"a"b\n', r"a\.csv:2: "),
        (b"path\na\n\xff\n", r"a\.csv:3: is not UTF-8 text"),
        ("path,label\na,9999999999\n", r"label: 9999999999 is too large"),
    ],
)
def test_what_is_refused(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        len(manifest(tmp_path, text))
    assert "\n" not in str(error.value)


def test_nothing_is_read_before_it_is_needed(tmp_path: Path) -> None:
    manifest(tmp_path, "no list at all")


def test_a_copy_for_another_process(tmp_path: Path) -> None:
    data = manifest(tmp_path, "path,label\na,x\nb,y\n")
    data.sample(0)
    copy = pickle.loads(pickle.dumps(data))  # noqa: S301
    assert copy.sample(1) == data.sample(1)


words = st.text(st.characters(blacklist_categories=("Cs", "Cc")), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(
        st.tuples(words.filter(str.strip), words | st.just(""), words),
        min_size=1,
        max_size=70,
        unique_by=lambda row: row[0],
    ),
    ending=st.sampled_from(["\n", "\r\n"]),
)
def test_what_the_csv_module_writes_is_read(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, str]], ending: str
) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator=ending)
    writer.writerows([("path", "label", "note"), *rows])
    data = manifest(
        tmp_path_factory.mktemp("list"),
        text.getvalue(),
        classes=sorted({r[1] for r in rows} - {""}),
    )
    assert len(data) == len(rows)
    for index, (path, label, note) in enumerate(rows):
        sample = data.sample(index)
        assert sample.id == path
        assert sample.fields == {"note": note}
        assert (None if sample.label is None else data.classes[sample.label]) == (label or None)
        assert data.labels()[index] == (IGNORE if sample.label is None else sample.label)
