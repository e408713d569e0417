"""The same grid on a Ray cluster: the same rows, nothing lost with a machine, clear errors."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path

import pytest

from secateur.bench import EngineError, Trial, run_trials
from secateur.bench.cluster import TRIES, Desk
from secateur.bench.setting import Bench, make_grid
from secateur.core import InputError

JOBS = "secateur.bench.checks:"
CLOCKS = {"seconds", "latency", "memory"}
TRAINED = """
from secateur import data, zoo

def make(seed=0):
    return zoo.train(zoo.mlp((64, 32, 10), seed=seed), data.digits(), 1, lr=1e-2, seed=seed).model
"""
ray = pytest.importorskip("ray")


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """No usage statistics are sent from tests, and workers are as important as other processes."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_worker_niceness", "0")


def draws(count: int) -> list[Trial]:
    return [Trial(f"{JOBS}draw", {"seed": seed}) for seed in range(count)]


def test_an_address_that_does_not_answer_is_told_at_once(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        start = time.monotonic()
        with pytest.raises(EngineError, match=f"no Ray cluster answers at 127.0.0.1:{port} .*refused"):
            run_trials(draws(1), tmp_path / "cells.jsonl", engine="ray", address=f"127.0.0.1:{port}")
        assert time.monotonic() - start < 10


def test_what_is_no_address_is_refused(tmp_path: Path) -> None:
    for wrong in ("here", "host:", "http://host:1", "host:port"):
        with pytest.raises(InputError, match="HOST:PORT"):
            run_trials(draws(1), tmp_path / "cells.jsonl", engine="ray", address=wrong)


def test_nothing_to_do_needs_no_cluster(tmp_path: Path) -> None:
    run_trials(draws(2), tmp_path / "cells.jsonl", engine="inline")
    records = run_trials(draws(2), tmp_path / "cells.jsonl", engine="ray", address="127.0.0.1:1")
    assert [r.status for r in records] == ["ok", "ok"]


def test_a_desk_hands_out_each_cell_once() -> None:
    desk = Desk({3: ("a:b", {}), 5: ("a:b", {"x": 1})})
    assert [desk.take(), desk.take(), desk.take()] == [(3, ("a:b", {})), (5, ("a:b", {"x": 1})), None]
    desk.give(5, {"status": "ok"})
    assert (desk.collect(), desk.collect(), desk.taken()) == (
        [(5, {"status": "ok"})],
        [],
        [3, 5],
    )


@pytest.mark.slow
def test_a_listener_that_is_no_cluster_is_told_within_seconds(tmp_path: Path) -> None:
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        start = time.monotonic()
        with pytest.raises(EngineError, match="does not speak Ray"):
            run_trials(draws(1), tmp_path / "cells.jsonl", engine="ray", address=address)
        assert time.monotonic() - start < 30


@pytest.fixture
def cluster():
    """Two nodes on this machine, two processors each."""
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    try:
        yield nodes, nodes.add_node(num_cpus=2)
    finally:
        ray.shutdown()
        nodes.shutdown()


@pytest.mark.slow
def test_a_node_dies_midway_and_nothing_is_lost(tmp_path: Path, cluster) -> None:
    nodes, second = cluster
    spins = [Trial(f"{JOBS}spin", {"seconds": 2.0, "at": at}) for at in range(10)]
    late = Trial(f"{JOBS}sleep", {"seconds": 99.0})
    bad = [Trial(f"{JOBS}fail", {"text": "as told"}), Trial(f"{JOBS}crash"), late]
    cells, killed = [*spins, *draws(4), *bad], []

    def tell(words: str) -> None:
        if words.startswith("2 of 17") and not killed:
            killed.append(len([node for node in ray.nodes() if node["Alive"]]))
            nodes.remove_node(second, allow_graceful=False)

    path = tmp_path / "cells.jsonl"
    records = run_trials(cells, path, engine="ray", jobs=4, address=nodes.address, limit=60.0, log=tell)
    assert killed == [2]
    assert [r.status for r in records] == [*["ok"] * 14, "error", "error", "timeout"]
    assert len({json.loads(line)["key"] for line in path.read_text().splitlines()}) == len(cells)
    here = run_trials(cells[:14], tmp_path / "local.jsonl", engine="inline")
    assert [r.rows for r in here] == [r.rows for r in records[:14]]


@pytest.mark.slow
def test_one_job_runs_on_the_cluster_too_and_a_cell_that_takes_its_worker_along_ends(
    tmp_path: Path, cluster
) -> None:
    nodes, _ = cluster
    cells = [Trial(f"{JOBS}crash_all"), *draws(1)]
    records = run_trials(cells, tmp_path / "cells.jsonl", engine="ray", jobs=1, address=nodes.address)
    assert [r.status for r in records] == ["error", "ok"]
    assert f"lost {TRIES} times" in records[0].error


@pytest.mark.slow
def test_prunings_are_the_same_on_every_engine(tmp_path: Path, cluster) -> None:
    (tmp_path / "trained.py").write_text(TRAINED)
    bench = Bench(
        f"{tmp_path / 'trained.py'}:make",
        "digits",
        methods=["matroid", "spectral", "taylor"],
        ratios=[0.5],
        seeds=[0, 1],
        repairs=["fold", "finetune"],
        draws=1,
        latency=False,
    )
    cells, found = make_grid(bench).cells, {}
    for engine, address in (("inline", None), ("local", None), ("ray", cluster[0].address)):
        records = run_trials(cells, tmp_path / f"{engine}.jsonl", engine=engine, jobs=2, address=address)
        assert [record.error for record in records] == [""] * (4 * 2 * 2)
        found[engine] = [{k: v for k, v in r.rows[0].items() if k not in CLOCKS} for r in records]
    assert found["inline"] == found["local"] == found["ray"]
    assert len({row["after"]["metric"] for row in found["ray"]}) > 4
