"""AVBert's pretraining as a whole: its terms as loops, absent modalities, ranks, and training."""

import itertools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args
from unittest.mock import patch

import pytest
import torch
from ranks import on_ranks
from test_avbert_functions import slow_weights
from tiny_avbert import NAMES, RECIPE, avbert, clips, present
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, softplus
from typer.testing import CliRunner

from mmssl import UserError
from mmssl.cli import app
from mmssl.contracts import Batch, Features, Losses
from mmssl.data.draws import Draws
from mmssl.pipeline.assembly import build_encoders
from mmssl.pipeline.plan import make_plan
from mmssl.pipeline.run_folder import RunFolder
from mmssl.pipeline.stages import pretrain
from mmssl.recipe import load
from mmssl.training import distributed
from mmssl.training.batch_norm import synchronise
from mmssl.training.encoders import Encoders
from mmssl.training.log import read_log
from mmssl.training.progress import Silent
from mmssl_avbert import objective as module
from mmssl_avbert.backbone import AVBert, Contextualised, Fusion, SequenceFeatures
from mmssl_avbert.low_rank import rotations
from mmssl_avbert.objective import AVBertPretraining, Negatives
from mmssl_avbert.pairing import partners
from mmssl_backbones.audio_resnet import ResNet18Audio

ROWS = ("va", "v", "va", "a", "va", "")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def built(
    backbone: AVBert | None = None, **changed: Any
) -> tuple[AVBertPretraining, Encoders, AVBert]:
    backbone = backbone or avbert(pooled="cnn")
    encoders = Encoders({"+".join(backbone.names): backbone}, list(backbone.names))
    sizes = {"hidden": 10, "projection": 7, "init_std": 0.4, "masking": 0.5}
    objective = AVBertPretraining(**(sizes | changed))
    objective.build(encoders)
    return objective, encoders, backbone


def batch_of(*rows: str, seeds: Tensor | None = None, names: Sequence[str] = NAMES) -> Batch:
    size = len(rows)
    seeds = torch.arange(size) + 100 if seeds is None else seeds
    there = present(*rows, names=names)
    return Batch(torch.arange(size), seeds, {}, there, torch.full((size,), -100))


def features_of(batch: Batch, length: int = 3, seed: int = 1) -> dict[str, Features]:
    """Made-up embeddings, with gradients, that are zero where a modality is absent."""
    generator = torch.Generator().manual_seed(seed)
    features: dict[str, Features] = {}
    for name in NAMES:
        x = torch.randn(len(batch), length, 12, generator=generator)
        x = (x * batch.present[name][:, None, None]).requires_grad_()
        features[name] = SequenceFeatures(pooled=x.mean(1), tokens=x, embeddings=x)
    return features


def spied(
    objective: AVBertPretraining, batch: Batch, features: dict[str, Features]
) -> tuple[Losses, Tensor, Contextualised]:
    """The losses, which clips were masked, and what the Transformers said."""
    backbone, seen = objective._backbone[0], []

    def spy(x: Any, there: Any, masked: Tensor) -> Contextualised:
        outputs = AVBert.contextualise(backbone, x, there, masked)
        seen.append((masked, outputs))
        return outputs

    with patch.object(backbone, "contextualise", spy):
        losses = objective.loss(batch, features)
    masked, outputs = seen[0]
    return losses, masked, outputs


# Terms


def slow_mep(
    objective: AVBertPretraining,
    batch: Batch,
    x: dict[str, Tensor],
    masked: Tensor,
    outputs: dict[str, Tensor],
    score: nn.Module,
    negatives: Negatives,
) -> tuple[float, float]:
    """One Transformer's term and accuracy, clip by clip, with all that CANS may draw."""
    summed, rows, best = 0.0, set(), []
    for name, y in outputs.items():
        there = [i for i in range(len(batch)) if batch.present[name][i]]
        rows |= set(there)
        for i, t in masked.nonzero().tolist():
            if i not in there:
                continue
            others = [(j, s) for j in there for s in range(x[name].shape[1]) if (j, s) != (i, t)]
            if negatives == "sequence":
                others = [(j, s) for j, s in others if j == i]
            elif negatives != "minibatch":
                far = [float((x[name][i, t] - x[name][other]).norm()) for other in others]
                weight = slow_weights(far, negatives == "cans_similar", "std") if far else []
                others = [other for other, w in zip(others, weight, strict=True) if w > 0]
            candidates = torch.stack([x[name][i, t], *(x[name][other] for other in others)])
            logits = score(y[i, 1 + t], candidates)
            summed += float(cross_entropy(logits[None], torch.tensor([0])))
            best.append(all(logits[0] > wrong for wrong in logits[1:]))
    return summed / max(1, len(rows)), sum(best) / max(1, len(best))


