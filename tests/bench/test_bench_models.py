"""Models, data and code of a comparison: parts, samples, hashes, what hangs or ends."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from planted_comparison import PLANTED, bench, plant
from sampled import sampled

from secateur.bench.benchmark import Bench, make_trials, run_bench
from secateur.bench.models import hash_model, hash_source, part, sample, share_known, takes_seed
from secateur.bench.run import run_trials
from secateur.bench.trial import Trial
from secateur.core import InputError


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh working directory with planted.py in it."""
    return plant(tmp_path, monkeypatch)


LOUD = """
class Loud(nn.Module):
    def forward(self, x):
        return 2 * x.relu()
"""


def test_parts_are_disjoint_and_samples_are_of_their_seed() -> None:
    x = torch.arange(23.0)[:, None]
    batches = list(zip(x.split(5), torch.arange(23).split(5), strict=True))
    parts = [[int(y) for _, ys in part(batches, at, 4) for y in ys] for at in range(4)]
    assert sorted(y for one in parts for y in one) == list(range(23))
    assert part(batches, 0, 1) == batches
    drawn = [int(y) for xs, ys in sample(batches, 3) for y in ys]
    assert len(set(drawn)) == len(drawn) == 18
    assert drawn != [int(y) for xs, ys in sample(batches, 4) for y in ys]
    assert all(torch.equal(xs[:, 0].long(), ys) for xs, ys in sample(batches, 3))
    assert sum(len(ys) for _, ys in sample(batches, 3, count=7)) == 7
    words = [({"ids": torch.tensor([at])}, torch.tensor([at])) for at in range(5)]
    assert len(sample(words, 0)) == 4 and len(part(words, 0, 2)) == 3 and len(part(words, 1, 2)) == 2
    ragged = [{"ids": torch.full((1, 1 + at), at)} for at in range(5)]  # whole batches, where rows differ
    assert len(sample(ragged, 0)) == 4 and [b["ids"][0, 0].item() for b in part(ragged, 1, 2)] == [1, 3]
    assert share_known(words[:3], words[2:]) == pytest.approx(1 / 3)
    with pytest.raises(InputError, match="cannot be divided among 6 seeds"):
        part(words, 0, 6)


def test_each_weight_and_buffer_and_the_code_tell_models_apart(place: Path) -> None:
    a, b = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
    b.load_state_dict(a.state_dict())
    assert hash_model(a) == hash_model(b)
    with torch.no_grad():
        b.bias[2] += 1e-6
    assert hash_model(a) != hash_model(b)
    for module, other in ((a, b), (b, a)):
        module.register_buffer("scale", torch.tensor(float(module is a)), persistent=False)
        other.load_state_dict(a.state_dict())
    assert hash_model(a) != hash_model(b)
    assert takes_seed("planted.py:make", None) and not takes_seed("planted.py:single", None)
    assert not takes_seed("planted.py:make", "w.safetensors")


@pytest.mark.parametrize("what", sampled(["model", "data", "method"], "data"))
def test_a_model_data_or_method_that_changes_under_way_gives_no_result(place: Path, what: str) -> None:
    trial = make_trials(bench("single", seeds=[0]), inline=True)[0]
    other = {**trial.params, "hashes": {**trial.params["hashes"], what: "0" * 64}}
    (result,) = run_trials([Trial(trial.function, other, trial.paths)], place / "t.jsonl", engine="inline")
    assert result.status == "error" and f"is not the same {what} as when" in result.error


def test_edited_code_runs_again_and_a_moved_folder_does_not(
    place: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    one = bench("single", methods=["planted.py:Truth", "magnitude"], seeds=[0])
    run_bench(one, place / "out", engine="inline")

    def again() -> str:
        lines: list[str] = []
        rows, _ = run_bench(one, place / "out", engine="inline", log=lines.append)
        assert [row["method"] for row in rows] == ["planted.py:Truth", "magnitude", "random"]
        return lines[1].partition(",")[0]

    assert again() == "3 of 3 trials (3 from before)"
    other = tmp_path_factory.mktemp("moved")
    for name in ("planted.py", "out"):
        (place / name).rename(other / name)
    (place / "planted.py").symlink_to(other / "planted.py")
    (place / "out").symlink_to(other / "out")
    assert again() == "3 of 3 trials (3 from before)"
    changed = PLANTED.replace(".abs().amax(0)", ".abs().sum(0)")
    (other / "planted.py").write_text(changed)
    assert again() == "2 of 3 trials (2 from before)"
    (other / "planted.py").write_text(changed.replace("nn.ReLU()", "Loud()") + LOUD)
    before = {trial.key for trial in make_trials(one, inline=True)}
    (other / "planted.py").write_text(changed.replace("nn.ReLU()", "Loud()") + LOUD.replace("2 *", "3 *"))
    after = {trial.key for trial in make_trials(one, inline=True)}
    assert not before & after


def test_an_edited_factory_has_another_hash(place: Path) -> None:
    maker = "from secateur.methods import Magnitude\ndef mk():\n    return Magnitude(p=2)\n"
    (place / "maker.py").write_text(maker)
    before = hash_source("maker.py:mk")
    assert before not in (None, hash_source("secateur.methods:Magnitude"))
    (place / "maker.py").write_text(maker.replace("p=2", "p=1"))
    assert hash_source("maker.py:mk") != before
    assert hash_source("magnitude:p=2") is None


def test_folders_named_like_a_method_or_data_change_nothing(place: Path) -> None:
    one = bench("single", methods=["magnitude:p=1", "planted.py:Truth"], seeds=[0])
    before = [trial.key for trial in make_trials(one, inline=True)]
    for name in ("random", "magnitude", "digits", "p=1", "magnitude:p=1", "saved"):
        (place / name).mkdir()
    trials = make_trials(one, inline=True)
    assert [trial.key for trial in trials] == before
    methods = ["magnitude:p=1", f"{place}/planted.py:Truth", "random"]
    assert [trial.paths["files"]["method"] for trial in trials] == methods
    files = Bench("saved", "mnist:files").files
    assert (files["data"], files["model"]) == (f"mnist:{place}/files", f"{place}/saved")
    assert Bench("secateur.zoo:lenet5", "digits:").files["data"] == "digits:"


def test_a_model_that_hangs_is_stopped_at_the_start(place: Path) -> None:
    (place / "hangs.py").write_text("import time\ndef make():\n    time.sleep(600)\n")
    one = Bench("hangs.py:make", "planted.py:fit", "planted.py:held", seeds=[0])
    with pytest.raises(InputError, match=r"hangs\.py:make.* longer than 0.5 s.*raise the limit"):
        make_trials(one, limit=0.5)


def test_code_that_ends_the_program_is_a_failure(place: Path) -> None:
    (place / "leaves.py").write_text("import sys\ndef make(seed=0):\n    sys.exit(0)\n")
    (place / "gone.py").write_text("raise SystemExit(3)")
    for name in ("leaves.py:make", "gone.py:make"):
        with pytest.raises(InputError, match=r"(leaves|gone)\.py.* failed: SystemExit: [03] \("):
            make_trials(Bench(name, "planted.py:fit", "planted.py:held", seeds=[0]), inline=True)
