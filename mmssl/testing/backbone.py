"""What holds of every backbone.

Encoders are measured in evaluation mode, row by row, on other machines and years later: a clip's
features must not depend on the clips beside it, and a network must be all in its state dict.
"""

import copy
import pickle
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import load_model
from torch import Tensor, nn

from mmssl.contracts import Backbone, Features
from mmssl.data.draws import derive_seed
from mmssl.pipeline.plan import asks_for_data
from mmssl.recipe.component import ComponentSpec
from mmssl.testing.check import fail, not_applicable, require, shown
from mmssl.testing.loops import temporary_folder
from mmssl.testing.material import Material, seed_everything
from mmssl.testing.tensors import ROUNDING, difference, features_differ, rows_of, tensors_of
from mmssl.training.encoders import Encoders, save_weights
from mmssl.training.features import autocast

# Training-mode kernels and batch statistics sum in another order for parts of a batch.
_PARTS = 10 * ROUNDING


class Case:
    """A backbone as a recipe names it.

    Args:
        material: of the recipe.
        spec: the backbone.
        keys: the modalities that it is given; several for a joint one.
    """

    def __init__(self, material: Material, spec: ComponentSpec, keys: tuple[str, ...]) -> None:
        self.material = material
        self.spec = spec
        self.keys = keys

    @cached_property
    def network(self) -> Backbone:
        """The network, in evaluation mode, as the recipe's seed makes it."""
        return self.build().eval()

    def build(self, salt: str = "") -> Backbone:
        """A new one; another salt gives other parameters."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self.material.recipe.seed, "check", *self.keys, salt))
            network: Backbone = self.spec.build()
        return network

    @cached_property
    def clips(self) -> dict[str, Tensor]:
        """Prepared clips by modality."""
        return self.material.prepared(self.keys)

    @property
    def size(self) -> int:
        """Clips in a batch."""
        return len(self.clips[self.keys[0]])

    def present(self, size: int) -> dict[str, Tensor]:
        """All there."""
        return {key: torch.ones(size, dtype=torch.bool) for key in self.keys}

    def features(
        self,
        network: nn.Module,
        clips: Mapping[str, Tensor] | None = None,
        present: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Features]:
        """By modality, as `Encoders` asks for them."""
        clips = self.clips if clips is None else clips
        if len(self.keys) == 1 and not getattr(network, "joint", False):
            return {self.keys[0]: network(clips[self.keys[0]])}
        size = len(clips[self.keys[0]])
        found: dict[str, Features] = network(dict(clips), present or self.present(size))
        return found

    @cached_property
    def expected(self) -> dict[str, Features]:
        """Of the whole batch, in evaluation, in float32 wherever it is first asked for."""
        with torch.no_grad(), autocast(torch.device("cpu"), "fp32"):
            return self.features(self.network)


def declares_itself(case: Case) -> None:
    """Modalities, dim and joint are set"""
    network = case.network
    serves = getattr(network, "modalities", None)
    if serves != "any" and not (isinstance(serves, set | frozenset) and serves):
        fail(
            f"modalities is {serves!r}: set it in the class to the kinds that it serves, such as "
            "frozenset({'imu'}), or to 'any'"
        )
    dim = getattr(network, "dim", None)
    require(isinstance(dim, int) and dim > 0, f"dim is {dim!r}: set it to D of its features")
    require(
        isinstance(network.joint, bool) and network.joint == type(network).joint,
        "joint must be an attribute of the class: recipes are checked before anything is built",
    )


def gives_features(case: Case) -> None:
    """Features are pooled [B, dim] and tokens [B, N, dim], finite"""
    for mode in (False, True):
        where = "in training mode" if mode else "in evaluation mode"
        found = case.features(case.build().train(mode))
        require(
            set(found) == set(case.keys),
            f"forward gave features of {sorted(found)}, and takes {sorted(case.keys)}",
        )
        for key, features in found.items():
            _check_form(case, key, features, where)


def _check_form(case: Case, key: str, features: Features, where: str) -> None:
    if not isinstance(features, Features):
        fail(f"forward returned {shown(features)} {where}: return mmssl.Features")
    dim = case.network.dim
    expected: dict[str, tuple[int, ...]] = {"pooled": (case.size, dim)}
    if features.tokens is not None:
        expected["tokens"] = (case.size, features.tokens.shape[1], dim)
    for name, value in tensors_of(features).items():
        if name in expected and tuple(value.shape) != expected[name]:
            fail(
                f"{name} of {key} is {shown(value)} {where}, not {list(expected[name])}, for "
                f"{case.size} clips and dim {dim}"
            )
        require(len(value) == case.size, f"{name} of {key} is {shown(value)} for {case.size} clips")
        if value.is_floating_point():
            require(
                bool(value.isfinite().all()), f"{name} of {key} holds values that are not finite"
            )
    require(
        features.pooled.dtype == torch.float32,
        f"pooled of {key} is {shown(features.pooled)} {where}: without autocast it is float32",
    )


def keeps_clips(case: Case) -> None:
    """Forward does not change the clips that it is given"""
    given = {key: clip.clone() for key, clip in case.clips.items()}
    case.features(case.build().train(), given)
    for key, clip in given.items():
        if found := difference(clip, case.clips[key]):
            fail(f"forward changed the clips of {key} ({found}): use no operation in place on them")


def is_seeded(case: Case) -> None:
    """The same seed builds the same parameters"""
    once, again, other = case.build(), case.build(), case.build("other")
    ours, theirs = once.state_dict(), again.state_dict()
    for name in ours:
        if found := difference(theirs[name], ours[name]):
            fail(
                f"built twice with the same seed, {name} differs ({found}): initialise by torch's "
                "global generator alone, which the core seeds, not by numpy or the clock"
            )
    if [n for n, p in once.named_parameters() if p.requires_grad and p.numel() > 1] and all(
        torch.equal(x, other.state_dict()[name]) for name, x in ours.items()
    ):
        fail(
            "another seed builds the same parameters: do not call torch.manual_seed, and "
            "initialise weights at random unless they are loaded"
        ) if not _pretrained(case) else not_applicable("its weights are loaded")


def _pretrained(case: Case) -> bool:
    return any("weights" in name and value for name, value in case.spec.parameters.items())


def is_deterministic(case: Case) -> None:
    """In evaluation mode a clip's features are always the same"""
    with torch.no_grad():
        seed_everything(1)
        once = case.features(case.network)
        seed_everything(2)
        found = features_differ(case.features(case.network), once)
    if found:
        fail(
            f"the same clips gave other features in evaluation mode ({found}): drop out and draw "
            "only where self.training is true, and change no buffer"
        )


