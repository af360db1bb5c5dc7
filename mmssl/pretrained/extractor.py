"""What is computed of samples: features by modality, and embeddings where the objective has some.

A modality's values stand side by side in one row, features first, so that they are streamed, kept
and averaged over views as one.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mmssl.contracts import Features, Modality, Objective, Split
from mmssl.data.loading import LoaderSettings, Unreadable
from mmssl.errors import UserError
from mmssl.pretrained.checkpoint import Pretrained
from mmssl.pretrained.weights import identity
from mmssl.training.encoders import Encoders
from mmssl.training.features import FeatureStream, prepare


@dataclass(frozen=True)
class Extractor:
    """Encoders on a device, and the objective's embeddings.

    Attributes:
        pretrained: where they come from.
        encoders: in eval mode.
        modalities: by name.
        objective: None where modalities are not compared.
        device: where both are.
        identity: of the encoders' weights, and of the objective's.
        layout: by modality: column and width of each part of a row.
    """

    pretrained: Pretrained
    encoders: Encoders
    modalities: Mapping[str, Modality]
    objective: Objective | None
    device: torch.device
    identity: Mapping[str, str | None]
    layout: Mapping[str, list[tuple[str, int]]]

    def read(self, features: dict[str, Features]) -> dict[str, Tensor]:
        """``[B, D + E + ...]`` float32 by modality."""
        return {
            modality: torch.cat([values.float() for values in parts.values()], 1)
            for modality, parts in _parts(self.objective, features).items()
        }

    def stream(
        self, unreadable: Callable[[Split, Unreadable], None], settings: LoaderSettings, batch: int
    ) -> FeatureStream:
        """What computes `read` of a dataset.

        Args:
            unreadable: is told of every row that cannot be read.
            settings: of the loader.
            batch: clips in a forward pass.
        """
        return FeatureStream(
            encoders=self.encoders,
            modalities=self.modalities,
            device=self.device,
            precision=self.pretrained.precision,
            batch_size=batch,
            settings=settings,
            seed=self.pretrained.seed,
            unreadable=unreadable,
            channels_last=self.pretrained.channels_last,
        )


def make_extractor(pretrained: Pretrained, device: torch.device) -> Extractor:
    """Build encoders and objective, and find out how wide their rows are."""
    modalities = pretrained.build_modalities()
    encoders = pretrained.build_encoders()
    objective = pretrained.build_objective(encoders)
    known = {
        "weights": identity(encoders),
        "objective": None if objective is None else identity(objective),
    }
    encoders.to(device)
    if objective is not None:
        objective.to(device)
    clips = {name: modality.empty()[None].to(device) for name, modality in modalities.items()}
    present = {name: torch.ones(1, dtype=torch.bool) for name in modalities}
    with torch.no_grad():
        parts = _parts(objective, encoders(prepare(clips, modalities, None), present))
    layout = {
        modality: [(column, values.shape[1]) for column, values in found.items()]
        for modality, found in parts.items()
    }
    return Extractor(pretrained, encoders, modalities, objective, device, known, layout)


def _parts(
    objective: Objective | None, features: dict[str, Features]
) -> dict[str, dict[str, Tensor]]:
    """By modality and column."""
    parts = {name: {f"features/{name}": found.pooled} for name, found in features.items()}
    if objective is not None:
        for space, members in objective.embeddings(features).items():
            for name, values in members.items():
                parts[name][f"embeddings/{space}/{name}"] = values
    return parts


def choose_device(name: str) -> torch.device:
    """``auto`` is a GPU where there is one; each of several ranks has its own.

    Raises:
        UserError: there is no such device.
    """
    from mmssl.training import distributed

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        name = "cuda" if count else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name}: write auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda":
        if (device.index or 0) >= count:
            raise UserError(f"--device {name} is not available ({count} CUDA devices)")
        if device.index is None and distributed.place().size > 1:
            device = torch.device("cuda", distributed.place().local_rank % count)
            torch.cuda.set_device(device)
    return device
