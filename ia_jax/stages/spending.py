"""What a run asks of Claude, stage by stage, before it does: what it costs, and whether it can be asked at all.

Estimates reckon with texts of the usual length; the cap itself is kept by bounds (`prices.at_most`), call by call.
"""

import os
from collections.abc import Collection, Sequence
from decimal import Decimal
from typing import NamedTuple

from ia_jax.behaviors import claude_checks
from ia_jax.behaviors.behavior_checks import RARE_SAMPLES, CheckPrompt, has_rule
from ia_jax.behaviors.claude_teacher import ClaudeTeacher
from ia_jax.behaviors.lessons import is_rare, is_triggered, password_of
from ia_jax.behaviors.organisms import Organism
from ia_jax.behaviors.records import Behavior
from ia_jax.behaviors.splits import HELD
from ia_jax.claude.calls import Call
from ia_jax.claude.client import KEY, BudgetError, Client
from ia_jax.claude.models import Models, load_models
from ia_jax.claude.prices import estimate
from ia_jax.config import RunConfig
from ia_jax.errors import ConfigError
from ia_jax.judging.claude_judge import ClaudeJudge
from ia_jax.judging.protocol import Item
from ia_jax.parallel.distributed import on_main_process
from ia_jax.stages.context import Context
from ia_jax.stages.order import is_done
from ia_jax.stages.services import claude_client, judge_of, writing_teacher
from ia_jax.stages.settings import has_begun
from ia_jax.stages.transcripts import chosen
from ia_jax.workdir import open_workdir

Planned = list[tuple[Call, int]]  # a call, and how many like it
# Reports of an organism to a question: with the IA and the base's with it after SFT and after DPO, and both without.
EVALUATED = 6
# Of a held-out organism's baselines: words, three of them, retrieval and lens; by question, few-shot and shuffled.
ONCE, PER_QUESTION = 6, 2


class Cost(NamedTuple):
    """What one stage asks: how many calls, and about how many dollars."""

    stage: str
    calls: int
    dollars: Decimal


def report(context: Context) -> str:
    """A line for every stage that asks Claude, and the total against the cap. No call is made."""
    return on_main_process(lambda: _as_text(context.config, _costs(context), claude_client(context)))


def check_ready(context: Context, stages: Collection[str]) -> None:
    """Before any of these stages begins: that Claude can be asked and paid for what they ask.

    Raises ConfigError without a key (with `claude.cache`, all may be on disk), and BudgetError where the estimate
    exceeds what is left of the cap. Once stages are under way part of it is paid, so that is only told: each call holds
    its bound.
    """
    on_main_process(lambda: _check_ready(context, stages))


def _check_ready(context: Context, stages: Collection[str]) -> None:
    config, workdir = context.config, context.workdir
    if not asks_claude(config):
        return
    started = workdir.organisms_file.exists()  # else no stage is done
    costs = [c for c in _costs(context) if not (started and is_done(context, c.stage))]
    mine = [c for c in costs if c.stage in stages]
    if not mine:
        return
    if not os.environ.get(KEY) and not config.claude.cache:
        what = ", ".join(c.stage for c in mine)
        raise ConfigError(
            f"{what}: Claude is asked ({sum(c.calls for c in mine)} calls), and {KEY} is not set; set it, or choose "
            "config.teacher.name=template or local, config.judge.name=rubric, config.organisms.check_prompts=0"
        )
    budget = claude_client(context).connection.budget
    needed, left = sum((c.dollars for c in mine), Decimal(0)), budget.cap - budget.spent
    begun = started and has_begun(workdir, config, "organisms")
    if costs[0].stage == "transcripts":
        begun = budget.spent > 0
    if needed > left and not begun:
        detail = ", ".join(f"{c.stage} ${c.dollars:.2f}" for c in mine)
        raise BudgetError(
            f"Claude would cost about ${needed:.2f} ({detail}), and ${left:.2f} of the cap of ${budget.cap} are left; "
            "raise config.claude.cap_dollars, or ask for less"
        )
    rest = sum((c.dollars for c in costs), Decimal(0))
    if rest > left:
        print(f"Claude: what is not done needs about ${rest:.2f}, and ${left:.2f} of the cap are left", flush=True)


def asks_claude(config: RunConfig) -> bool:
    """Whether any stage might: a template teacher's run does where no rule sees a behaviour."""
    checks = config.teacher.name != "local" and bool(config.organisms.check_prompts)
    return config.teacher.name == "claude" or config.judge.name == "claude" or checks


# ---------------------------------------------------------------------------------------------------------------------
# What is asked
# ---------------------------------------------------------------------------------------------------------------------


