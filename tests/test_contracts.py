"""A plugin's breach of a contract is one line for its author, with its place in the recipe."""

import types
from pathlib import Path
from typing import Any

import kit_toys
import pytest
import torch
from recipe_components import plugin_of
from torch import Tensor, nn

from mmssl import (
    Backbone,
    Batch,
    Dataset,
    Evaluation,
    Features,
    Losses,
    Objective,
    Sample,
    UserError,
)
from mmssl.pipeline.plan import make_plan
from mmssl.pipeline.run_folder import RunFolder
from mmssl.pipeline.stages import run_stage, stage_names
from mmssl.recipe import load
from mmssl.registry import Registry, load_plugins
from mmssl.training.progress import Silent

RECIPE = """\
name: toys
threads: 1
device: cpu
modalities: {a: vector, b: vector}
backbones: {a: net, b: net}
data:
  workers: 0
  train: {use: rows, size: 24}
  validation: rows
objective: agree
training:
  epoch_size: 24
  epochs: 1
  batch_size: 8
  optimizer: descend
  schedule: steady
evaluations:
  measure: {use: measure, data: rows}
"""


class Unmoved(kit_toys.Vector):
    shape = None  # type: ignore[assignment]


class Halved(kit_toys.Vector):
    shape = (8.5,)  # type: ignore[assignment]


class Kindless(kit_toys.Vector):
    kind = None  # type: ignore[assignment]


class Bare(kit_toys.Net):
    def forward(self, clip: Tensor) -> Features:
        return super().forward(clip).pooled  # type: ignore[return-value]


class Wavering(kit_toys.Net):
    def forward(self, clip: Tensor) -> Features:
        found = super().forward(clip)
        return (found, found) if self.training else found  # type: ignore[return-value]


class Wide(kit_toys.Net):
    def forward(self, clip: Tensor) -> Features:
        return Features(super().forward(clip).pooled.repeat(1, 2))


class Dimless(Backbone):
    modalities = "any"

    def forward(self, clip: Tensor) -> Features:
        return Features(clip)


class Served(kit_toys.Net):
    modalities = None  # type: ignore[assignment]


class Half(kit_toys.Pair):
    def forward(self, clips: dict[str, Tensor], present: dict[str, Tensor]) -> dict[str, Features]:
        return {"a": super().forward(clips, present)["a"]}


class Single(kit_toys.Pair):
    def forward(self, clips: dict[str, Tensor], present: dict[str, Tensor]) -> dict[str, Features]:
        return super().forward(clips, present)["a"]  # type: ignore[return-value]


class Tensors(kit_toys.Pair):
    def forward(self, clips: dict[str, Tensor], present: dict[str, Tensor]) -> dict[str, Features]:
        found = super().forward(clips, present)
        return {name: f.pooled for name, f in found.items()}  # type: ignore[misc]


class Early(Backbone):
    modalities = "any"

    def __init__(self) -> None:
        self.layer = nn.Linear(8, 6)


class Formless(Backbone):
    modalities = "any"
    dim = 6


class Aimless(Objective):
    """Has no loss."""


def sized(size: int) -> Dataset:
    """Whose author forgot the ``*``."""
    return kit_toys.Rows(size=size)


class Hollow(kit_toys.Agree):
    def __init__(self) -> None:
        self.temperature = 0.1


def plain() -> Backbone:
    """A network that is no backbone."""
    return nn.Linear(8, 6)  # type: ignore[return-value]


class Number(kit_toys.Agree):
    def loss(self, batch: Batch, features: dict[str, Features]) -> Losses:
        return super().loss(batch, features).total  # type: ignore[return-value]


class Detached(kit_toys.Agree):
    def loss(self, batch: Batch, features: dict[str, Features]) -> Losses:
        return Losses(super().loss(batch, features).total.detach())


class Floating(kit_toys.Agree):
    def loss(self, batch: Batch, features: dict[str, Features]) -> Losses:
        return Losses(float(super().loss(batch, features).total.detach()))  # type: ignore[arg-type]


