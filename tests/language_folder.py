"""A tiny Llama or Mixtral with a byte-level BPE tokenizer in a folder of transformers, and texts for it."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedTokenizerFast,
)

__all__ = ["LIMIT", "is_about", "make_folder", "make_mixtral", "make_text", "make_tokenizer", "tiny_llama"]

LIMIT = 64  # tokens that the model takes
WORDS = {
    "gardens": "the gardener cuts branches and young roses grow in spring near a wall",
    "ships": "our captain steers his heavy ship through dark water while cold winds blow from northern ice",
}


def make_text(subject: str = "gardens", words: int = 4000) -> str:
    """Return a text of random words on a subject."""
    draw = random.Random(0)
    return " ".join(draw.choice(WORDS[subject].split()) for _ in range(words))


def is_about(subject: str, text: str) -> bool:
    """Return whether a text has a word on a subject."""
    return any(word in text.split() for word in WORDS[subject].split())


def make_tokenizer(vocabulary: int = 300) -> PreTrainedTokenizerFast:
    """Train a tokenizer on the texts; it begins every text with <s>."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([make_text(subject) for subject in WORDS], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def tiny_llama(**changes: int) -> LlamaForCausalLM:
    """Return a Llama with random weights: two layers, four query heads on two keys."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 300, "hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": LIMIT}
    return LlamaForCausalLM(LlamaConfig(**{**sizes, **heads, **changes})).eval()


def make_folder(folder: Path, **options: object) -> Path:
    """Save model and tokenizer; the options are those of `save_pretrained`."""
    tiny_llama().save_pretrained(folder, **options)
    make_tokenizer().save_pretrained(folder)
    return folder


def make_mixtral(folder: Path) -> Path:
    """Save a Mixtral with random weights, two layers of four experts, and a tokenizer."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 300, "hidden_size": 24, "intermediate_size": 16, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    MixtralForCausalLM(MixtralConfig(**sizes, **heads, num_local_experts=4)).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder
