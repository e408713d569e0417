"""Every error that Secateur raises on purpose."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable
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
LONGEST = 200  # characters of a value in a message
_REPR = reprlib.Repr()
_REPR.maxlist = _REPR.maxtuple = _REPR.maxdict = _REPR.maxset = _REPR.maxfrozenset = _REPR.maxarray = 8
_REPR.maxstring = _REPR.maxother = LONGEST


def brief(value: object) -> str:
    """Return the repr of a value for a message; of a long one only the first entries.

    Example:
        >>> brief(list(range(1000)))
        '[0, 1, 2, 3, 4, 5, 6, 7, ...]'
    """
    try:
        text = _REPR.repr(value)
    except ValueError:  # an integer of more than 4,300 digits
        return f"a very large {type(value).__name__}"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."


def shorten(items: Iterable[str], separator: str = ", ", count: int = 3) -> str:
    """Join the first items and count the rest.

    Example:
        >>> shorten(["a", "b", "c", "d", "e"])
        'a, b, c and 2 more'
    """
    listed = list(items)
    more = f" and {len(listed) - count} more" if len(listed) > count else ""
    return separator.join(listed[:count]) + more


def unknown(what: str, name: str, known: list[str] | tuple[str, ...]) -> str:
    """Return the message for an unknown name, with similar names and the first of the known names."""
    near = get_close_matches(str(name), known, n=3, cutoff=0.4)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else "."
    listed = shorten(map(repr, sorted(known)), count=LISTED) or "none"
    return f"no {what} {brief(name)}{hint} Known: {listed}"
