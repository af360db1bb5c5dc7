"""Pictures of the first filters of every backbone, beside what they were before training."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import DirectoryPath
from torch import nn

from mmssl import load_encoder
from mmssl.contracts import Evaluation, EvaluationContext, Evaluator, Table
from mmssl.errors import UserError
from mmssl.report.filters import filter_figure, stem_convolutions

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Filters(Evaluator):
    """The first convolutions of the pretrained encoders as pictures, beside those of others.

    In XDC's figure 2 these are R(2+1)D's first spatial and temporal filters, self-supervised
    beside supervised. Backbones that begin with no convolution are named in the table; there is
    nothing to see of them.

    Metrics, by backbone: ``filters``, of its first convolution; ``change``, the distance between
    the two encoders' first convolutions over the length of the other's, 0 where training changed
    nothing.

    Args:
        beside: "initial" for the same encoders before training, or the folder of another finished
            run, or of an exported one, with backbones of the same kind under the same keys.
    """

    encodes = False

    def __init__(self, *, beside: Literal["initial"] | DirectoryPath = "initial") -> None:
        self.beside: Literal["initial"] | DirectoryPath = beside

    def evaluate(self, context: EvaluationContext) -> Evaluation:
        """Draw them.

        Raises:
            UserError: the other encoders cannot be read, or are of another kind.
        """
        if self.beside == "initial":
            others, titles = context.encoders("initial").backbones, ("untrained", "pretrained")
        else:
            others, titles = load_encoder(self.beside).backbones, (self.beside.name, "this run")
        figures: dict[str, Figure] = {}
        metrics: dict[str, float] = {}
        rows: list[list[object]] = []
        for key, backbone in context.encoders().backbones.items():
            stem = stem_convolutions(backbone)
            if not stem:
                rows.append([key, "begins with no convolution", "", "", ""])
                continue
            weights = _weights(stem)
            before = self._other(others, key, weights)
            changes = {
                name: float((weight - before[name]).norm() / before[name].norm().clamp(min=1e-12))
                for name, weight in weights.items()
            }
            for name, weight in weights.items():
                shape = "×".join(map(str, weight.shape[1:]))
                rows.append([key, name, len(weight), shape, f"{changes[name]:.3f}"])
            metrics[f"{key}/filters"] = len(weights[stem[0][0]])
            metrics[f"{key}/change"] = changes[stem[0][0]]
            name = f"filters_{key.replace('+', '_')}"
            figures[name] = filter_figure(others[key], backbone, titles)
        columns = ["backbone", "layer", "filters", "of shape", "change"]
        table = Table(f"First convolutions: {titles[1]} beside {titles[0]}", columns, rows)
        return Evaluation(metrics, [table], figures)

    def _other(
        self, others: nn.ModuleDict, key: str, weights: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """The same layers of the other encoder."""
        if key not in others:
            raise UserError(f"beside: {self.beside} has no backbone {key!r}, only {list(others)}")
        found = _weights(stem_convolutions(others[key]))
        shapes, own = ({n: tuple(w.shape) for n, w in x.items()} for x in (found, weights))
        if shapes != own:
            raise UserError(
                f"beside: the backbone {key!r} of {self.beside} begins with {shapes}, this run's "
                f"with {own}: they are of another kind"
            )
        return found


def _weights(stem: Sequence[tuple[str, nn.Module]]) -> dict[str, torch.Tensor]:
    """Weights of convolutions, on the CPU."""
    found = {}
    for name, module in stem:
        assert isinstance(module.weight, torch.Tensor)
        found[name] = module.weight.detach().float().cpu()
    return found
