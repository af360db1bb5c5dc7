"""Encoders: absent modalities, several modalities in one backbone, saving."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_model
from torch import Tensor, nn
from toys import Perceptron

from mmssl.contracts import Backbone, Features
from mmssl.errors import UserError
from mmssl.training.encoders import Encoders, save_weights


class Joint(Backbone):
    """Two modalities through one network, with tokens and a joint feature."""

    modalities = "any"
    dim = 4
    joint = True

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(3, 4)
        self.tied = self.shared  # one tensor under two names

    def forward(  # type: ignore[override]
        self, clips: dict[str, Tensor], present: dict[str, Tensor]
    ) -> dict[str, Features]:
        each = {name: Features(self.shared(clip)) for name, clip in clips.items()}
        joint = torch.stack([f.pooled for f in each.values()]).mean(0)
        return {**each, "+".join(clips): Features(joint)}


def encoders() -> Encoders:
    torch.manual_seed(0)
    return Encoders({"b": Perceptron(3, 6), "a": Perceptron(3, 5)}, ["a", "b"])


CLIPS = {"a": torch.randn(6, 3), "b": torch.randn(6, 3)}
ALL = torch.ones(6, dtype=torch.bool)


def test_dims_stand_in_the_recipes_order() -> None:
    assert list(encoders().dims.items()) == [("a", 5), ("b", 6)]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("missing", [[2], [0, 1, 2, 3, 5], [0, 1, 2, 3, 4, 5]])
def test_absent_rows_are_zero_and_change_nothing_for_the_others(
    training: bool, missing: list[int]
) -> None:
    network = encoders().train(training)
    for backbone in network.backbones.values():
        backbone.layers[3].p = 0.0  # type: ignore[union-attr, index]
    present = ALL.clone()
    present[missing] = False
    zeroed = {"a": CLIPS["a"] * present[:, None], "b": CLIPS["b"]}
    garbage = {"a": torch.where(present[:, None], CLIPS["a"], torch.tensor(1e6)), "b": CLIPS["b"]}
    out = network(zeroed, {"a": present, "b": ALL})
    assert out["a"].pooled[~present].eq(0).all()
    assert out["a"].pooled.shape == (6, 5)
    again = encoders().train(training)
    for backbone in again.backbones.values():
        backbone.layers[3].p = 0.0  # type: ignore[union-attr, index]
    assert torch.equal(again(garbage, {"a": present, "b": ALL})["a"].pooled, out["a"].pooled)
    # Running statistics have not seen the absent rows either.
    for name, value in network.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert network.training == training
    assert all(module.training == training for module in network.modules())


def test_statistics_learn_from_present_rows_alone() -> None:
    present = ALL.clone()
    present[4:] = False
    partly, only = encoders(), encoders()
    partly(CLIPS, {"a": present, "b": ALL})
    only({"a": CLIPS["a"][:4], "b": CLIPS["b"][:4]}, {"a": ALL[:4], "b": ALL[:4]})
    key = "backbones.a.layers.1.running_mean"
    assert torch.equal(partly.state_dict()[key], only.state_dict()[key])


def test_one_backbone_for_two_modalities() -> None:
    network = Encoders({"a+b": Joint()}, ["a", "b"])
    assert network.dims == {"a": 4, "b": 4}
    out = network(CLIPS, {"a": ALL, "b": ALL})
    assert set(out) == {"a", "b", "a+b"}
    assert torch.allclose(out["a+b"].pooled, (out["a"].pooled + out["b"].pooled) / 2)


def test_saved_and_loaded_with_tied_tensors(tmp_path: Path) -> None:
    first = Encoders({"a+b": Joint()}, ["a", "b"])
    first.save(tmp_path / "encoders.safetensors")
    second = Encoders({"a+b": Joint()}, ["a", "b"])
    second.load(tmp_path / "encoders.safetensors")
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])


# Features of a class of their own


@dataclass(kw_only=True)
class Several(Features):
    candidates: Tensor
    valid: Tensor


class Candidates(Backbone):
    modalities = "any"
    dim = 3

    def forward(self, clip: Tensor) -> Several:
        return Several(
            pooled=clip, candidates=torch.stack([clip, 2 * clip], 1), valid=clip[:, :2] < 9
        )


@pytest.mark.parametrize("training", [True, False])
def test_further_tensors_of_features_are_kept_where_rows_are_absent(training: bool) -> None:
    network = Encoders({"a": Candidates()}, ["a"]).train(training)
    present = torch.tensor([True, False, True])
    clip = torch.arange(9.0).view(3, 3)
    found = network({"a": clip}, {"a": present})["a"]
    assert isinstance(found, Several)
    assert found.tokens is None
    torch.testing.assert_close(found.candidates[:, 1], 2 * clip * present[:, None])
    assert found.valid.tolist() == [[True, True], [False, False], [True, True]]


# Networks within backbones


class Whole(Joint):
    def subnetworks(self) -> dict[str, Backbone]:
        return {"small": Part(self.shared), "both": self}


class Part(Candidates):
    def __init__(self, shared: nn.Module) -> None:
        super().__init__()
        self.shared = shared


def test_subnetworks_share_parameters_and_stand_in_the_recipes_order() -> None:
    whole = Encoders({"b+a": Whole(), "c": Perceptron(3, 5)}, ["a", "b", "c"])
    part = whole.subnetworks({"b": "small"})
    assert part.modalities == ["b"]
    assert {id(p) for p in part.parameters()} < {id(p) for p in whole.parameters()}
    assert whole.subnetworks({"b+a": "both"}).modalities == ["a", "b"]


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"a": "smal"}, r"subnetworks.a: b\+a has no subnetwork 'smal'; there are: small, both"),
        ({"c": "small"}, "subnetworks.c: c has no subnetwork 'small'$"),
        ({"d": "small"}, r"subnetworks.d: no backbone serves d; there are: b\+a, c"),
        ({"a+b": "small"}, "subnetworks.a\\+b: 'small' of b\\+a does not encode a\\+b"),
        ({"a": "both"}, "subnetworks.a: 'both' of b\\+a does not encode a$"),
        ({"b+a": "both", "a": "small"}, "subnetworks.a: 'a' is encoded by two of them"),
    ],
)
def test_subnetworks_that_are_not_there(chosen: dict[str, str], message: str) -> None:
    whole = Encoders({"b+a": Whole(), "c": Perceptron(3, 5)}, ["a", "b", "c"])
    with pytest.raises(UserError, match=message):
        whole.subnetworks(chosen)


def test_a_frozen_network_in_training_computes_as_in_evaluation() -> None:
    network = encoders().train()
    network.backbones["a"].eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    present = {"a": torch.tensor([True] * 5 + [False]), "b": ALL}
    first, second = (network(CLIPS, present)["a"].pooled for _ in range(2))
    assert torch.equal(first, second)
    after = network.state_dict()
    assert all(torch.equal(before[n], after[n]) for n in before if n.startswith("backbones.a."))
    none = {"a": torch.zeros(6, dtype=torch.bool), "b": torch.zeros(6, dtype=torch.bool)}
    network.backbones["b"].layers[1].eval()  # type: ignore[union-attr, index]
    network(CLIPS, none)
    assert not network.backbones["a"].training
    assert network.backbones["b"].training
    assert [part.training for part in network.backbones["b"].layers] == [True, False] + [True] * 3  # type: ignore[union-attr]


# Weights


class Tied(nn.Module):
    """Tensors under several names, views that are not contiguous, and one without numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({name: nn.Linear(3, 3) for name in "abc"})
        self.parts["d"] = self.parts["a"]
        self.parts["c"].weight = self.parts["b"].weight  # type: ignore[assignment]
        self.turned = nn.Parameter(torch.randn(2, 3).T)
        self.register_buffer("none", torch.zeros(0, 4))
        self.register_buffer("empty", torch.zeros(0, 4))


def test_weights_are_written_alike_in_every_process(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Tied()
    save_weights(module, tmp_path / "one.safetensors")
    code = (
        "import sys, torch; sys.path.insert(0, sys.argv[1]); from pathlib import Path;"
        "from test_encoders import Tied; from mmssl.training.encoders import save_weights;"
        "torch.manual_seed(0); save_weights(Tied(), Path(sys.argv[2]))"
    )
    for name in ("two", "three"):
        path = tmp_path / f"{name}.safetensors"
        subprocess.run([sys.executable, "-c", code, str(Path(__file__).parent), path], check=True)
        assert path.read_bytes() == (tmp_path / "one.safetensors").read_bytes()
    torch.manual_seed(1)
    other = Tied()
    load_model(other, tmp_path / "one.safetensors")
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
    assert other.parts["d"] is other.parts["a"]
