"""Batches as people have them: loaders, tuples, tensors, dicts with and without labels."""

from __future__ import annotations

from collections import UserDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from secateur.batches import as_batches, few_tokens, split_batch, split_off_guard
from secateur.core import InputError
from secateur.execution import read_batches

X, Y = torch.arange(24.0).reshape(12, 2), torch.arange(12)


def loader(**options: Any) -> DataLoader:
    return DataLoader(TensorDataset(X, Y), batch_size=2, **options)


class Stream(IterableDataset):
    def __iter__(self):
        return zip(X, Y, strict=True)


@pytest.mark.parametrize(
    ("batch", "args", "kwargs", "targets"),
    [
        (X, (X,), {}, None),
        ([X], (X,), {}, None),
        ((X, Y), (X,), {}, Y),
        ([X, Y], (X,), {}, Y),
        ((X, None), (X,), {}, None),
        (((X, Y), Y), (X, Y), {}, Y),
        ({"x": X}, (), {"x": X}, None),
        ({"x": X, "labels": Y}, (), {"x": X}, Y),
        (UserDict({"x": X, "label": Y}), (), {"x": X}, Y),
        (({"x": X, "labels": Y}, Y), (), {"x": X, "labels": Y}, Y),
        ([{"x": X, "labels": Y}], (), {"x": X}, Y),
    ],
)
def test_forms_of_a_batch(batch: Any, args: tuple, kwargs: dict, targets: Any) -> None:
    found = split_batch(batch)
    assert found == (args, kwargs, targets)


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ((X, X, Y), "several inputs"),
        ("text", "got str"),
        ({"input_ids": [[1, 2]], "labels": [0]}, "return_tensors='pt'"),
    ],
)
def test_other_batches_are_named_by_their_index(batch: Any, words: str) -> None:
    with pytest.raises(InputError, match=f"batch 1: .*{words}"):
        list(read_batches([X, batch], nn.Identity()))


def test_nan_is_named_by_the_index_of_the_batch() -> None:
    bad = X.clone()
    bad[3] = torch.nan
    with pytest.raises(InputError, match="inputs of batch 1"):
        list(read_batches([(X, Y), (bad, Y)], nn.Identity()))
    with pytest.raises(InputError, match="targets of batch 0"):
        list(read_batches([(X, bad)], nn.Identity()))


class NeedsLabels(nn.Module):
    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        return x


def test_labels_stay_among_the_inputs_of_a_model_that_needs_them() -> None:
    _, kwargs, targets = split_batch({"x": X, "labels": Y}, NeedsLabels())
    assert set(kwargs) == {"x", "labels"} and targets is Y


def test_data_that_can_be_read_again_is_not_copied() -> None:
    for data in ([X, X], loader(), loader(shuffle=True)):
        assert as_batches(data) is data
    for data in (iter([X, X]), (X, X), ((X, Y), (X, Y)), (x for x in [X, X])):
        batches = as_batches(data)
        assert isinstance(batches, list) and len(batches) == 2
    assert len(as_batches(DataLoader(Stream(), batch_size=5))) == 3


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (X, r"one batch, a Tensor.*\[batch\]"),
        ({"x": X}, "one batch, a dict"),
        ((X, Y), "one batch, a tuple"),
        ("digits", "got a str"),
        (3, "got a int"),
        (TensorDataset(X, Y), "TensorDataset; wrap it in torch.utils.data.DataLoader"),
        ([], "no batches"),
        (iter([]), "used up"),
    ],
)
def test_other_data_is_refused(data: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        as_batches(data)


def rows(batches: Any) -> list[int]:
    return [int(y) for _, targets in batches for y in targets]


@pytest.mark.parametrize("own", [False, True])
def test_a_shuffling_loader_is_split_into_parts_that_share_nothing(own: bool) -> None:
    torch.manual_seed(3)
    generator = torch.Generator().manual_seed(1) if own else None
    fitting, judging = split_off_guard(loader(shuffle=True, generator=generator))
    before = torch.get_rng_state()
    first = rows(fitting)
    assert torch.equal(before, torch.get_rng_state())
    assert len(fitting) == 5 and len(judging) == 1
    assert sorted(first + rows(judging)) == list(range(12)) and first != sorted(first)
    assert rows(fitting) == first


def test_a_single_batch_is_split_by_rows() -> None:
    (fitting,), judging = split_off_guard([UserDict({"x": X, "labels": Y})])
    assert judging is not None and len(fitting["x"]) == 10 and judging[0]["labels"].tolist() == [10, 11]
    assert split_off_guard([(X[:4], Y[:4])])[1] is None
    assert split_off_guard([X, X])[1] == [X]


@pytest.mark.parametrize("kind", [list, torch.tensor])
def test_a_row_of_a_dataset_is_a_batch_of_one(kind: Any) -> None:
    row = {"input_ids": kind([4, 5, 6]), "attention_mask": kind([1, 1, 0]), "labels": kind([4, 5, -100])}
    _, inputs, targets = split_batch(row)
    assert inputs["input_ids"].tolist() == [[4, 5, 6]] and inputs["attention_mask"].tolist() == [[1, 1, 0]]
    assert targets.tolist() == [[4, 5, -100]]


def test_a_few_sequences_of_a_language_model() -> None:
    tokens = torch.arange(60).reshape(6, 10)
    for batch in (tokens, {"input_ids": tokens, "n": 3}, UserDict({"input_ids": tokens}), (tokens, tokens)):
        (few,) = few_tokens([batch, batch], 40)
        leaves = [few] if isinstance(few, Tensor) else few.values() if isinstance(few, dict) else few
        assert all(x.equal(tokens[:4]) for x in leaves if isinstance(x, Tensor))
    assert [len(x) for x in few_tokens([tokens, tokens, tokens], 85)] == [6, 2]
    assert [len(x) for x in few_tokens([tokens, tokens], 3)] == [1]


def test_other_batches_are_not_cut() -> None:
    images = [torch.zeros(6, 10)] * 3
    assert few_tokens(images, 10) is images
    mixed = [{"input_ids": torch.zeros(6, 10)}]
    assert few_tokens(mixed, 10) is mixed
