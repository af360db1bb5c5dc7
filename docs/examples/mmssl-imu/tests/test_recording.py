"""Recordings: files of any kind, and values between measurements."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mmssl import BadMedia
from mmssl_imu.recording import read_recording, resample

TIMES = st.lists(
    st.floats(-1e6, 1e6, allow_subnormal=False), min_size=0, max_size=20, unique=True
).map(lambda times: np.array(sorted(times)))
NUMBERS = st.floats(width=32, allow_infinity=False)


def npz(path: Path, **named: np.ndarray) -> Path:
    np.savez(path, **named)
    return path


@given(times=TIMES, data=st.data())
def test_what_was_written_is_read(
    times: np.ndarray, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    values = data.draw(arrays(np.float32, (len(times), 3), elements=NUMBERS))
    folder = tmp_path_factory.mktemp("recording")
    rows = np.concatenate([times[:, None], values.astype(np.float64)], 1)
    text = "\n".join(",".join(repr(float(x)) for x in row) for row in rows)
    (folder / "a.csv").write_text(f"\ufefftime,x,y,z\n{text}\n", encoding="utf-8")
    npz(folder / "a.npz", time=times, values=values)
    for name in ("a.csv", "a.npz"):
        found_times, found = read_recording(folder / name)
        np.testing.assert_array_equal(found_times, times)
        np.testing.assert_array_equal(found, values)
        assert found.dtype == np.float32


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no header"),
        ("0.0,1.0\n0.1,2.0\n", "no header"),
        ("time,x\n0.0,1.0\n0.1\n", "columns"),
        ("time,x\n0.0,1.0,2.0\n", "names 2 columns, its rows have 3"),
        ("time,x\n0.0,one\n", "could not convert"),
        ("time,x\n0.0,\n", "could not convert"),
        ("time,x\n0.0,1.0\n0.3,1.0\n0.2,1.0\n", "goes back from 0.3 s to 0.2 s"),
        ("time,x\nnan,1.0\n", "the time of measurement 0 is nan"),
        ("time,x\n0.0,1.0\ninf,1.0\n", "the time of measurement 1 is inf"),
    ],
)
def test_a_csv_that_is_none_has_a_reason(text: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(BadMedia, match=reason) as error:
        read_recording(path)
    assert str(error.value).startswith("a.csv: ")
    assert "\n" not in str(error.value)


def test_a_csv_in_another_encoding_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("time,x\n0,1\n".encode("utf-16"))
    with pytest.raises(BadMedia, match="decode"):
        read_recording(path)


class Trap:
    """A pickle that would run when it is read."""

    def __reduce__(self) -> tuple:
        return (pytest.fail, ("a pickle was run",))


@pytest.mark.parametrize(
    ("named", "reason"),
    [
        ({"time": np.zeros(2)}, "no array 'values'"),
        ({"values": np.zeros((2, 3))}, "no array 'time'"),
        ({"time": np.zeros(2), "values": np.zeros((3, 3))}, r"time \[2\] and values \[3, 3\]"),
        ({"time": np.zeros(2), "values": np.zeros(2)}, r"values \[2\]"),
        ({"time": np.array(["0", "1"]), "values": np.zeros((2, 3))}, "'time' has no numbers"),
        ({"time": np.zeros(2), "values": np.array([[Trap()], [Trap()]])}, "cannot be read"),
    ],
)
def test_an_npz_that_is_none_has_a_reason(
    named: dict[str, np.ndarray], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(BadMedia, match=reason):
        read_recording(npz(tmp_path / "a.npz", **named))


@given(place=st.floats(0, 1), byte=st.integers(0, 255), cut=st.booleans(), packed=st.booleans())
def test_a_damaged_npz_is_bad_media_or_still_a_recording(
    place: float, byte: int, cut: bool, packed: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    whole = io.BytesIO()
    time, values = np.arange(4.0), np.ones((4, 3))
    (np.savez_compressed if packed else np.savez)(whole, time=time, values=values)
    content = bytearray(whole.getvalue())
    at = int(place * (len(content) - 1))
    if cut:
        del content[at:]
    else:
        content[at] = byte
    path = tmp_path_factory.mktemp("damaged") / "a.npz"
    path.write_bytes(content)
    try:
        found, _ = read_recording(path)
    except BadMedia:
        return
    np.testing.assert_array_equal(found, time)  # what the archive's checksums do not cover


def test_files_that_are_no_recordings(tmp_path: Path) -> None:
    for name, reason in (("a.npz", "no such file"), ("a.txt", "neither")):
        with pytest.raises(BadMedia, match=reason):
            read_recording(tmp_path / name)
    (tmp_path / "b.npz").write_bytes(b"not a zip")
    with zipfile.ZipFile(tmp_path / "c.npz", "w") as archive:
        archive.writestr("time.npy", b"not an array")
    for name, reason in (
        ("b.npz", "cannot be read as npz"),
        ("c.npz", "'time' has no numbers|no array"),
    ):
        with pytest.raises(BadMedia, match=reason):
            read_recording(tmp_path / name)


def test_a_header_alone_has_no_measurements(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("time,x,y\n")
    time, values = read_recording(tmp_path / "a.csv")
    assert time.shape == (0,)
    assert values.shape == (0, 2)


def test_the_last_of_several_measurements_at_one_time_counts(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("time,x\n0,1\n0,2\n1,3\n1,4\n1,5\n2,1e300\n")
    time, values = read_recording(tmp_path / "a.csv")
    np.testing.assert_array_equal(time, [0, 1, 2])
    np.testing.assert_array_equal(values, [[2], [5], [np.nan]])


def slow_value(time: list[float], values: list[float], at: float, gap: float) -> float | None:
    """One channel at one time, in plain words: neighbours that are near, and a line between."""
    measured = [(t, v) for t, v in zip(time, values, strict=True) if not np.isnan(v)]
    before = [(t, v) for t, v in measured if t < at and at - t <= gap]
    after = [(t, v) for t, v in measured if t >= at and t - at <= gap]
    if before and after:
        (t0, v0), (t1, v1) = before[-1], after[0]
        return v0 + (v1 - v0) * (at - t0) / (t1 - t0)
    if before or after:
        return before[-1][1] if before else after[0][1]
    return None


@given(
    ticks=st.lists(st.integers(0, 40), min_size=0, max_size=12, unique=True),
    first=st.integers(-8, 44),
    gap=st.sampled_from([0.125, 0.5, 2.0, 100.0]),
    data=st.data(),
)
def test_values_between_measurements_are_a_slow_references(
    ticks: list[int], first: int, gap: float, data: st.DataObject
) -> None:
    time = np.array(sorted(ticks)) / 8.0
    elements = st.one_of(st.just(np.nan), st.integers(-9, 9).map(float))
    values = data.draw(arrays(np.float32, (len(ticks), 2), elements=elements))
    at = first / 8 + np.arange(10) * 0.1875
    found, known = resample(time, values, at, gap)
    assert found.shape == known.shape == (2, 10)
    for channel in range(2):
        for i, moment in enumerate(at):
            expected = slow_value(list(time), list(values[:, channel]), moment, gap)
            assert known[channel, i] == (expected is not None)
            assert found[channel, i] == pytest.approx(expected or 0.0, abs=1e-5)


def test_a_straight_line_stays_one() -> None:
    rng = np.random.default_rng(0)
    time = np.sort(rng.uniform(0, 10, 400))
    at = np.arange(2, 8, 0.02)
    found, known = resample(time, np.stack([3 * time - 1, -time], 1), at, 1.0)
    assert known.all()
    np.testing.assert_allclose(found, np.stack([3 * at - 1, -at]), rtol=1e-5)
