"""The papers' tables that come with mmssl: their figures, and that the recipes measure them."""

import fnmatch
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tiny_benchmarks import benchmarks, make_benchmarks

from mmssl.pipeline.sweeps import runs_of
from mmssl.pipeline.tables import Row, load_table
from mmssl.recipe import Recipe
from mmssl.recipe.compose import shipped_recipes, shipped_tables

NAMES = [name for name, _ in shipped_tables()]
XDC = [name for name in NAMES if name.startswith("xdc_")]
AVBERT = [name for name in NAMES if name.startswith("avbert_")]
VATT = [name for name in NAMES if name.startswith("vatt_")]

# Rows as they stand in the papers, typed in again: every table has some, its best row among them.

FIGURES: dict[str, dict[str, list[float | None]]] = {
    "xdc_1_methods": {
        "Scratch": [54.5, 24.1, 54.3],
        "Superv": [90.9, 58.0, 82.3],
        "SDC": [61.8, 31.4, 66.5],
        "MDC": [68.4, 37.1, 70.3],
        "CDC": [72.9, 37.5, 74.8],
        "XDC": [74.2, 39.0, 78.0],
        "XDC, k = 256": [None, None, None],
    },
    "xdc_2_clusters": {
        "Kinetics, k = 64": [73.8, 36.5, 78.0],
        "Kinetics, k = 128": [73.1, 39.0, 76.3],
        "Kinetics, k = 1024": [72.6, 37.7, 71.5],
        "AudioSet-240K, k = 128": [77.2, 42.6, 77.8],
        "AudioSet-240K, k = 512": [77.1, 40.6, 76.8],
        "AudioSet, k = 64": [84.1, 47.4, 84.8],
        "AudioSet, k = 256": [84.9, 48.8, 85.0],
    },
    "xdc_3_data": {
        "Superv, ImageNet (1.2M)": [79.9, 44.5, None],
        "Superv, AudioSet-240K": [76.6, 40.8, 78.3],
        "Superv, AudioSet (2M)": [84.0, 53.5, 90.3],
        "XDC, AudioSet (2M)": [84.9, 48.8, 85.8],
        "XDC, IG65M": [91.5, 63.1, 84.8],
    },
    "xdc_4_fc_only": {
        "Random": [6.0, 54.5, 7.5, 24.1, 61.3, 54.3],
        "Superv, ImageNet": [74.5, 79.9, 42.8, 44.5, None, None],
        "Superv, Kinetics": [89.7, 90.9, 61.5, 58.0, 79.5, 82.3],
        "XDC, IG65M": [85.3, 91.5, 56.0, 63.1, 84.3, 84.8],
    },
    "xdc_5_audio_clusters": {
        "1: playing bagpipes": [0.70],
        "3: playing cymbals": [0.21],
        "10: mowing lawn": [0.14],
        "120: clay pottery making": [0.02],
        "128: washing feet": [0.01],
    },
    "xdc_6_video_clusters": {
        "1: playing bass guitar": [0.37],
        "4: swimming backstroke": [0.21],
        "55: yoga": [0.02],
        "64: capoeira": [0.01],
    },
    "xdc_7_video": {
        "Fully supervised, ImageNet": [82.8, 46.7],
        "Fully supervised, Kinetics": [93.1, 63.6],
        "Misra et al., UCF/HMDB": [50.2, 18.1],
        "L3-Net, AudioSet": [72.3, 40.2],
        "AVTS, AudioSet": [89.0, 61.6],
        "XDC, Kinetics": [84.2, 47.1],
        "XDC, IG65M": [94.2, 67.4],
    },
    "xdc_8_audio": {
        "SoundNet": [74.2, 88],
        "ConvRBM": [86.5, None],
        "Ensemble": [None, 78],
        "XDC (AudioSet)": [84.8, 93],
    },
    "xdc_neurips_5_backbone": {"Scratch": [60.1, 25.7, 54.3], "XDC": [68.0, 36.3, 75.5]},
    "xdc_neurips_released": {
        "XDC, IG-Kinetics": [95.5, 68.9],
        "XDC, AudioSet": [93.0, 63.7],
        "Fully supervised, ImageNet": [84.0, 48.1],
    },
    "vatt_2": {
        "MIL-NCE": [83.4, 54.8, None],
        "MMV": [91.8, 67.1, 88.9],
        "VATT-Medium + SVM": [89.2, 63.3, 82.5],
        "VATT-Medium + LRC": [89.6, 65.2, 84.7],
        "VATT-MA-Medium + LRC": [84.4, 63.1, 81.2],
    },
    "vatt_3": {
        "32 x 224, patch 4 x 16": [87.8, 67.7, 27.53, 17.99, 87],
        "64 x 224, patch 5 x 16": [86.57, 63.09, 18.52, 12.5, 86.25],
        "32 x 224, patch 8 x 32": [82.68, 60.73, 15.27, 13.79, 87],
    },
    "vatt_4": {
        "waveform, patch 128": [88.14, 68.13, 25.72, 17.31, 87.75],
        "spectrogram, patch 16 x 5": [88.3, 67.52, 26.62, 16.86, 88],
    },
    "vatt_video": {
        "Kinetics-400, Large": [82.1, 95.5],
        "Kinetics-600, MA-Medium": [80.8, 95.5],
        "Kinetics-700, Large": [72.7, 90.5],
        "Moments in Time, Base": [38.7, 67.5],
    },
    "vatt_audioset": {"WaT-Base": [39.4, 97.1, 2.895], "MA-Medium": [39.3, 97.0, 2.884]},
    "avbert_1a": {
        "Early": [64.9, 89.8, None, None, None, None],
        "Mid": [65.7, 89.9, 53.5, 82.7, 42.5, 73.2],
    },
    "avbert_1b": {"Current-Sequence": [64.6, 89.8], "CANS-Similar": [67.5, 92.3]},
    "avbert_1c": {
        "Multi-2, nothing shared (7M)": [60.3, 88.9],
        "Multi-6, across layers and Transformers, Part (4M)": [67.5, 92.3],
    },
    "avbert_1d": {
        "Vis-2, shared (7M)": [41.2, 72.9],
        "Vis-6, nothing shared (43M)": [43.8, 74.2],
    },
    "avbert_objectives": {
        "AVBert": [67.5],
        "without MEP": [64.6],
        "visual first, then frozen (B.6)": [63.1],
    },
    "avbert_2a": {"AVTS, AudioSet": [89.0], "V-CNN, AudioSet": [86.1]},
    "avbert_2b": {"DMC, Flickr-SoundNet": [79.8], "A-CNN, AudioSet": [81.5]},
    "avbert_2c": {
        "Random": [5.9, None, None],
        "V-CNN": [18.7, 45.8, 73.3],
        "A-BERT": [27.4, 58.9, 85.7],
        "M-BERT": [29.5, 75.6, 94.6],
    },
}
ROWS = {  # how many the papers' tables have, and what stands in for a row that they do not have
    "xdc_1_methods": 6 + 1,
    "xdc_2_clusters": 15,
    "xdc_3_data": 9,
    "xdc_4_fc_only": 5,
    "xdc_5_audio_clusters": 20 + 1,
    "xdc_6_video_clusters": 20 + 1,
    "xdc_7_video": 15,
    "xdc_8_audio": 12,
    "xdc_neurips_5_backbone": 3,
    "xdc_neurips_released": 5,
    "vatt_2": 10,
    "vatt_3": 6,
    "vatt_4": 5,
    "vatt_video": 13,
    "vatt_audioset": 2,
    "avbert_1a": 4,
    "avbert_1b": 4,
    "avbert_1c": 4 + 1,
    "avbert_1d": 4,
    "avbert_objectives": 8,
    "avbert_2a": 9,
    "avbert_2b": 9,
    "avbert_2c": 9,
}


