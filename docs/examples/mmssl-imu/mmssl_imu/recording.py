"""Recordings of sensors: measurements at any times, in a file of their own."""

import os
import warnings
from pathlib import Path

import numpy as np

from mmssl import BadMedia


def read_recording(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """All measurements of a file.

    ``.npz`` holds the arrays ``time`` ``[N]`` and ``values`` ``[N, C]``, numbers of any type.
    ``.csv`` is UTF-8 with a header, then a row for each measurement: its time, then a value for
    each channel, ``nan`` where one was not measured. Times are seconds and never go back; of
    several measurements at one time the last counts.

    Returns:
        ``[N]`` float64, ascending seconds, and ``[N, C]`` float32, with NaN for what is no number.

    Raises:
        BadMedia: there is no such file, or it is not as above.
    """
    name, ending = os.path.basename(path), os.path.splitext(path)[1].lower()
    if ending not in _READERS:
        raise BadMedia(f"{name} is neither .npz nor .csv")
    if not os.path.isfile(path):
        raise BadMedia(f"no such file: {path}")
    try:
        time, values = _READERS[ending](path)
        _check(time, values)
    except BadMedia as error:
        raise BadMedia(f"{name}: {error}") from error
    last = np.append(time[1:] > time[:-1], True)[: len(time)]
    with np.errstate(over="ignore"):  # what is too large for float32 is no number
        values = values[last].astype(np.float32)
    values[~np.isfinite(values)] = np.nan
    return time[last], values


def _npz(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as arrays:  # a pickle may run any code
            found = {key: np.asarray(arrays[key]) for key in ("time", "values") if key in arrays}
    except Exception as error:  # damaged archives raise a dozen kinds, from zlib's to tokenize's
        raise BadMedia(f"cannot be read as npz ({type(error).__name__}: {error})") from error
    for key in ("time", "values"):
        if key not in found:
            raise BadMedia(f"has no array {key!r}")
        if found[key].dtype.kind not in "iuf":
            raise BadMedia(f"its array {key!r} has no numbers, but {found[key].dtype}")
    return found["time"].astype(np.float64), found["values"].astype(np.float64)


def _csv(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        with open(path, encoding="utf-8-sig") as file, warnings.catch_warnings():
            header = file.readline().rstrip("\r\n").split(",")
            warnings.simplefilter("ignore")  # no row at all is a recording without measurements
            rows = np.loadtxt(file, delimiter=",", comments=None, ndmin=2)
    except (OSError, ValueError) as error:
        raise BadMedia(" ".join(str(error).split())) from error
    if len(header) < 2 or all(_is_number(name) for name in header):
        raise BadMedia("its first line is no header: name the columns there, time first")
    if not rows.size:
        rows = np.empty((0, len(header)))
    if rows.shape[1] != len(header):
        raise BadMedia(f"its header names {len(header)} columns, its rows have {rows.shape[1]}")
    return rows[:, 0], rows[:, 1:]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


_READERS = {".npz": _npz, ".csv": _csv}


def _check(time: np.ndarray, values: np.ndarray) -> None:
    """Refuse what is no recording."""
    if time.ndim != 1 or values.ndim != 2 or len(time) != len(values):
        raise BadMedia(f"time {list(time.shape)} and values {list(values.shape)} do not fit")
    if not np.isfinite(time).all():
        row = int(np.argmin(np.isfinite(time)))
        raise BadMedia(f"the time of measurement {row} is {time[row]}")
    back = np.flatnonzero(time[1:] < time[:-1])
    if len(back):
        row = int(back[0])
        raise BadMedia(f"time goes back from {time[row]:g} s to {time[row + 1]:g} s")


def resample(
    time: np.ndarray, values: np.ndarray, at: np.ndarray, max_gap: float
) -> tuple[np.ndarray, np.ndarray]:
    """Values at other times.

    A time whose nearest measurements before and after it are both within ``max_gap`` has a value
    on the straight line between them; where only one is, it has that one's; where none is, nothing
    is known. Channels are independent, and a measurement that is NaN is none.

    Args:
        time: ``[N]`` ascending seconds.
        values: ``[N, C]``.
        at: ``[M]`` ascending seconds.
        max_gap: seconds.

    Returns:
        ``[C, M]`` float32, 0 where nothing is known, and ``[C, M]`` bool: is it known?
    """
    result = np.zeros((values.shape[1], len(at)), np.float32)
    known = np.zeros(result.shape, bool)
    # Of a long recording only what is near the clip.
    first = np.searchsorted(time, at[0] - max_gap)
    last = np.searchsorted(time, at[-1] + max_gap, side="right")
    for channel, column in enumerate(values[first:last].T.astype(np.float64)):
        measured = np.isfinite(column)
        t = np.concatenate([[-np.inf], time[first:last][measured], [np.inf]])
        v = np.concatenate([[0.0], column[measured], [0.0]])
        after = np.searchsorted(t, at)
        before = after - 1
        since, until = at - t[before], t[after] - at
        one, other = since <= max_gap, until <= max_gap
        share = np.divide(since, since + until, out=np.zeros(len(at)), where=one & other)
        line = v[before] + (v[after] - v[before]) * share
        result[channel] = np.where(one & other, line, v[before] * one + v[after] * other)
        known[channel] = one | other
    return result, known
