"""Every error that Secateur raises on purpose."""

from __future__ import annotations

from difflib import get_close_matches


class SecateurError(Exception):
    """Base of every error that Secateur raises on purpose."""


class InputError(SecateurError, ValueError):
    """Invalid argument.  The message gives the value, the reason and a valid alternative."""


class CaptureError(SecateurError):
    """`torch.export` failed on the model."""


class NothingToPrune(SecateurError):
    """Nothing can be removed.  The message lists what is frozen and why."""


class ExactnessError(SecateurError):
    """The shrunk model and the masked model give different outputs."""


class PlanError(SecateurError):
    """A plan does not fit the model it is applied to."""


class StoreError(SecateurError):
    """A saved folder is missing, damaged, or not writable."""


LISTED = 20  # known names in a message


def unknown(what: str, name: str, known: list[str] | tuple[str, ...]) -> str:
    """Return the message for an unknown name, with similar names and the first of the known names."""
    near = get_close_matches(str(name), known, n=3, cutoff=0.4)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else "."
    more = f" and {len(known) - LISTED} more" if len(known) > LISTED else ""
    return f"no {what} {name!r}{hint} Known: {', '.join(map(repr, sorted(known)[:LISTED])) or 'none'}{more}"
