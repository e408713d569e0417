"""The same trials on a Ray cluster: the same rows, nothing lost with a machine, clear errors."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path

import pytest

from secateur.bench import EngineError, Trial, run_trials
from secateur.bench.benchmark import Bench, make_trials
from secateur.core import InputError

HERE = str(Path(__file__).parent)
F = "bench_functions:"
CLOCKS = {"seconds", "latency", "memory"}
TRAINED = """
from secateur import data, zoo

def make(seed=0):
    return zoo.train(zoo.mlp((64, 32, 10), seed=seed), data.digits(), 1, lr=1e-2, seed=seed).model
"""
ray = pytest.importorskip("ray")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Send no usage statistics, run workers at normal priority, and let them import bench_functions."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_worker_niceness", "0")
    monkeypatch.syspath_prepend(HERE)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([HERE, os.environ.get("PYTHONPATH", "")]))


def draws(count: int) -> list[Trial]:
    return [Trial(f"{F}draw", {"seed": seed}) for seed in range(count)]


def test_an_address_that_does_not_answer_is_reported_at_once(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = time.monotonic()
    with pytest.raises(EngineError, match=f"no Ray cluster answers at 127.0.0.1:{port} .*refused"):
        run_trials(draws(1), tmp_path / "trials.jsonl", engine="ray", address=f"127.0.0.1:{port}")
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("address", ["here", "host:", "http://host:1", "host:port"])
def test_invalid_addresses(tmp_path: Path, address: str) -> None:
    with pytest.raises(InputError, match="HOST:PORT"):
        run_trials(draws(1), tmp_path / "trials.jsonl", engine="ray", address=address)


def test_nothing_to_do_needs_no_cluster(tmp_path: Path) -> None:
    run_trials(draws(2), tmp_path / "trials.jsonl", engine="inline")
    results = run_trials(draws(2), tmp_path / "trials.jsonl", engine="ray", address="127.0.0.1:1")
    assert [r.status for r in results] == ["ok", "ok"]


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
def test_nothing_is_lost_with_a_node_or_a_bad_trial(tmp_path: Path, cluster) -> None:
    nodes, second = cluster
    spins = [Trial(f"{F}spin", {"seconds": 2.0, "at": at}) for at in range(8)]
    late = Trial(f"{F}sleep", {"seconds": 999.0})
    bad = [Trial(f"{F}fail", {"text": "on purpose"}), Trial(f"{F}kill"), Trial(f"{F}kill_parent"), late]
    trials, killed = [*spins, *draws(4), *bad], []

    def log(line: str) -> None:
        if line.startswith("2 of 16") and not killed:
            killed.append(len([node for node in ray.nodes() if node["Alive"]]))
            nodes.remove_node(second, allow_graceful=False)

    path = tmp_path / "trials.jsonl"
    results = run_trials(trials, path, engine="ray", jobs=4, address=nodes.address, limit=60.0, log=log)
    assert killed == [2]
    assert [r.status for r in results] == [*["ok"] * 12, *["error"] * 3, "timeout"]
    assert "SIGKILL" in results[13].error and "lost 3 times" in results[14].error
    assert len({json.loads(line)["key"] for line in path.read_text().splitlines()}) == len(trials)
    here = run_trials(trials[:12], tmp_path / "local.jsonl", engine="inline")
    assert [r.rows for r in here] == [r.rows for r in results[:12]]


@pytest.mark.slow
def test_prunings_are_the_same_on_every_engine(tmp_path: Path) -> None:
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
    trials, rows = make_trials(bench), {}
    for engine in ("inline", "local", "ray"):
        results = run_trials(trials, tmp_path / f"{engine}.jsonl", engine=engine, jobs=2)
        assert [result.error for result in results] == [""] * (4 * 2 * 2)
        rows[engine] = [{k: v for k, v in r.rows[0].items() if k not in CLOCKS} for r in results]
    assert rows["inline"] == rows["local"] == rows["ray"]
    assert len({row["after"]["metric"] for row in rows["ray"]}) > 4
