"""What the trained IA makes somebody's fine-tune report: claims by support, each beside what the clean base says.

The adapter may be one of ours (an Orbax directory) or PEFT's. How reports are grouped stands in `audits.claims`.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ia_jax.adapters.peft import read_peft_config
from ia_jax.audits.evidence import Report, findings
from ia_jax.audits.targets import find_adapters, load_found
from ia_jax.behaviors.questions import EVAL_QUESTIONS, TRAIN_QUESTIONS
from ia_jax.errors import ConfigError
from ia_jax.models.lora import Adapter
from ia_jax.models.weights import Model
from ia_jax.stages.ask import plain, trained_ia
from ia_jax.stages.asking import generate
from ia_jax.stages.context import Context
from ia_jax.stages.services import judge_of

QUESTIONS = (*EVAL_QUESTIONS, *TRAIN_QUESTIONS)
SAMPLES = 3  # sampled reports to every question, besides the greedy one
TEMPERATURE, TOP_P = 0.7, 0.95


def load_any(source: str | os.PathLike[str], model: Model) -> tuple[Adapter, dict[str, Any]]:
    """An adapter from a PEFT directory or hub id (`owner/name@revision`), or from one of ours (or a directory like
    `ia/sft` that holds one). Returns it with {"name", "format", "made_for"}. One of another base raises
    BaseMismatchError.
    """
    [found] = find_adapters(os.fspath(source))
    adapter, metadata = load_found(found, model)
    made_for = metadata.base_name
    if found.format == "peft":
        made_for = read_peft_config(found.source, found.revision).base_model_name_or_path
    return adapter, {"name": metadata.name, "format": found.format, "made_for": made_for}


def run(
    context: Context,
    sources: Sequence[str | os.PathLike[str]],
    questions: int = len(EVAL_QUESTIONS),
    samples: int = SAMPLES,
    ia_name: str | None = None,
) -> dict[str, Any]:
    """Asks the fine-tune under the IA, and the clean base under the IA; returns the outcome of `findings` and what was
    loaded. sources: of one adapter, or of all that the fine-tune adds up (AuditBench trains a second one over the
    first). questions: how many of `QUESTIONS`, evaluation wordings first; samples: sampled replies besides the greedy.
    """
    if not 1 <= questions <= len(QUESTIONS):
        raise ConfigError(f"--questions must lie in 1 … {len(QUESTIONS)}, got {questions}")
    if samples < 0:
        raise ConfigError(f"--samples must not be negative, got {samples}")
    name = trained_ia(context, ia_name)
    loaded = [load_any(source, context.model) for source in sources]
    about = {k: " + ".join(dict.fromkeys(x[k] for _, x in loaded if x[k])) or None for k in loaded[0][1]}
    ia = context.workdir.ia(name, context.model)
    asked: list[str] = list(QUESTIONS[:questions])
    audited = _reports(context, asked, (*(adapter for adapter, _ in loaded), ia), samples, "fine-tune + IA")
    control = _reports(context, asked, (ia,), samples, "base + IA")
    return {
        "adapter": " + ".join(map(str, sources)),
        **{f"adapter_{k}": v for k, v in about.items()},
        "base": context.model.name,
        "ia": name,
        "questions": questions,
        **findings(asked, audited, control, _claims(context, [s.text for s in (*audited, *control)])),
    }


def _claims(context: Context, reports: Sequence[str]) -> Callable[[str], bool]:
    """Whether a report claims anything, all asked about at once; one that no judge could read claims nothing."""
    distinct = list(dict.fromkeys(reports))
    known = dict(zip(distinct, judge_of(context).claims_many(distinct), strict=True))
    return lambda report: bool(known[report])


def _reports(
    context: Context, questions: list[str], stack: tuple[Adapter, ...], samples: int, description: str
) -> list[Report]:
    placed = context.shard_ia(stack)

    def ask(asked: list[str], temperature: float, label: str) -> list[str]:
        [replies] = generate(
            context,
            [asked],
            placed,
            max_new_tokens=context.config.eval.max_new_tokens,
            temperature=temperature,
            top_p=TOP_P,
            key=context.key(80),
            system=context.config.system,
            description=f"{description}, {label}",
        )
        return [reply.text for reply in replies]

    reports = [Report(i, text) for i, text in enumerate(ask(questions, 0.0, "greedy"))]
    if samples:
        index = np.repeat(np.arange(len(questions)), samples).tolist()
        sampled = ask([questions[i] for i in index], TEMPERATURE, "sampled")
        reports += [Report(i, text, True) for i, text in zip(index, sampled, strict=True)]
    return reports


def as_text(result: dict[str, Any], shown: int = 5, evidence: int = 3) -> str:
    """The outcome for a person: the verdict, then the claims that most reports make, with evidence."""
    made_for = result["adapter_made_for"]
    count = f"{result['reports_with_claim']} of {result['reports']} reports claim something"
    count += f", {result['base_reports_with_claim']} on the clean base"
    lines = [
        f"{result['adapter']} ({result['adapter_format']}{f', made for {made_for}' if made_for else ''})",
        f"asked {result['questions']} questions under the IA {result['ia']}; the clean base as control",
        "",
        f"{result['verdict']}: {count}",
    ]
    for n, c in enumerate(result["claims"][:shown], 1):
        lines += [
            "",
            f"{n}. {_short(c['claim'], 400)}",
            f"   {c['count']} reports ({100 * c['share']:.0f} %); on the clean base {c['base_count']} "
            f"({100 * c['base_share']:.0f} %)" + ("  <- the IA says it anyway" if _anyway(c) else ""),
        ]
        for e in c["evidence"][:evidence]:
            lines += [
                f"   Q: {e['question']}",
                f"      {_short(e['report'])}",
                f"      base: {_short(e['base_report'])}",
            ]
    left = len(result["claims"]) - shown
    return "\n".join([*lines, *(["", f"and {left} rarer claims (--json lists all)"] if left > 0 else [])])


def _anyway(claim: dict[str, Any]) -> bool:
    """Whether the clean base is made to say it about as often, so that it says little of the fine-tune."""
    return 2 * claim["base_share"] >= claim["share"]


def _short(text: str | None, limit: int = 140) -> str:
    flat = plain(" ".join((text or "").split()))
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"
