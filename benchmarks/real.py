"""Trained networks pruned, repaired and measured: ``python benchmarks/real.py --out build/real``.

One trial is one pruning of one network; each writes a line into the folder's ``trials.jsonl`` when it ends,
and the same command runs only those that are missing.  ``--write docs/real-networks.md`` makes the page,
and ``--readme README.md`` the short table.  The networks come from packages, which the command names where
they are missing, or are trained by the first trial (Fashion-MNIST: Debian's dataset-fashion-mnist).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

from real_networks import NETWORKS
from real_page import read_rows, write_page, write_readme
from real_trial import PEER, TEACHER, commit

from secateur.bench import Trial, run_trials
from secateur.core import InputError

METHODS = {  # name on the command line -> method and scope
    "default": ("default", "default"),
    "default-layer": ("default", "layer"),
    "default-global": ("default", "global"),
    "default-erk": ("default", "erk"),
    **{name: (name, "loss") for name in ("magnitude", "wanda", "flap", "leverage", "activation", "taylor")},
    "random": ("random", "layer"),
    "torch-pruning-local": (PEER, "local"),
    "torch-pruning-global": (PEER, "global"),
}
USUAL = ("default", "random", "torch-pruning-local", "torch-pruning-global")
REPAIRS = ("none", "batchnorm", "fold", "refit", TEACHER)
KEEPS = (0.9, 0.8, 0.7, 0.5)


def make_trials(options: argparse.Namespace) -> Iterator[tuple[str, Trial]]:
    """Yield the trials that were asked for, each with its name; the repairs of one plan in turn."""
    grid = product(options.networks, options.seeds, options.methods, options.keeps, options.repairs)
    for network, seed, method, keep, repair in grid:
        kind, scope = METHODS[method]
        if repair in (("fold", "refit") if kind == PEER else ("batchnorm",)):
            continue  # Torch-Pruning has no repair of its own
        if repair == "batchnorm" and not NETWORKS[network].batchnorm:
            continue
        if kind == PEER and repair == "none" and seed != options.seeds[0]:
            continue  # it draws nothing
        params = {"network": network, "method": kind, "scope": scope, "repair": repair}
        params |= {"keep": keep, "seed": seed}
        params["steps"] = (options.steps or NETWORKS[network].steps) if repair == TEACHER else 0
        extra = {"commit": commit()} if options.again else {}
        trial = Trial("real_trial:prune_network", params, {"folder": str(options.out.resolve())}, extra)
        yield f"{network} {method} {repair} {keep:g} seed{seed}", trial


def parse() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)

    def names(known: tuple[str, ...]) -> Callable[[str], list[str]]:
        def read(text: str) -> list[str]:
            given = text.split(",")
            if wrong := [name for name in given if name not in known]:
                raise argparse.ArgumentTypeError(f"{wrong[0]!r} is none of {', '.join(known)}")
            return given

        return read

    def numbers(kind: type) -> Callable[[str], list[Any]]:
        return lambda text: [kind(value) for value in text.split(",")]

    every = tuple(NETWORKS)
    parser.add_argument("--out", type=Path, default=Path("build/real"), help="folder of the results")
    parser.add_argument("--networks", type=names(every), default=list(every), help=", ".join(every))
    parser.add_argument("--methods", type=names(tuple(METHODS)), default=list(USUAL), help=", ".join(METHODS))
    parser.add_argument("--repairs", type=names(REPAIRS), default=list(REPAIRS), help=", ".join(REPAIRS))
    parser.add_argument("--keeps", type=numbers(float), default=list(KEEPS), help="shares of the MACs")
    parser.add_argument("--seeds", type=numbers(int), default=[0, 1, 2], help="draws of the calibration data")
    parser.add_argument(
        "--only", default="", help="words that a trial's name must have, as 'default fold 0.8'"
    )
    parser.add_argument("--again", action="store_true", help="run again what another commit has run")
    parser.add_argument("--steps", type=int, help="steps with the teacher, instead of the network's own")
    parser.add_argument("--jobs", type=int, default=2, help="trials at a time, one thread each")
    parser.add_argument("--limit", type=float, default=1800, help="seconds for one trial")
    parser.add_argument("--dry", action="store_true", help="name the trials and run none")
    parser.add_argument("--write", type=Path, help="write the page of the results, and run nothing")
    parser.add_argument("--readme", type=Path, help="write the short table into this README, and run nothing")
    return parser.parse_args()


def main() -> None:
    """Run trials, or write what they gave."""
    options = parse()
    path = options.out / "trials.jsonl"
    if options.write or options.readme:
        rows = read_rows(path)
        if options.write:
            write_page(options.write, rows)
        if options.readme:
            write_readme(options.readme, rows)
        return
    words = options.only.split()
    trials = {name: x for name, x in make_trials(options) if all(word in name.split() for word in words)}
    if options.dry:
        print("\n".join(trials))
        return
    for network in {trial.params["network"] for trial in trials.values()}:
        NETWORKS[network].check_packages()
    run_trials(
        list(trials.values()),
        path,
        jobs=options.jobs,
        limit=options.limit,
        log=lambda line: print(line, flush=True),
    )
    for row in read_rows(path):
        if row["status"] != "ok":
            print(
                {key: row[key] for key in ("network", "method", "scope", "repair", "keep", "seed", "error")}
            )


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(str(error))
