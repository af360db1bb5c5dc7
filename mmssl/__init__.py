"""mmssl: self-supervised learning from video, sound, text and any further modality.

What is public is listed in ``__all__``. The contracts subclass torch's modules, so they are
imported when first asked for: ``import mmssl`` itself loads no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mmssl.errors import BadMedia, MissingModality, UserError
from mmssl.hooks import hookimpl

if TYPE_CHECKING:
    from mmssl.contracts import (
        Backbone,
        Batch,
        Callback,
        Dataset,
        Evaluation,
        EvaluationContext,
        Evaluator,
        Features,
        Launcher,
        Losses,
        Modality,
        Objective,
        Round,
        RunContext,
        Sample,
        Storage,
        Table,
        Tracker,
        Window,
    )
    from mmssl.data.draws import Draws
    from mmssl.data.media import Media
    from mmssl.pretrained.encoder import load_encoder

__version__ = "0.1.0"

__all__ = [
    "Backbone",
    "BadMedia",
    "Batch",
    "Callback",
    "Dataset",
    "Draws",
    "Evaluation",
    "EvaluationContext",
    "Evaluator",
    "Features",
    "Launcher",
    "Losses",
    "Media",
    "MissingModality",
    "Modality",
    "Objective",
    "Round",
    "RunContext",
    "Sample",
    "Storage",
    "Table",
    "Tracker",
    "UserError",
    "Window",
    "hookimpl",
    "load_encoder",
]

_HOMES = {
    "Draws": "mmssl.data.draws",
    "Media": "mmssl.data.media",
    "load_encoder": "mmssl.pretrained.encoder",
}


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module(_HOMES.get(name, "mmssl.contracts")), name)
    raise AttributeError(f"module 'mmssl' has no attribute {name!r}")
