"""Prune transformers models that are larger than memory, block by block, from disk to disk."""

from secateur.streaming.pruning import StreamedPruning, prune_folder

__all__ = ["StreamedPruning", "prune_folder"]
