"""Run the study: JSON lines and Markdown tables from one pass."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from secateur.analysis.connectivity import layer_connectivity
from secateur.analysis.measure import accuracy
from secateur.core import Evidence, InputError, Network, Plan, Units, Weights, unknown
from secateur.data import Dataset
from secateur.methods import Magnitude, Random
from secateur.methods.spectral import Spectral
from secateur.network.collect import collect
from secateur.network.scale import scaled
from secateur.network.surgery import mask, shrink
from secateur.network.trace import trace
from secateur.studies.spectral.subjects import FULL, NETS, QUICK, Scale, fit, load_data, make, normalised
from secateur.studies.spectral.tables import report
from secateur.studies.spectral.ways import CONTROLS, MAIN, WAYS, masks_of

__all__ = ["PARTS", "run"]

Row = dict[str, Any]
Work = tuple[str, Callable[[], list[Row]]]
PARTS = ("table1", "figure2", "figure3", "oneshot")
SCORES = ("magnitude", "snip", "synflow")
TABLE_1 = {"VGG-16": 0.01, "ResNet-20": 0.03}


def run(
    full: bool = False,
    out: str | Path = "spectral-study",
    seed: int = 0,
    *,
    parts: Sequence[str] = PARTS,
    nets: Sequence[str] = tuple(NETS),
    seeds: int = 3,
    folders: Mapping[str, str | Path] | None = None,
    scale: Scale | None = None,
    progress: Callable[[str], None] | None = None,
) -> dict[str, list[Row]]:
    """Reproduce the paper's Table 1 and Figures 2 to 4, with controls, and compare without retraining.

    Writes `<part>.jsonl` and `tables.md` into `out` after every piece.

    Args:
        full: The paper's widths, epochs, densities and augmentation (days on a processor: a GPU is used if
            there is one) instead of narrow networks on small images that take half an hour.
        out: Folder for the results.
        seed: First seed.
        parts: Any of ``"table1"`` (layer by layer against the whole network), ``"figure2"`` (at the start),
            ``"figure3"`` (after training, retrained from the initial weights; with the numbers of Figure 4),
            ``"oneshot"`` (after training, not retrained; single weights and units).
        nets: Any of VGG-11, ResNet-20, VGG-16, ResNet-18.
        seeds: Number of seeds.
        folders: Folders of the paper's data: ``"cifar10"``, ``"cifar100"`` (binary versions) and
            ``"tinyimagenet"``.  Where one is not named, Fashion-MNIST stands in, or digits.
        scale: Another scale.
        progress: Called with a line before each piece.

    Returns:
        Rows by part.

    Raises:
        InputError: Unknown parts, networks or folders.
    """
    folders = dict(folders or {})
    for what, given, known in (
        ("part", parts, PARTS),
        ("network", nets, NETS),
        ("folder", folders, NETS.values()),
    ):
        for name in given:
            if name not in known:
                raise InputError(unknown(what, name, list(known)))
    if seeds < 1:
        raise InputError(f"seeds must be at least 1; got {seeds}")
    study = _Study(scale or (FULL if full else QUICK), folders, tuple(nets), range(seed, seed + seeds))
    where = Path(out)
    found: dict[str, list[Row]] = {}
    where.mkdir(parents=True, exist_ok=True)
    for part in parts:
        found[part] = []
        for title, call in study.work(part):
            if progress is not None:
                progress(f"{part}: {title}")
            found[part] += call()
            (where / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found[part]))
            (where / "tables.md").write_text(report(found))
    return found


class _Study:
    """What each part consists of."""

    def __init__(
        self, scale: Scale, folders: Mapping[str, str | Path], nets: tuple[str, ...], seeds: range
    ) -> None:
        self.scale, self.folders, self.nets, self.seeds = scale, folders, nets, seeds
        self._data: dict[str, Dataset] = {}

    def work(self, part: str) -> list[Work]:
        """Return titles and calls of a part."""
        calls: dict[str, tuple[Callable[..., list[Row]], list[str]]] = {
            "table1": (self.table1, [n for n in self.nets if n in TABLE_1]),
            "figure2": (self.figure2, list(self.nets)),
            "figure3": (self.figure3, [n for n in self.nets if n == "VGG-11"] or list(self.nets[:1])),
            "oneshot": (
                self.oneshot,
                [n for n in self.nets if n in ("VGG-11", "ResNet-20")] or list(self.nets[:1]),
            ),
        }
        call, nets = calls[part]
        return [(f"{net}, seed {seed}", partial(call, net, seed)) for net in nets for seed in self.seeds]

    def data(self, net: str) -> Dataset:
        """Return the data of a network, read once."""
        if NETS[net] not in self._data:
            self._data[NETS[net]] = normalised(load_data(net, self.folders, self.scale, 0))
        return self._data[NETS[net]]

    def start(self, net: str, seed: int, needs: set[str]) -> tuple[nn.Module, Network, Evidence]:
        """Make an untrained network, trace it, and gather evidence: ten examples a class."""
        model = make(net, self.data(net), self.scale, seed)
        network = trace(model, self.data(net).parts["train"][0][:2])
        return model, network, self.look(net, model, network, needs, seed)

    def look(self, net: str, model: nn.Module, network: Network, needs: set[str], seed: int) -> Evidence:
        """Gather evidence from the calibration part."""
        data = self.data(net)
        return collect(model, network, data.batches("calibration", 100, 10 * data.classes), needs, seed)

    def score(self, net: str, model: nn.Module) -> float:
        """Measure the accuracy on the test part, in percent."""
        return 100 * accuracy(model, self.data(net).batches("test", 500, self.scale.test))

    def cell(self, net: str, seed: int, model: nn.Module, masks: Mapping[str, Any]) -> float:
        """Train under masks, and measure."""
        return self.score(net, fit(model, self.data(net), self.scale, seed, masks))

    def table1(self, net: str, seed: int) -> list[Row]:
        """Algorithm 2 against Algorithm 1: time at full width, accuracy at the study's."""
        density = min(1.0, TABLE_1[net] * self.scale.sparser)
        whole = make(net, self.data(net), FULL, seed)
        wide = trace(whole, self.data(net).parts["train"][0][:2])
        model, network, evidence = self.start(net, seed, set())
        rows = []
        for graph in ("layer", "network"):
            method = Spectral(graph=graph, allocation="one-epsilon", mode="paper")  # type: ignore[arg-type]
            start = time.process_time()
            method.plan(wide, collect(whole, wide, None, set(), seed), Weights(TABLE_1[net]))
            seconds = time.process_time() - start
            plan = method.plan(network, evidence, Weights(density))
            rows.append({**self.head(net, seed), "graph": graph, "density": density, "seconds": seconds,
                         "accuracy": self.cell(net, seed, model, plan.masks)})  # fmt: skip
        return rows

    def figure2(self, net: str, seed: int) -> list[Row]:
        """Pruning at initialisation: three scores, two ways; controls on magnitudes."""
        needs = {"gradients", "flow"}
        model, network, evidence = self.start(net, seed, needs)
        rows = [{**self.head(net, seed), "score": "none", "way": "dense", "density": 1.0,
                 "accuracy": self.cell(net, seed, model, {})}]  # fmt: skip
        for density in self.scale.densities:
            for score in SCORES:
                for way in WAYS if score == "magnitude" and net == self.nets[0] else MAIN:
                    masks = masks_of(way, network, evidence, density, score, self.scale.rounds)
                    empty = sum(not m.any() for m in masks.values())
                    facts = {"score": score, "way": way, "density": density, "empty layers": empty}
                    rows.append(
                        {**self.head(net, seed), **facts, "accuracy": self.cell(net, seed, model, masks)}
                    )
        return rows

    def figure3(self, net: str, seed: int) -> list[Row]:
        """Prune after training and retrain from the initial weights; connectivity of every layer."""
        model, network, _ = self.start(net, seed, set())
        trained = fit(model, self.data(net), self.scale, seed)
        evidence = self.look(net, trained, network, set(), seed)
        weights = trained.state_dict()
        rows = [{**self.head(net, seed), "way": "dense", "density": 1.0, "accuracy": self.score(net, trained),
                 "layers": _layers(network, weights, {})}]  # fmt: skip
        for density in self.scale.densities:
            for way in (*MAIN, CONTROLS[0], CONTROLS[1], CONTROLS[5]):
                masks = masks_of(way, network, evidence, density)
                rows.append({**self.head(net, seed), "way": way, "density": density,
                             "accuracy": self.cell(net, seed, model, masks),
                             "layers": _layers(network, weights, masks)})  # fmt: skip
        return rows

    def oneshot(self, net: str, seed: int) -> list[Row]:
        """Prune after training, without retraining: weights ranked globally with a floor, and units."""
        model, network, _ = self.start(net, seed, set())
        trained = fit(model, self.data(net), self.scale, seed)
        evidence = self.look(net, trained, network, {"moments"}, seed)
        rows = [{**self.head(net, seed), "what": "weights", "way": "dense", "kept": 1.0,
                 "accuracy": self.score(net, trained)}]  # fmt: skip
        for what, way, kept, small in self._oneshot(trained, network, evidence, seed):
            rows.append({**self.head(net, seed), "what": what, "way": way, "kept": kept,
                         "accuracy": self.score(net, small)})  # fmt: skip
        return rows

    def _oneshot(
        self, model: nn.Module, network: Network, evidence: Evidence, seed: int
    ) -> Iterator[tuple[str, str, float, nn.Module]]:
        spectral = {
            "leverage of |w|": Spectral(mode="top", allocation="global"),
            "leverage of (|w| input)^2": Spectral(
                mode="top", allocation="global", score="activation", power=2
            ),
        }
        for density in (0.5, 0.2, 0.1, 0.05):
            floor = _floor(network, density)
            budget = Weights(density, scope="global", floor=floor)
            whole = {"magnitude": Magnitude(), **spectral}
            for way, method in whole.items():
                yield (
                    "weights",
                    f"{way}, global",
                    density,
                    mask(model, method.plan(network, evidence, budget)),
                )
            masks = masks_of("greedy, global", network, evidence, density, "activation")
            yield "weights", "|w| input, global", density, _masked(model, network, masks)
            drawn = Spectral(allocation="one-epsilon")
            plan = drawn.plan(network, evidence, budget)
            yield "weights", "one epsilon", density, mask(model, plan)
            factors = drawn.factors(network, evidence, plan)
            yield "weights", "one epsilon, times 1 / p", density, scaled(mask(model, plan), factors)
        for way, method in {"magnitude": Magnitude(), "leverage": Spectral(), "random": Random()}.items():
            for keep in (0.7, 0.5, 0.3):
                yield "units", way, keep, shrink(model, method.plan(network, evidence, Units(keep)))
        pattern = Spectral(pattern="2:4").plan(network, evidence, Weights(0.5))
        yield "weights", "leverage, 2:4", 0.5, mask(model, pattern)

    def head(self, net: str, seed: int) -> Row:
        """Return what every row says first."""
        return {"net": net, "data": self.data(net).name, "width": self.scale.width, "seed": seed}


def _floor(network: Network, density: float) -> int:
    """A tenth of the even share of the smallest layer, at least one weight."""
    least = min(math.prod(network.shapes[x.weight]) for x in network.prunable_weights())
    return max(1, round(0.1 * density * least))


def _masked(model: nn.Module, network: Network, masks: Mapping[str, Any]) -> nn.Module:
    return mask(model, Plan(network, "ranked", masks=masks))


def _layers(network: Network, weights: Mapping[str, Any], masks: Mapping[str, Any]) -> list[Row]:
    found = layer_connectivity(network, weights, masks)
    return [
        {"layer": name, "lambda2": x.lambda2, "share": x.share, "components": x.components,
         "dead inputs": x.dead_inputs, "dead outputs": x.dead_outputs, "edges": x.edges}
        for name, x in found.items()
    ]  # fmt: skip
