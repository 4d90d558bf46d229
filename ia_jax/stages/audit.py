"""What the trained IA makes somebody's fine-tune report: claims by support, each beside what the clean base says; with
a calibration, how probable each is and why, or that we can't tell.

The fine-tune is an adapter of ours (an Orbax directory) or PEFT's, several of them, or a checkpoint. Reports are
grouped by their content words (`audits.evidence.grouping`); whether one claims anything is the judge's `claims`.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ia_jax.adapters.peft import read_peft_config
from ia_jax.audits.evidence.calibration import Calibration, judged, overall
from ia_jax.audits.evidence.findings import findings
from ia_jax.audits.evidence.kinds import in_words
from ia_jax.audits.targets import find_adapters, load_found
from ia_jax.behaviors.questions import EVAL_QUESTIONS
from ia_jax.errors import ConfigError
from ia_jax.models.lora import Adapter
from ia_jax.models.weights import Model
from ia_jax.stages.ask import plain, trained_ia
from ia_jax.stages.calibrate import descriptions, known_null_tables, null_bank, read_calibration
from ia_jax.stages.checkpoint import Checkpoint, read_checkpoint
from ia_jax.stages.context import Context
from ia_jax.stages.evidence import (
    QUESTIONS,
    Beside,
    Subject,
    Weighed,
    ask_stack,
    claiming,
    group,
    null_tables,
    reports_of,
    weigh,
)

SAMPLES = 3  # sampled reports to every question, besides the greedy one


def load_any(source: str | os.PathLike[str], model: Model) -> tuple[Adapter, dict[str, Any]]:
    """An adapter from a PEFT directory or hub id (`owner/name@revision`), or from one of ours (or a directory like
    `ia/sft` that holds one).

    Returns it with {"name", "format", "made_for"}. One of another base raises BaseMismatchError.
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
    *,
    checkpoint: str | None = None,
    rank: int | None = None,
    evidence: bool = False,
) -> dict[str, Any]:
    """Asks the fine-tune under the IA, and the clean base under the IA; returns the outcome of `findings`, all reports,
    and what was loaded.

    sources: of one adapter, or of all that the fine-tune adds up (AuditBench trains a second one over the first).
    checkpoint: a fine-tune's full weights, beneath them; rank: to which its difference is cut. questions: how many of
    `QUESTIONS`, evaluation wordings first; samples: sampled replies besides the greedy. Evidence is measured where the
    IA has a calibration, or with `evidence`.
    """
    if not 1 <= questions <= len(QUESTIONS):
        raise ConfigError(f"--questions must lie in 1 … {len(QUESTIONS)}, got {questions}")
    if samples < 0:
        raise ConfigError(f"--samples must not be negative, got {samples}")
    name = trained_ia(context, ia_name)
    calibration = read_calibration(context, name)
    loaded = [load_any(source, context.model) for source in sources]
    keys = ("name", "format", "made_for")
    about = {k: " + ".join(dict.fromkeys(x[k] for _, x in loaded if x[k])) or None for k in keys}
    full = read_checkpoint(context, checkpoint, rank) if checkpoint else Checkpoint(None, None, (), "")
    if checkpoint:
        about = {
            "name": " + ".join(filter(None, (Path(checkpoint).name, about["name"]))),
            "format": " + ".join(filter(None, ("checkpoint", about["format"]))),
            "made_for": about["made_for"],
        }
    ia = context.shard_ia(context.workdir.ia(name, context.model))
    stack = (*full.adapters, *(adapter for adapter, _ in loaded))
    theirs = context if full.params is None else context.with_weights(full.params)
    asked: list[str] = list(QUESTIONS[:questions])
    ask = ask_stack(theirs, tuple(map(context.shard_ia, stack)), ia, context.config.system)
    base = ask_stack(context, (), ia, context.config.system)
    [audited] = reports_of(context, ask, 1, asked, samples, "fine-tune + IA")
    [control] = reports_of(context, base, 1, asked, samples, "base + IA")
    known = claiming(context, [r.text for r in (*audited, *control)])
    result = {
        "adapter": " + ".join(map(str, filter(None, (checkpoint, *sources)))),
        **{f"adapter_{k}": v for k, v in about.items()},
        "adapter_read_as": full.about or None,
        "base": context.model.name,
        "ia": name,
        "questions": questions,
        **findings(asked, audited, control, known.__getitem__),
        "all_reports": [
            {"question": asked[r.question], "report": r.text, "sampled": r.sampled, "claims": known[r.text]}
            for r in audited
        ],
    }
    if calibration is None and not evidence:
        return result | {"calibration": None}
    made = group(audited, control, known)
    held = Beside(
        ia,
        control,
        null_bank(context, list(calibration.made_of["bank"].values()) if calibration else []),
        calibration.made_of["null_reports"] if calibration else (),
        descriptions(context, name),
    )
    subject = Subject(stack, full.at_dose, context.config.system)
    known = known_null_tables(context, calibration, questions)
    nulls = known | null_tables(context, [subject], [made], held, asked, known)
    [weighed] = weigh(context, [subject], [audited], [made], held, nulls, asked, ask)
    return with_evidence(result, weighed, calibration)