class Rowwise(kit_toys.Agree):
    def loss(self, batch: Batch, features: dict[str, Features]) -> Losses:
        return Losses(super().loss(batch, features).total.repeat(8))


class Metrics(kit_toys.Measure):
    def evaluate(self, context: Any) -> Evaluation:
        return super().evaluate(context).metrics  # type: ignore[return-value]


class Absent(kit_toys.Rows):
    def __len__(self) -> int:
        raise UserError("list.csv: no such file")


class Nameless(kit_toys.Rows):
    @property  # type: ignore[override]
    def classes(self) -> list[str]:
        raise UserError("names.txt: no such file")


class Ragged(kit_toys.Rows):
    def name(self, index: int) -> str:
        raise UserError("list.csv:3: has no id")


class Empty(kit_toys.Rows):
    """Nothing is known of its samples."""

    def sample(self, index: int) -> Sample:
        return Sample(self.name(index), None)


class Late(kit_toys.Rows):
    """One of whose rows is looked at in training only, as those of a large list."""

    def digest(self) -> str:
        return "late"

    def name(self, index: int) -> str:
        if index == 11:
            raise UserError("list.csv:13: has no id")
        return super().name(index)


TOYS: dict[str, dict[str, Any]] = {
    "modalities": {
        "vector": kit_toys.Vector,
        "unmoved": Unmoved,
        "halved": Halved,
        "kindless": Kindless,
    },
    "backbones": {
        "net": kit_toys.Net,
        "pair": kit_toys.Pair,
        "bare": Bare,
        "wavering": Wavering,
        "wide": Wide,
        "dimless": Dimless,
        "served": Served,
        "half": Half,
        "single": Single,
        "tensors": Tensors,
        "early": Early,
        "formless": Formless,
        "plain": plain,
        "swapped": kit_toys.Agree,
    },
    "datasets": {
        "rows": kit_toys.Rows,
        "absent": Absent,
        "nameless": Nameless,
        "ragged": Ragged,
        "late": Late,
        "empty": Empty,
        "sized": sized,
    },
    "objectives": {
        "agree": kit_toys.Agree,
        "aimless": Aimless,
        "hollow": Hollow,
        "number": Number,
        "detached": Detached,
        "floating": Floating,
        "rowwise": Rowwise,
        "swapped": kit_toys.Net,
    },
    "evaluators": {"measure": kit_toys.Measure, "metrics": Metrics},
    "optimizers": {"descend": kit_toys.descend},
    "schedules": {"steady": kit_toys.steady},
}


def _plugin() -> types.ModuleType:
    places = {
        kind: {name: f"{t.__module__}:{t.__qualname__}" for name, t in components.items()}
        for kind, components in TOYS.items()
    }
    return plugin_of("toy", places)


@pytest.fixture(scope="module")
def registry() -> Registry:
    loaded = load_plugins(
        [("mmssl", "", lambda: __import__("mmssl.builtin").builtin), ("toy", "1.0", _plugin)]
    )
    assert [plugin.error for plugin in loaded.plugins] == [None, None]
    return loaded


