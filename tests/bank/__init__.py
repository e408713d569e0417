"""The model bank: small models of every kind that people prune, each with inputs and expectations."""

from . import (
    attention,
    cells,
    classic,
    composite,
    convolution,
    huggingface,
    recurrent,
    resnet,
    transformer,
    traps,
)
from .entry import B, Entry, floats, ones, tokens

FAMILIES: dict[str, tuple[Entry, ...]] = {
    "Feed-forward": classic.ENTRIES,
    "Residual and mobile": resnet.ENTRIES,
    "Convolutional": (*convolution.ENTRIES, *composite.ENTRIES),
    "Recurrent": (*recurrent.ENTRIES, *cells.ENTRIES),
    "Attention": (*transformer.ENTRIES, *attention.ENTRIES),
    "Hard cases": traps.ENTRIES,
    "Hugging Face": huggingface.ENTRIES,
}
BANK: dict[str, Entry] = {entry.name: entry for entries in FAMILIES.values() for entry in entries}

__all__ = ["BANK", "FAMILIES", "B", "Entry", "floats", "ones", "tokens"]
