"""Loading and checking whole recipes: what is accepted, and every message with its place."""

import re
import string
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from recipe_components import RECIPE, Cluster, Probe, Rows, registry

from mmssl import UserError
from mmssl.recipe import Recipe, load

REGISTRY = registry()
Load = Callable[..., Recipe]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, so that messages show short paths."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def from_text(folder: Path) -> Load:
    def load_text(
        text: str = RECIPE, overrides: Sequence[str] = (), environ: Mapping[str, str] | None = None
    ) -> Recipe:
        Path("my.yaml").write_text(text)
        return load("my.yaml", overrides, environ=environ or {}, registry=REGISTRY)

    return load_text


def message(load_text: Load, *args: Any) -> str:
    with pytest.raises(UserError) as caught:
        load_text(*args)
    return str(caught.value)


def edited(**lines: str) -> str:
    """RECIPE with the lines that begin with these words replaced."""
    text = RECIPE
    for word, line in lines.items():
        text, count = re.subn(rf"(?m)^( *){word}:.*$", lambda m, line=line: m[1] + line, text)
        assert count == 1
    return text


# What is accepted


def test_a_recipe_becomes_typed_values_and_defaults(from_text: Load) -> None:
    recipe = from_text()
    assert recipe.name == "my"
    assert recipe.seed == 0
    assert list(recipe.modalities) == ["video", "audio"]
    video = recipe.modalities["video"]
    assert (video.kind, video.use, video.registration.owner) == ("modalities", "video", "tiny")
    assert video.parameters == {"frames": 4, "mean": (0.5, 0.5, 0.5), "crop": None}
    assert recipe.training.epoch_size == 64
    assert recipe.training.optimizer.parameters == {"lr": 0.01, "momentum": 0.9}
    assert recipe.training.checkpoint.keep == 2
    assert [tracker.use for tracker in recipe.trackers] == ["tensorboard"]
    assert recipe.launch.use == "inline"
    assert recipe.data.validation is None


def test_nested_components_are_built_before_those_that_hold_them(from_text: Load) -> None:
    recipe = from_text(
        RECIPE
        + "evaluations:\n  probe:\n    use: probe\n    train:\n      use: mixture\n"
        + "      parts: {a: rows, b: {use: rows, count: 3}}\n      more: [rows]\n"
    )
    spec = recipe.evaluations["probe"]
    assert spec.parameters["train"].parameters["parts"]["b"].parameters["count"] == 3
    probe = spec.build()
    assert isinstance(probe, Probe)
    assert len(probe.train) == 13
    assert isinstance(probe.train.parts["b"], Rows)
    assert isinstance(probe.train.more[0], Rows)
    assert probe.output == Path("out")
    paths = [path for path, _ in recipe.components()]
    assert ("evaluations", "probe", "train", "parts", "b") in paths
    assert ("evaluations", "probe", "train", "more", 0) in paths


def test_build_passes_the_core_s_own_arguments_and_odd_parameter_names(from_text: Load) -> None:
    recipe = from_text(RECIPE, ["objective.copy=true"])
    assert recipe.training.optimizer.build("groups") == ("groups", 0.01, 0.9)
    assert recipe.training.schedule.build(step=3) == 1.0
    objective = recipe.objective.build()
    assert isinstance(objective, Cluster)
    assert objective.clusters == 8
    assert objective.copy is True


def test_a_component_may_be_named_with_its_plugin(from_text: Load) -> None:
    recipe = from_text(edited(schedule="schedule: tiny/cosine"))
    assert recipe.training.schedule.use == "tiny/cosine"
    assert recipe.training.schedule.registration.name == "cosine"


def test_a_file_becomes_a_path(from_text: Load, folder: Path) -> None:
    (folder / "rows.csv").touch()
    recipe = from_text(edited(count="manifest: rows.csv"))
    assert recipe.data.train.parameters["manifest"] == Path("rows.csv")


@pytest.mark.parametrize("backbone", ["joint", "some_net"])
def test_one_backbone_may_serve_several_modalities(from_text: Load, backbone: str) -> None:
    both = RECIPE.replace("  video: net\n  audio: {use: trunk}", f"  video+audio: {backbone}")
    assert list(from_text(both).backbones) == ["video+audio"]


EVALUATED = RECIPE + (
    "evaluations:\n  one: {use: probe, train: rows}\n  two: {use: probe, train: rows}\n"
)