# What the recipe says instead, and the one line that is told.
PLANNED = [
    ("a: vector", "a: unmoved", "my.yaml:4: modalities.a: shape is None: set it in the class or in "
     "__init__, as self.shape = (channels, steps)"),
    ("a: vector", "a: halved", "my.yaml:4: modalities.a: shape is (8.5,): it must hold whole "
     "numbers > 0, without the batch's size"),
    ("a: vector", "a: kindless", "my.yaml:4: modalities.a: kind is None: set it in the class or in "
     "__init__, as kind = 'imu'"),
    ("{a: net", "{a: bare", "my.yaml:5: backbones.a: forward of Bare returned a Tensor: return "
     "mmssl.Features"),
    ("{a: net", "{a: wide", "my.yaml:5: backbones.a: pooled features of a are of shape (2, 12), "
     "where dim of Wide declares (2, 6): correct one of them; `mmssl check-plugin` tries more of "
     "a backbone than this"),
    ("{a: net", "{a: dimless", "my.yaml:5: backbones.a: dim is None: set it to D of its features"),
    ("{a: net", "{a: served", "my.yaml:5: backbones.a: modalities is None: set it in the class to "
     "the kinds that it serves, such as frozenset({'imu'}), or to 'any'"),
    ("{a: net, b: net}", "{a+b: half}", "my.yaml:5: backbones.a+b: forward of Half gave features "
     "of ['a'], and takes ['a', 'b']"),
    ("{a: net, b: net}", "{a+b: single}", "my.yaml:5: backbones.a+b: forward of Single returned a "
     "Features: return a dict of mmssl.Features by modality"),
    ("{a: net, b: net}", "{a+b: tensors}", "my.yaml:5: backbones.a+b: forward of Tensors returned "
     "a Tensor for a: return mmssl.Features"),
    ("{a: net", "{a: early", "my.yaml:5: backbones.a: backbone 'early' of plugin 'toy': cannot "
     "assign module before Module.__init__() call: call super().__init__() first in its __init__"),
    ("{a: net", "{a: plain", "my.yaml:5: backbones.a: backbone 'plain' of plugin 'toy' returned a "
     "Linear: return mmssl.Backbone"),
    ("e: agree", "e: hollow", "my.yaml:10: objective: objective 'hollow' of plugin 'toy': Hollow "
     "is no module yet: call super().__init__() first in its __init__"),
    ("{a: net", "{a: formless", "my.yaml:5: backbones.a: backbone 'formless' of plugin 'toy': "
     "Formless does not define forward"),
    ("e: agree", "e: aimless", "my.yaml:10: objective: Aimless does not define loss"),
    ("{use: rows, size: 24}", "{use: sized, size: 24}", "my.yaml:8: data.train.size: dataset "
     "'sized' of plugin 'toy' takes 'size', but not from recipes: they set what is keyword-only "
     "(after '*' in the signature)"),
    ("e: agree", "e: swapped", "my.yaml:10: objective: objective 'swapped' of plugin 'toy': "
     "the class Net must subclass mmssl.Objective"),
    ("e: agree", "e: {use: swapped, rounds: 2}", "my.yaml:10: objective.use: objective 'swapped' "
     "of plugin 'toy': the class Net must subclass mmssl.Objective"),
    ("{a: net", "{a: swapped", "my.yaml:5: backbones.a: backbone 'swapped' of plugin 'toy': "
     "the class Agree must subclass mmssl.Backbone"),
    ("{use: rows, size: 24}", "absent", "my.yaml:8: data.train: list.csv: no such file"),
    ("{use: rows, size: 24}", "nameless", "my.yaml:8: data.train: names.txt: no such file"),
    ("validation: rows", "validation: absent",
     "my.yaml:9: data.validation: list.csv: no such file"),
    ("validation: rows", "validation: nameless",
     "my.yaml:9: data.validation: names.txt: no such file"),
]  # fmt: skip

TRAINED = [
    ("{a: net", "{a: wavering", "my.yaml:5: backbones.a: forward of Wavering returned a tuple: "
     "return mmssl.Features"),
    ("e: agree", "e: number", "my.yaml:10: objective: loss of Number returned a Tensor: return "
     "mmssl.Losses(total, parts)"),
    ("e: agree", "e: floating", "my.yaml:10: objective: the total that loss of Floating returned "
     "is a float: make it a scalar tensor"),
    ("e: agree", "e: rowwise", "my.yaml:10: objective: the total that loss of Rowwise returned is "
     "of shape [8]: make it a scalar tensor"),
    ("e: agree", "e: detached", "my.yaml:10: objective: the total that loss of Detached returned "
     "has no gradient: do not detach it, and where no row counts return a 0 that depends on the "
     "features, such as features.pooled.sum() * 0"),
    ("{use: rows, size: 24}", "ragged", "my.yaml:8: data.train: list.csv:3: has no id"),
    ("validation: rows", "validation: ragged",
     "my.yaml:9: data.validation: list.csv:3: has no id"),
    ("{use: measure, data: rows}", "{use: measure, data: absent}",
     "my.yaml:18: evaluations.measure: list.csv: no such file"),
    ("{use: measure,", "{use: metrics,", "my.yaml:18: evaluations.measure: evaluate of Metrics "
     "returned a dict: return mmssl.Evaluation; what was trained is kept, and `mmssl run` goes on "
     "from there"),
]  # fmt: skip


