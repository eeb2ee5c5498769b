"""resource.Quantity (apimachinery/pkg/api/resource): amounts of cpu, memory and storage, exactly.

An amount is a fraction; what is finer than 10⁻⁹ is rounded away from zero, as there.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction

import msgspec

_NANO = 10**9
_MAX_INT64 = 2**63 - 1

_FORMAT = re.compile(r"(?P<sign>[+-]?)(?P<whole>[0-9]*)(?:\.(?P<part>[0-9]*))?(?P<suffix>[eEinumkKMGTP]*[-+]?[0-9]*)")

_SUFFIXES = {
    "n": Fraction(1, 10**9),
    "u": Fraction(1, 10**6),
    "m": Fraction(1, 10**3),
    "": Fraction(1),
    "k": Fraction(10**3),
    "M": Fraction(10**6),
    "G": Fraction(10**9),
    "T": Fraction(10**12),
    "P": Fraction(10**15),
    "E": Fraction(10**18),
}
_BINARY_SUFFIXES = {
    "Ki": Fraction(2**10),
    "Mi": Fraction(2**20),
    "Gi": Fraction(2**30),
    "Ti": Fraction(2**40),
    "Pi": Fraction(2**50),
    "Ei": Fraction(2**60),
}
_EXPONENT = re.compile(r"[eE][+-]?[0-9]+")
_MAX_EXPONENT = 1000
"""Greater ones are no amount of anything, and building them would take all memory."""
_MAX_LENGTH = 1000
"""Characters. apimachinery has no bound; Python reads no more than 4,300 digits."""
_TOO_LONG = f"a quantity of more than {_MAX_LENGTH} characters"


class InvalidQuantity(ValueError):
    """str() is the text of apimachinery."""


class Quantity(msgspec.Struct, frozen=True, order=True):
    """An amount in cores or bytes."""

    amount: Fraction

    def value(self) -> int:
        """Whole units, rounded away from zero, and no more than an int64 holds (Go's would be truncated to one)."""
        return _int64(_away_from_zero(self.amount))

    def milli_value(self) -> int:
        """Thousandths, rounded away from zero, and no more than an int64 holds."""
        return _int64(_away_from_zero(self.amount * 1000))

    def is_zero(self) -> bool:
        return self.amount == 0


ZERO = Quantity(Fraction(0))
ONE = Quantity(Fraction(1))


def parse(text: str | int | float) -> Quantity:
    """A quantity as it stands in JSON: a string, or a number that is read as its text. Raises InvalidQuantity.

    Like there, a missing number is zero (`Ki`, `.`).
    """
    try:
        text = str(text)
    except ValueError:  # an int of more digits than Python writes
        raise InvalidQuantity(_TOO_LONG) from None
    if len(text) > _MAX_LENGTH:
        raise InvalidQuantity(_TOO_LONG)
    match = _FORMAT.fullmatch(text)
    if not match or not text:
        raise InvalidQuantity(
            "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
        )
    sign, whole, part, suffix = match["sign"], match["whole"] or "", match["part"] or "", match["suffix"]
    if not whole and match["part"] is None and suffix in ("Pi", "Ei"):
        # only smaller suffixes have the fast path there that takes nothing for zero
        raise InvalidQuantity("unable to parse numeric part of quantity")
    digits = int(f"0{whole}{part}")
    if not digits and _EXPONENT.fullmatch(suffix):
        return ZERO
    amount = Fraction(digits, 10 ** len(part)) * _scale(suffix)
    amount = Fraction(_away_from_zero(amount * _NANO), _NANO)
    if suffix in _BINARY_SUFFIXES:
        amount = min(amount, Fraction(_MAX_INT64))
    return Quantity(-amount if sign == "-" else amount)


def divided(amount: int, divisor: int) -> int:
    """How downwardAPI divides: in float64 like kubelet (`math.Ceil(float64(a) / float64(b))`), rounded up."""
    return math.ceil(float(amount) / float(divisor))


def _scale(suffix: str) -> Fraction:
    scale = _SUFFIXES.get(suffix) or _BINARY_SUFFIXES.get(suffix)
    if scale is not None:
        return scale
    if not _EXPONENT.fullmatch(suffix) or abs(int(suffix[1:])) > _MAX_EXPONENT:
        raise InvalidQuantity("unable to parse quantity's suffix")
    return Fraction(10) ** int(suffix[1:])


def _int64(number: int) -> int:
    return max(-_MAX_INT64, min(number, _MAX_INT64))


def _away_from_zero(amount: Fraction) -> int:
    return math.ceil(amount) if amount >= 0 else math.floor(amount)
