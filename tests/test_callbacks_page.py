"""docs/callbacks.md: its plugin, as it stands there, run, killed and resumed."""

import json
import re
import signal
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from small_runs import RECIPE, Started, environment, mmssl, outcome, steps
from strangers import install_package, with_path

from mmssl.training.log import read_log

PAGE = Path(__file__).parent.parent / "docs" / "callbacks.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    named = (re.match(r"# my_plugin/(\S+\.py)", block) for block in blocks("python"))
    files = {name[1]: block for name, block in zip(named, blocks("python"), strict=True) if name}
    assert sorted(files) == ["__init__.py", "average.py", "nice.py", "table.py"]
    install_package(folder, "my_plugin", files)
    (own,) = blocks("yaml")
    # 8 steps, and a checkpoint every 3.
    settings = {"checkpoint": {"steps": 3}}
    recipe = yaml.safe_load(RECIPE) | yaml.safe_load(own)
    recipe["training"] |= settings | {"epochs": 1}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def variables(place: Path) -> dict[str, str]:
    return environment(place, PYTHONPATH=with_path(place)["PYTHONPATH"])


def command(place: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    return mmssl(*words, cwd=place, env=variables(place))


@pytest.fixture(scope="module")
def undisturbed(place: Path) -> Path:
    done = command(place, "run", "recipe.yaml", "name=undisturbed")
    assert done.returncode == 0, done.stderr
    return place / "runs" / "undisturbed"


def test_its_components_are_known(place: Path) -> None:
    assert "average  my_plugin" in command(place, "ls", "callbacks").stdout
    described = command(place, "describe", "callback", "average").stdout
    assert "decay: a number >= 0 and < 1; default 0.999" in described
    assert "callbacks: average" in command(place, "plugins").stdout
    schema = json.loads(command(place, "schema").stdout)
    assert "callbacks.my_plugin.average" in schema["$defs"]
    plan = command(place, "run", "recipe.yaml", "--dry-run").stdout
    assert "average decay=0.9" in plan
    refused = command(place, "run", "recipe.yaml", "callbacks.0.decay=1")
    assert refused.returncode == 2
    assert "callbacks.0.decay: expected a number >= 0 and < 1" in refused.stderr


def test_they_do_what_the_page_says(undisturbed: Path, place: Path) -> None:
    records = read_log(undisturbed)
    losses = [(r["step"], r["loss"]) for r in records if r["kind"] == "step"]
    assert len(losses) == 8
    table = (undisturbed / "loss.tsv").read_text().splitlines()
    assert [(int(a), float(b)) for a, b in (line.split("\t") for line in table)] == losses
    found = [r["distance from the average"] for r in records if r["kind"] == "callback"]
    assert len(found) == 2
    # The encoders that are kept are not those of the last checkpoint, but as far away as it says.
    last = torch.load(undisturbed / "checkpoints" / "step-00000008.pt", weights_only=True)
    state = last["callbacks"]["my_plugin/average"]["weights"]
    kept = load_file(undisturbed / "checkpoints" / "encoders.safetensors")
    assert all(torch.equal(kept[name], weight) for name, weight in state.items())
    apart = torch.cat([(last["encoders"][n] - kept[n]).flatten() for n in state]).double().norm()
    assert float(apart) == pytest.approx(found[-1], rel=1e-4)
    assert found[-1] > 0.01


def test_another_list_of_callbacks_is_another_run(undisturbed: Path, place: Path) -> None:
    done = command(place, "run", "recipe.yaml", "name=undisturbed", "callbacks=[]")
    assert done.returncode == 2
    assert "holds a run of another recipe (callbacks was " in done.stderr
    done = command(place, "run", "recipe.yaml", "name=undisturbed", "trackers=[]")
    assert "every stage of this run is finished" in done.stdout


def test_killed_and_resumed(undisturbed: Path, place: Path) -> None:
    run = place / "runs" / "killed"

    def begin(moment: int) -> Started:
        started = Started("run", "recipe.yaml", "name=killed", cwd=place, env=variables(place))
        started.wait_until(lambda: steps(run) >= moment)
        return started

    for moment, how, code in ((2, signal.SIGKILL, -signal.SIGKILL), (5, signal.SIGINT, 130)):
        started = begin(moment)
        started.signal_all(how)  # the launcher, and the process that it started
        assert started.wait(60) == code
    saved = max(int(path.stem[5:]) for path in run.glob("checkpoints/step-*.pt"))
    assert saved == steps(run), "what was asked to stop has saved its state"
    done = command(place, "run", "recipe.yaml", "name=killed")
    assert done.returncode == 0, done.stderr
    assert outcome(run) == outcome(undisturbed)
    assert (run / "loss.tsv").read_text() == (undisturbed / "loss.tsv").read_text()