def slow_cpp(
    batch: Batch,
    outputs: dict[str, Tensor],
    classifier: nn.Module,
    places: bool,
    exchanged: Callable[[int, int], dict[str, Tensor]] | None = None,
) -> tuple[float, float]:
    """One classifier's term and accuracy, pair by pair.

    ``exchanged(i, j)`` are the outputs for the video of i and the sound of j.
    """
    both = [i for i in range(len(batch)) if all(batch.present[n][i] for n in NAMES)]
    draws = Draws(batch.seeds, "pairs")
    whole = torch.tensor([i in both for i in range(len(batch))])
    partner = partners(draws.uniform(), whole).tolist()
    where = 1 + (draws.uniform(2) * (outputs["video"].shape[1] - 1)).long()
    summed, correct, pairs = 0.0, 0, 0
    for i in both if len(both) > 1 else []:
        assert partner[i] in both
        assert partner[i] != i
        for place in (False, True) if places else (False,):
            for j, truth in ((i, 1), (partner[i], 0)):
                seen, heard = outputs["video"][i], outputs["audio"][j]
                s, t = int(where[i, 0]) * place, int(where[j, 1]) * place
                if exchanged and not truth:
                    found = exchanged(i, j)
                    seen, heard, t = found["video"], found["audio"], int(where[i, 1]) * place
                logit = classifier(torch.cat([seen[s], heard[t]]))[0]
                summed += float(softplus(-logit if truth else logit)) / 2
                correct += int((logit > 0) == bool(truth))
                pairs += 1
    return summed / max(1, len(both)), correct / max(1, pairs)


@torch.no_grad()
def check_terms(
    rows: tuple[str, ...], fusion: Fusion, negatives: Negatives, length: int, **changed: Any
) -> None:
    batch = batch_of(*rows)
    objective, _, backbone = built(
        avbert(fusion=fusion, pooled="cnn"),
        negatives=negatives,
        number_of_negatives=1000,
        alpha=0.7,
        **changed,
    )
    objective.eval()  # in training a batch of one is a mistake
    features = features_of(batch, length)
    x = {name: features[name].tokens for name in NAMES}
    losses, masked, outputs = spied(objective, batch, features)

    def exchanged(i: int, j: int) -> dict[str, Tensor]:
        pair = {"video": x["video"][i, None], "audio": x["audio"][j, None]}
        found = backbone.contextualise(pair, present("va"), masked[i, None]).multimodal
        return {name: y[0] for name, y in found.items()}

    assert masked.sum(1).tolist() == [round(0.5 * length) or 1] * len(rows)
    right: dict[str, float] = {}
    for name in objective.scores:
        y = outputs.multimodal if name == "multimodal" else {name: outputs.unimodal[name]}
        score = objective.scores[name]
        term, accuracy = slow_mep(objective, batch, x, masked, y, score, negatives)
        right |= {f"{name}/mep": term, f"{name}/mep_accuracy": accuracy}
    for kind in objective.classifiers:
        found = getattr(outputs, kind)
        classifier = objective.classifiers[kind]
        again = exchanged if kind == "multimodal" and "wrong_pairs" in changed else None
        places = changed.get("cpp_positions", True)
        term, accuracy = slow_cpp(batch, found, classifier, places, again)
        right |= {f"{kind}/cpp": term, f"{kind}/cpp_accuracy": accuracy}
    assert {name: float(v) for name, v in losses.parts.items()} == pytest.approx(right, abs=1e-4)
    total = sum(v * (0.7 if "cpp" in k else 1) for k, v in right.items() if "accuracy" not in k)
    assert float(losses.total) == pytest.approx(total, abs=1e-4)


