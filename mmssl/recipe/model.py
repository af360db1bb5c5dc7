"""What a recipe may say. The documentation and the JSON schema are generated from these fields."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, PrivateAttr, StringConstraints

from mmssl.errors import UserError
from mmssl.formats import RECIPE
from mmssl.recipe.component import ComponentSpec
from mmssl.recipe.signature import Kind
from mmssl.recipe.typed import Expects, Typed
from mmssl.recipe.yaml12 import Node, Place, dump, located

RunName = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*$", max_length=100),
    Expects("at most 100 letters, digits, '.', '_' and '-', not beginning with '.' or '-'"),
]
ModalityKey = Annotated[
    str,
    StringConstraints(pattern=r"^[a-z][a-z0-9_]*$"),
    Expects("small letters, digits and '_', beginning with a letter"),
]
BackboneKey = Annotated[
    str,
    StringConstraints(pattern=r"^[a-z][a-z0-9_]*(\+[a-z][a-z0-9_]*)*$"),
    Expects("a modality's key, or several joined by '+'"),
]
EvaluationName = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_-]*$", max_length=100),
    Expects("at most 100 letters, digits, '_' and '-', not beginning with '-'"),
]
Device = Annotated[
    str,
    StringConstraints(pattern=r"^(auto|cpu|cuda(:[0-9]+)?)$"),
    Expects("'auto', 'cpu', 'cuda' or 'cuda:N'"),
]
Folder = Annotated[str, StringConstraints(min_length=1), Expects("the path of a folder")]
Positive = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]
Minutes = Annotated[float, Field(gt=0)]
Seconds = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]

# Components, by kind: each a bare name, or a mapping of `use` and the component's parameters.
ModalitySpec = Annotated[ComponentSpec, Kind("modalities")]
DatasetSpec = Annotated[ComponentSpec, Kind("datasets")]
BackboneSpec = Annotated[ComponentSpec, Kind("backbones")]
ObjectiveSpec = Annotated[ComponentSpec, Kind("objectives")]
EvaluatorSpec = Annotated[ComponentSpec, Kind("evaluators")]
OptimizerSpec = Annotated[ComponentSpec, Kind("optimizers")]
ScheduleSpec = Annotated[ComponentSpec, Kind("schedules")]
LauncherSpec = Annotated[ComponentSpec, Kind("launchers")]
TrackerSpec = Annotated[ComponentSpec, Kind("trackers")]
CallbackSpec = Annotated[ComponentSpec, Kind("callbacks")]


def _without_nulls(value: Any) -> Any:
    """Merging can only add: null takes back what another recipe brings."""
    if value is None:
        return {}
    if isinstance(value, dict):
        return {name: spec for name, spec in value.items() if spec is not None}
    return value


# What a recipe names as it likes.
Modalities = Annotated[
    dict[ModalityKey, ModalitySpec],
    Field(min_length=1),
    BeforeValidator(
        _without_nulls,
        json_schema_input_type=Annotated[
            dict[ModalityKey, ModalitySpec | None], Field(min_length=1)
        ],
    ),
]
Backbones = Annotated[
    dict[BackboneKey, BackboneSpec],
    BeforeValidator(
        _without_nulls, json_schema_input_type=dict[BackboneKey, BackboneSpec | None] | None
    ),
]
Evaluations = Annotated[
    dict[EvaluationName, EvaluatorSpec],
    BeforeValidator(
        _without_nulls,
        json_schema_input_type=dict[EvaluationName, EvaluatorSpec | None] | None,
    ),
]


class Data(Typed):
    """Which samples are seen, and how they are loaded."""

    train: DatasetSpec = Field(description="The dataset to pretrain on.")
    validation: DatasetSpec | None = Field(
        default=None, description="A dataset on which the loss is measured after every epoch."
    )
    limit: Positive | None = Field(
        default=None,
        description="Use only so many samples of the training data, spread evenly over it; null: "
        "all.",
    )
    workers: Count = Field(
        default=2,
        description="Processes that read media, per rank; 0 reads in the training process.",
    )
    prefetch: Positive = Field(default=4, description="Batches that each worker keeps ready.")
    time_limit: Seconds = Field(
        default=60.0,
        description="Seconds that reading one sample may take; it is skipped as unreadable then.",
    )
    max_bad: Fraction = Field(
        default=0.05,
        description="Stop when more than this fraction of the samples turned out unreadable.",
    )


class FinalRound(Typed):
    """What the last round does otherwise than those before it."""

    epochs: Count | None = Field(
        default=None, description="Epochs of the last round; null: as the others."
    )
    schedule: ScheduleSpec | None = Field(
        default=None, description="Schedule of the last round; null: as the others."
    )


class Checkpoint(Typed):
    """When the state of the run is saved; a round's end always saves it."""

    steps: Positive | None = Field(
        default=None, description="Save every so many steps; null: never so."
    )
    minutes: Minutes | None = Field(
        default=10,
        description="Save when so many minutes have passed since the last time; null: never so.",
    )
    keep: Positive = Field(default=2, description="The number of latest checkpoints that are kept.")