@pytest.mark.parametrize(
    ("text", "overrides", "left"),
    [
        ("", [], ["one", "two"]),
        ("evaluations: null\n", [], []),
        ("evaluations: {one: null}\n", [], ["two"]),
        ("evaluations: {one: null, three: {use: probe, train: rows}}\n", [], ["two", "three"]),
        ("", ["evaluations="], []),
        ("", ["evaluations.one="], ["two"]),
        ("", ["evaluations.one=null", "evaluations.two="], []),
    ],
)
def test_null_takes_evaluations_away(
    from_text: Load, text: str, overrides: list[str], left: list[str]
) -> None:
    Path("base.yaml").write_text(EVALUATED)
    recipe = from_text("extends: base.yaml\n" + text, overrides)
    assert list(recipe.evaluations) == left
    assert list(recipe.plain()["evaluations"]) == left


@pytest.mark.parametrize(
    ("text", "overrides"),
    [
        ("modalities: {audio: null}\nbackbones: {audio: null}\n", []),
        ("", ["modalities.audio=", "backbones.audio="]),
    ],
)
def test_null_takes_modalities_and_backbones_away(
    from_text: Load, text: str, overrides: list[str]
) -> None:
    Path("base.yaml").write_text(RECIPE)
    recipe = from_text("extends: base.yaml\n" + text, overrides)
    assert list(recipe.modalities) == list(recipe.backbones) == ["video"]
    assert from_text(recipe.dump()) == recipe
    assert from_text(recipe.dump()) == recipe


@pytest.mark.parametrize(
    ("text", "overrides", "said"),
    [
        ("modalities: {smell: null}\n", [],
         "my.yaml:2: modalities.smell: null takes away what is there, and there is no 'smell'"),
        ("", ["backbones.audoi="], "command line: backbones.audoi: null takes away what is there, "
         "and there is no 'audoi'; did you mean 'audio'?"),
        ("evaluations: {one: null}\n", [],
         "my.yaml:2: evaluations.one: null takes away what is there, and there is no 'one'"),
        ("modalities: {audio: null}\n", [],
         "base.yaml:6: backbones.audio: there is no modality 'audio': my.yaml:2 takes it away: "
         "take this, too: backbones.audio: null"),
        ("", ["backbones.audio="], "base.yaml:3: modalities.audio: no backbone serves this "
         "modality: add 'audio' under 'backbones'; command line takes it away: take this, too: "
         "modalities.audio: null"),
        ("modalities: null\n", [],
         "my.yaml:2: modalities: expected a mapping of length >= 1, got an empty mapping"),
    ],
)  # fmt: skip
def test_null_takes_away_what_is_there_and_leaves_a_whole(
    from_text: Load, text: str, overrides: list[str], said: str
) -> None:
    Path("base.yaml").write_text(RECIPE)
    assert message(from_text, "extends: base.yaml\n" + text, overrides) == said


def test_a_backbone_may_be_replaced_by_one_of_several_modalities(from_text: Load) -> None:
    Path("base.yaml").write_text(RECIPE)
    recipe = from_text(
        "extends: base.yaml\nbackbones: {video: null, audio: null, video+audio: joint}\n"
    )
    assert list(recipe.backbones) == ["video+audio"]


# Messages

