"""US dollars as people write them, pico-dollars as the meters count them, and JSON that carries both exactly.

A float keeps 15 digits and an amount may need 21, so no amount is ever one: JSON numbers are read as
:class:`~decimal.Decimal` and written digit by digit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

DECIMALS = 12
MAX_USD = 10**9
"""A limit for budgets: more is a typing error."""


def to_pico_usd(usd: Decimal | int) -> int:
    """An amount in the unit of the meters.

    Raises ValueError, with what is wrong about it, for what is negative, too large or finer than a pico-dollar.
    """
    usd = Decimal(usd)
    # The order matters: an exponent can make a number that takes a day to write out.
    if not usd.is_finite() or usd < 0:
        raise ValueError("it must be at least 0")
    if usd > MAX_USD:
        raise ValueError(f"it must be at most {MAX_USD}")
    exponent = usd.as_tuple().exponent
    if not isinstance(exponent, int) or exponent < -DECIMALS:
        raise ValueError(f"it may have {DECIMALS} decimals at most")
    # Ten digits and twelve decimals: within the 28 digits of Decimal's arithmetic.
    return int(usd.scaleb(DECIMALS))


def to_usd(pico_usd: int) -> Decimal:
    """The same amount in dollars, with the decimals it needs and two at least."""
    whole, fraction = divmod(abs(pico_usd), 10**DECIMALS)
    decimals = f"{fraction:0{DECIMALS}d}".rstrip("0").ljust(2, "0")
    return Decimal(f"{'-' if pico_usd < 0 else ''}{whole}.{decimals}")


def read_json(text: str | bytes) -> Any:
    """JSON whose numbers with a decimal point keep all their digits.

    Raises ValueError.
    """
    return json.loads(text, parse_float=Decimal)


def write_json(value: Any) -> str:
    """JSON with amounts as they are: ``Decimal("50.00")`` becomes ``50.00``."""
    match value:
        case Decimal():
            return format(value, "f")
        case Mapping():
            return "{" + ",".join(f"{write_json(name)}:{write_json(part)}" for name, part in value.items()) + "}"
        case list() | tuple():
            return "[" + ",".join(map(write_json, value)) + "]"
        case _:
            return json.dumps(value, ensure_ascii=False, allow_nan=False)
