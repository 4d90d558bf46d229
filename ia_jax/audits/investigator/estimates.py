"""What audits by Claude will cost, before anything is asked. The cap itself is kept call by call, by bounds.

The means below are guesses (nobody measured them here): an investigator writes a few hundred tokens a turn and reads a
tool's result of about as many, and its whole dialogue again each turn, from the prompt cache.
"""

from dataclasses import dataclass
from decimal import Decimal

from ia_jax.audits.investigator.probes import CONFIGURATIONS
from ia_jax.audits.investigator.prompts import PREDICTIONS
from ia_jax.claude.models import Models
from ia_jax.claude.prices import CACHE_WRITE, MILLION

TURN, RESULT, FRAME = 350, 500, 2500  # tokens of a turn, of a tool's result, of prompt and tools
NOTES, LIST = 3000, 600  # read and written for the predictions
JUDGED, VERDICT = 700, 60  # read and written for each verdict
HINT, PROMPT = 300, 40  # read for scaffolded prompts, and written for each
SCAFFOLDED = 4  # calls of each scaffolded tool in a run (AuditBench: a tool is used 5 to 10 times)


@dataclass(frozen=True)
class Plan:
    """Audits to be made. investigator, helper, judge: Claude's models; None where somebody else does it.

    runs: over all targets and nulls. truths: that each prediction is held against, on average.
    """

    runs: int
    configuration: str
    budget: int
    prompts: int
    truths: float = 1.0
    investigator: str | None = None
    helper: str | None = None
    judge: str | None = None
    judge_effort: str = ""


def dollars(plan: Plan, models: Models) -> Decimal:
    """What all runs cost, about."""
    each = Decimal(0)
    if plan.investigator:
        price = models.find(plan.investigator)
        turns = max(1, plan.budget // TURN)
        final = FRAME + turns * (TURN + RESULT)
        read = turns * (FRAME + final) // 2
        each += price.output * (plan.budget + LIST) + price.input * NOTES
        each += price.cache_read * read + price.input * CACHE_WRITE * final
    if plan.helper:
        price = models.find(plan.helper)
        calls = SCAFFOLDED * sum(t.startswith("scaffolded_") for t in CONFIGURATIONS[plan.configuration])
        written = plan.prompts * PROMPT + models.thinking(plan.helper, "")
        each += calls * (price.input * HINT + price.output * written)
    if plan.judge:
        price = models.find(plan.judge)
        written = VERDICT + models.thinking(plan.judge, plan.judge_effort)
        each += Decimal(PREDICTIONS * plan.truths) * (price.input * JUDGED + price.output * written)
    return plan.runs * each / MILLION


def in_words(plan: Plan, models: Models) -> str:
    who = ", ".join(f"{role} {m}" for role, m in _roles(plan) if m) or "nobody at Claude"
    return f"audit: {plan.runs} runs with {plan.configuration}, about ${dollars(plan, models):.2f} ({who})"


def _roles(plan: Plan) -> list[tuple[str, str | None]]:
    return [("investigator", plan.investigator), ("helper", plan.helper), ("judge", plan.judge)]