TYPOS = [
    (edited(clusters="clusterz: 8"), "my.yaml:13: objective.clusterz: unknown key; did you mean "
     "'clusters'?"),
    (edited(clusters="zzz: 8"), "my.yaml:11: objective: 'clusters' is missing\nmy.yaml:13: "
     "objective.zzz: unknown key; there are: clusters, reduce, temperature, copy"),
    (edited(epochs="zzz: 8"), "my.yaml:14: training: 'epochs' is missing\nmy.yaml:16: "
     "training.zzz: unknown key; there are: epoch_size, epochs, "),
    (RECIPE + "objectiv: {}\n", "my.yaml:20: objectiv: unknown key; did you mean 'objective'?"),
    (edited(batch_size="batch_size: many"),
     "my.yaml:17: training.batch_size: expected a whole number > 0, got 'many'"),
    (edited(batch_size="batch_size: 0"),
     "my.yaml:17: training.batch_size: expected a whole number > 0, got 0"),
    (edited(batch_size="batch_size: '16'"), "my.yaml:17: training.batch_size: expected a whole "
     "number > 0, got '16': write 16 without quotes or underscores"),
    (edited(epoch_size="epoch_size: 1_000"), "my.yaml:15: training.epoch_size: expected a whole "
     "number > 0, got '1_000': write 1000 without quotes or underscores"),
    (edited(epoch_size="epoch_size: 1e3"),
     "my.yaml:15: training.epoch_size: expected a whole number > 0, got 1000.0: write 1000"),
    (edited(epochs="epochs: true"),
     "my.yaml:16: training.epochs: expected a whole number >= 0, got true"),
    (edited(epochs="epochs:"), "my.yaml:16: training.epochs: expected a whole number >= 0, got "
     "null"),
    (RECIPE + "name: 7\n", "my.yaml:20: name: expected at most 100 letters, digits, '.', '_' and "
     "'-', not beginning with '.' or '-', got 7: put it in quotes"),
    (RECIPE + "name: ../up\n", "my.yaml:20: name: expected at most 100 letters, digits, '.', '_' "
     "and '-', not beginning with '.' or '-', got '../up'"),
    (RECIPE + "device: cdua\n", "my.yaml:20: device: expected 'auto', 'cpu', 'cuda' or 'cuda:N', "
     "got 'cdua'"),
    (RECIPE + "description: [a]\n", "my.yaml:20: description: expected text, got a list of 1"),
    (RECIPE + "  precision: bf61\n", "my.yaml:20: training.precision: expected 'fp32', 'bf16' or "
     "'fp16', got 'bf61'; did you mean 'bf16'?"),
    (RECIPE + "  checkpoint: {steps: -1}\n", "my.yaml:20: training.checkpoint.steps: expected a "
     "whole number > 0 or null, got -1"),
    (RECIPE + "  checkpoint: 3\n", "my.yaml:20: training.checkpoint: expected a mapping, got 3"),
    (RECIPE + "  final_round: {epocs: 1}\n", "my.yaml:20: training.final_round.epocs: unknown key; "
     "did you mean 'epochs'?"),
    (edited(clusters="clusters: {video: 8, audio: many}"), "my.yaml:13: objective.clusters.audio: "
     "expected a whole number, got 'many'"),
    (edited(clusters="clusters: [8]"),
     "my.yaml:13: objective.clusters: expected a whole number > 0 or a mapping, got a list of 1"),
    (edited(clusters="clusters: -2"),
     "my.yaml:13: objective.clusters: expected a whole number > 0 or a mapping, got -2"),
    (edited(schedule="schedule: {use: constnt}"), "my.yaml:19: training.schedule.use: unknown "
     "schedule 'constnt'; did you mean 'constant'?"),
    (edited(schedule="schedule: constnt"),
     "my.yaml:19: training.schedule: unknown schedule 'constnt'; did you mean 'constant'?"),
    (edited(schedule="schedule: {warmup: 3}"),
     "my.yaml:19: training.schedule: 'use' is missing: it names the schedule"),
    (edited(schedule="schedule: 3"), "my.yaml:19: training.schedule: expected a schedule (its "
     "name, or a mapping with 'use' and its parameters), got 3"),
    (edited(schedule="schedule: {use: 3}"),
     "my.yaml:19: training.schedule.use: expected the name of a registered schedule, got 3"),
    (edited(count="manifest: rows.csv"), "my.yaml:10: data.train.manifest: no such file: rows.csv"),
    (edited(optimizer="optimizer: {use: sgd}"), "my.yaml:18: training.optimizer: 'lr' is missing"),
    (edited(optimizer="optimizer: {use: sgd, lr: -1}"),
     "my.yaml:18: training.optimizer.lr: expected a number > 0, got -1"),
    (edited(optimizer="optimizer: {use: sgd, lr: .nan}"),
     "my.yaml:18: training.optimizer.lr: expected a number > 0, got nan"),
    (RECIPE.replace("frames: 4", "mean: [0, .nan, 1]"),
     "my.yaml:2: modalities.video.mean.1: expected a number, got nan: write a finite number"),
    (RECIPE.replace("frames: 4", "frames: .inf"), "my.yaml:2: modalities.video.frames: expected a "
     "whole number > 0, got inf"),
    (RECIPE + "  checkpoint: {minutes: 1e999}\n", "my.yaml:20: training.checkpoint.minutes: "
     "expected a number > 0 or null, got inf: write a finite number"),
    (RECIPE.replace("frames: 4", "mean: [1, 2]"),
     "my.yaml:2: modalities.video.mean: expected a list of 3 values, got a list of 2"),
    (RECIPE.replace("frames: 4", "mean: [1, 2, 3, 4]"),
     "my.yaml:2: modalities.video.mean: expected a list of 3 values, got a list of 4"),
    (RECIPE.replace("frames: 4", "mean: [1]"),
     "my.yaml:2: modalities.video.mean: expected a list of 3 values, got a list of 1"),
    (RECIPE.replace("frames: 4", "mean: [1, x, 2]"),
     "my.yaml:2: modalities.video.mean.1: expected a number, got 'x'"),
    (RECIPE.replace("frames: 4", "crop: x"),
     "my.yaml:2: modalities.video.crop: expected a whole number > 0 or null, got 'x'"),
    ("modalities: {}\n" + RECIPE.partition("audio: audio\n")[2],
     "my.yaml:1: modalities: expected a mapping of length >= 1, got an empty mapping"),
    (RECIPE.replace("  video: {", "  Video: {"), "my.yaml:2: modalities.Video: expected small "
     "letters, digits and '_', beginning with a letter, got 'Video'"),
    (RECIPE.partition("training:")[0], "my.yaml:1: 'training' is missing"),
    (RECIPE + "trackers: [untyped]\n", "my.yaml:20: trackers.0: tracker 'untyped' of plugin 'tiny':"
     " parameter 'size' is declared without a type"),
    (RECIPE + "callbacks: [average]\n",
     "my.yaml:20: callbacks.0: unknown callback 'average'; there are: none"),
    (RECIPE + "trackers: [tensorboard, {use: tensorboard, tag: x}, tensorboard]\n",
     "my.yaml:20: trackers.2: the same as trackers.0: everything would be written twice"),
    (RECIPE + "trackers: [tensorboard, {use: tiny/tensorboard}]\n",
     "my.yaml:20: trackers.1: the same as trackers.0: everything would be written twice"),
    (RECIPE.replace("audio: ", "type: "),
     "my.yaml:3: modalities.type: torch's modules have a 'type' already: choose another key\n"
     "my.yaml:6: backbones.type: torch's modules have a 'type' already: choose another key"),
    (edited(use="use: missing") if RECIPE.count("use:") == 1 else
     RECIPE.replace("use: rows\n    count: 100", "use: missing"),
     "my.yaml:9: data.train.use: dataset 'missing' of plugin 'tiny' does not load from "
     "'recipe_components:Nothing': AttributeError: "),
    # what no single field knows
    (RECIPE.replace("  audio: {use: trunk}\n", ""), "my.yaml:3: modalities.audio: no backbone "
     "serves this modality: add 'audio' under 'backbones'"),
    (RECIPE.replace("  audio: {use: trunk}", "  audoi: {use: trunk}"),
     "my.yaml:3: modalities.audio: no backbone serves this modality: add 'audio' under 'backbones'"
     "\nmy.yaml:6: backbones.audoi: there is no modality 'audoi'; did you mean 'audio'?"),
    (RECIPE.replace("  audio: {use: trunk}", "  audio: {use: net}"),
     "my.yaml:6: backbones.audio: 'net' serves video, not 'audio'"),
    (RECIPE.replace("  audio: {use: trunk}", "  audio: net_of"),
     "my.yaml:6: backbones.audio: 'net_of' serves video, not 'audio'"),
    (RECIPE.replace("  audio: {use: trunk}", "  video+audio: {use: trunk}"),
     "my.yaml:6: backbones.video+audio: the modality 'video' has the backbone 'video' already"),
    (RECIPE.replace("  audio: {use: trunk}", "  audio+audio: {use: trunk}"),
     "my.yaml:6: backbones.audio+audio: names the modality 'audio' twice"),
    (RECIPE.replace("  video: net\n  audio: {use: trunk}", "  video+audio: trunk"),
     "my.yaml:5: backbones.video+audio: 'trunk' takes one modality: give each of them a backbone "
     "of its own"),
    (RECIPE.replace("  audio: {use: trunk}", "  audio: joint"),
     "my.yaml:6: backbones.audio: 'joint' takes several modalities at once: join their keys by '+',"
     " such as video+audio"),
    (RECIPE + "  early_stop: 3\n",
     "my.yaml:20: training.early_stop: needs a validation loss: add 'data.validation'"),
    (RECIPE + "  accumulate: 3\n",
     "my.yaml:20: training.accumulate: 3 does not divide the batch size 16"),
    (edited(epoch_size="epoch_size: 8"), "my.yaml:15: training.epoch_size: an epoch of 8 samples "
     "holds no batch of 16: lower batch_size or raise epoch_size"),
    (RECIPE + "evaluations: {../x: {use: probe, train: rows}}\n",
     "my.yaml:20: evaluations.../x: expected at most 100 letters, digits, '_' and '-', not "
     "beginning with '-', got '../x'"),
    (RECIPE + "evaluations: {x: {use: probe, train: {use: rows, coutn: 1}}}\n",
     "my.yaml:20: evaluations.x.train.coutn: unknown key; did you mean 'count'?"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "start"), TYPOS, ids=range(len(TYPOS)))
