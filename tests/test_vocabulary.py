"""Cut a vocabulary: every kind of tokenizer, the model's rows, and what cannot be cut."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from language_folder import make_text, make_tokenizer, tiny_llama
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from secateur.core import InputError
from secateur.formats.tokenizer_json import needed_tokens, with_tokens
from secateur.vocabulary import cut_vocabulary

TEXT, OTHER = make_text("gardens", 300), make_text("ships", 300)
SPECIAL = ["<unk>", "<s>", "</s>", "<pad>"]
BYTES = [f"<0x{number:02X}>" for number in range(256)]


def sentencepiece_bpe() -> Tokenizer:
    """As of Gemma and Llama: no words, spaces as ▁, bytes for unknown characters."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    trainer = trainers.BpeTrainer(vocab_size=456, special_tokens=[*SPECIAL, *BYTES], show_progress=False)
    words = [text.split() for text in (TEXT, OTHER)]
    tokenizer.train_from_iterator([" ".join(x[i : i + 3]) for x in words for i in range(90)], trainer)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return tokenizer


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator([TEXT, OTHER], trainer)
    return tokenizer


def wordpiece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=160, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator([TEXT, OTHER], trainer)
    tokenizer.post_processor = processors.BertProcessing(("</s>", 2), ("<s>", 1))
    return tokenizer


def wordlevel() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(vocab_size=160, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator([TEXT, OTHER], trainer)
    return tokenizer


def byte_level_bpe() -> Tokenizer:
    return make_tokenizer(320).backend_tokenizer


KINDS = {x.__name__: x for x in (sentencepiece_bpe, unigram, wordpiece, wordlevel, byte_level_bpe)}


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_with_fewer_tokens_splits_the_kept_text_as_before(kind: str) -> None:
    whole = KINDS[kind]()
    content = json.loads(whole.to_str())
    before = whole.encode(TEXT)
    kept = needed_tokens(content, before.ids)
    assert len(kept) < whole.get_vocab_size() and kept == sorted(set(kept))
    less = Tokenizer.from_str(json.dumps(with_tokens(content, kept)))
    assert less.get_vocab_size() == len(kept)
    after = less.encode(TEXT)
    assert after.tokens == before.tokens
    assert [kept[number] for number in after.ids] == before.ids
    other = less.encode(OTHER)
    if kind == "wordlevel":  # it has no pieces
        assert {x for x in other.tokens if x not in TEXT.split()} == {"<unk>"}
        return
    assert len(other.ids) > len(whole.encode(OTHER).ids)  # in smaller pieces
    assert "<unk>" not in other.tokens
    texts = (x.decode(x.encode(OTHER).ids, skip_special_tokens=False) for x in (less, whole))
    assert len(set(texts)) == 1


def test_a_model_gives_the_same_logits_for_the_tokens_that_stay() -> None:
    model, tokenizer = tiny_llama(), make_tokenizer()
    model.generation_config.eos_token_id = [1, 299]
    cut = cut_vocabulary(model, tokenizer, [TEXT])
    count = len(cut.kept)
    assert count < 300 == model.config.vocab_size
    assert cut.model.config.vocab_size == count == len(cut.tokenizer)
    assert cut.model.lm_head.weight.shape[0] == cut.model.model.embed_tokens.num_embeddings == count
    assert cut.kept[cut.model.generation_config.eos_token_id].tolist() == [1, 299]
    new = torch.tensor([cut.tokenizer(TEXT)["input_ids"][:40]])
    assert cut.kept[new].tolist() == [tokenizer(TEXT)["input_ids"][:40]]
    torch.testing.assert_close(cut.model(new).logits, model(cut.kept[new]).logits[..., cut.kept])
    assert cut.tokenizer.bos_token_id == tokenizer.bos_token_id
    assert cut.tokenizer.decode(cut.tokenizer(OTHER)["input_ids"]) == tokenizer.decode(
        tokenizer(OTHER)["input_ids"]
    )


def test_a_bias_of_the_output_and_the_padding_follow(tmp_path: Path) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=wordpiece(), unk_token="<unk>", pad_token="<pad>")
    torch.manual_seed(0)
    size = len(tokenizer) + 7  # a table may be longer than the vocabulary
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 20}
    model = BertForMaskedLM(BertConfig(vocab_size=size, pad_token_id=3, **sizes)).eval()
    model.cls.predictions.bias.data.normal_()
    cut = cut_vocabulary(model, tokenizer, [TEXT])
    new = torch.tensor([cut.tokenizer(TEXT)["input_ids"][:20]])
    torch.testing.assert_close(cut.model(new).logits, model(cut.kept[new]).logits[..., cut.kept])
    padding = cut.model.get_input_embeddings().padding_idx
    assert cut.kept[padding] == 3 == cut.kept[cut.model.config.pad_token_id]
    cut.model.save_pretrained(tmp_path)
    loaded = BertForMaskedLM.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(new).logits, cut.model(new).logits)


def test_a_token_without_a_row_stays_out_of_the_table() -> None:
    model, tokenizer = tiny_llama(), make_tokenizer()
    tokenizer.add_tokens(["<image>"])
    assert tokenizer.convert_tokens_to_ids("<image>") == 300 == model.config.vocab_size
    cut = cut_vocabulary(model, tokenizer, [TEXT])
    assert cut.model.config.vocab_size == len(cut.kept)
    assert cut.tokenizer.get_vocab().get("<image>", len(cut.kept)) == len(cut.kept)


def test_what_cannot_be_cut_is_refused() -> None:
    model, tokenizer = tiny_llama(), make_tokenizer()
    with pytest.raises(InputError, match="need all 258 tokens"):  # of bytes, and two special ones
        cut_vocabulary(tiny_llama(vocab_size=258), make_tokenizer(258), [TEXT])
    with pytest.raises(InputError, match="no embedding of tokens"):
        cut_vocabulary(torch.nn.Linear(2, 2), tokenizer, [TEXT])
    with pytest.raises(InputError, match=r"no tokenizer\.json"):
        cut_vocabulary(model, object(), [TEXT])
    with pytest.raises(InputError, match="'Other' cannot lose tokens"):
        needed_tokens({"model": {"type": "Other"}}, [])