def is_separate(case: Case) -> None:
    """Features of a batch equal those of its parts in evaluation mode"""
    with torch.no_grad():
        for rows in (slice(0, 1), slice(1, None), list(reversed(range(case.size)))):
            part = {key: clip[rows] for key, clip in case.clips.items()}
            found = features_differ(
                case.features(case.network, part), rows_of(case.expected, rows), _PARTS
            )
            if found:
                fail(
                    f"in evaluation mode a clip's features depend on those beside it ({found}): "
                    "no step may mix rows of a batch unless self.training is true"
                )


def restores(case: Case) -> None:
    """Its state dict holds all of it"""
    other = case.build("other").eval()
    with temporary_folder() as folder:
        file = Path(folder) / "weights.safetensors"
        save_weights(case.network, file)
        load_model(other, file)
    with torch.no_grad():
        found = features_differ(case.features(other), case.expected)
    if found:
        fail(
            f"loaded from a file into a network of another seed, it gives other features ({found}):"
            " what is drawn or computed when it is built, such as a fixed projection, must be a "
            "parameter or a buffer (register_buffer)"
        )


def copies(case: Case) -> None:
    """A copy, and what is unpickled, give the same features"""
    for what, make in (("deep copy", copy.deepcopy), ("pickled and unpickled copy", _pickled)):
        try:
            twin = make(case.network)
        except Exception as error:
            fail(
                f"a {what} of it cannot be made ({type(error).__name__}: {error}): keep no lambda, "
                "local function or handle in the module; the core copies networks to measure them"
            )
        with torch.no_grad():
            if found := features_differ(case.features(twin), case.expected):
                fail(f"a {what} of it gives other features ({found})")
        if {id(p) for p in twin.parameters()} & {id(p) for p in case.network.parameters()}:
            fail(f"a {what} of it shares parameters with it")


def _pickled(network: Backbone) -> Backbone:
    twin: Backbone = pickle.loads(pickle.dumps(network))  # noqa: S301 - what was pickled here
    return twin


def trains_all(case: Case) -> None:
    """Every parameter that is to be trained gets a gradient"""
    network = case.build().train()
    seed_everything(1)
    values = [
        value
        for features in case.features(network).values()
        for value in tensors_of(features).values()
        if value.requires_grad
    ]
    require(bool(values), "its features have no gradient: do not detach them or use no_grad")
    torch.manual_seed(0)
    loss = sum((value * torch.randn_like(value)).mean() for value in values)
    assert isinstance(loss, Tensor)
    loss.backward()
    without = [n for n, p in network.named_parameters() if p.requires_grad and p.grad is None]
    without = [name for name in without if name not in _trained_by_objective(case, bool(without))]
    if without:
        fail(
            f"{len(without)} parameters get no gradient, neither from its features nor from the "
            f"recipe's objective: {', '.join(without[:5])}{', ...' * (len(without) > 5)}. Use "
            "them, leave them out, or set requires_grad_(False)"
        )
    broken = [
        n
        for n, p in network.named_parameters()
        if p.grad is not None and not p.grad.isfinite().all()
    ]
    if broken:
        fail(f"the gradients of {', '.join(broken[:5])} are not finite: add an epsilon to roots")


def _trained_by_objective(case: Case, asked: bool) -> set[str]:
    """Parameters that the recipe's objective trains by other ways than the features."""
    from mmssl.testing import objective

    key = "+".join(case.keys)
    recipe = case.material.recipe
    if not asked or recipe.backbones.get(key) != case.spec:
        return set()
    behind = objective.Case(case.material, recipe.objective)
    with behind.undone():
        behind.backward(behind.losses(behind.batch), "")
        whole = behind.loop.encoders.backbones[key]
        return {name for name, p in whole.named_parameters() if p.grad is not None}


def computes_in_bf16(case: Case) -> None:
    """In bf16 its features are finite, and near those in float32"""
    network = case.build().train()
    with autocast(torch.device("cpu"), "bf16"):
        features = case.features(network)
        loss = sum(f.pooled.float().square().mean() for f in features.values())
    assert isinstance(loss, Tensor)
    for key, found in features.items():
        for name, value in tensors_of(found).items():
            if value.is_floating_point() and not bool(value.isfinite().all()):
                fail(
                    f"{name} of {key} is not finite under bf16 autocast: compute exponentials, "
                    "norms and variances in float32"
                )
    loss.backward()
    with torch.no_grad(), autocast(torch.device("cpu"), "bf16"):
        for key, found in case.features(case.network).items():
            ours, theirs = found.pooled.float(), case.expected[key].pooled
            apart = float((ours - theirs).norm() / theirs.norm().clamp(min=1e-12))
            require(
                apart < 0.25,
                f"pooled of {key} under bf16 autocast is {apart:.0%} away from that in float32: "
                "compute what is sensitive, such as means of many values, in float32",
            )


def knows_its_shapes(case: Case) -> None:
    """Its shapes can be told without data, as in a dry run"""
    ghost = copy.deepcopy(case.network).to("meta")
    clips = {key: clip.to("meta") for key, clip in case.clips.items()}
    try:
        with torch.no_grad():
            found = case.features(ghost, clips)
    except RuntimeError as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        if asks_for_data(error):
            not_applicable(f"what it computes depends on the data themselves: {reason}")
        fail(
            f"on another device (meta) it fails: {reason}. A tensor that forward uses stays where "
            "it was made: register it as a buffer, or make it on the clip's device"
        )
    for key, features in found.items():
        for name, value in tensors_of(features).items():
            other = tensors_of(case.expected[key])[name]
            require(
                value.shape == other.shape and value.device.type == "meta",
                f"{name} of {key} is {shown(value)} on meta and {shown(other)} on the CPU",
            )


