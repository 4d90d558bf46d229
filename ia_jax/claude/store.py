"""What was asked and paid, on disk: a killed run finds here every answer, and every batch that it still has to fetch.

    responses/ab/<key>.json   one answer, with its request and what it cost
    pending/<key>.json        a call under way; left behind only by a kill
    lost/<key>.<n>.json       a call that may have been billed although no answer arrived; booked at its bound
    batches/<name>.json       a batch: written before it is sent, its id as soon as there is one

Every file is written beside and renamed. One process at a time: the workdir's lock sees to that.
"""

import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from ia_jax.claude.calls import Call, Reply, check_message, reply_of
from ia_jax.claude.models import Models, load_models
from ia_jax.claude.prices import cost
from ia_jax.parallel.distributed import is_main_process
from ia_jax.storage import each, in_bucket, read_json, write_json

SENDING, WAITING, COLLECTED = "sending", "waiting", "collected"


def _write(path: Path, body: Mapping[str, Any]) -> None:
    write_json(path, body, indent=None)


def _read(path: Path) -> dict[str, Any]:
    return read_json(path, "delete it, and what it held is asked again")


class Budget:
    """Dollars spent and held against a cap. A call holds its bound before it is sent, and settles at its true cost."""

    def __init__(self, cap: Decimal, spent: Decimal):
        self.cap, self.spent, self.held = cap, spent, Decimal(0)
        self.changed = threading.Condition()

    def fits(self, amount: Decimal) -> bool:
        return self.spent + self.held + amount <= self.cap

    def hold(self, amount: Decimal, wait: bool = False) -> bool:
        """Holds the amount if the cap allows; with `wait`, gives calls under way the chance to cost less than held."""
        with self.changed:
            while not self.fits(amount):
                if not wait or not self.held:
                    return False
                self.changed.wait()
            self.held += amount
            return True

    def owe(self, amount: Decimal) -> None:
        """Holds what is already under way, whatever the cap."""
        with self.changed:
            self.held += amount

    def settle(self, held: Decimal, actual: Decimal) -> None:
        with self.changed:
            self.held -= held
            self.spent += actual
            self.changed.notify_all()


@dataclass(frozen=True)
class Batch:
    """A batch on record. `requests`: what was sent, as {"key", "sample", "request"}; emptied once collected."""

    name: str
    state: str
    created: float
    at_most: str
    requests: list[dict[str, Any]]
    count: int
    id: str = ""


class Store:
    """The directory of a run's calls."""

    def __init__(self, root: Path, models: Models | None = None):
        self.root, self._models = root, models or load_models()
        for path in sorted((root / "pending").glob("*.json")) if is_main_process() else ():
            self._lose(path, "the process ended while the call was under way")

    def response_path(self, key: str) -> Path:
        return self.root / "responses" / key[:2] / f"{key}.json"

    def reply(self, call: Call) -> Reply | None:
        path = self.response_path(call.key)
        return reply_of(_read(path)["message"]) if path.exists() else None

    def message(self, key: str) -> dict[str, Any] | None:
        """A whole answer as the API gave it, with its blocks and its usage."""
        path = self.response_path(key)
        return _read(path)["message"] if path.exists() else None

    def has(self, key: str) -> bool:
        return self.response_path(key).exists()

    def save(self, key: str, sample: int, request: Mapping[str, Any], message: Any, batch: bool) -> Decimal:
        """Keeps an answer with what it cost, and returns the cost."""
        dollars = cost(request["model"], check_message(message)["usage"], batch, self._models)
        body = {"key": key, "sample": sample, "batch": batch, "cost": str(dollars), "request": request}
        _write(self.response_path(key), {**body, "message": message})
        return dollars

    def begin(self, call: Call, bound: Decimal) -> None:
        _write(self.root / "pending" / f"{call.key}.json", {"at_most": str(bound)})

    def end(self, call: Call, lost: str = "") -> None:
        """The call is answered, or refused without a bill; `lost` says why neither is known."""
        path = self.root / "pending" / f"{call.key}.json"
        if lost:
            self._lose(path, lost)
        else:
            path.unlink()

    def _lose(self, path: Path, why: str) -> None:
        number = len(list((self.root / "lost").glob(f"{path.stem}.*.json")))
        if not self.has(path.stem):  # else the answer was kept, and only the mark was not yet taken away
            _write(self.root / "lost" / f"{path.stem}.{number}.json", {**_read(path), "why": why})
        path.unlink()

    def batches(self) -> Iterator[Batch]:
        for path in sorted((self.root / "batches").glob("*.json")):
            yield Batch(**_read(path))

    def save_batch(self, batch: Batch) -> Batch:
        batch = replace(batch, requests=[]) if batch.state == COLLECTED else batch
        _write(self.root / "batches" / f"{batch.name}.json", asdict(batch))
        return batch

    def drop_batch(self, batch: Batch) -> None:
        (self.root / "batches" / f"{batch.name}.json").unlink()

    def lose_batch(self, batch: Batch, why: str) -> None:
        _write(self.root / "lost" / f"{batch.name}.0.json", {"at_most": batch.at_most, "why": why})
        self.drop_batch(batch)

    def paid(self) -> Decimal:
        """Dollars of all answers kept."""
        kept = self.root.glob("responses/*/*.json")
        costs = each(lambda p: Decimal(_read(p)["cost"]), kept, many=in_bucket(self.root))
        return sum(costs, Decimal(0))

    def lost(self) -> tuple[int, Decimal]:
        """How many calls may have been billed without an answer, and the most that they can have cost."""
        bounds = [Decimal(_read(p)["at_most"]) for p in self.root.glob("lost/*.json")]
        return len(bounds), sum(bounds, Decimal(0))