@pytest.mark.parametrize("fusion", get_args(Fusion))
@pytest.mark.parametrize("negatives", get_args(Negatives))
def test_terms_are_those_of_the_formulas(fusion: Fusion, negatives: Negatives) -> None:
    check_terms(ROWS, fusion, negatives, 3)


@pytest.mark.parametrize("rows", [("va",), ("va", "v"), ("va", "va"), ("a", "v", "")])
@pytest.mark.parametrize("length", [1, 2])
def test_terms_of_small_batches(rows: tuple[str, ...], length: int) -> None:
    check_terms(rows, "mid", "cans_similar", length)


@torch.no_grad()
def test_random_positions_are_never_the_summary() -> None:
    batch = batch_of("va", "va", "va")
    objective, _, backbone = built(mep=False)
    features = features_of(batch, length=1)
    whole = float(objective.loss(batch, features).parts["unimodal/cpp"])
    outputs = AVBert.contextualise(
        backbone, {n: features[n].tokens for n in NAMES}, batch.present
    ).unimodal
    partner = partners(Draws(batch.seeds, "pairs").uniform(), torch.ones(3).bool()).tolist()
    classifier, right = objective.classifiers["unimodal"], 0.0
    for i, place in itertools.product(range(3), range(2)):  # of one clip there is one position
        video, audio = outputs["video"][i, place], outputs["audio"]
        for j, sign in ((i, -1), (partner[i], 1)):
            right += float(softplus(sign * classifier(torch.cat([video, audio[j, place]]))[0])) / 6
    assert whole == pytest.approx(right, abs=1e-5)


def test_counts_say_which_samples_a_term_is_of() -> None:
    batch = batch_of(*ROWS)
    losses = built()[0].loss(batch, features_of(batch))
    assert {name: int(count) for name, count in losses.counts.items()} == {
        "video/mep": 4,
        "audio/mep": 4,
        "multimodal/mep": 5,
        "unimodal/cpp": 3,
        "unimodal/cpp_accuracy": 3,
        "multimodal/cpp": 3,
        "multimodal/cpp_accuracy": 3,
        "video/mep_accuracy": 4 * 2,  # two masked clips of each
        "audio/mep_accuracy": 4 * 2,
        "multimodal/mep_accuracy": 8 * 2,
    }
    assert set(losses.counts) == set(losses.parts)


@pytest.mark.parametrize(
    ("fusion", "change", "terms"),
    [
        ("mid", {"mep": False}, "unimodal/cpp multimodal/cpp"),
        ("mid", {"cpp": False}, "video/mep audio/mep multimodal/mep"),
        ("mid", {"cpp": False, "mep_multimodal": False}, "video/mep audio/mep"),
        ("late", {}, "video/mep audio/mep unimodal/cpp"),
        ("late", {"cpp": False}, "video/mep audio/mep"),
        ("early", {}, "multimodal/mep multimodal/cpp"),
        ("early", {"mep_multimodal": False}, "multimodal/cpp"),
    ],
)
def test_ablations_leave_terms_and_their_parameters_out(
    fusion: Fusion, change: dict[str, Any], terms: str
) -> None:
    batch = batch_of("va", "va", "v")
    objective, _, _ = built(avbert(fusion=fusion, pooled="cnn"), **change)
    losses, masked, _ = spied(objective, batch, features_of(batch))
    assert [n for n in losses.parts if "accuracy" not in n] == terms.split()
    assert bool(masked.any()) == change.get("mep", True)
    losses.total.backward()
    for name, parameter in objective.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


def test_without_positions_there_are_pairs_of_summaries_alone() -> None:
    check_terms(ROWS, "mid", "minibatch", 3, cpp_positions=False)


@pytest.mark.parametrize("fusion", get_args(Fusion))
@pytest.mark.parametrize("rows", [ROWS, ("va", "a")])
def test_inputs_of_wrong_pairs_can_be_exchanged(fusion: Fusion, rows: tuple[str, ...]) -> None:
    check_terms(rows, fusion, "minibatch", 3, wrong_pairs="inputs")


