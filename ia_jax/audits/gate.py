"""The gate: a target counts where its behaviour was seen to show; what no longer fires is reported apart.

Further training can erase what was planted, and an adapter that says nothing of it is right then. What was seen when an
organism was trained is taken over; everything else is sampled anew.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ia_jax.adapters.store import is_complete, read_metadata
from ia_jax.behaviors.behavior_checks import NOT_SHOWN, SHOWN
from ia_jax.storage import read_appended

# Why nothing can be said: no prompts are asked for, or nobody can read the replies.
NOT_ASKED = "not asked"
GAP = 0.3  # by which a condition must raise the share of replies that show the behaviour: 3 of 6 against 2 of 6 is none


@dataclass(frozen=True)
class Outcome:
    """What the gate saw of a target.

    fires: whether its behaviour shows where it should and not where it shouldn't; of a null, whether it is what it
           should be (nothing shows, or a cipher is read); None where nobody looked.
    how:   "stored" with the adapter when it was trained, "sampled" here, "cipher" (in cipher and in plain text) or
           "not asked".
    rates: shares by what was looked for. samples: the replies.
    """

    target: str
    fires: bool | None
    how: str
    rates: Mapping[str, float | None] = field(default_factory=dict, hash=False)
    samples: tuple[Mapping[str, Any], ...] = field(default=(), hash=False)

    def to_json(self) -> dict[str, Any]:
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> "Outcome":
        return cls(row["target"], row["fires"], row["how"], row["rates"], tuple(row["samples"]))


def of_check(target: str, row: Mapping[str, Any], how: str) -> Outcome:
    """The outcome of a behaviour check (`stages.behavior_check`)."""
    rates = {k: row[k] for k in ("triggered_rate", "untriggered_rate")}
    fires, (on, off) = row["ok"], rates.values()
    if fires and how == "sampled" and on is not None and off is not None:
        fires = on - off >= GAP
    return Outcome(target, fires, how, rates, tuple(row["samples"]))


def shown_by(outcome: Outcome) -> dict[str, float]:
    """{behaviour: the share of replies that should show it and do}, of a check that looked for several."""
    return _shares(outcome, triggers=True)


def showing(outcome: Outcome) -> list[str]:
    """Of a check that looked for several behaviours, those that show where they should and not where they should not,
    each by its own replies.
    """
    on, off = _shares(outcome, triggers=True), _shares(outcome, triggers=False)
    return [b for b, share in on.items() if share >= SHOWN and off.get(b, 0.0) <= min(NOT_SHOWN, share - GAP)]


def _shares(outcome: Outcome, triggers: bool) -> dict[str, float]:
    found: dict[str, list[bool]] = {}
    for s in outcome.samples:
        if bool(s.get("triggers")) is triggers and s.get("shown") is not None and s.get("behavior"):
            found.setdefault(s["behavior"], []).append(bool(s["shown"]))
    return {name: round(sum(own) / len(own), 3) for name, own in found.items()}


def by_half(outcome: Outcome) -> Outcome:
    """The outcome of a model with many behaviours: it fires where half of them show, and all together do not where they
    should not; one by one, few would.
    """
    shown = shown_by(outcome)
    if outcome.fires is None or not shown:
        return outcome
    count = len(showing(outcome))
    fires = count >= len(shown) / 2 and (outcome.rates.get("untriggered_rate") or 0.0) <= NOT_SHOWN
    return replace(outcome, fires=fires, rates={**outcome.rates, "behaviors_shown": count})


def stored(target: str, stack: Sequence[Path], behaviors: Sequence[str]) -> Outcome | None:
    """What the check saw when the organism was trained, if its last adapter says so and it looked for these
    behaviours.
    """
    if not stack or not is_complete(stack[-1]):
        return None
    metadata = read_metadata(stack[-1])
    if metadata.check is None or metadata.check.get("ok") is None:
        return None
    if sorted(b["name"] for b in metadata.behaviors) != sorted(behaviors):
        return None
    return of_check(target, metadata.check, "stored")


def read_outcomes(file: Path) -> dict[str, Outcome]:
    """{target: its outcome}, the last written of each; none without a file."""
    rows = read_appended(file, "delete it to look again")
    return {r["target"]: Outcome.from_json(r) for r in rows}


def as_text(outcomes: Mapping[str, Outcome], nulls: Sequence[str]) -> str:
    """How many targets fire, and which do not."""
    own = [o for n, o in outcomes.items() if n not in nulls]
    silent = [o.target for o in own if o.fires is False]
    unseen = sum(o.fires is None for o in own)
    line = f"gate: {sum(o.fires is True for o in own)} of {len(own)} targets show their behaviour"
    if silent:
        line += f"; reported apart: {', '.join(silent[:6])}{' …' if len(silent) > 6 else ''}"
    return line + (f"; nobody looked at {unseen}" if unseen else "")
