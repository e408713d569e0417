"""The spectral study: its jobs at a tiny scale and with the paper's settings, and its tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from secateur.cli import main as cli
from secateur.core import InputError
from secateur_studies.runner import run_study
from secateur_studies.spectral import STUDY, experiments
from secateur_studies.spectral.causes import explain_connected, predict_ratio
from secateur_studies.spectral.models import (
    FULL,
    NETS,
    Scale,
    load_data,
    make_network,
    normalise,
    train_network,
)
from secateur_studies.spectral.published import SLOWER
from secateur_studies.spectral.study import findings
from secateur_studies.spectral.tables import difference

TINY = Scale(0.0625, 8, 200, 100, 1, (0.3,), 5.0, 2, paper=False)
BASE: dict[str, Any] = {"seed": 0, "scale": TINY.to_json(), "folders": {}}


def test_cells_say_what_they_did() -> None:
    start = {**BASE, "net": "VGG-11", "part": "figure 2", "densities": [0.3]}
    for score, variant in (("magnitude", "greedy"), ("synflow", "sparsify"), ("snip", "sparsify")):
        (row,) = experiments.figure2(**start, score=score, variant=variant)
        assert (row["part"], row["score"], row["variant"], row["density"]) == (
            "figure 2",
            score,
            variant,
            0.3,
        )
        assert 0 <= row["accuracy"] <= 100
        assert 0 < row["least share"] <= 1
    assert experiments.figure2(**start, score="magnitude", variant="greedy") == experiments.figure2(
        **start, score="magnitude", variant="greedy"
    )
    after = {**BASE, "net": "VGG-11", "densities": [0.3]}
    dense = experiments.figure3(**after, variant="dense")
    assert [row["part"] for row in dense] == ["figure 3"] + ["figure 4"] * 9
    assert all(row["share"] == 1 and row["condition"] is None for row in dense[1:])
    grown = experiments.figure3(**after, variant="coverage, sizes of sparsify")
    assert all(1 <= row["condition"] < 10 for row in grown[1:])
    rows = experiments.oneshot(**{**after, "densities": [0.5]}, units=[0.5], floor=0.1)
    assert {row["what"] for row in rows} == {"weights", "units"}
    assert {"leverage, 2:4", "magnitude", "random, sizes of leverage"} <= {row["variant"] for row in rows}


def test_table_1_times_both_graphs() -> None:
    rows = experiments.table1(**BASE, net="ResNet-20", density=0.03, repeats=1)
    assert [row["graph"] for row in rows] == ["layer", "network"]
    assert all(row["seconds"] > 0 and row["density"] == 0.15 for row in rows)
    table = findings(rows).tables[0]
    messages = {row["what"]: row.get("verdict") for row in table.rows}
    assert messages["accuracy in %, layer by layer"] == "cannot be run here"
    assert messages["seconds, whole network"] == ""
    assert messages["whole network / layer by layer, time"] == "differs"
    causes = {row["what"]: row.get("measured") for row in table.rows}
    assert "25.7 times as long" in causes["whole network / layer by layer, time"]


def test_the_cube_of_the_channels_gives_the_published_ratios_of_times() -> None:
    """26.56 and 13.46 in print: pseudo-inverses of the graphs of channels."""
    assert predict_ratio("ResNet-20") == pytest.approx(
        701**3 / (19**3 + 6 * 32**3 + 48**3 + 5 * 64**3 + 96**3 + 5 * 128**3 + 74**3)
    )
    for net, published in SLOWER.items():
        assert predict_ratio(net) == pytest.approx(published, rel=0.07)


def test_what_differs_has_what_was_measured_about_it() -> None:
    layers = [
        {"variant": "greedy, global", "density": density, "share": share}
        for density, share in ((0.2, 0.9), (0.05, 0.6), (0.02, 0.3), (0.01, 0.1))
    ]
    assert explain_connected(layers, "greedy, global", 0.5).startswith(
        "its first layer to collapse does so at 2% (30%"
    )
    assert explain_connected(layers, "greedy, global", 0.05) == "no layer of it collapses at any density"
    control = [
        {**row, "part": "controls", "variant": "random, sizes of sparsify"}
        for row in made_up(0.0)
        if (row["net"], row["score"], row["variant"]) == ("VGG-11", "magnitude", "greedy")
    ]
    result = findings([*made_up(0.0), *control])
    rows = {row["statement"]: row for row in next(t for t in result.tables if t.name == "statements").rows}
    cause = rows["Figure 2: sparsify with SynFlow's scores better than with snip"]["measured"]
    assert cause == "`sparsify` less random masks with its layer sizes: +0.2 [-0.5, +0.5] tie"
    assert rows["Figure 2, magnitude: alike at high densities"]["measured"] == ""


def made_up(gain: float) -> list[dict[str, Any]]:
    """Rows of Figure 2 in which sparsify is ahead by `gain` at low densities, give or take half a point."""
    return [
        {
            "part": "figure 2",
            "net": net,
            "data": "fashion",
            "width": 0.125,
            "seed": seed,
            "score": score,
            "variant": variant,
            "density": density,
            "accuracy": 50
            + seed / 2
            + (gain + sign * (-1) ** seed / 2) * (variant == "sparsify") * (density < 0.1),
        }
        for net, sign in (("VGG-11", 1), ("ResNet-20", -1))
        for seed in range(3)
        for score in ("magnitude", "snip", "synflow")
        for variant in ("sparsify", "greedy")
        for density in (0.2, 0.05)
    ]


@pytest.mark.parametrize(("gain", "verdict"), [(5.0, "reproduced"), (0.0, "differs"), (-5.0, "differs")])
def test_verdicts_follow_the_rows(gain: float, verdict: str) -> None:
    result = findings(made_up(gain))
    messages = {
        row["statement"]: row for row in next(t for t in result.tables if t.name == "statements").rows
    }
    for score in ("magnitude", "snip", "synflow"):
        row = messages[f"Figure 2, {score}: sparsify better than greedy at low densities"]
        assert row["verdict"] == verdict
    assert messages["Figure 2, magnitude: alike at high densities"]["verdict"] == "reproduced"
    (figure,) = result.figures
    assert len(figure.figure["data"]) == 2 * 6
    assert json.loads(json.dumps(figure.figure)) == figure.figure


def test_differences_are_paired() -> None:
    rows = made_up(5.0)
    both = ({"variant": "sparsify"}, {"variant": "greedy"})
    result = difference(rows, *both, score="snip", density={0.05})
    assert (result.count, result.outcome) == (2, "ahead")
    assert result.mean == pytest.approx(5)
    assert (result.low, result.high) == pytest.approx((5 - 1 / 6, 5 + 1 / 6))
    alone = difference(rows, *both, net="VGG-11", density={0.05, 0.2})
    assert alone.count == 3 and alone.mean == pytest.approx((5 + 1 / 6) / 2)
    assert difference(rows, *both, net="VGG-16") is None
    behind = difference(rows, *reversed(both), density=0.05)
    assert behind.outcome == "behind"
    assert difference(rows, *both, density=0.2).outcome == "tie"


@pytest.mark.slow
def test_a_run_writes_its_findings(tmp_path: Path) -> None:
    options = {"parts": ["oneshot"], "nets": [], "seeds": 1, "jobs": 1}
    options["scale"] = Scale(1.0, 28, 200, 100, 1, paper=False)
    result = run_study(STUDY, tmp_path, **options)
    assert [table.name for table in result.tables] == ["one-shot", "one-shot-paired"]
    assert "less global magnitude" in (tmp_path / "findings.md").read_text()
    assert [row["network"] for row in result.tables[0].rows if row["variant"] == "dense"] == [
        "MLP",
        "LeNet-5",
    ]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"parts": ["tabel1"]}, "table1"),
        ({"nets": ["VGG-13"]}, "VGG-1"),
        ({"folders": {"cifar": "."}}, "cifar10"),
        ({"seeds": 0}, "at least 1"),
    ],
)
def test_unknown_names_are_refused(tmp_path: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        run_study(STUDY, tmp_path, **given)


def test_the_grid_has_every_experiment() -> None:
    default, paper = (STUDY.trials(full=full, seed=0, folders={}, cache="") for full in (False, True))
    jobs = {(c.function.rpartition(":")[2], c.params["net"]) for c in default}
    assert {("table1", "VGG-16"), ("table1", "ResNet-20"), ("figure3", "VGG-11")} <= jobs
    assert {net for job, net in jobs if job == "figure2"} == set(NETS)
    assert len({c.key for c in default}) == len(default)
    alone = [c for c in paper if c.params.get("part") == "figure 2" and c.params["variant"] != "dense"]
    assert len(alone) == 3 * 4 * 3 * 2 * len(FULL.densities)
    assert Scale.from_json(paper[0].params["scale"]) == FULL


def folder_of_cifar100(folder: Path) -> Path:
    generator = np.random.default_rng(0)
    for name, count in (("train.bin", 600), ("test.bin", 100)):
        records = generator.integers(0, 256, (count, 3074), dtype=np.uint8)
        records[:, 1] = np.arange(count) % 100
        (folder / name).write_bytes(records.tobytes())
    return folder


def test_the_papers_settings_run(tmp_path: Path) -> None:
    """Steps, augmentation and data of the paper, one epoch of a narrow network."""
    folders = {"cifar100": str(folder_of_cifar100(tmp_path))}
    scale = Scale(0.0625, None, 256, 100, 1, (0.05,), rounds=2)
    data = normalise(load_data("VGG-16", folders, scale, 0))
    assert (data.name, data.classes, data.shape) == ("cifar100", 100, (3, 32, 32))
    model = make_network("VGG-16", data, scale, 0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trained = train_network(model, data, scale, 0)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not torch.equal(trained[0].weight, model[0].weight)
    widths = [m.out_channels for m in make_network("VGG-16", data, FULL, 0) if isinstance(m, torch.nn.Conv2d)]
    assert widths == [64, 64, 128, 128, 256, 256, 256, *[512] * 6]
    whole = load_data("VGG-16", folders, TINY, 0)
    assert len(data.parts["train"][1]) == sum(len(whole.parts[p][1]) for p in whole.parts if p != "test")
    residual = make_network("ResNet-20", data, FULL, 0)
    norm = next(m.weight.detach() for m in residual.modules() if isinstance(m, torch.nn.BatchNorm2d))
    assert 0 < norm.min() < norm.max() < 1
    assert any(m.kernel_size == (1, 1) for m in residual.modules() if isinstance(m, torch.nn.Conv2d))
    (row,) = experiments.figure2(
        "VGG-16", 0, scale.to_json(), folders, "figure 2", "synflow", "greedy", [0.05]
    )
    assert row["data"] == "cifar100"
    (tmp_path / "test.bin").write_bytes(b"short")
    with pytest.raises(InputError, match="3074"):
        load_data("VGG-16", folders, scale, 0)


def test_the_command_names_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    call = ["study", "spectral", "--full", "--folder"]
    for given, message in (("cifar11=data", "cifar10"), ("cifar10", "NAME=DIR")):
        done = CliRunner().invoke(cli.app, [*call, given])
        assert done.exit_code == 2
        assert message in done.output
    done = CliRunner().invoke(cli.app, ["study", "lattice", "--folder", "cifar10=data"])
    assert done.exit_code == 2
    assert "Known: 'fashion', 'mnist'" in done.output


def test_tiny_imagenet_is_read_as_published(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    for name in ("n01", "n02"):
        (tmp_path / "train" / name / "images").mkdir(parents=True)
        for i in range(20):
            grey = np.full((64, 64), 10 * i, np.uint8)
            image.fromarray(grey).save(tmp_path / "train" / name / "images" / f"{name}_{i}.JPEG")
    (tmp_path / "val" / "images").mkdir(parents=True)
    image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "val" / "images" / "val_0.JPEG")
    (tmp_path / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn02\t0\t0\t62\t62\n")
    data = load_data("ResNet-18", {"tinyimagenet": tmp_path}, FULL, 0)
    assert (data.name, data.classes, data.shape) == ("tinyimagenet", 2, (3, 64, 64))
    assert data.parts["test"][1].tolist() == [1]
    with pytest.raises(InputError, match="tiny-imagenet-200"):
        load_data("ResNet-18", {"tinyimagenet": tmp_path / "train"}, FULL, 0)