def test_every_mistake_is_named_with_its_line(from_text: Load, text: str, start: str) -> None:
    assert message(from_text, text).startswith(start)


def test_several_mistakes_are_told_at_once_in_a_line_each(from_text: Load) -> None:
    text = edited(clusters="clusters: no", batch_size="batch_size: no") + "seed: -1\n"
    assert message(from_text, text).split("\n") == [
        "my.yaml:13: objective.clusters: expected a whole number > 0 or a mapping, got 'no'",
        "my.yaml:17: training.batch_size: expected a whole number > 0, got 'no'",
        "my.yaml:20: seed: expected a whole number >= 0 and < 4294967296, got -1",
    ]
    many = message(from_text, RECIPE + "".join(f"qqq{i}: 1\n" for i in range(30)))
    assert len(many.split("\n")) == 11
    assert many.endswith("\nand 20 more mistakes")


def test_what_a_component_refuses_when_built_names_its_place(from_text: Load) -> None:
    recipe = from_text(edited(count="count: 13"))
    with pytest.raises(UserError) as caught:
        recipe.data.train.build()
    assert str(caught.value) == "my.yaml:8: data.train: 13 rows bring bad luck"
    with pytest.raises(UserError, match=r"^my\.yaml:8: data\.train: cannot convert float infinity"):
        from_text(edited(count="count: 14")).data.train.build()