def with_evidence(
    result: dict[str, Any], weighed: Sequence[Weighed], calibration: Calibration | None
) -> dict[str, Any]:
    """The outcome with each claim's evidence, probability and verdict; the rarest were not weighed and have none.

    calibration: None for none, and nothing can be told.
    """
    by_text = {w.claim.text: w for w in weighed}
    nulls = len(calibration.made_of["bank"]) if calibration else 0
    claims = []
    for claim in result["claims"]:
        w = by_text.get(claim["claim"])
        if w is None:
            claims.append(claim | {"verdict": None})
            continue
        found = judged(calibration, w.values)
        claims.append(
            claim
            | {
                "verdict": found.verdict,
                "probability": found.probability,
                "p_null": found.p_null,
                "why": found.why,
                "values": w.values,
                "lines": in_words(w.values, nulls),
                "deeds": w.deeds,
            }
        )
    rests = None
    if calibration is not None:
        rests = {"alpha": calibration.alpha, "threshold": calibration.threshold, "nulls": len(calibration.null_scores)}
    conclusion = overall([c["verdict"] for c in claims if c["verdict"]])
    return result | {"claims": claims, "conclusion": conclusion, "calibration": rests}


def as_text(result: dict[str, Any], shown: int = 5, evidence: int = 3) -> str:
    """The outcome for a person: the verdict, then the claims that most reports make, with evidence."""
    made_for = result["adapter_made_for"]
    count = f"{result['reports_with_claim']} of {result['reports']} reports claim something"
    count += f", {result['base_reports_with_claim']} on the clean base"
    lines = [
        f"{result['adapter']} ({result['adapter_format']}{f', made for {made_for}' if made_for else ''})",
        *([f"read as {result['adapter_read_as']}"] if result.get("adapter_read_as") else []),
        f"asked {result['questions']} questions under the IA {result['ia']}; the clean base as control",
        "",
        f"{result['verdict']}: {count}",
        *_conclusion(result),
    ]
    for n, c in enumerate(result["claims"][:shown], 1):
        lines += [
            "",
            f"{n}. {_short(c['claim'], 400)}",
            f"   {c['count']} reports ({100 * c['share']:.0f} %); on the clean base {c['base_count']} "
            f"({100 * c['base_share']:.0f} %)" + ("  <- the IA says it anyway" if _anyway(c) else ""),
        ]
        lines += [f"   {line}" for line in _weighed(c)]
        for e in c["evidence"][:evidence]:
            lines += [
                f"   Q: {e['question']}",
                f"      {_short(e['report'])}",
                f"      base: {_short(e['base_report'])}",
            ]
    left = len(result["claims"]) - shown
    return "\n".join([*lines, *(["", f"and {left} rarer claims (--json lists all)"] if left > 0 else [])])


def _conclusion(result: dict[str, Any]) -> list[str]:
    if "conclusion" not in result:
        return ["how far to believe it is not known: run `ia-jax calibrate` once for this IA"]
    rests = result["calibration"]
    if rests is None:
        return [f"{result['conclusion']}: this IA has no calibration; run `ia-jax calibrate`"]
    rate = (
        f"false for at most {100 * rests['alpha']:g} % of clean fine-tunes like the {rests['nulls']} that this rests on"
    )
    return [f"{result['conclusion']} (reported above {rests['threshold']:.3f}; {rate})"]


def _weighed(claim: dict[str, Any]) -> list[str]:
    if not claim.get("verdict"):
        return []
    p = claim["probability"]
    sure = f"right with probability {p:.2f}, p {claim['p_null']:.2f} among nulls" if p is not None else claim["why"]
    return [f"{claim['verdict']}: {sure}", *claim["lines"]]


def _anyway(claim: dict[str, Any]) -> bool:
    """Whether the clean base is made to say it about as often, so that it says little of the fine-tune."""
    return 2 * claim["base_share"] >= claim["share"]


def _short(text: str | None, limit: int = 140) -> str:
    flat = plain(" ".join((text or "").split()))
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"
