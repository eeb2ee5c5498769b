"""resource.Quantity: the results are those of apimachinery's ParseQuantity, Value and MilliValue."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusevol.agent.plugins.quantity import InvalidQuantity, Quantity, divided, parse

FORMAT = "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
SUFFIX = "unable to parse quantity's suffix"


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("0", 0),
        ("5", 5),
        ("+5", 5),
        ("-5", -5),
        ("007", 7),
        ("1.5", Fraction(3, 2)),
        ("1.", 1),
        (".5", Fraction(1, 2)),
        (".", 0),
        ("-", 0),
        ("Ki", 0),
        ("0e99999", 0),
        ("100m", Fraction(1, 10)),
        ("1n", Fraction(1, 10**9)),
        ("1u", Fraction(1, 10**6)),
        ("3k", 3000),
        ("2M", 2 * 10**6),
        ("2G", 2 * 10**9),
        ("2T", 2 * 10**12),
        ("2P", 2 * 10**15),
        ("2E", 2 * 10**18),
        ("1Ki", 1024),
        ("1.5Gi", 3 * 2**29),
        ("1Ei", 2**60),
        ("1e3", 1000),
        ("1E3", 1000),
        ("12e-1", Fraction(6, 5)),
        ("1e+2", 100),
        ("24581684Ki", 25171644416),
        ("0.1n", Fraction(1, 10**9)),
        ("-0.1n", Fraction(-1, 10**9)),
        ("1.0000000001", 1 + Fraction(1, 10**9)),
        ("100Ei", 2**63 - 1),
        (2, 2),
        (0.5, Fraction(1, 2)),
        (1e16, 10**16),
    ],
)
def test_amounts(text: str | int | float, amount: int | Fraction) -> None:
    assert parse(text).amount == amount


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", FORMAT),
        ("abc", FORMAT),
        ("1.2.3", FORMAT),
        (" 1", FORMAT),
        ("1 ", FORMAT),
        ("1\n", FORMAT),
        ("1Kib", FORMAT),
        ("--1", SUFFIX),
        ("1e", SUFFIX),
        ("1K", SUFFIX),
        ("Pi", "unable to parse numeric part of quantity"),
        ("1ki", SUFFIX),
        ("1mi", SUFFIX),
        ("1k5", SUFFIX),
        ("1-5", SUFFIX),
        ("1e99999999999", SUFFIX),
    ],
)
def test_refused(text: str, message: str) -> None:
    with pytest.raises(InvalidQuantity) as caught:
        parse(text)
    assert str(caught.value) == message


def test_long_ones_are_refused() -> None:
    assert parse("9" * 1000).amount == 10**1000 - 1
    for text in ("9" * 1001, "0." + "0" * 5000, "1e" + "9" * 5000, 10**5000):
        with pytest.raises(InvalidQuantity, match=r"^a quantity of more than 1000 characters$"):
            parse(text)


@pytest.mark.parametrize(
    ("text", "value", "milli"),
    [("1250m", 2, 1250), ("-1250m", -2, -1250), ("1n", 1, 1), ("1.0001", 2, 1001), ("0", 0, 0), ("1Ki", 1024, 1024000)],
)
def test_rounding_is_away_from_zero(text: str, value: int, milli: int) -> None:
    assert (parse(text).value(), parse(text).milli_value()) == (value, milli)


def test_division_is_kubelets_float64() -> None:
    assert divided(100000001, 1024) == 97657
    assert divided(25171644416, 2**30) == 24
    assert divided(0, 7) == 0
    # 2⁵³ + 1 is no float64: kubelet shows 2⁵³
    assert divided(2**53 + 1, 1) == 2**53


def test_whole_numbers_are_those_of_an_int64() -> None:
    greatest = 2**63 - 1
    assert parse("1e900").value() == parse("1e900").milli_value() == greatest
    assert parse("-1e900").value() == parse("-10E").value() == -greatest
    assert parse("1e16").milli_value() == greatest
    assert divided(parse("1e900").value(), parse("1e900").value()) == 1
    assert divided(parse("1").value(), parse("1e900").value()) == 1


@given(st.integers(0, 10**12), st.sampled_from(["", "m", "u", "n", "k", "M", "Ki", "Mi"]))
def test_suffixes_scale(number: int, suffix: str) -> None:
    assert parse(f"{number}{suffix}").amount == number * parse(f"1{suffix}").amount


AMOUNTS = st.from_regex(r"\A[+-]?[0-9]{0,6}(\.[0-9]{0,12})?([numkMGTPE]|[KMGTPE]i|[eE][+-]?[0-9]{1,5})?\Z")


@given(st.text() | st.text(alphabet="0123456789.eEinumkKMGTP+-x ", max_size=12) | AMOUNTS | st.integers() | st.floats())
def test_anything_is_an_amount_or_refused(text: str | int | float) -> None:
    try:
        quantity = parse(text)
    except InvalidQuantity:
        return
    assert quantity.amount * 10**9 == int(quantity.amount * 10**9)
    assert abs(quantity.value()) >= min(abs(quantity.amount), 2**63 - 1)
    assert abs(quantity.milli_value()) >= min(abs(quantity.amount * 1000), 2**63 - 1)
    assert Quantity(quantity.amount) == quantity
    assert divided(2**63 - 1, quantity.value() or 1) != 0
    assert divided(quantity.value(), 7) * quantity.amount >= 0
