"""What an hour of a chip costs: list prices with a date and a source each (`prices.json`), or what the user pays."""

import importlib.resources
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ia_jax.errors import ConfigError
from ia_jax.planning.chips import CHIPS
from ia_jax.planning.topology import topology_of


@dataclass(frozen=True)
class Price:
    """Dollars for an hour of one chip. verified: somebody has read the provider's own figure."""

    dollars: float
    region: str
    terms: str
    date: str
    source: str
    verified: bool

    def __str__(self) -> str:
        if not self.source:
            return f"${self.dollars:,.4g} a chip-hour, as given"
        return f"${self.dollars:,.4g} a chip-hour ({self.terms}, {self.region}, {self.date}; {self.source})"


@lru_cache
def price_table() -> Mapping[str, Price]:
    """Chip -> its price."""
    text = importlib.resources.files("ia_jax.planning").joinpath("prices.json").read_text()
    return {name: Price(**row) for name, row in json.loads(text)["prices"].items()}


def price_of(chip: str, given: str | None = None, table: Mapping[str, Price] | None = None) -> Price:
    """The price of a chip: as given ("2.5", dollars a chip-hour), else of the table.

    Raises ConfigError for a chip that the table lacks, and for what is given and is no amount.
    """
    if given is not None:
        try:
            dollars = float(given)
        except ValueError:
            dollars = math.nan
        if not (math.isfinite(dollars) and dollars >= 0):
            raise ConfigError(f"--price={given} is no amount; give dollars for an hour of one chip, like 2.5")
        return Price(dollars, "", "as given", "", "", True)
    table = price_table() if table is None else table
    if chip not in table:
        missing = "" if chip in CHIPS else f" (no such chip; known: {', '.join(CHIPS)})"
        raise ConfigError(f"no price of {chip} is known{missing}; give --price=DOLLARS for an hour of one chip")
    return table[chip]


def amount(dollars: float) -> str:
    """In words: cents below ten dollars, whole dollars above."""
    return f"${dollars:,.2f}" if dollars < 10 else f"${dollars:,.0f}"


def priced(report: dict[str, Any], given: str | None = None) -> dict[str, Any]:
    """A report of `plan` with `dollars` for its chip-hours and the `price` in words; where none is known, why.

    Raises ConfigError where what is given is no amount.
    """
    if "chip_hours" not in report:  # it does not fit
        return report
    try:
        price = price_of(topology_of(report["topology"]).chip.name, given)
    except ConfigError as error:
        if given is not None:
            raise
        return report | {"dollars": None, "price": str(error)}
    dollars = {stage: round(hours * price.dollars, 2) for stage, hours in report["chip_hours"].items()}
    return report | {"dollars": dollars, "price": str(price)}
