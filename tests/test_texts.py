"""Texts as batches: halves, excerpts, special tokens, mixtures, and texts that do not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from language_folder import LIMIT, is_about, make_text, make_tokenizer, tiny_llama

from secateur.core import InputError
from secateur.texts import TextBatches, pack_text, read_texts, sequence_limit

TOKENIZER = make_tokenizer()
MODEL = tiny_llama()


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """A text on gardens and one on ships."""
    paths = [tmp_path / f"{subject}.txt" for subject in ("gardens", "ships")]
    for path in paths:
        path.write_text(make_text(path.stem))
    return paths


def tokens(batches: TextBatches) -> torch.Tensor:
    return torch.cat([batch["input_ids"] for batch in batches.fit])


def test_sequences_are_excerpts_with_the_special_tokens_of_the_tokenizer() -> None:
    text = make_text()
    for count in (3, 10_000):  # few of many, and all that there are
        rows = pack_text(TOKENIZER, text, 20, count)
        assert rows.shape[1] == 20 and (rows[:, 0] == 0).all() and not (rows[:, 1:] == 0).any()
        assert all(TOKENIZER.decode(row[1:]).strip() in text for row in rows)
    whole = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    assert len(rows) == len(whole) // 19
    assert rows[:, 1:].reshape(-1).tolist() == whole[: 19 * len(rows)]


def test_excerpts_are_spread_over_the_text() -> None:
    text = " ".join([make_text("gardens"), make_text("ships")])
    rows = pack_text(TOKENIZER, text, 20, 8)
    assert len(rows) == 8
    assert [is_about("ships", TOKENIZER.decode(row)) for row in rows] == [False] * 4 + [True] * 4
    assert pack_text(TOKENIZER, text, 20, 8).equal(rows)


def test_the_first_half_calibrates_and_the_second_judges(tmp_path: Path) -> None:
    path = tmp_path / "both.txt"
    path.write_text(make_text("gardens") + " " + make_text("ships", words=3600))
    batches = read_texts([path], [], TOKENIZER, MODEL, length=16, samples=9, judging=5)
    (name,) = batches.judged
    assert name == "both.txt, second half" and not batches.foreign
    judged = torch.cat([batch["input_ids"] for batch in batches.judged[name]])
    assert tokens(batches).shape == (9, 16) and judged.shape == (5, 16)
    assert not is_about("ships", TOKENIZER.decode(tokens(batches).flatten()))
    assert is_about("ships", TOKENIZER.decode(judged.flatten()))
    assert all(batch["labels"].equal(batch["input_ids"]) for batch in batches.fit)


def test_several_texts_are_mixed_evenly(files: list[Path]) -> None:
    batches = read_texts(files, [files[1]], TOKENIZER, MODEL, length=32, samples=7)
    subjects = [is_about("ships", TOKENIZER.decode(row)) for row in tokens(batches)]
    assert subjects == [False, True, False, True, False, True, False]
    assert list(batches.judged) == ["gardens.txt, second half", "ships.txt, second half", "ships.txt"]
    assert batches.foreign


def test_the_length_is_what_the_model_takes(files: list[Path]) -> None:
    assert sequence_limit(MODEL.config) == LIMIT and sequence_limit(None) is None
    assert tokens(read_texts(files, [], TOKENIZER, MODEL, samples=2)).shape == (2, LIMIT)
    with pytest.raises(InputError, match="65 tokens are longer than the 64"):
        read_texts(files, [], TOKENIZER, MODEL, length=LIMIT + 1)
    with pytest.raises(InputError, match="2 tokens or more"):
        read_texts(files, [], TOKENIZER, MODEL, length=1)


def test_a_large_vocabulary_gives_small_batches(files: list[Path]) -> None:
    big = tiny_llama(vocab_size=300_000, hidden_size=8)
    batches = read_texts(files, [], TOKENIZER, big, length=64, samples=4)
    assert [len(batch["input_ids"]) for batch in batches.fit] == [1, 1, 1, 1]


def test_an_encoder_gets_no_labels(files: list[Path]) -> None:
    model = torch.nn.Embedding(300, 4)
    (batch, *_) = read_texts(files, [], TOKENIZER, model, length=16, samples=2).fit
    assert set(batch) == {"input_ids"}


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is empty"), (b" \n\t ", "is empty"), (b"a few words", "fewer than 64"), (b"\xff\xfe", "UTF-8")],
)
def test_texts_that_do_not_serve(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_texts([path], [], TOKENIZER, MODEL)


def test_a_missing_text_and_wrong_counts(files: list[Path]) -> None:
    with pytest.raises(InputError, match="No such file"):
        read_texts([files[0].with_name("none.txt")], [], TOKENIZER, MODEL)
    with pytest.raises(InputError, match="number of samples"):
        read_texts(files, [], TOKENIZER, MODEL, samples=0)
    with pytest.warns(UserWarning, match="sequences of 64 tokens, not 1000"):
        read_texts(files[:1], [], TOKENIZER, MODEL, samples=1000)


def test_a_tokenizer_of_another_model(files: list[Path]) -> None:
    with pytest.raises(InputError, match=r"does not fit the model: it gives token .*knows 280 tokens"):
        read_texts(files, [], TOKENIZER, tiny_llama(vocab_size=280), length=16)