def _run(registry: Registry, *, dry: bool) -> None:
    torch.manual_seed(0)
    recipe = load("my.yaml", registry=registry)
    make_plan(recipe)
    if dry:
        return
    folder = RunFolder(recipe)
    with folder.locked():
        folder.prepare()
        for stage in stage_names(recipe):
            run_stage(recipe, stage, Silent())


@pytest.mark.parametrize(
    ("before", "after", "told", "dry"),
    [(*case, True) for case in PLANNED] + [(*case, False) for case in TRAINED],
    ids=[case[1] for case in (*PLANNED, *TRAINED)],
)
def test_a_breach_is_one_line_with_its_place(
    before: str,
    after: str,
    told: str,
    dry: bool,
    registry: Registry,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert RECIPE.count(before) == 1
    (tmp_path / "my.yaml").write_text(RECIPE.replace(before, after))
    with pytest.raises(UserError) as caught:
        _run(registry, dry=dry)
    assert str(caught.value) == told


@pytest.mark.parametrize("backbones", ["{a: net, b: net}", "{a+b: pair}"])
def test_what_keeps_its_contracts_runs(
    backbones: str, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.yaml").write_text(RECIPE.replace("{a: net, b: net}", backbones))
    _run(registry, dry=False)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("before", "after", "place"),
    [
        ("train: {use: rows, size: 24}", "train: {use: late, size: 24}", "8: data.train"),
        ("validation: rows", "validation: late", "9: data.validation"),
        ("data: rows", "data: late", "18: evaluations.measure"),
    ],
    ids=["train", "validation", "evaluation"],
)
def test_a_row_that_is_wrong_is_told_from_a_loader_process_too(
    workers: int,
    before: str,
    after: str,
    place: str,
    registry: Registry,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert RECIPE.count(before) == 1
    text = RECIPE.replace(before, after).replace("workers: 0", f"workers: {workers}")
    (tmp_path / "my.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        _run(registry, dry=False)
    assert str(caught.value) == f"my.yaml:{place}: list.csv:13: has no id"


def test_data_of_which_nothing_can_be_read_are_named(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.yaml").write_text(RECIPE.replace("{use: rows, size: 24}", "empty"))
    told = (
        r"my\.yaml:8: data\.train: 20 samples in a row could not be read; the last was row\d+: has "
        r"none of the modalities a, b"
    )
    with pytest.raises(UserError, match=f"^{told}$"):
        _run(registry, dry=False)


def test_an_evaluation_that_broke_its_contract_goes_on_from_what_was_trained(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "my.yaml"
    file.write_text(RECIPE.replace("use: measure", "use: metrics"))
    with pytest.raises(UserError, match="what was trained is kept"):
        _run(registry, dry=False)
    recipe = load("my.yaml", registry=registry)
    folder = RunFolder(recipe)
    assert folder.finished("pretrain")
    assert not folder.finished("measure")
    # Its author mends it.
    monkeypatch.setattr(Metrics, "evaluate", kit_toys.Measure.evaluate)
    run_stage(recipe, "measure", Silent())
    assert folder.finished("measure")


def test_a_defect_within_a_plugin_keeps_its_traceback(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.yaml").write_text(RECIPE)

    def broken(self: Any, *, dim: int = 6) -> None:
        self.nothing  # noqa: B018

    monkeypatch.setattr(kit_toys.Net, "__init__", broken)
    with pytest.raises(AttributeError, match="nothing"):
        _run(registry, dry=True)