# Draws


def test_the_same_clips_are_masked_in_both_modalities_whatever_the_batch() -> None:
    seeds = torch.tensor([5, -3, 2**62, 9])
    objective, _, _ = built(avbert(length=8, pooled="cnn"), masking=0.25)
    batch = batch_of("va", "va", "v", "a", seeds=seeds)
    _, masked, outputs = spied(objective, batch, features_of(batch, 8))
    assert masked.sum(1).tolist() == [2] * 4
    order = torch.tensor([2, 0, 3, 1])
    other = batch_of("v", "va", "a", "va", seeds=seeds[order])
    assert torch.equal(spied(objective, other, features_of(other, 8))[1], masked[order])
    # The masked embeddings of neither modality change any output.
    changed = features_of(batch, 8)
    for f in changed.values():
        assert isinstance(f, SequenceFeatures)
        f.embeddings = f.embeddings + 50 * masked[..., None]
    again = spied(objective, batch, changed)[2]
    for name in NAMES:
        assert torch.equal(again.multimodal[name], outputs.multimodal[name])


def test_cans_draws_as_many_as_it_is_told() -> None:
    batch = batch_of(*["va"] * 6)
    objective, _, _ = built(number_of_negatives=4)
    drawn: list[Tensor] = []

    def spy(scores: Tensor, positive: Tensor, negatives: Tensor) -> Tensor:
        assert not negatives.gather(-1, positive[..., None]).any()
        drawn.append(negatives)
        return scores.sum(-1)

    with patch.object(module, "info_nce", spy):
        objective.loss(batch, features_of(batch))
    video, audio, first, second = drawn
    assert video.shape == (6, 2, 18)
    assert (video.sum(-1) == 4).all()
    assert not torch.equal(video, audio)
    # h_AV is asked with the same ones.
    assert torch.equal(first, video)
    assert torch.equal(second, audio)


# Gradients


@pytest.mark.parametrize("rows", list(itertools.product(["va", "v", "a", ""], repeat=2)))
def test_losses_and_gradients_are_finite_for_any_presence(rows: tuple[str, ...]) -> None:
    batch = batch_of(*rows)
    for negatives in get_args(Negatives):
        objective, encoders, _ = built(negatives=negatives)
        features = features_of(batch)
        losses = objective.loss(batch, features)
        losses.total.backward()
        assert torch.isfinite(losses.total)
        for p in (*objective.parameters(), *encoders.parameters()):
            assert p.grad is None or torch.isfinite(p.grad).all()
        for name in NAMES:
            gradient = features[name].tokens.grad
            assert torch.isfinite(gradient).all()
            assert not gradient[~batch.present[name]].any()


@pytest.mark.parametrize("stop", [False, True])
def test_targets_are_learned_by_unless_gradients_stop(stop: bool) -> None:
    batch = batch_of("va", "va")
    objective, _, _ = built(masking=1.0, cpp=False, stop_gradient=stop)
    features = features_of(batch)  # all clips are masked, so embeddings are only targets
    objective.loss(batch, features).total.backward()
    for name in NAMES:
        gradient = features[name].tokens.grad
        assert bool(gradient is not None and gradient.any()) != stop


def test_under_autocast_the_heads_stay_exact() -> None:
    batch = batch_of("va", "va", "v")
    objective, _, _ = built()
    with torch.autocast("cpu", torch.bfloat16):
        losses = objective.loss(batch, features_of(batch))
    right = objective.loss(batch, features_of(batch))
    assert losses.total.dtype == torch.float32
    for name, value in right.parts.items():
        if "accuracy" not in name:
            assert float(losses.parts[name]) == pytest.approx(float(value), rel=0.1)


def test_the_backbone_is_no_part_of_the_objective() -> None:
    objective, encoders, _ = built()
    assert not {id(p) for p in objective.parameters()} & {id(p) for p in encoders.parameters()}
    assert {name.split(".")[0] for name in objective.state_dict()} == {"scores", "classifiers"}
    sizes = {name: sum(p.numel() for p in m.parameters()) for name, m in objective.scores.items()}
    assert sizes == dict.fromkeys(("video", "audio", "multimodal"), 12 * 10 + 10 + 10 * 7 + 7 + 84)