def test_every_table_is_looked_at() -> None:
    assert FIGURES.keys() == ROWS.keys() == {*XDC, *AVBERT, *VATT}


@pytest.mark.parametrize("name", FIGURES)
def test_figures(name: str) -> None:
    table = load_table(name)
    assert len(table.rows) == ROWS[name]
    for row, figures in FIGURES[name].items():
        assert [table.rows[row].paper.get(column) for column in table.columns] == figures, row


def test_all_figures_of_the_table_of_clusters() -> None:
    """Column by column, as the paper prints them."""
    table = load_table("xdc_2_clusters")
    printed = {
        "UCF101": [
            [73.8, 73.1, 74.2, 74.0, 72.6],
            [77.4, 77.2, 76.7, 77.1, 75.3],
            [84.1, 84.3, 84.9, 84.4, 84.2],
        ],
        "HMDB51": [
            [36.5, 39.0, 38.3, 37.7, 37.7],
            [41.3, 42.6, 41.6, 40.6, 40.7],
            [47.4, 47.6, 48.8, 48.5, 48.4],
        ],
        "ESC50": [
            [78.0, 76.3, 75.0, 74.5, 71.5],
            [78.5, 77.8, 77.3, 76.8, 73.5],
            [84.8, 85.8, 85.0, 84.5, 83.0],
        ],
    }
    for column, figures in printed.items():
        printed_by_row = [figure for data in figures for figure in data]
        assert [row.paper[column] for row in table.rows.values()] == printed_by_row


