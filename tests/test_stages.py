"""What evaluators are lent, and what is written of what they find."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from ranks import on_ranks
from torch import nn
from toys import Perceptron, Rows, Vector

from mmssl.contracts import Evaluation, Features, Table
from mmssl.data.loading import LoaderSettings, Unreadable, Views
from mmssl.errors import UserError
from mmssl.pipeline.evaluation import _begin, write_evaluation
from mmssl.training import kept_features
from mmssl.training.encoders import Encoders
from mmssl.training.features import FeatureStream
from mmssl.training.kept_features import Block, OverViews, blocks, labelled, load
from mmssl.training.progress import Silent
from mmssl.training.settings import Group, grouped

MODALITIES = {"a": Vector("a"), "b": Vector("b", dim=3)}


def stream() -> FeatureStream:
    torch.manual_seed(0)
    backbones = {"a": Perceptron(8, 4), "b": Perceptron(3, 5)}
    return FeatureStream(
        encoders=Encoders(backbones, list(backbones)).eval(),
        modalities=MODALITIES,
        device=torch.device("cpu"),
        precision="fp32",
        batch_size=7,
        settings=LoaderSettings(),
        seed=0,
        unreadable=lambda split, failure: None,
    )


def by_hand(data: Rows, views: Views, over: str) -> dict[str, dict[int, np.ndarray]]:
    """By modality and row: mean, largest or all of the views' features."""
    found: dict[str, dict[int, np.ndarray]] = {"a": {}, "b": {}}
    reading = stream()
    for row in range(len(data)):
        seen: dict[str, list[np.ndarray]] = {"a": [], "b": []}
        for batch in reading(data, [row], views=views):  # type: ignore[arg-type]
            for name, values in batch.pooled.items():
                seen[name].extend(values[torch.from_numpy(batch.present[name])].numpy())
        for name, values in seen.items():
            if values:
                every = np.stack(values)
                found[name][row] = {"mean": every.mean(0), "max": every.max(0), "none": every}[over]
    return found


@pytest.mark.parametrize("over", ["mean", "max", "none"])
def test_kept_features_are_those_of_row_by_row(
    over: OverViews, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_features, "ROWS", 5)
    data, views = Rows(23, bad={4, 11}, without={"b": {0, 22}}), Views(3)
    files = blocks(
        tmp_path, data, stream(), views=views, over_views=over, progress=Silent(), title=""
    )
    assert len(files) == 5
    for name, expected in by_hand(data, views, over).items():
        found = labelled(files)[name]
        assert np.unique(found.index).tolist() == sorted(expected)
        assert len(found.index) == len(expected) * (3 if over == "none" else 1)
        assert found.labels.tolist() == [row % 3 for row in found.index]
        for row, values in expected.items():
            got = found.pooled[found.index == row]
            assert np.allclose(got, values.reshape(got.shape), atol=1e-5)


def test_views_that_could_not_be_read_do_not_count() -> None:
    values = np.array([[1.0], [50.0], [3.0], [50.0], [-4.0], [50.0]], np.float32)
    there = np.array([True, False, True, False, True, False])
    block = Block(np.array([7, 7, 7, 9, 9, 9]), np.zeros(6, int), {"a": values}, {"a": there})
    for how, expected in (("mean", [2.0, -4.0]), ("max", [3.0, -4.0])):
        found = kept_features._over(block, how)  # type: ignore[arg-type]
        assert found.values["a"][:, 0].tolist() == expected
        assert (found.index.tolist(), found.present["a"].tolist()) == ([7, 9], [True, True])


def test_a_killed_pass_goes_on_with_the_blocks_that_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_features, "ROWS", 5)
    data, read = Rows(23), []

    def note(features: dict[str, Features]) -> dict[str, torch.Tensor]:
        read.append(len(features["a"].pooled))
        return {"a": features["a"].pooled}

    def run() -> list[Path]:
        return blocks(tmp_path, data, stream(), read=note, progress=Silent(), title="")

    whole = [load(file) for file in run()]
    assert sum(read) == 23
    for lost in (1, 4):  # rows 5 to 9, and 20 to 22
        (tmp_path / f"{lost:06d}.npz").unlink()
    read.clear()
    again = [load(file) for file in run()]
    assert sum(read) == 8
    for one, other in zip(whole, again, strict=True):
        assert np.array_equal(one.index, other.index)
        assert np.allclose(one.values["a"], other.values["a"], atol=1e-6)
    read.clear()
    run()
    assert not read