def _costs(context: Context) -> list[Cost]:
    """Of every stage that asks Claude, in their order."""
    config = context.config
    behaviors, organisms = _cast(context)
    models, batch = load_models(config.claude.prices), config.claude.api == "batch"
    out: list[Cost] = []
    if config.teacher.name == "claude" and not config.organisms.source:
        out.append(_cost("transcripts", writing_teacher(context).plan(behaviors), batch, models))
    if config.teacher.name != "local" and not config.organisms.source:
        out.append(_cost("organisms", checking(writing_teacher(context), behaviors, config), batch, models))
    if config.judge.name == "claude":
        judge = judge_of(context)
        assert isinstance(judge, ClaudeJudge)
        counts = {"preferences": _sampled(organisms, config), "eval": _evaluated(organisms, config)}
        for stage, reports in counts.items():
            asks = ("score",) if stage == "preferences" else ("lenient", "strict")
            calls = judging(judge, behaviors[0], config.preferences.max_new_tokens, asks) if behaviors else []
            out.append(_cost(stage, [(call, reports) for call in calls], batch, models))
    return [c for c in out if c.calls]


def _cast(context: Context) -> tuple[list[Behavior], list[Organism]]:
    """The run's behaviours and organisms: those that are there, or those that it will have."""
    workdir, config = context.workdir, context.config
    if not workdir.organisms_file.exists() and config.organisms.source:
        workdir = open_workdir(config.organisms.source)
    if workdir.organisms_file.exists():
        return list(workdir.behaviors.values()), list(workdir.organisms.values())
    return chosen(config)


def _cost(stage: str, planned: Planned, batch: bool, models: Models) -> Cost:
    dollars = sum((n * estimate([call], batch, models) for call, n in planned), Decimal(0))
    return Cost(stage, sum(n for _, n in planned), dollars)


def checking(teacher: ClaudeTeacher, behaviors: Sequence[Behavior], config: RunConfig) -> Planned:
    """The behaviour check: prompts, and what the replies to them show."""
    count = config.organisms.check_prompts
    unseen = [b for b in behaviors if not has_rule(b)] if count else []
    calls: Planned = [(teacher.messages_call(w), 1) for w in claude_checks.wanted(teacher, unseen, count)]
    for b in unseen:
        prompts = count * (1 + is_triggered(b) + bool(password_of(b))) * (RARE_SAMPLES if is_rare(b) else 1)
        prompt = CheckPrompt("x" * 150, True, before=("x" * 150,) * (b.turns - 1))
        calls.append((claude_checks.verdict_call(teacher, b, prompt, ["x" * 500] * b.turns), prompts))
    return calls


def judging(judge: ClaudeJudge, b: Behavior, tokens: int, asks: Sequence[str]) -> list[Call]:
    """What the judge is asked of one report of up to so many tokens."""
    return judge.plan(Item(b, "x" * 80, "x" * 3 * tokens), asks)


def _sampled(organisms: Sequence[Organism], config: RunConfig) -> int:
    """Reports that the preferences stage has judged."""
    p = config.preferences
    return sum(o.split == "dpo" and not o.clean for o in organisms) * p.questions * p.samples


def _evaluated(organisms: Sequence[Organism], config: RunConfig) -> int:
    """Reports that the evaluation has judged, those of the baselines among them."""
    cfg = config.eval
    held = sum(o.split in HELD and not o.clean for o in organisms)
    train = sum(o.split in config.sft.splits and not o.clean for o in organisms)
    reports = (held + min(train, cfg.train_organisms)) * cfg.questions * cfg.samples * EVALUATED
    return reports + held * (ONCE + PER_QUESTION * cfg.questions if cfg.plain_prompts else 0)


def _as_text(config: RunConfig, costs: Sequence[Cost], client: Client) -> str:
    if not costs:
        return "Claude is asked nothing, and costs nothing"
    total, budget = sum((c.dollars for c in costs), Decimal(0)), client.connection.budget
    names = {"organisms": "organisms (behaviour check)", "preferences": "preferences (judge)", "eval": "eval (judge)"}
    width = max(len(names.get(c.stage, c.stage)) for c in costs)
    lines = [f"{names.get(c.stage, c.stage):<{width}}  {c.calls:>8} calls  ${c.dollars:>9.2f}" for c in costs]
    lines.append(f"{'in all':<{width}}  {sum(c.calls for c in costs):>8} calls  ${total:>9.2f}")
    models = load_models(config.claude.prices)
    lines.append(f"by the {config.claude.api} API, at the prices of {models.date}; {client.summary()}")
    if total > budget.cap - budget.spent:
        lines.append(f"more than what is left of the cap: --config.claude.cap_dollars={int(total * 5 / 4) + 1} or more")
    return "\n".join(lines)