# Ranks


def trained(rows: list[str], changed: dict[str, Any]) -> dict[str, Any]:
    """A step's losses and gradients, of this rank's part of the rows."""
    torch.manual_seed(3)
    objective, encoders, _ = built(**changed)
    return one_step(objective, encoders, rows, clips(len(rows)))


def one_step(
    objective: AVBertPretraining, encoders: Encoders, rows: list[str], whole: dict[str, Tensor]
) -> dict[str, Any]:
    if distributed.size() > 1:
        synchronise(encoders)
    own = [*distributed.share(len(rows))]
    seeds = torch.tensor(own) + 7
    batch = batch_of(*(rows[i] for i in own), seeds=seeds, names=encoders.modalities)
    features = encoders({name: clip[own] for name, clip in whole.items()}, batch.present)
    losses = objective.loss(batch, features)
    losses.total.backward()
    parameters = {**dict(objective.named_parameters()), **dict(encoders.named_parameters())}
    return {
        "total": distributed.mean(losses.total),
        "parts": {name: distributed.mean(value) for name, value in losses.parts.items()},
        "counts": losses.counts,
        "gradients": {
            name: distributed.mean(p.grad) for name, p in parameters.items() if p.grad is not None
        },
    }


@pytest.mark.parametrize(
    ("rows", "changed"),
    [
        (["va", "a", "va", "v", "v", "va"], {"pool": "global", "number_of_negatives": 3}),
        (["va", "va", "va", "v", "a", "va"], {"pool": "global", "wrong_pairs": "inputs"}),
        (["v", "va", "v", "va", "va", "a"], {"negatives": "sequence", "cpp": False}),
    ],
)
def test_ranks_together_are_one_process(rows: list[str], changed: dict[str, Any]) -> None:
    one = trained(rows, changed)
    for found in on_ranks(2, trained, rows, changed):
        assert int(found["counts"]["video/mep"]) == sum("v" in row for row in rows)
        torch.testing.assert_close(found["counts"], one["counts"])
        for what in ("total", "parts"):
            torch.testing.assert_close(found[what], one[what], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(found["gradients"], one["gradients"], rtol=1e-2, atol=1e-3)


# Recipes


def recipe(**fields: Any) -> str:
    keys = {"use": "avbert", "hidden": 16, "projection": 8, "masking": 0.34} | fields
    inner = ", ".join(f"{key}: {value}" for key, value in keys.items())
    return RECIPE.replace("{use: xdc, rounds: 1, clusters: 4}", f"{{{inner}}}").replace(
        "    rank: 4\n", "    rank: 4\n    pooled: cnn\n"
    )


def pretrained(folder: Path) -> list[dict[str, Any]]:
    """Run the recipe of a folder on this process's rank; the log."""
    os.chdir(folder)  # a rank is a process of its own
    os.environ["MMSSL_CACHE"] = str(folder / "cache")
    recipe = load(folder / "a.yaml")
    run = RunFolder(recipe)
    run.path.mkdir(parents=True, exist_ok=True)
    pretrain(recipe, run, Silent())
    return list(read_log(run.path)) if distributed.is_main() else []


def test_a_recipe_runs_and_on_two_ranks_alike(tmp_path: Path) -> None:
    text = recipe(pool="global", number_of_negatives=5).replace(
        "    rank: 4\n", "    rank: 4\n    dropout: 0\n"
    )
    # Of 9 clips the last is a batch of its own, without others to be paired with.
    more = "  validation: {use: synthetic, videos: 9, seed: 5, side: 32, fps: 8, seconds: 1}\n"
    text = text.replace("objective:", f"{more}  workers: 0\nobjective:") + "  log_every: 1\n"
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.yaml").write_text(text)
    assert make_plan(load(tmp_path / "one" / "a.yaml")).tables
    (one,) = on_ranks(1, pretrained, tmp_path / "one")
    two, _ = on_ranks(2, pretrained, tmp_path / "two")
    assert [record["kind"] for record in one] == ["step", "step", "validation"]
    for record, other in zip(one, two, strict=True):
        terms = [f"{n}/mep" for n in (*NAMES, "multimodal")]
        terms += [f"{n}/cpp" for n in ("unimodal", "multimodal")]
        for name in ("loss", *terms):
            assert 0 < record[name] < 100
            assert other[name] == pytest.approx(record[name], rel=1e-3)
        if record["kind"] == "step":
            assert record["loss"] == pytest.approx(sum(record[n] for n in terms), rel=1e-5)


def test_a_few_steps_learn_a_batch() -> None:
    net = avbert(dim=24, heads=2, hidden=24, rank=12, pooled="cnn", init_std=0.2)
    objective, encoders, _ = built(net, hidden=24, init_std=0.2, masking=0.34)
    rows, whole = ["va"] * 4, clips(4)
    # Sound tells the picture: each clip has a level of its own.
    for i, t in itertools.product(range(4), range(3)):
        level = (i * 3 + t) / 4 - 1.5
        whole["video"][i, :, 2 * t : 2 * t + 2] += level
        whole["audio"][i, :, :, 8 * t : 8 * t + 8] += level
    parameters = [*objective.parameters(), *encoders.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=3e-3)
    totals: list[float] = []
    accuracy: list[float] = []
    for step in range(60):
        batch = batch_of(*rows, seeds=torch.arange(4) + 10 * step)
        losses = objective.loss(batch, encoders(whole, batch.present))
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        totals.append(losses.total.item())
        accuracy.append(float(losses.parts["multimodal/cpp_accuracy"]))
    first, last = sum(totals[:10]) / 10, sum(totals[-10:]) / 10
    assert last < 0.75 * first
    assert sum(accuracy[-10:]) > sum(accuracy[:10])


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"mep": "false", "cpp": "false"}, "mep and cpp are both off"),
        ({"masking": 0}, "masking"),
        ({"number_of_negatives": 0}, "number_of_negatives"),
        ({"negatives": "hard"}, "negatives"),
        ({"alpha": -1}, "alpha"),
    ],
)
def test_mistakes_are_told_in_a_line(tmp_path: Path, fields: dict[str, Any], says: str) -> None:
    (tmp_path / "a.yaml").write_text(recipe(**fields))
    with pytest.raises(UserError) as raised:
        make_plan(load(tmp_path / "a.yaml"))
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