def test_what_is_unreadable_is_kept_with_its_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_features, "ROWS", 5)
    data = Rows(23, bad={4, 11, 12})

    def run() -> list[Path]:
        return blocks(tmp_path, data, stream(), views=Views(2), progress=Silent(), title="")

    expected = [[4], [], [11, 12], [], []]
    assert [[one.row for one in load(file).unreadable] for file in run()] == expected
    (tmp_path / "000002.npz").unlink()
    found = [load(file).unreadable for file in run()]
    assert [[one.row for one in bad] for bad in found] == expected
    assert found[2][0] == Unreadable(11, "row11", "is damaged")


def on_a_rank(folder: Path) -> dict[str, Any]:
    """Features as every rank gets them, and how many rows it computed."""
    kept_features.ROWS = 5
    rows = 0

    def note(features: dict[str, Features]) -> dict[str, torch.Tensor]:
        nonlocal rows
        rows += len(features["a"].pooled)
        return {name: found.pooled for name, found in features.items()}

    files = blocks(folder, Rows(23, bad={4}), stream(), read=note, progress=Silent(), title="")
    return {"rows": rows, **{n: (f.index, f.pooled) for n, f in labelled(files).items()}}


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_share_the_blocks(ranks: int, tmp_path: Path) -> None:
    (alone,) = on_ranks(1, on_a_rank, tmp_path / "alone")
    found = on_ranks(ranks, on_a_rank, tmp_path / "together")
    assert sum(rank["rows"] for rank in found) == alone["rows"] == 23
    assert max(rank["rows"] for rank in found) < 23
    for rank in found:
        for name in ("a", "b"):
            assert np.array_equal(rank[name][0], alone[name][0])
            assert np.allclose(rank[name][1], alone[name][1], atol=1e-5)


def test_features_of_other_data_are_no_beginning(tmp_path: Path) -> None:
    folder = tmp_path / "evaluations" / "probe" / "features-01"
    _begin(folder, Rows(9).digest())
    (folder / "000000.npz").touch()
    _begin(folder, Rows(9).digest())
    assert (folder / "000000.npz").exists()
    _begin(folder, Rows(10).digest())
    assert not (folder / "000000.npz").exists()
    assert [path.name for path in folder.parent.iterdir()] == ["features-01"]


def test_names_of_several_modalities_need_all_of_them(tmp_path: Path) -> None:
    def both(features: dict[str, Features]) -> dict[str, torch.Tensor]:
        return {"a+b": torch.cat([features["a"].pooled, features["b"].pooled], 1)}

    data = Rows(9, without={"a": {1}, "b": {5}})
    files = blocks(tmp_path, data, stream(), read=both, progress=Silent(), title="")
    assert labelled(files)["a+b"].index.tolist() == [0, 2, 3, 4, 6, 7, 8]


def test_rows_without_label_are_left_out_unless_asked_for(tmp_path: Path) -> None:
    block = Block(
        np.arange(3),
        np.array([1, -100, 0]),
        {"a": np.eye(3, dtype=np.float32)},
        {"a": np.ones(3, bool)},
    )
    kept_features._write(tmp_path / "0.npz", block)
    assert labelled([tmp_path / "0.npz"])["a"].index.tolist() == [0, 2]
    assert labelled([tmp_path / "0.npz"], unlabelled=True)["a"].index.tolist() == [0, 1, 2]


def test_parameters_are_grouped_by_name() -> None:
    modules = {
        "encoders": nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3)),
        "objective": nn.Linear(3, 2),
    }
    modules["encoders"][0].bias.requires_grad_(False)  # type: ignore[index]
    groups = [Group("objective.*", {"lr": 0.5}), Group("*.bias", {"weight_decay": 0.0})]
    rest, heads, biases = grouped(modules, groups)
    assert [p.shape for p in rest["params"]] == [(3, 2), (3, 3)]
    assert [p.shape for p in heads["params"]] == [(2, 3), (2,)]
    assert [p.shape for p in biases["params"]] == [(3,)]
    assert (heads["lr"], biases["weight_decay"]) == (0.5, 0.0)
    assert set(rest) == {"params"}
    with pytest.raises(UserError, match=r"training.groups.0: no parameter .* is called 'head"):
        grouped(modules, [Group("head*", {})])


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
