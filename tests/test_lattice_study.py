"""The study of lattice-based pruning: its literal training, its tables, its grapheme-to-phoneme network."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from secateur.core import InputError
from secateur.data import digits
from secateur.studies.lattice import g2p, run
from secateur.studies.lattice.effect import measure
from secateur.studies.lattice.literal import train_literal
from secateur.studies.lattice.tables import interval, markdown
from secateur.zoo.sequence import lstm

SHORT = {"epochs": 5, "every": 2, "hidden": 16, "limit": 128}


def test_masks_persist_or_grow_back():
    data = digits()
    kept, held = train_literal(data, "continuous", 0.25, True, **SHORT)
    _, grown = train_literal(data, "continuous", 0.25, False, **SHORT)
    assert held == 0.75 and grown == 0
    rows = (kept.rnn.weight_hh_l0 == 0).reshape(4, 16, 16).all(2)
    assert (rows == rows[0]).all() and rows[0].sum() == 12
    control, all_gone = train_literal(data, "zero", 0.0, True, **SHORT)
    assert all_gone == 1 and not control.rnn.weight_hh_l0.any() and control.rnn.weight_ih_l0.any()
    assert train_literal(data, "none", 1.0, True, **SHORT)[1] == 0


def test_measures_agree_with_what_they_measure():
    model = lstm(12, 1, side=8).eval()
    found = measure(model, digits(), steps=60)
    assert found["exponent"] <= np.log(found["norm"]) and -1 < found["modularity"] < 1
    assert found["unit information"] <= np.log(10) and model.rnn.weight_hh_l0.dtype == torch.float32


def test_tables_have_means_and_signs_that_come_from_paired_intervals():
    shared = {"repair": "none", "removed": 0.5}
    rows = [{**shared, "criterion": c, "seed": s, "accuracy": base + s / 10}
            for s in range(4) for c, base in (("better", 0.3), ("random", 0.1), ("tie", 0.1))]
    rows += [{**shared, "criterion": "random", "seed": s, "accuracy": 0.1 + s / 10} for s in range(4)]
    text = markdown("rigorous", rows)
    assert "| none | better | 0.450 + |" in text and "| none | random | 0.250 |" in text
    assert "| none | tie | 0.250 |" in text and "seeds: 4" in text
    low, high = interval([0.1, 0.2, 0.3, 0.2])
    assert 0.1 <= low < 0.2 < high <= 0.3


def test_unknown_parts_and_missing_weights_are_refused(tmp_path):
    with pytest.raises(InputError, match="did you mean 'literal'"):
        run(out=tmp_path, parts=("litteral",))
    with pytest.raises(InputError, match="checkpoint20"):
        g2p.G2P.load(tmp_path / "none.npz")
    np.savez(tmp_path / "other.npz", enc_emb=np.zeros(3))
    with pytest.raises(InputError, match="does not hold"):
        g2p.G2P.load(tmp_path / "other.npz")


def test_words_become_batches_and_errors_are_counted():
    words = [("abc", ["AE1", "B"]), ("abd", ["D"]), ("a", ["AH0"])]
    (letters, so_far), target = g2p.batches(words)[0]
    assert letters.tolist() == [[3, 4, 5, 2], [3, 4, 6, 2]]
    assert len(g2p.PHONEMES) == 74 and so_far[1].tolist() == [2, g2p.PHONEMES.index("D"), 0]
    assert target[1].tolist() == [g2p.PHONEMES.index("D"), 3, -100]
    model = g2p.G2P(8).eval()
    with torch.no_grad():
        model.fc.weight.zero_()
        model.fc.bias.copy_(torch.eye(74)[g2p.PHONEMES.index("D")])
    error, right = g2p.phoneme_error(model, [("abd", ["D"] * 20), ("a", ["D"] * 19 + ["B"])])
    assert (error, right) == (1 / 40, 0.5)


@pytest.mark.slow
def test_the_literal_study_writes_rows_and_a_table(tmp_path):
    rows = run(out=tmp_path, parts=("literal",))["literal"]
    lines = (tmp_path / "literal.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == rows
    by_variant = {(r["variant"], r["density"]): r["accuracy"] for r in rows if r["seed"] == 0}
    assert by_variant["dense", 1.0] > by_variant["control: no recurrence (W_hh = 0)", 0.0]
    assert "Table II" in (tmp_path / "literal.md").read_text()
