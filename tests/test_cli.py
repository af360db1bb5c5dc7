"""The command line, from a recipe to what a run leaves; as its users start it."""

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from jsonschema import Draft202012Validator
from small_runs import RECIPE, environment, make_videos, mmssl, steps, write_manifest

import mmssl as package
from mmssl.cli import main
from mmssl.pipeline.run_folder import RunFolder
from mmssl.recipe import load
from mmssl.training.log import read_log

EVALUATIONS = """\
evaluations:
  clusters: {use: clusters}
  probe:
    use: linear_probe
    train: {use: synthetic, videos: 48, side: 32, fps: 8, seconds: 1}
    test: {use: synthetic, videos: 16, side: 32, fps: 8, seconds: 1, split: test}
    regularisation: [0.01]
"""


# What needs no recipe


def test_components_are_listed(tmp_path: Path) -> None:
    done = mmssl("ls", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    kinds = [line for line in done.stdout.splitlines() if not line.startswith(" ")]
    assert kinds[:4] == ["modalities", "datasets", "backbones", "objectives"]
    only = mmssl("ls", "backbones", cwd=tmp_path).stdout.splitlines()
    assert only[0] == "backbones"
    names = ["r2plus1d_18", "r2plus1d_18_xdc", "r3d_18", "resnet18_audio", "resnet18_vmz"]
    names += ["resnet50_half_audio", "slow_r50_avbert", "slowfast_r50", "timm"]
    vatt = ["vatt", "vatt_agnostic", "vatt_text", "video_patches", "waveform_patches"]
    vatt += ["spectrogram_patches", "word_embeddings"]
    rows = [["avbert", "mmssl_avbert"], *([name, "mmssl_backbones"] for name in names)]
    rows += [[name, "mmssl_vatt"] for name in vatt]
    assert [line.split() for line in only[1:]] == sorted(rows)


def test_a_component_is_described(tmp_path: Path) -> None:
    done = mmssl("describe", "objective", "xdc", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("objective xdc, from mmssl_clustering\n")
    assert "  rounds: a whole number > 0; default 4\n" in done.stdout
    assert "rounds of clustering and training" in done.stdout
    assert not re.search(r"\bself\b|Args:", done.stdout)


def test_plugins_are_listed_with_what_they_bring(tmp_path: Path) -> None:
    done = mmssl("plugins", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert f"mmssl_clustering {package.__version__}" in lines
    assert "  objectives: sdc, mdc, cdc, xdc" in lines


def test_the_schema_is_one_and_knows_the_components(tmp_path: Path) -> None:
    done = mmssl("schema", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    schema = json.loads(done.stdout)
    Draft202012Validator.check_schema(schema)
    assert '"r2plus1d_18_xdc"' in done.stdout


@pytest.mark.parametrize("arguments", [["--help"], []])
def test_help(arguments: list[str], tmp_path: Path) -> None:
    done = mmssl(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    for verb in ("run", "ls", "describe", "plugins", "schema"):
        assert re.search(rf"^  {verb} +[A-Z]", done.stdout, re.M)


def test_examples_in_the_help_of_a_verb(tmp_path: Path) -> None:
    done = mmssl("run", "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "\n    mmssl run recipes/quickstart.yaml\n    mmssl run quickstart name=" in done.stdout
    assert "--dry-run" in done.stdout


def test_version(tmp_path: Path) -> None:
    done = mmssl("--version", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{package.__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lss"], "'lss'"),
        (["ls", "--wide"], "--wide"),
        (["ls", "backbones", "objectives"], "objectives"),
        (["run"], "recipe"),
        (["ls", "backbonez"], "did you mean 'backbones'?"),
        (["describe", "objective", "xdcc"], "did you mean 'xdc'?"),
        (["data"], "Missing command. (see: mmssl data --help)"),
        (
            ["data", "indx"],
            "'indx'. Did you mean 'index'? (see: mmssl data --help)",
        ),
        (["describe", "command", "data index"], "unknown kind 'command'"),
    ],
)
def test_what_the_command_line_does_not_know(
    arguments: list[str], message: str, tmp_path: Path
) -> None:
    done = mmssl(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("mmssl: ")
    assert message in line


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["ls"], ["plugins"], ["data", "--help"], ["data", "index", "--help"]],
)
def test_light_verbs_import_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys; from mmssl.cli import main\n"
        f"sys.argv = ['mmssl', *{arguments}]\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "print([m for m in ('torch', 'numpy', 'av', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


# A user's mistakes in a recipe. The command line is called in this process, as each process of
# its own would spend seconds on importing torch.


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a sound recipe."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MMSSL_CACHE", str(tmp_path / "cache"))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path


def refused(
    arguments: list[str], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """The lines on stderr of a command that ends with 2."""
    monkeypatch.setattr(sys, "argv", ["mmssl", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    printed = capfd.readouterr()
    assert end.value.code == 2
    assert "Traceback" not in printed.err
    assert printed.err.startswith("mmssl: ")
    return printed.err.removeprefix("mmssl: ").splitlines()


def line_of(text: str, words: str) -> int:
    return text[: text.index(words)].count("\n") + 1


# (what of the recipe is replaced, by what, what the message says, words of the line it names)
MISTAKES = {
    "unknown key": ("log_every: 1", "log_evry: 1", "training.log_evry: unknown key; did you mean"),
    "wrong type": ("epochs: 2", "epochs: two", "training.epochs: expected a whole number"),
    "out of range": ("width: 0.125}\ndata", "width: -1}\ndata", "backbones.audio.width: "),
    "unknown component": ("use: xdc", "use: xcd", "unknown objective 'xcd'; did you mean 'xdc'?"),
    "unknown parameter": ("clusters: 4", "clusterz: 4", "did you mean 'clusters'?"),
    "duplicate key": ("  rounds: 2", "  rounds: 2\n  rounds: 2", "rounds"),
    "modality without backbone": (
        "  audio: {use: resnet18_audio, width: 0.125}\ndata",
        "data",
        "modalities.audio: no backbone serves this modality",
    ),
    "backbone of another modality": (
        "{use: resnet18_audio, width: 0.125}\ndata",
        "{use: r3d_18}\ndata",
        "'r3d_18' serves video, not 'audio'",
    ),
    "missing list": (
        "{use: synthetic, videos: 48, side: 32, fps: 8, seconds: 1}\n  workers",
        "{use: manifest, path: no.csv}\n  workers",
        "no.csv",
    ),
    "unset variable": ("seed: 1", "seed: ${NOT_SET_ANYWHERE}", "NOT_SET_ANYWHERE is not set"),
    "a name that leaves the folder": ("name: small", "name: ../x", "name: expected at most 100"),
    "an absolute name": ("name: small", "name: /tmp/x", "name: expected at most 100"),
    "an evaluation's name that leaves": (
        "log_every: 1\n",
        "log_every: 1\nevaluations:\n  ../x: {use: clusters}\n",
        "evaluations",
    ),
    "not YAML": ("seed: 1", "seed: [1", ""),
    "clips that a network does not take": ("mels: 16", "mels: 16, hop_ms: 0.01", "modalities"),
    "parameters that exclude each other": ("fps: 4", "fps: 4, stride: 2", "set fps or stride"),
    "batch that is not divided": ("batch_size: 8", "batch_size: 8\n  accumulate: 3", "3 does not"),
    "missing weights": ("{use: r3d_18,", "{use: r3d_18, weights: no.pt,", "no.pt"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_with_its_place(
    mistake: str, folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new, message = MISTAKES[mistake]
    assert old in RECIPE
    text = RECIPE.replace(old, new, 1)
    (folder / "recipe.yaml").write_text(text)
    (line,) = refused(["run", "recipe.yaml"], capfd, monkeypatch)
    place = re.match(r"recipe\.yaml:(\d+)", line)
    assert place, line
    first = line_of(RECIPE, old)
    if mistake == "modality without backbone":  # it is the modality's line that is named
        first = line_of(RECIPE, "audio: {use: audio")
    assert first <= int(place[1]) <= first + new.count("\n") + 1, line
    assert message in line
    assert sorted(path.name for path in folder.iterdir()) == ["recipe.yaml"]


def test_every_mistake_has_its_line(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = RECIPE.replace("epochs: 2", "epochs: x").replace("rounds: 2", "rounds: 0")
    (folder / "recipe.yaml").write_text(text)
    lines = refused(["run", "recipe.yaml"], capfd, monkeypatch)
    assert [line.split(": ")[:2] for line in lines] == [
        [f"recipe.yaml:{line_of(text, 'rounds: 0')}", "objective.rounds"],
        [f"recipe.yaml:{line_of(text, 'epochs: x')}", "training.epochs"],
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no.yaml"], "there is no recipe 'no.yaml'"),
        (["quickstrt"], "did you mean 'quickstart'?"),
        (["recipe.yaml", "training.epochs"], "write KEY=VALUE"),
        (["recipe.yaml", "training.epochz=3"], "command line: training.epochz: unknown key"),
        (["recipe.yaml", "training.epochs=many"], "command line: training.epochs: expected"),
        (["recipe.yaml", "name=../x"], "command line: name: expected"),
    ],
)
def test_mistakes_on_the_command_line(
    arguments: list[str],
    message: str,
    folder: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (line,) = refused(["run", *arguments], capfd, monkeypatch)
    assert message in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "recipe.yaml").write_text(RECIPE.replace("device: cpu", "device: cuda"))
    (line,) = refused(["run", "recipe.yaml"], capfd, monkeypatch)
    assert line.startswith(f"recipe.yaml:{line_of(RECIPE, 'device:')}: device: cuda is not avail")
    assert not (folder / "runs").exists()


def test_weights_of_another_network(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmssl_backbones.video_resnet import r3d_18

    torch.save(r3d_18(width=0.25).state_dict(), folder / "wide.pt")
    text = RECIPE.replace("{use: r3d_18,", "{use: r3d_18, weights: wide.pt,")
    (folder / "recipe.yaml").write_text(text)
    (line,) = refused(["run", "recipe.yaml"], capfd, monkeypatch)
    assert line.startswith(f"recipe.yaml:{line_of(text, 'wide.pt')}: backbones.video: ")
    assert "stem.0.weight is 16×3×3×7×7 in the file, 8×3×3×7×7 in the network" in line
    assert not (folder / "runs").exists()


# A plan


def test_a_dry_run_reads_no_media_and_writes_nothing(tmp_path: Path) -> None:
    write_manifest(tmp_path / "list.csv", [(f"{i}.mp4", i % 3) for i in range(12_345)])
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    before = sorted(tmp_path.rglob("*"))
    done = mmssl(
        "run",
        "recipe.yaml",
        "data.train={use: manifest, path: list.csv}",
        "training.epochs=5",
        "--dry-run",
        cwd=tmp_path,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(tmp_path.rglob("*")) == before
    assert done.stdout.startswith("small: xdc of video and audio on cpu, 2 rounds, 40 steps, ")
    for figure in ("12,345", "3x2x16x16", "r3d_18", "resnet18_audio", "0.002"):
        assert figure in done.stdout


# A run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder that a run was started in, and what it printed."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "recipe.yaml").write_text(RECIPE + EVALUATIONS)
    done = mmssl("run", "recipe.yaml", cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    return folder, done.stdout


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file with its time and bytes."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def copy(finished: tuple[Path, str], tmp_path: Path) -> Path:
    """A copy of the finished run, with all times."""
    return Path(shutil.copytree(finished[0], tmp_path / "copy"))


def test_what_a_run_leaves(finished: tuple[Path, str]) -> None:
    run = finished[0] / "runs" / "small"
    files = {re.sub(r"events\.out.*", "events", name) for name in contents(run)}
    kinds = ("centroids.npy", "labels.npy", "preprocessing.npz")
    labellings = [f"{name}.{kind}" for name in ("audio", "video") for kind in kinds]
    assert files == {
        ".lock",
        "recipe.yaml",
        "provenance.json",
        "log.jsonl",
        "tensorboard/events",
        "checkpoints/encoders.safetensors",
        "checkpoints/objective.safetensors",
        "checkpoints/step-00000008.pt",
        "checkpoints/step-00000016.pt",
        *(
            f"clusters/round-{number:02}/{name}"
            for number in (1, 2)
            for name in ("health.json", *labellings)
        ),
        *(f"evaluations/clusters/{f}" for f in ("metrics.json", "tables.json", "clusters.png")),
        *(f"evaluations/{name}/started.json" for name in ("clusters", "probe")),
        "evaluations/clusters/clusters_rounds.png",
        *(f"evaluations/probe/{f}" for f in ("metrics.json", "tables.json", "linear_probe.png")),
        *(f"stages/{f}.json" for f in ("recipe", "pretrain", "evaluate-clusters")),
        "stages/evaluate-probe.json",
    }
    for picture in run.rglob("*.png"):
        assert picture.read_bytes().startswith(b"\x89PNG")
    records = read_log(run)
    assert [r["step"] for r in records if r["kind"] == "step"] == list(range(1, 17))
    (start,) = json.loads((run / "provenance.json").read_text())
    assert start["command"][1:] == ["run", "recipe.yaml"]
    assert start["packages"]["torch"] == torch.__version__.partition("+")[0]
    assert start["plugins"]["mmssl_clustering"] == package.__version__


def test_what_a_run_prints(finished: tuple[Path, str]) -> None:
    folder, printed = finished
    lines = printed.splitlines()
    assert lines[0].startswith("small: xdc of video and audio on cpu, 2 rounds, 16 steps, ")
    assert lines[-1] == "run folder: runs/small"
    for number in (1, 2):
        assert re.search(rf"^round  {number}/2  video +purity 0\.\d+ ", printed, re.M)
    metrics = json.loads((folder / "runs/small/evaluations/probe/metrics.json").read_text())
    row = next(line for line in lines if re.match("│ video +│", line))
    shown = [float(number) for number in re.findall(r"([0-9.]+) %", row)]
    assert shown[0] == pytest.approx(100 * metrics["video/top1"], abs=0.06)
    assert shown[1] == pytest.approx(100 * metrics["video/top1_untrained"], abs=0.06)


def test_a_finished_run_is_left_as_it_is(copy: Path) -> None:
    before = contents(copy)
    for recipe in ("recipe.yaml", "runs/small/recipe.yaml"):
        done = mmssl("run", recipe, cwd=copy)
        assert (done.returncode, done.stderr) == (0, "")
        assert "every stage of this run is finished; nothing to do" in done.stdout
        assert done.stdout.splitlines()[-1] == "run folder: runs/small"
        assert "linear" in done.stdout.lower()
        assert contents(copy) == before


def test_only_the_evaluation_that_changed_runs_again(copy: Path) -> None:
    run = copy / "runs" / "small"
    before = contents(run)
    done = mmssl("run", "recipe.yaml", "evaluations.clusters.round=1", cwd=copy)
    assert (done.returncode, done.stderr) == (0, "")
    assert [line for line in done.stdout.splitlines() if "stage" in line] == ["stage: clusters"]
    after = contents(run)
    assert {name for name in after if after[name] != before.get(name)} == {
        "recipe.yaml",
        "provenance.json",
        "stages/recipe.json",
        "stages/evaluate-clusters.json",
        *(name for name in after if name.startswith("evaluations/clusters/")),
    }
    assert json.loads((run / "evaluations/clusters/metrics.json").read_text())["round"] == 1
    assert len(json.loads((run / "provenance.json").read_text())) == 2


@pytest.mark.parametrize(
    ("override", "change"),
    [
        ("seed=2", "seed was 1, is 2"),
        ("objective.clusters=5", "objective.clusters was 4, is 5"),
        ("training.optimizer.lr=0.1", "training.optimizer.lr was 0.002, is 0.1"),
    ],
)
def test_a_folder_of_another_recipe_is_not_touched(
    override: str,
    change: str,
    copy: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(copy)
    before = contents(copy)
    (line,) = refused(["run", "recipe.yaml", override], capfd, monkeypatch)
    assert line.startswith(f"runs/small holds a run of another recipe ({change}): ")
    assert contents(copy) == before


@pytest.mark.parametrize("field", ["modalities", "backbones"])
def test_the_order_of_modalities_is_a_part_of_a_run(
    field: str, copy: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An optimizer's state goes by position, a ring of modalities by their order."""
    monkeypatch.chdir(copy)
    plain = yaml.safe_load((copy / "recipe.yaml").read_text())
    plain[field] = dict(reversed(plain[field].items()))
    # Parameters stand in any order.
    plain["training"]["optimizer"] = dict(reversed(plain["training"]["optimizer"].items()))
    (copy / "recipe.yaml").write_text(yaml.safe_dump(plain, sort_keys=False))
    before = contents(copy)
    (line,) = refused(["run", "recipe.yaml"], capfd, monkeypatch)
    assert f"another recipe (the order of {field} was video, audio, is audio, video): " in line
    assert contents(copy) == before
    plain[field] = dict(reversed(plain[field].items()))
    (copy / "recipe.yaml").write_text(yaml.safe_dump(plain, sort_keys=False))
    done = mmssl("run", "recipe.yaml", cwd=copy)
    assert (done.returncode, done.stderr) == (0, "")
    assert "every stage of this run is finished; nothing to do" in done.stdout


def test_resources_may_change(copy: Path) -> None:
    overrides = ["data.workers=0", "threads=2", "training.checkpoint.keep=5", "description=again"]
    done = mmssl("run", "recipe.yaml", *overrides, cwd=copy)
    assert (done.returncode, done.stderr) == (0, "")
    assert "nothing to do" in done.stdout


def test_two_processes_do_not_share_a_folder(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copy)
    before = contents(copy)
    with RunFolder(load("recipe.yaml")).locked():
        done = mmssl("run", "recipe.yaml", cwd=copy)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("mmssl: runs/small is in use by another process: wait for it, or ")
    assert contents(copy) == before


def test_too_few_samples_for_the_clusters(
    finished: tuple[Path, str],
    folder: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MMSSL_CACHE", str(finished[0] / "cache"))
    text = RECIPE.replace("clusters: 4", "clusters: 49").replace("workers: 1", "workers: 0")
    (folder / "recipe.yaml").write_text(text)
    (line,) = refused(["run", "recipe.yaml"], capfd, monkeypatch)
    assert line == (
        f"recipe.yaml:{line_of(text, 'clusters: 49')}: objective.clusters: 49 clusters of video "
        "need at least as many samples, but only 48 have video"
    )


def test_bad_files_are_skipped_counted_and_named(tmp_path: Path) -> None:
    videos = make_videos(tmp_path / "videos", 24)
    broken, empty, gone = (Path(videos[i][0]) for i in (3, 7, 11))
    broken.write_bytes(broken.read_bytes()[:2000])
    empty.write_bytes(b"")
    gone.unlink()
    write_manifest(tmp_path / "list.csv", videos)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    command = [
        "run",
        "recipe.yaml",
        "data.train={use: manifest, path: list.csv}",
        "objective.rounds=1",
    ]

    # Too many: one of 24 is allowed.
    done = mmssl(*command, cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("mmssl: 2 of 24 train samples cannot be read, more than data.max_bad")
    assert "skipped.jsonl" in line

    # How many are allowed decides nothing of what is learned: it may change.
    done = mmssl(*command, "data.max_bad=0.2", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    skipped = (tmp_path / "runs/small/skipped.jsonl").read_text().splitlines()
    reasons = {Path(r["id"]).name: r["reason"] for r in map(json.loads, skipped)}
    assert set(reasons) == {broken.name, empty.name, gone.name}
    assert reasons[empty.name] == "the file is empty"
    assert reasons[gone.name] == f"no such file: {gone}"
    *_, counted, first, second, third, last = done.stdout.splitlines()
    assert counted == "3 samples could not be read: runs/small/skipped.jsonl"
    records = [json.loads(line) for line in skipped]
    assert [first, second, third] == [f"  {r['id']}: {r['reason']}" for r in records]
    assert last == "run folder: runs/small"


def test_bad_files_of_one_dataset_are_not_counted_in_another(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 48 training and 16 test clips of a probe 3 may be bad, and 1: there are 2 and 1."""
    videos = make_videos(copy / "videos", 64)
    for i in (1, 2, 50):
        Path(videos[i][0]).write_bytes(b"")
    write_manifest(copy / "train.csv", videos[:48])
    write_manifest(copy / "test.csv", videos[48:])
    probe = "train: {use: manifest, path: train.csv}, test: {use: manifest, path: test.csv}"
    override = f"evaluations.probe={{use: linear_probe, {probe}, regularisation: [0.01]}}"
    done = mmssl("run", "recipe.yaml", override, "data.max_bad=0.07", cwd=copy)
    assert (done.returncode, done.stderr) == (0, "")
    metrics = json.loads((copy / "runs/small/evaluations/probe/metrics.json").read_text())
    assert (metrics["video/train_samples"], metrics["video/test_samples"]) == (46, 15)


# Plugins of others

PLUGIN = """\
from mmssl import hookimpl

@hookimpl
def register_datasets(register):
    register("folder", "myplugin.parts:Folder")

@hookimpl
def register_objectives(register):
    register("agreement", "myplugin.parts:Agreement")
"""

PARTS = '''\
from pathlib import Path

from pydantic import DirectoryPath

from mmssl import Dataset, Losses, Objective, Sample


class Folder(Dataset):
    """All videos of a folder.

    Args:
        path: the folder.
    """

    def __init__(self, *, path: DirectoryPath) -> None:
        self.files = sorted(Path(path).glob("*.mp4"))

    def __len__(self) -> int:
        return len(self.files)

    def sample(self, index: int) -> Sample:
        return Sample(self.files[index].name, str(self.files[index]))


class Agreement(Objective):
    """Features of all modalities should be near each other.

    Args:
        scale: of the loss.
    """

    def __init__(self, *, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale

    def loss(self, batch, features):
        first, *others = (f.pooled for f in features.values())
        total = sum(((first - other) ** 2).mean() for other in others)
        return Losses(self.scale * total, {"distance": total.detach()})
'''


def install(folder: Path, name: str, modules: dict[str, str]) -> dict[str, str]:
    """Put a plugin where Python looks, as an installer would; the variables that it takes."""
    for module, source in modules.items():
        (folder / module).parent.mkdir(parents=True, exist_ok=True)
        (folder / module).write_text(source)
    info = folder / f"{name}-1.5.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n")
    (info / "entry_points.txt").write_text(f"[mmssl]\n{name} = {name}\n")
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    return environment(folder, PYTHONPATH=os.pathsep.join(paths))


def test_a_broken_plugin_is_named_and_stops_nothing(tmp_path: Path) -> None:
    env = install(tmp_path / "site", "torn", {"torn.py": "import torn_dependency\n"})
    listed = mmssl("plugins", cwd=tmp_path, env=env)
    assert (listed.returncode, listed.stderr) == (0, "")
    lines = listed.stdout.splitlines()
    at = lines.index("torn 1.5")
    place = f"{tmp_path / 'site/torn.py'}:1"
    reason = f"ModuleNotFoundError: No module named 'torn_dependency' ({place})"
    assert lines[at + 1] == f"  broken: {reason}"
    assert "  objectives: sdc, mdc, cdc, xdc" in lines

    listed = mmssl("ls", "objectives", cwd=tmp_path, env=env)
    assert listed.stdout.splitlines()[-1] == "broken plugins: torn (see: mmssl plugins)"

    # A recipe that may have wanted it says so.
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("use: xdc", "use: torn_objective"))
    done = mmssl("run", "recipe.yaml", "--dry-run", cwd=tmp_path, env=env)
    assert done.returncode == 2
    assert f"broken plugins, which might have brought it: torn ({reason})" in done.stderr
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    done = mmssl("run", "recipe.yaml", "--dry-run", cwd=tmp_path, env=env)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_strangers_components_serve_as_the_shipped_ones(
    finished: tuple[Path, str], tmp_path: Path
) -> None:
    files = {"myplugin/__init__.py": PLUGIN, "myplugin/parts.py": PARTS}
    env = install(tmp_path / "site", "myplugin", files)
    videos = next((finished[0] / "cache" / "synthetic").glob("train-*"))
    data = f"data.train={{use: myplugin/folder, path: {videos}}}"
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    overrides = [data, "objective={use: myplugin/agreement, scale: 2}", "training.epochs=1"]
    done = mmssl("run", "recipe.yaml", *overrides, cwd=tmp_path, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    run = tmp_path / "runs" / "small"
    assert steps(run) == 4
    records: list[dict[str, Any]] = read_log(run)
    assert records[0]["loss"] == pytest.approx(2 * records[0]["distance"])
    assert (run / "checkpoints" / "encoders.safetensors").is_file()
    assert not (run / "clusters").exists()
    (start,) = json.loads((run / "provenance.json").read_text())
    assert start["plugins"]["myplugin"] == "1.5"

    # Its mistakes are reported as those in shipped components are.
    done = mmssl("run", "recipe.yaml", *overrides, "objective.scalee=3", cwd=tmp_path, env=env)
    assert done.returncode == 2
    assert done.stderr.startswith("mmssl: command line: objective.scalee: unknown key; did you")


def test_commands_of_plugins_do_not_harm_each_other(tmp_path: Path) -> None:
    brought = """
        from mmssl import hookimpl

        @hookimpl
        def register_commands(register):
            register("data count", "counting:count")
            register("data torn", "no_such_module:torn")
            register("data index", "counting:count")
            register("run away", "counting:count")
    """
    counting = "def count(n: int) -> int:\n    print(n + 1)\n    return 3\n"
    files = {"counter.py": textwrap.dedent(brought), "counting.py": counting}
    env = install(tmp_path / "site", "counter", files)
    done = mmssl("data", "count", "4", cwd=tmp_path, env=env)
    assert (done.returncode, done.stdout, done.stderr) == (3, "5\n", "")
    for verb, reason in {
        "torn": "mmssl: command 'data torn' of plugin 'counter' does not load",
        "index": "mmssl: command 'data index' is brought by counter and mmssl_media; remove one",
    }.items():
        done = mmssl("data", verb, cwd=tmp_path, env=env)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(reason)
    listed = mmssl("data", "--help", cwd=tmp_path, env=env).stdout
    assert "Broken: command 'data torn'" in listed
    assert "check" in listed
    completed = mmssl("data", "", cwd=tmp_path, env={**env, "_MMSSL_COMPLETE": "fish"}).stdout
    assert [line.split("\t")[1] for line in completed.splitlines()][:2] == ["check", "count"]