class ParameterGroup(Typed):
    """Parameters that are trained with settings of their own."""

    parameters: str = Field(
        min_length=1,
        description="A pattern of their names, where * stands for anything: encoders.*, "
        "objective.*, encoders.backbones.video.stem.*, *.bias. The first group that fits counts.",
    )
    lr: Rate | None = Field(
        default=None, description="Their peak learning rate; null: the optimizer's."
    )
    weight_decay: NotNegative | None = Field(
        default=None, description="Their weight decay; null: the optimizer's."
    )


class Training(Typed):
    """How long, in what steps and with which numbers the encoders are trained."""

    epoch_size: Positive = Field(
        description="Samples per epoch, whatever the dataset's size: a larger dataset is walked "
        "through over several epochs, a smaller one several times in one."
    )
    epochs: Count = Field(description="Epochs per round.")
    batch_size: Positive = Field(description="Samples per step, over all ranks and micro-batches.")
    accumulate: Positive = Field(
        default=1, description="Micro-batches that a step is computed in; divides batch_size."
    )
    optimizer: OptimizerSpec = Field(description="The optimizer; its lr is the peak.")
    schedule: ScheduleSpec = Field(
        description="The course of the learning rate through a round, as a factor on its peak."
    )
    lr_batch: Positive | None = Field(
        default=None,
        description="The batch size that optimizer.lr is meant for: the peak is lr * batch_size / "
        "lr_batch. null: lr is taken as it is.",
    )
    groups: list[ParameterGroup] = Field(
        default=[],
        description="Parameters with a learning rate or weight decay of their own, such as a "
        "classifier's.",
    )
    clip_norm: Rate | None = Field(
        default=None,
        description="The largest norm of a step's gradients, of all parameters together; longer "
        "ones are scaled down to it. null: none are.",
    )
    final_round: FinalRound | None = Field(
        default=None, description="What the last round does otherwise, such as training for longer."
    )
    early_stop: Positive | None = Field(
        default=None,
        description="Stop a round when the validation loss rose in so many consecutive epochs; "
        "needs data.validation. null: never.",
    )
    restart_optimizer: bool = Field(
        default=True, description="Begin every round with a fresh optimizer, without momentum."
    )
    freeze_encoders: bool = Field(
        default=False,
        description="Train the objective's own layers only; encoders stay as they are, in "
        "evaluation mode.",
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        default="fp32", description="What the forward pass computes in; fp16 scales the loss."
    )
    compile: bool = Field(default=False, description="Compile the backbones with torch.compile.")
    sync_batch_norm: bool = Field(
        default=True,
        description="Take BatchNorm's statistics from the rows of all ranks, so that their number "
        "changes nothing; false: each rank normalises its own part of a batch.",
    )
    channels_last: bool = Field(
        default=False, description="Keep the channels of images and videos last in memory."
    )
    log_every: Positive = Field(default=10, description="Steps between two records of the log.")
    checkpoint: Checkpoint = Field(
        default=Checkpoint(), description="When the state of the run is saved."
    )


