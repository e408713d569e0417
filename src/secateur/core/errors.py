"""Every error that Secateur raises on purpose."""

from __future__ import annotations

from difflib import get_close_matches


class SecateurError(Exception):
    """Base of every error that Secateur raises on purpose."""


class InputError(SecateurError, ValueError):
    """An argument that cannot be: says what was given, why it cannot be, and what would work."""


class CaptureError(SecateurError):
    """The model could not be captured by `torch.export`."""


class NothingToPrune(SecateurError):
    """A plan would remove nothing; the message lists what is frozen and why."""


class ExactnessError(SecateurError):
    """The shrunk model does not compute what the masked model computes."""


class PlanError(SecateurError):
    """A plan does not fit the model it is applied to."""


class StoreError(SecateurError):
    """A saved folder is missing, damaged, or cannot be written."""


LISTED = 20


def unknown(what: str, name: str, known: list[str] | tuple[str, ...]) -> str:
    """Word an error about an unknown name, with the near matches; of many known names, the first."""
    near = get_close_matches(name, known, n=3, cutoff=0.4)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else "."
    more = f" and {len(known) - LISTED} more" if len(known) > LISTED else ""
    return f"no {what} {name!r}{hint} Known: {', '.join(map(repr, sorted(known)[:LISTED])) or 'none'}{more}"