def test_backbones_that_do_not_fit_are_refused() -> None:
    sound = Encoders({"audio": ResNet18Audio(width=0.125)}, ["audio"])
    with pytest.raises(UserError, match="avbert trains the backbone avbert, of video\\+audio"):
        AVBertPretraining().build(sound)
    with pytest.raises(UserError, match="mep_multimodal must be on, or cpp"):
        built(avbert(fusion="early", pooled="cnn"), mep_multimodal=False, cpp=False)


def test_training_on_batches_of_one_is_refused() -> None:
    batch = batch_of("va")
    with pytest.raises(UserError, match=r"^objective.cpp: a batch of 1 has no wrong pairs: .*$"):
        built()[0].loss(batch, features_of(batch))
    assert built(cpp=False)[0].loss(batch, features_of(batch)).total > 0


def test_one_modality_first_needs_a_transformer_of_its_own() -> None:
    with pytest.raises(UserError, match=r"objective.first: with sharing all"):
        built(avbert(sharing="all", pooled="cnn"), first="audio")
    with pytest.raises(UserError, match=r"objective.first: this backbone's fusion has no"):
        built(avbert(fusion="early", pooled="cnn"), first="audio")
    built(avbert(sharing="layers", pooled="cnn"), first="audio")


def test_it_is_described() -> None:
    result = CliRunner().invoke(app, ["describe", "objective", "avbert"])
    assert result.exit_code == 0
    assert "objective avbert, from mmssl_avbert" in result.stdout
    assert "negatives: 'sequence', 'minibatch', 'cans_similar' or 'cans_dissimilar'" in (
        result.stdout
    )


