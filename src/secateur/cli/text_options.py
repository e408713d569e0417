"""The options of ``secateur prune`` that make batches of texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from secateur.core import InputError
from secateur.pretrained import is_pretrained, load_tokenizer
from secateur.texts import TextBatches, read_texts

__all__ = ["TextOptions"]


@dataclass(frozen=True)
class TextOptions:
    """What a user gives about texts.

    Attributes:
        texts: Files to calibrate on.
        holdout: Files that only judge.
        tokenizer: Folder of the tokenizer, if it is not that of the model.
        length: Tokens in a sequence.
        samples: Calibration sequences.
        judging: Sequences of each text that judges.
    """

    texts: Sequence[str] | None
    holdout: Sequence[str] | None
    tokenizer: str | None
    length: int | None
    samples: int
    judging: int

    def check(self, data: str | None, holdout: str | None) -> None:
        """Raise `InputError` if options contradict each other."""
        if self.texts and (data or holdout):
            raise InputError("--text and --holdout-text give all batches: leave out --data and --holdout")
        if not self.texts and self.holdout:
            raise InputError("--holdout-text only judges: give the text to calibrate on with --text")
        if not self.texts and (self.tokenizer or self.length is not None):
            raise InputError("--tokenizer and --sequence-length are for texts: give --text")

    def read(self, name: str, model: nn.Module) -> TextBatches | None:
        """Return the batches for a model, or None if there are no texts.

        Raises:
            InputError: If there is no tokenizer, or a text or the tokenizer does not fit the model.
        """
        if not self.texts:
            return None
        if self.tokenizer is None and not is_pretrained(name):
            raise InputError(f"{name} brings no tokenizer: name the folder of one with --tokenizer")
        return read_texts(
            self.texts,
            self.holdout or (),
            load_tokenizer(self.tokenizer or name),
            model,
            length=self.length,
            samples=self.samples,
            judging=self.judging,
        )