def test_a_component_that_takes_more_than_recipes_set_is_its_author_s_mistake(
    from_text: Load,
) -> None:
    recipe = from_text(RECIPE + "launch: positional\n")
    with pytest.raises(UserError) as caught:
        recipe.launch.build()
    assert str(caught.value) == (
        "my.yaml:20: launch: launcher 'positional' of plugin 'tiny' cannot be called: missing a "
        "required argument: 'size'; what a recipe sets must be keyword-only (after '*' in the "
        "signature)"
    )


def test_later_checks_can_name_places(from_text: Load) -> None:
    recipe = from_text(RECIPE, ["seed=3"])
    assert recipe.where("training", "batch_size") == "my.yaml:17: training.batch_size"
    assert recipe.where("modalities", "audio") == "my.yaml:3: modalities.audio"
    assert recipe.where("seed") == "command line: seed"
    # a default is where what it belongs to was written
    assert recipe.where("training", "precision") == "my.yaml:14: training.precision"
    error = recipe.error(("training", "lr_batch"), "too small")
    assert isinstance(error, UserError)
    assert str(error) == "my.yaml:14: training.lr_batch: too small"
    assert str(recipe.error((), "no")) == "my.yaml:1: no"


# Dumping


def test_a_dumped_recipe_loads_as_an_equal_one(from_text: Load, folder: Path) -> None:
    Path("rows.csv").touch()
    Path("base.yaml").write_text(RECIPE)
    first = from_text(
        "extends: base.yaml\ndescription: '$${HOME}, 1e-4'\ndata:\n  train: {manifest: rows.csv}\n"
        "evaluations:\n  probe: {use: probe, train: {use: mixture, parts: {a: rows}}}\n",
        ["training.optimizer.lr=1e-5", "runs=${RUNS}", "trackers=[{use: tensorboard, tag: '07'}]"],
        {"RUNS": "off"},
    )
    assert first.description == "${HOME}, 1e-4"
    text = first.dump()
    assert "extends" not in text
    Path("elsewhere.yaml").write_text(text)
    second = load("elsewhere.yaml", environ={"HOME": "wrong"}, registry=REGISTRY)
    assert second == first
    assert second.name == "my"
    assert second.dump() == text
    assert second != from_text()
    assert second.trackers[0].parameters == {"tag": "07"}
    assert second.data.train.plain() == first.data.train.plain()


