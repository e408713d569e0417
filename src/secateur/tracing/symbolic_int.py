"""Numbers that remember how they were computed from attributes and from sizes of tensors."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

__all__ = [
    "OPERATIONS",
    "Expression",
    "TracedFloat",
    "TracedInt",
    "evaluate_expression",
    "expression_of",
    "leaves",
]

Expression = tuple[Any, ...]
"""How a number was computed.

One of ("attr", module, name, n), ("shape", origin, axis, n), ("number", n), (operation, left, right); or
("value", expressions...) for a number that is not an integer, of the integers that it was computed from.
"""


class TracedInt(int):
    """An integer that remembers how it was computed.

    Example:
        >>> heads = TracedInt(4, ("attr", "attn", "num_heads", 4))
        >>> (12 // heads).expression
        ('floordiv', ('number', 12), ('attr', 'attn', 'num_heads', 4))
    """

    expression: Expression
    log: list[tuple[Expression, Expression]] | None

    def __new__(cls, value: int, expression: Expression, log: Any = None) -> TracedInt:
        """Return the integer with its expression, and the list to which it adds what it was equal to."""
        self = super().__new__(cls, value)
        self.expression = expression
        self.log = log
        return self

    def __eq__(self, other: Any) -> bool:
        """Compare as integers do, and log an equality: code that checks one relies on it."""
        equal = int.__eq__(self, other)
        if equal is True and self.log is not None:
            self.log.append((self.expression, expression_of(other)))
        return equal

    def __ne__(self, other: Any) -> bool:
        """Compare as integers do."""
        return other is None or not self == other

    __hash__ = int.__hash__

    def __deepcopy__(self, memo: Any) -> TracedInt:
        """Return itself: an integer does not change."""
        return self

    def __reduce__(self) -> Any:
        """Pickle as a plain integer."""
        return int, (int(self),)


OPERATIONS = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "floordiv": operator.floordiv,
    "mod": operator.mod,
    "pow": operator.pow,
}


def _method(name: str, reflected: bool) -> Callable[[TracedInt, Any], Any]:
    def method(self: TracedInt, other: Any) -> Any:
        if type(other) not in (int, TracedInt):
            return NotImplemented
        pair = (other, self) if reflected else (self, other)
        value = OPERATIONS[name](*(int(n) for n in pair))
        return TracedInt(value, (name, *(expression_of(n) for n in pair)), self.log)

    return method


for _name in OPERATIONS:
    setattr(TracedInt, f"__{_name}__", _method(_name, False))
    setattr(TracedInt, f"__r{_name}__", _method(_name, True))


class TracedFloat(float):
    """A quotient or a power of sizes: it enters the computation as a number, not as a size."""

    expression: Expression

    def __new__(cls, value: float, expression: Expression) -> TracedFloat:
        """Return the number with its expression."""
        self = super().__new__(cls, value)
        self.expression = expression
        return self

    def __reduce__(self) -> Any:
        """Pickle as a plain number."""
        return float, (float(self),)


def _to_float(name: str) -> Callable[[TracedInt, Any], Any]:
    def method(self: TracedInt, other: Any) -> Any:
        value = getattr(int, name, getattr(float, name))(int(self), other)
        if value is NotImplemented:
            value = getattr(float, name)(float(self), other)
        origin = ("value", *_integers(self), *_integers(other))
        return TracedFloat(value, origin) if isinstance(value, (int, float)) else value

    return method


def _integers(n: Any) -> tuple[Expression, ...]:
    """Return the integers that a number was computed from; none if it is a plain number."""
    if isinstance(n, TracedFloat):
        return n.expression[1:]
    return (n.expression,) if isinstance(n, TracedInt) else ()


def _power(reflected: bool) -> Callable[[TracedInt, Any], Any]:
    """Return the power: an integer for integers, which a view may get as a size; else a number."""
    as_size, as_number = _method("pow", reflected), _to_float("__rpow__" if reflected else "__pow__")

    def method(self: TracedInt, other: Any) -> Any:
        is_size = type(other) in (int, TracedInt) and (self if reflected else other) >= 0
        return as_size(self, other) if is_size else as_number(self, other)

    return method


for _name in ("truediv", "rtruediv"):
    setattr(TracedInt, f"__{_name}__", _to_float(f"__{_name}__"))
TracedInt.__pow__, TracedInt.__rpow__ = _power(False), _power(True)  # type: ignore[method-assign, assignment]


def expression_of(n: Any) -> Expression:
    """Return how a number was computed."""
    return n.expression if isinstance(n, (TracedInt, TracedFloat)) else ("number", n)


def leaves(expression: Expression) -> Iterator[Expression]:
    """Yield the attributes and shapes that enter an expression."""
    if expression[0] in ("attr", "shape"):
        yield expression
    elif expression[0] != "number":
        for part in expression[1:]:
            yield from leaves(part)


def evaluate_expression(expression: Expression, value: Callable[[Expression], int]) -> int:
    """Evaluate an expression for given values of its leaves.

    Raises:
        ZeroDivisionError: If the expression divides by 0, as the code itself would.
    """
    if expression[0] == "number":
        return int(expression[1])
    if expression[0] not in OPERATIONS:
        return value(expression)
    return OPERATIONS[expression[0]](
        evaluate_expression(expression[1], value), evaluate_expression(expression[2], value)
    )