# One modality first (B.6)


@pytest.mark.parametrize("first", NAMES)
def test_one_modality_first_then_frozen(first: str, tmp_path: Path) -> None:
    text = recipe(first=first, number_of_negatives=5)
    text = text.replace("batch_size: 8", "batch_size: 8\n  log_every: 1")
    (tmp_path / "a.yaml").write_text(text)
    (log,) = on_ranks(1, pretrained, tmp_path)
    terms = [{key for key in record if "/mep" in key or "/cpp" in key} for record in log]
    alone = {f"{first}/mep", f"{first}/mep_accuracy"}
    assert [found == alone for found in terms] == [True, True, False, False]
    assert terms[2] > alone
    weights = [
        torch.load(path, weights_only=True)
        for path in sorted((tmp_path / "runs/long/checkpoints").glob("step-*.pt"))
    ]
    by_step = {saved["state"]["global_step"]: saved["encoders"] for saved in weights}
    halfway, end = by_step[2], by_step[4]
    moved = {name for name in end if not torch.equal(end[name], halfway[name])}
    other = "audio" if first == "video" else "video"
    for part in ("cnns.backbones", "streams", "places", "transformers"):
        assert not {name for name in moved if f"{part}.{first}." in name}
        assert {name for name in moved if f"{part}.{other}." in name}, part
    assert any("places.multimodal" in name for name in moved)
    start = load(tmp_path / "a.yaml")
    begun = dict(build_encoders(start).state_dict())
    trained_first = {name for name in begun if not torch.equal(begun[name], halfway[name])}
    shared = ".up."  # U, which all Transformers have
    assert {
        n for n in trained_first if f".{other}." in n and shared not in n and "norm" not in n
    } == set()
    assert any(f"cnns.backbones.{first}." in name for name in trained_first)


# Orthogonality


@pytest.mark.parametrize(("ranks", "precision"), [(1, "fp32"), (2, "bf16")])
def test_rotations_stay_orthogonal_in_pretraining_and_after_a_restart(
    ranks: int, precision: str, tmp_path: Path
) -> None:
    # From the paper's small beginnings, networks of this size have no gradients to speak of.
    text = recipe(pool="global", init_std=0.3).replace("lr: 0.00001", "lr: 0.1")
    text = text.replace("    rank: 4\n", "    rank: 4\n    init_std: 0.3\n")
    # oneDNN leaves gradients of weights that see padding alone unset in bfloat16.
    text = text.replace("mels: 8, hop_ms: 40", "mels: 64, hop_ms: 5")
    text = text.replace("audio_frames: 8", "audio_frames: 64")
    text = text.replace("epochs: 1", f"epochs: 5\n  precision: {precision}")
    text = text.replace("objective:", "  workers: 0\nobjective:")
    (tmp_path / "a.yaml").write_text(text.replace("epochs: 5", "epochs: 3"))
    on_ranks(ranks, pretrained, tmp_path)
    (tmp_path / "a.yaml").write_text(text)
    run = tmp_path / "runs/long"
    (run / "checkpoints/encoders.safetensors").unlink()
    resume_from(run / "checkpoints")
    on_ranks(ranks, pretrained, tmp_path)
    encoders = build_encoders(load(tmp_path / "a.yaml"))
    begun = {n: p.clone() for n, p in encoders.named_parameters() if n.endswith("skew")}
    encoders.load(run / "checkpoints/encoders.safetensors")
    parameters = dict(encoders.named_parameters())
    assert len(begun) == 18
    for name, before in begun.items():
        assert (parameters[name] - before).abs().max() > 0.05, name
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        turned = rotations(encoders)
    for matrix in turned.values():
        assert matrix.dtype == torch.float32
        assert (matrix @ matrix.T - torch.eye(4)).abs().max() < 1e-4


def resume_from(folder: Path) -> None:
    """Make the end of a training a place to go on from."""
    newest = max(folder.glob("step-*.pt"))
    state = torch.load(newest, weights_only=True)
    state["state"] |= {"finished": False, "begun": True, "step": state["state"]["global_step"]}
    torch.save(state, newest)
