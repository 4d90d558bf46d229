"""Which Claude models there are, what they cost and what they take: a dated data file (`prices.json`), or one's own.

Everything that can be known of a model before it is asked is known here, so that a wrong choice fails before anything
is paid or trained.
"""

import datetime
import functools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from ia_jax.errors import ConfigError

FILE = Path(__file__).parent / "prices.json"
EFFORTS = ("low", "medium", "high", "xhigh", "max")
# Thinking counts as output. Tokens that `max_tokens` leaves for it, by effort: an answer that is cut off is paid for
# and lost, so there is room to spare. What is used on average is far less; these means are guesses, nobody measured.
ROOM = {"low": 1200, "medium": 4000, "high": 8000, "xhigh": 16_000, "max": 32_000}
USUAL = {"low": 60, "medium": 300, "high": 900, "xhigh": 3000, "max": 8000}


@dataclass(frozen=True)
class Model:
    """One model. Prices are dollars for a million tokens.

    efforts:        levels that `output_config.effort` may have; none where the model refuses the setting.
    default_effort: what "" comes to ("": the model does not think unless it is told to).
    cache_floor:    tokens below which a prompt is never cached, None where that is not known.
    longest_prompt: tokens up to which these prices hold.
    structured:     whether it follows a JSON schema (`output_config.format`).
    retires:        the day from which Anthropic's own API refuses it, "" where none is announced.
    unverified:     fields for which no page of the provider was read.
    """

    name: str
    input: Decimal
    output: Decimal
    cache_read: Decimal
    efforts: tuple[str, ...]
    default_effort: str
    cache_floor: int | None
    longest_prompt: int = 1_000_000
    structured: bool = True
    retires: str = ""
    unverified: str = ""


@dataclass(frozen=True)
class Models:
    """A price list: its models by name, its date, and where it lies."""

    known: Mapping[str, Model]
    date: str
    file: Path

    def find(self, name: str) -> Model:
        """Raises ConfigError for a model whose price is not known: a cap could not be kept."""
        if name not in self.known:
            raise ConfigError(
                f"no price is known for the Claude model {name!r}; choose from {', '.join(self.known)}, or give a "
                f"price list of your own by config.claude.prices (like {self.file})"
            )
        return self.known[name]

    def max_tokens(self, name: str, effort: str, answer: int) -> int:
        """`max_tokens` for an answer of up to `answer` tokens, with room to think as the effort asks for."""
        return answer + ROOM.get(self.effort(name, effort), 0)

    def thinking(self, name: str, effort: str) -> int:
        """Tokens of thinking that an estimate reckons with."""
        return USUAL.get(self.effort(name, effort), 0)

    def effort(self, name: str, effort: str) -> str:
        """The effort that a request comes to; "" for no thinking. Of a model that is not listed: what was asked."""
        return effort or (self.known[name].default_effort if name in self.known else "high")

    def check(self, where: str, name: str, effort: str, today: datetime.date | None = None) -> None:
        """Raises ConfigError, naming the setting, for a model that cannot be asked with this effort.

        Another server (ANTHROPIC_BASE_URL) may still have what Anthropic's own has retired.
        """
        try:
            model = self.find(name)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
        today = today or datetime.date.today()
        if model.retires and not os.environ.get("ANTHROPIC_BASE_URL") and today >= _day(model.retires):
            raise ConfigError(f"{where}: {name} was retired on {model.retires}; choose a model that is still served")
        if not model.structured:
            raise ConfigError(f"{where}: {name} does not follow a JSON schema, which its answers need; choose another")
        if effort and effort not in model.efforts:
            takes = f"takes {', '.join(model.efforts)}" if model.efforts else 'takes none; set it to ""'
            raise ConfigError(f"{where}: {name} does not take effort {effort!r}; it {takes}")


def _day(text: str) -> datetime.date:
    return datetime.date.fromisoformat(text)


@functools.cache
def load_models(file: str = "") -> Models:
    """The price list of the package, or that of a file in its form. Raises ConfigError, naming file and model."""
    path = Path(file) if file else FILE
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        rows, date = body["models"], str(_day(body["date"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path}: not a price list ({type(error).__name__}: {error}); it is like {FILE.name}"
        ) from None
    return Models({name: _model(name, row, path) for name, row in rows.items()}, date, path)


def _model(name: str, row: Mapping[str, Any], path: Path) -> Model:
    try:
        prices = {key: Decimal(str(row[key])) for key in ("input", "output", "cache_read")}
        rest = {k: tuple(v) if isinstance(v, Sequence) and not isinstance(v, str) else v for k, v in row.items()}
        model = Model(**{"name": name, "cache_floor": None, **rest, **prices})
        if model.retires:
            _day(model.retires)
    except (KeyError, TypeError, ValueError, InvalidOperation) as error:
        raise ConfigError(f"{path}: {name}: {type(error).__name__}: {error}") from None
    wrong = [e for e in (*model.efforts, model.default_effort) if e not in ("", *EFFORTS)]
    if wrong or min(prices.values()) < 0:
        what = f"effort {wrong[0]!r} is none of {', '.join(EFFORTS)}" if wrong else "a price is negative"
        raise ConfigError(f"{path}: {name}: {what}")
    return model