def test_a_dumped_recipe_finds_its_files_from_anywhere(
    from_text: Load, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("rows.csv").touch()
    first = from_text(
        edited(count="manifest: rows.csv")
        + "evaluations:\n  probe:\n    use: probe\n    output: sub/out\n"
        + "    train: {use: mixture, parts: {a: {use: rows, manifest: rows.csv}}}\n"
    )
    text = first.dump()
    (folder / "runs").mkdir()
    monkeypatch.chdir("runs")
    Path("recipe.yaml").write_text(text)
    second = load("recipe.yaml", environ={}, registry=REGISTRY)
    assert second.dump() == text
    assert second.data.train.parameters["manifest"] == folder / "rows.csv"
    probe = second.evaluations["probe"].parameters
    assert probe["output"] == folder / "sub" / "out"
    assert probe["train"].parameters["parts"]["a"].parameters["manifest"] == folder / "rows.csv"


def test_plain_holds_json_values_with_all_defaults(from_text: Load) -> None:
    plain = from_text().plain()
    assert plain["objective"] == {
        "use": "cluster", "clusters": 8, "reduce": "sum", "temperature": 1.0, "copy": False,
    }  # fmt: skip
    assert plain["modalities"]["audio"] == {"use": "audio"}
    assert plain["modalities"]["video"]["mean"] == [0.5, 0.5, 0.5]
    assert plain["launch"] == {"use": "inline"}
    assert list(plain)[:4] == ["format", "name", "description", "seed"]


# Whatever is written, nothing but a UserError

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["${A}", "${A:-3}", "use", "rows", "net", "1e3", "\x00", "a" * 5000, "/"]),
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["use", "train", "parts", "count", "x", "0", "manifest"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=5,
)


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path]
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            found += _paths(item, (*path, key))
    return found


BASE = yaml.safe_load(RECIPE.replace("1e-2", "0.01")) | {
    "evaluations": {"probe": {"use": "probe", "train": {"use": "mixture", "parts": {"a": "rows"}}}},
    "trackers": ["tensorboard"],
}


@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_mutated_recipes_load_or_raise_a_user_error(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    recipe = yaml.safe_load(yaml.safe_dump(BASE))
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(_paths(recipe)[1:] or [()]))
        target = recipe
        if not path:
            break
        for key in path[:-1]:
            target = target[key]
        match data.draw(st.sampled_from(["replace", "delete", "rename"])):
            case "replace":
                target[path[-1]] = data.draw(values)
            case "delete":
                del target[path[-1]]
            case "rename" if isinstance(target, dict):
                target[data.draw(st.text(max_size=5) | st.just("video+x"))] = target.pop(path[-1])
    file = tmp_path_factory.getbasetemp() / "mutated.yaml"
    file.write_bytes(yaml.safe_dump(recipe, allow_unicode=True).encode("utf-8", "replace"))
    _only_user_errors(file)


@settings(max_examples=120, deadline=None)
@given(
    line=st.integers(0, RECIPE.count("\n")),
    text=st.text(st.sampled_from(string.printable + "é\u2028\ufeff"), max_size=12),
)
def test_text_in_any_line_loads_or_raises_a_user_error(
    line: int, text: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    lines = RECIPE.split("\n")
    lines[line] += text
    file = tmp_path_factory.getbasetemp() / "mutated.yaml"
    file.write_text("\n".join(lines), encoding="utf-8")
    _only_user_errors(file)


@settings(max_examples=120, deadline=None)
@given(data=st.binary(max_size=200))
def test_bytes_raise_a_user_error(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.getbasetemp() / "mutated.yaml"
    file.write_bytes(data)
    with pytest.raises(UserError, match=r"mutated\.yaml"):
        load(file, environ={}, registry=REGISTRY)


def _only_user_errors(file: Path) -> None:
    try:
        recipe = load(file, environ={}, registry=REGISTRY)
    except UserError as error:
        for line in str(error).split("\n"):
            assert re.match(rf"{re.escape(str(file))}:\d+: |and \d+ more", line), line
    else:
        text = recipe.dump()
        file.write_text(text, encoding="utf-8")
        assert load(file, environ={}, registry=REGISTRY).dump() == text


def test_an_evaluation_cannot_take_the_name_of_the_first_stage(from_text: Load) -> None:
    said = message(from_text, RECIPE, ["evaluations={pretrain: {use: probe, train: rows}}"])
    assert said.endswith(
        "evaluations.pretrain: this is the name of the first stage: choose another"
    )
