"""Pictures of filters: which layers, beside which, and what has none."""

import io
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from small_runs import RECIPE, mmssl
from torch import nn
from toys import Perceptron

from mmssl.contracts import Backbone, Evaluation
from mmssl.errors import UserError
from mmssl.pipeline.assembly import build_encoders
from mmssl.recipe import load
from mmssl.training.encoders import Encoders
from mmssl_backbones.audio_resnet import ResNet18Audio
from mmssl_backbones.video_resnet import r2plus1d_18
from mmssl_evaluators.filters import Filters


def networks(scale: float = 1.0) -> Encoders:
    torch.manual_seed(0)
    backbones: dict[str, Backbone] = {
        "video": r2plus1d_18(width=0.125),
        "audio": ResNet18Audio(width=0.125),
        "text": Perceptron(),
    }
    with torch.no_grad():
        for backbone in backbones.values():
            for parameter in backbone.parameters():
                parameter *= scale
    return Encoders(backbones, list(backbones))


@dataclass
class Context:
    trained: float = 1.5
    asked: list[str] = field(default_factory=list)

    def encoders(self, weights: str = "pretrained") -> Encoders:
        self.asked.append(weights)
        return networks(self.trained if weights == "pretrained" else 1.0)


def test_pretrained_beside_untrained() -> None:
    context = Context()
    result = Filters().evaluate(context)  # type: ignore[arg-type]
    assert sorted(context.asked) == ["initial", "pretrained"]
    video, audio = networks().backbones["video"], networks().backbones["audio"]
    spatial, temporal = [m for m in video.modules() if isinstance(m, nn.Conv3d)][:2]
    first = next(m for m in audio.modules() if isinstance(m, nn.Conv2d))
    shapes = [tuple(m.weight.shape) for m in (spatial, temporal, first)]
    rows = result.tables[0].rows
    assert [row[0] for row in rows] == ["video", "video", "audio", "text"]
    assert [(row[2], *map(int, row[3].split("×"))) for row in rows[:3]] == shapes
    assert [row[4] for row in rows[:3]] == ["0.500"] * 3
    assert rows[3][1] == "begins with no convolution"
    assert result.metrics == {
        "video/filters": shapes[0][0],
        "video/change": pytest.approx(0.5),
        "audio/filters": shapes[2][0],
        "audio/change": pytest.approx(0.5),
    }
    assert set(result.figures) == {"filters_video", "filters_audio"}
    for name in result.figures:
        assert_png(result, name)


def test_nothing_changed() -> None:
    assert Filters().evaluate(Context(trained=1.0)).metrics["video/change"] == 0  # type: ignore[arg-type]


def test_beside_another_run(tmp_path: Path) -> None:
    recipe = RECIPE.replace("use: xdc\n  rounds: 2\n", "use: scratch\n")
    start = recipe.index("  clusters: 4")
    recipe = recipe[:start] + recipe[recipe.index("training:") :]
    (tmp_path / "recipe.yaml").write_text(recipe)
    done = mmssl("run", "recipe.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "small"
    found = load(str(run / "recipe.yaml"))

    @dataclass
    class Run:
        seed: int

        def encoders(self, weights: str = "pretrained") -> Encoders:
            return build_encoders(found.model_copy(update={"seed": self.seed}))

    same = Filters(beside=run).evaluate(Run(found.seed))  # type: ignore[arg-type]
    assert same.metrics["video/change"] == 0
    other = Filters(beside=run).evaluate(Run(found.seed + 1))  # type: ignore[arg-type]
    assert other.metrics["video/change"] > 0.5
    assert other.tables[0].title == "First convolutions: this run beside small"
    with pytest.raises(UserError, match="are of another kind"):
        Filters(beside=run).evaluate(Context())  # type: ignore[arg-type]
    with pytest.raises(UserError, match="pretraining has not finished"):
        Filters(beside=tmp_path).evaluate(Context())  # type: ignore[arg-type]


def assert_png(result: Evaluation, name: str) -> None:
    file = io.BytesIO()
    result.figures[name].savefig(file, format="png")
    assert file.getvalue().startswith(b"\x89PNG")