def test_xdc_is_at_its_best_k() -> None:
    """The rows of tables 1 and 3 are the highest of table 2, and are measured so."""
    clusters = load_table("xdc_2_clusters").rows
    for name, row, data in (
        ("xdc_1_methods", "XDC", "Kinetics"),
        ("xdc_3_data", "XDC, Kinetics (240K)", "Kinetics"),
        ("xdc_3_data", "XDC, AudioSet-240K", "AudioSet-240K"),
        ("xdc_3_data", "XDC, AudioSet (2M)", "AudioSet"),
    ):
        found = load_table(name).rows[row]
        assert isinstance(found.run, dict)
        for column, figure in found.paper.items():
            runs = {r.run: r.paper[column] for k, r in clusters.items() if k.startswith(f"{data},")}
            best = max(runs, key=lambda run: runs[run] or 0)
            assert (found.run[column], figure) == (best, runs[best])


# Each row that can be measured: its recipe makes its runs, and they measure every column.


def patterns(row: Row, columns: Sequence[str]) -> dict[str, str]:
    """The row's runs by column."""
    return row.run if isinstance(row.run, dict) else dict.fromkeys(columns, row.run or "")


def metrics(recipe: Recipe) -> dict[str, Any]:
    """What a run's evaluations will write, as far as tables ask for it, and their parameters."""
    found = {}
    for name, spec in recipe.evaluations.items():
        given = spec.parameters
        networks = "+".join(given["subnetworks"] or ()) or "+".join(recipe.modalities)
        only = given.get("only") or networks.split("+")
        measured = [modality for modality in recipe.modalities if modality in only]
        if spec.use == "retrieval":
            one, other = given["pair"]
            pairs = f"{one}-to-{other}", f"{other}-to-{one}"
            found.update({f"{name}/{p}/r@{n}": given for p in pairs for n in given["first"]})
            continue
        objective = given.get("objective")
        if objective is not None and objective.parameters["joined"]:
            measured = ["+".join(measured)]
        figures = ["top1", "top5"]
        if spec.use == "clusters":
            figures = ["mean_purity"]
        elif given["train"].use in ("charades", "audioset"):
            figures = ["map", "auc", "d_prime"]
        found.update({f"{name}/{modality}/{f}": given for modality in measured for f in figures})
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with datasets."""
    folder = tmp_path_factory.mktemp("place")
    make_benchmarks(folder)
    return folder


@pytest.fixture(scope="module")
def made() -> dict[tuple[str, str], list[Recipe]]:
    """Runs by recipe and what they measure."""
    return {}


@pytest.mark.parametrize("name", [*XDC, *AVBERT, *VATT])
def test_recipes_measure_the_table(
    name: str,
    place: Path,
    made: dict[tuple[str, str], list[Recipe]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for variable, value in benchmarks(place).items():
        monkeypatch.setenv(variable, value)
    monkeypatch.chdir(place)
    table = load_table(name)
    shipped = dict(shipped_recipes())
    measurable = {title: row for title, row in table.rows.items() if row.run is not None}
    assert measurable
    for title, row in measurable.items():
        assert row.recipe in shipped, title
        wanted = patterns(row, list(table.columns))
        assert not row.paper or wanted.keys() == row.paper.keys(), title
        # Of what was pretrained before, the runs are called by its name.
        before = next(iter(wanted.values())).partition(".")[0]
        weights = place / f"runs/{before}/checkpoints/encoders.safetensors"
        weights.parent.mkdir(parents=True, exist_ok=True)
        weights.touch()
        monkeypatch.setenv("PRETRAINED", before)
        key = (row.recipe, before if row.recipe in ("xdc/splits", "xdc/folds") else "")
        if key not in made:
            made[key] = runs_of(str(shipped[row.recipe]), [], [])
        for column, pattern in wanted.items():
            spec = table.columns[column]
            runs = [run for run in made[key] if fnmatch.fnmatchcase(run.name, pattern)]
            assert runs, f"{title}: {column}: {row.recipe} makes no run {pattern}"
            for run in runs:
                found = metrics(run)
                metric = row.metric.get(column, spec.metric)
                fitting = [m for m in found if fnmatch.fnmatchcase(m, metric)]
                assert fitting, f"{title}: {column}: {run.name} measures {sorted(found)}"
                if name in XDC:
                    check_protocol(column, [found[metric] for metric in fitting], name)
                else:
                    (parameters,) = (found[metric] for metric in fitting)
                    data = parameters["data" if "data" in parameters else "train"]
                    assert metric.startswith(data.use)


def check_protocol(column: str, parameters: Sequence[dict[str, Any]], table: str) -> None:
    """What a column's pattern takes in is one grid, on the column's dataset."""
    data = column.partition(" ")[0].lower()
    if data == "share":
        return
    assert {p["train"].use for p in parameters} == {"dcase2014" if data == "dcase" else data}
    if data == "dcase":
        return
    fc = column.endswith(" fc")
    assert {p["fc_only"] for p in parameters} == {fc}
    rates = {p["training"].optimizer.parameters["lr"] for p in parameters}
    assert len(rates) == len(parameters) == (8 if fc else 6)
    long = table in ("xdc_7_video", "xdc_neurips_released")
    assert {p["training"].batch_size for p in parameters} == {8 if long else 32}