class Recipe(Typed):
    """A run: what is learned, from which data, by which task, and how it is measured."""

    format: Annotated[int, Field(ge=1, le=RECIPE.current)] = Field(
        default=RECIPE.current,
        description="In which format the recipe is written; left out, in the present one. Not "
        "inherited.",
    )
    name: RunName = Field(
        description="The name of the run's folder. Left out: the recipe's file name without "
        "ending. Not inherited through extends."
    )
    description: str = Field(default="", description="What the recipe is for. Not inherited.")
    seed: Seed = Field(default=0, description="What every random draw follows from.")
    modalities: Modalities = Field(
        description="The kinds of signal that are learned from, under keys of your choice; null "
        "takes one away that this recipe extends."
    )
    backbones: Backbones = Field(
        description="The networks: under each modality's key, or for several modalities at once "
        "under their keys joined by '+', such as video+audio; null takes one away that this "
        "recipe extends."
    )
    data: Data = Field(description="Which samples are seen, and how they are loaded.")
    objective: ObjectiveSpec = Field(description="The self-supervised task.")
    training: Training = Field(description="How the encoders are trained.")
    device: Device = Field(
        default="auto", description="Where to compute; auto: the GPU if there is one, else the CPU."
    )
    threads: Positive | None = Field(
        default=None, description="CPU threads that torch computes with; null: torch decides."
    )
    evaluations: Evaluations = Field(
        default_factory=dict,
        description="How the pretrained encoders are measured, under names of your choice; null "
        "takes one away that this recipe extends.",
    )
    callbacks: list[CallbackSpec] = Field(
        default=[],
        description="What else happens at steps, rounds and checkpoints of pretraining, in this "
        "order.",
    )
    trackers: list[TrackerSpec] = Field(
        default=[{"use": "tensorboard"}],
        validate_default=True,
        description="Where metrics go beside log.jsonl.",
    )
    launch: LauncherSpec = Field(
        default={"use": "inline"},
        validate_default=True,
        description="How the run's stages are started.",
    )
    runs: Folder = Field(default="runs", description="The folder that holds the run's folder.")

    _tree: Node = PrivateAttr()

    def __eq__(self, other: object) -> bool:
        """Equal in what they say, wherever it was written."""
        return isinstance(other, Recipe) and self.plain() == other.plain()

    __hash__ = None  # type: ignore[assignment]

    def plain(self) -> dict[str, Any]:
        """Everything as JSON-able values, defaults included, in the order of the fields.

        Files and folders that components read are absolute.
        """
        return self.model_dump(mode="json")

    def dump(self, added: Mapping[str, Any] = MappingProxyType({})) -> str:
        """The resolved recipe as YAML: loading it gives an equal recipe.

        No `extends` and no variable is left in it, the defaults are filled in, and components'
        files are found from any working directory.

        Args:
            added: further evaluations, by name, as plain data.
        """
        plain = self.plain()
        plain["evaluations"] |= added
        return dump(_escaped(plain))

    def where(self, *path: str | int) -> str:
        """Where a value was written, for messages: ``recipes/my.yaml:14: training.lr``.

        A value that nobody wrote, a default, is where its innermost written ancestor is.
        """
        return located(locate(self._tree, path)[0], path, "")

    def taken_away(self, field: str, key: str) -> str:
        """Where null takes an entry of a field away; empty where nothing does."""
        place, found = locate(self._tree, (field, key))
        return str(place) if found == (field, key) and key not in getattr(self, field) else ""

    def error(self, path: Sequence[str | int], message: str) -> UserError:
        """A mistake at ``path`` of this recipe, ready to be raised."""
        return UserError(located(locate(self._tree, path)[0], path, message))

    def components(self) -> Iterator[tuple[tuple[str | int, ...], ComponentSpec]]:
        """All components and their paths, nested ones after the one that holds them."""
        return _components(self, ())

    @contextmanager
    def at(self, *path: str | int) -> Iterator[None]:
        """Give the place of a value to mistakes that are told within and say none."""
        try:
            yield
        except UserError as error:
            if str(error).startswith(self.where(*path)):
                raise
            raise self.error(path, str(error)) from error

    def trainings(self) -> Iterator[tuple[tuple[str | int, ...], Training]]:
        """All training blocks and their paths: the recipe's own, then those of its components."""
        yield ("training",), self.training
        for path, spec in self.components():
            for name, value in spec.parameters.items():
                if isinstance(value, Training):
                    yield (*path, name), value

    def _written_in(self, tree: Node) -> None:
        """Remember the places, for this recipe's and its components' messages."""
        self._tree = tree
        for path, spec in self.components():
            spec.where = self.where(*path)


def locate(tree: Node, path: Sequence[str | int]) -> tuple[Place, tuple[str | int, ...]]:
    """The place of the innermost written value along a path, and which of its keys led there."""
    node, found = tree, []
    for key in path:
        if isinstance(node.value, dict) and key in node.value:
            node = node.value[str(key)]
        elif isinstance(node.value, list) and isinstance(key, int) and key < len(node.value):
            node = node.value[key]
        else:
            continue
        found.append(key)
    return node.place, tuple(found)


def _components(
    value: Any, path: tuple[str | int, ...]
) -> Iterator[tuple[tuple[str | int, ...], ComponentSpec]]:
    if isinstance(value, ComponentSpec):
        yield path, value
        inner: Any = value.parameters.items()
    elif isinstance(value, BaseModel):
        inner = [(f.alias or name, getattr(value, name)) for name, f in _fields(value)]
    elif isinstance(value, dict):
        inner = value.items()
    elif isinstance(value, list | tuple):
        inner = enumerate(value)
    else:
        return
    for key, item in inner:
        yield from _components(item, (*path, key))


def _fields(model: BaseModel) -> Any:
    return type(model).model_fields.items()


def _escaped(value: Any) -> Any:
    """Plain data whose text means itself although ``${...}`` is replaced when it is loaded."""
    if isinstance(value, str):
        return value.replace("${", "$${")
    if isinstance(value, dict):
        return {key: _escaped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    return value
