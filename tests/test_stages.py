"""What evaluators are lent, and what is written of what they find."""

import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from mmssl.contracts import Evaluation, Table
from mmssl.pipeline.stages import _mean_over_views, write_evaluation


def test_features_of_views_are_averaged_by_sample() -> None:
    rng = np.random.default_rng(0)
    index = np.repeat([2, 5, 6, 9], [3, 3, 1, 2])  # two views of 6 and one of 9 were unreadable
    pooled = rng.normal(size=(len(index), 4)).astype(np.float32)
    labels = index % 2
    batches = [(index[i : i + 4], pooled[i : i + 4], labels[i : i + 4]) for i in range(0, 9, 4)]
    out = _mean_over_views(batches)
    assert out.index.tolist() == [2, 5, 6, 9]
    assert out.labels.tolist() == [0, 1, 0, 1]
    for row, sample in enumerate(out.index):
        assert out.pooled[row] == pytest.approx(pooled[index == sample].mean(0), abs=1e-6)
    assert out.pooled.dtype == np.float32


def test_one_view_is_passed_on() -> None:
    pooled = np.eye(3, dtype=np.float32)
    out = _mean_over_views([(np.arange(3), pooled, np.arange(3))])
    assert np.array_equal(out.pooled, pooled)


def test_an_evaluation_is_written_whole(tmp_path: Path) -> None:
    figure = Figure()
    figure.subplots().plot([1, 2])
    result = Evaluation(
        {"top1": 0.5, "nothing": float("nan")},
        [Table("a <table>", ("x", "y"), [("é", 1.5)])],
        {"curve": figure},
    )
    write_evaluation(tmp_path, result)
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"top1": 0.5, "nothing": None}
    assert json.loads((tmp_path / "tables.json").read_text()) == [
        {"title": "a <table>", "columns": ["x", "y"], "rows": [["é", 1.5]]}
    ]
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert len(list(tmp_path.iterdir())) == 3
