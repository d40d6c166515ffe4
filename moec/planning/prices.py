"""What devices cost: as the user says; none are built in, since they go stale."""

from __future__ import annotations

import math
from collections.abc import Mapping

from moec.errors import MoecError
from moec.planning.on_cpu import any_device

HOURS = 730  # of a month
_FORM = "write what an hour of a device costs: --price h200=3.5,l4=0.8"


def read_prices(text: str) -> dict[str, float]:
    """`h200=3.5,l4=0.8` as prices of an hour by device, in any currency. Raises M201 and M202, as `check_prices`
    does."""
    found: dict[str, float] = {}
    for word in filter(None, (w.strip() for w in text.split(","))):
        name, _, price = word.partition("=")
        try:
            found[name.strip()] = float(price)
        except ValueError as error:
            raise MoecError("M201", f"{word!r} is no price", "--price", _FORM) from error
    return check_prices(found)


def check_prices(prices: Mapping[str, float]) -> dict[str, float]:
    """Prices by the devices' own names. Raises M202 for an unknown device, M201 for a price that is not above 0."""
    for name, price in prices.items():
        if not 0 < price < math.inf:
            raise MoecError("M201", f"{price!r} is no price of {name}", "--price", _FORM)
    return {any_device(name).name: price for name, price in prices.items()}
