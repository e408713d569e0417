"""The options of ``secateur prune`` that make batches of texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import typer
from torch import nn

from secateur.cli.printing import print_line
from secateur.core import InputError
from secateur.pretrained import is_pretrained, load_tokenizer
from secateur.texts import LENGTH, TextBatches, read_text, read_texts
from secateur.vocabulary import cut_vocabulary

__all__ = [
    "ONE_TEXT",
    "HoldoutSamples",
    "HoldoutTexts",
    "Samples",
    "SequenceLength",
    "TextOptions",
    "Texts",
    "TokenizerFolder",
]

ONE_TEXT = (
    "no other text was judged: a model can keep the perplexity of the text that it was calibrated on and "
    "lose that of others; give --holdout-text"
)
Texts = Annotated[
    list[str] | None,
    typer.Option(
        "--text",
        help="File with text to calibrate a language model on; may be repeated: several are mixed evenly. "
        "The perplexity is measured on its second half.",
    ),
]
HoldoutTexts = Annotated[
    list[str] | None,
    typer.Option("--holdout-text", help="Another text to measure the perplexity on; may be repeated."),
]
TokenizerFolder = Annotated[
    str | None, typer.Option("--tokenizer", help="Folder of the tokenizer, if it is not that of the model.")
]
SequenceLength = Annotated[
    int | None,
    typer.Option(help=f"Tokens in a sequence; {LENGTH} by default, or as many as the model takes."),
]
Samples = Annotated[int, typer.Option(help="Calibration sequences of all texts together.")]
HoldoutSamples = Annotated[int, typer.Option(help="Sequences of each text to measure the perplexity on.")]


@dataclass(frozen=True)
class TextOptions:
    """What a user gives about texts.

    Attributes:
        texts: Files to calibrate on.
        holdout: Files that only judge.
        tokenizer: The tokenizer or its folder, if it is not that of the model.
        length: Tokens in a sequence.
        samples: Calibration sequences.
        judging: Sequences of each text that judges.
    """

    texts: Sequence[str] | None
    holdout: Sequence[str] | None
    tokenizer: Any
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
        return read_texts(
            self.texts,
            self.holdout or (),
            self._tokenizer_of(name),
            model,
            length=self.length,
            samples=self.samples,
            judging=self.judging,
        )

    def cut_vocabulary(self, name: str, model: nn.Module) -> tuple[nn.Module, TextOptions]:
        """Return the model without the tokens that the calibration texts never have, and fitting options.

        Raises:
            InputError: If there are no texts, or the vocabulary cannot be cut.
        """
        if not self.texts:
            raise InputError("--cut vocabulary keeps the tokens of the calibration texts: give --text")
        cut = cut_vocabulary(model, self._tokenizer_of(name), list(map(read_text, self.texts)))
        before, after = (sum(x.numel() for x in m.parameters()) for m in (model, cut.model))
        size = model.get_input_embeddings().weight.shape[0]  # type: ignore[operator,union-attr]
        print_line(
            f"vocabulary: {size:,} -> {len(cut.kept):,} tokens, parameters: {before:,} -> {after:,}. From "
            "here on, the original is the model with these tokens: perplexities count no others"
        )
        return cut.model, replace(self, tokenizer=cut.tokenizer)

    def _tokenizer_of(self, name: str) -> Any:
        if self.tokenizer is not None and not isinstance(self.tokenizer, str):
            return self.tokenizer
        if self.tokenizer is None and not is_pretrained(name):
            raise InputError(f"{name} brings no tokenizer: name the folder of one with --tokenizer")
        return load_tokenizer(self.tokenizer or name)