def ignores_absent(case: Case) -> None:
    """Absent rows influence nothing"""
    if not case.network.joint:
        not_applicable("it serves one modality at a time, and the core leaves absent rows out")
    for key in case.keys:
        present = case.present(case.size)
        present[key][0] = False
        empty, noise = dict(case.clips), dict(case.clips)
        for clips, fill in ((empty, 0), (noise, 1)):
            clips[key] = clips[key].clone()
            clips[key][0] = fill
        with torch.no_grad():
            ours = case.features(case.network, empty, present)
            theirs = case.features(case.network, noise, present)
        if found := features_differ(theirs, ours, _PARTS):
            fail(
                f"what stands in an absent row of {key} changes features ({found}): mask it by "
                "present, in attention and in means"
            )
        others = slice(1, None)
        if found := features_differ(rows_of(ours, others), rows_of(case.expected, others), _PARTS):
            fail(f"that one row lacks {key} changes the features of other rows ({found})")
        for name, value in tensors_of(ours[key]).items():
            if bool(value[0].any()):
                fail(
                    f"{name} of {key} is not zero where {key} is absent: multiply it by present, "
                    "as the core does for networks of one modality"
                )


def trains_without(case: Case) -> None:
    """It trains on a batch in which a modality is absent"""
    encoders = Encoders({"+".join(case.keys): case.build()}, list(case.keys))
    if not (len(case.keys) > 1 or not case.network.joint):
        not_applicable("it is joint, and the recipe gives it one modality")
    encoders.train()
    for absent in (slice(0, 1), slice(None)):
        for key in case.keys:
            present = case.present(case.size)
            present[key][absent] = False
            clips = dict(case.clips)
            clips[key] = clips[key].clone()
            clips[key][absent] = 0
            seed_everything(0)
            features = encoders(clips, present)
            for name, found in features.items():
                require(
                    bool(found.pooled.isfinite().all()),
                    f"pooled of {name} is not finite where {key} is absent: an empty row's softmax "
                    "or mean is no number; guard it",
                )
            loss = sum(found.pooled.square().sum() for found in features.values())
            if isinstance(loss, Tensor) and loss.requires_grad:
                loss.backward()
    for name, parameter in encoders.named_parameters():
        if parameter.grad is not None and not bool(parameter.grad.isfinite().all()):
            fail(f"the gradient of {name} is not finite where a modality is absent")


def shares_subnetworks(case: Case) -> None:
    """Its subnetworks are parts of it"""
    parts = case.network.subnetworks()
    if not parts:
        not_applicable("it has no subnetworks")
    own = {id(p) for p in case.network.parameters()}
    for name, part in parts.items():
        require(isinstance(part, Backbone), f"the subnetwork {name!r} is no mmssl.Backbone")
        if not {id(p) for p in part.parameters()} <= own:
            fail(
                f"the subnetwork {name!r} has parameters of its own: build it from the modules of "
                "the whole, so that a copy of it is a part of the whole's weights"
            )


def computes_on_cuda(case: Case) -> None:
    """It works on CUDA"""
    if not torch.cuda.is_available():
        not_applicable("there is no CUDA device here")
    network = copy.deepcopy(case.network).cuda()
    clips = {key: clip.cuda() for key, clip in case.clips.items()}
    with torch.no_grad():
        found = case.features(network, clips)
    for key, features in found.items():
        for name, value in tensors_of(features).items():
            if there := difference(value.cpu(), tensors_of(case.expected[key])[name], 0.02):
                fail(f"{name} of {key} is not on the GPU what it is on the CPU ({there})")


TESTS = (
    declares_itself,
    gives_features,
    keeps_clips,
    is_seeded,
    is_deterministic,
    is_separate,
    restores,
    copies,
    trains_all,
    computes_in_bf16,
    knows_its_shapes,
    ignores_absent,
    trains_without,
    shares_subnetworks,
    computes_on_cuda,
)
