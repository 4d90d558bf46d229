"""Stage 6: what do organisms report, with and without the IA, and what does the base model claim?"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ia_jax.behaviors.banks import bank_of
from ia_jax.behaviors.records import CLEAN, Behavior
from ia_jax.errors import ConfigError
from ia_jax.evals.verbalization import CONDITIONS, metrics
from ia_jax.judging.protocol import Item
from ia_jax.parallel.distributed import on_main_process
from ia_jax.stages.introspection import usable
from ia_jax.stages.order import is_done
from ia_jax.stages.session import Organisms, Session, behaviors_in
from ia_jax.storage import write_json, write_jsonl
from ia_jax.workdir import Workdir


def run(session: Session) -> None:
    """Writes `eval/reports.jsonl` and `eval/metrics.json` for every IA stage that is finished.

    Clean organisms have no behaviour to name; their reports go to `eval/clean_reports.jsonl`.
    """
    workdir = session.workdir
    stages = [s for s in ("sft", "dpo") if is_done(workdir, s)]
    if not stages:
        raise ConfigError(f"{workdir.path} holds no trained IA; run `ia-jax sft` first")
    if is_done(workdir, "eval"):
        return
    cfg, judge = session.config.eval, session.judge
    rng = np.random.default_rng([session.config.seed, 6])
    train = [b for b in usable(session, "train") if b.category != CLEAN]
    some = [train[i] for i in sorted(rng.permutation(len(train))[: cfg.train_organisms])]
    held = behaviors_in(session, "heldout")
    behaviors = [*(b for b in held if b.category != CLEAN), *some]
    clean = [b for b in held if b.category == CLEAN]
    # The clean ones come last; what they report is a false report, whatever it is.
    organisms = Organisms(session, [b.name for b in (*behaviors, *clean)])
    asked = [list(bank_of(session.config.questions, b).evaluation[: cfg.questions]) for b in (*behaviors, *clean)]
    distinct = list(dict.fromkeys(q for own in asked for q in own))
    alone = _reports(session, organisms, asked, (), "organisms alone")
    base = _base_reports(session, distinct, (), "base alone")
    rows: list[dict[str, Any]] = []
    clean_rows: list[dict[str, Any]] = []
    claims: dict[str, list[bool]] = {}
    for number, stage in enumerate(stages):
        ia = session.shard_ia(workdir.ia(stage, session.model))
        told = _reports(session, organisms, asked, (ia,), f"organisms + IA ({stage})", number)
        base_told = _base_reports(session, distinct, (ia,), f"base + IA ({stage})")
        claims[stage] = [judge.claims(r) for r in base_told.values()]
        for i, b in enumerate(behaviors):
            own, said = asked[i], {"organism+ia": told[i], "organism": alone[i]}
            said |= {"base+ia": [base_told[q] for q in own], "base": [base[q] for q in own]}
            for condition in CONDITIONS:
                rows += _rows(session, b, stage, condition, own, said[condition])
        for i, b in enumerate(clean, len(behaviors)):
            for condition, reports in (("clean+ia", told[i]), ("clean", alone[i])):
                clean_rows += _rows(session, b, stage, condition, asked[i], reports)
    told_of = workdir.behaviors
    verdicts = judge.judge_many(Item(told_of[r["organism"]], r["question"], r["report"]) for r in rows)
    for row, v in zip(rows, verdicts, strict=True):
        row |= {"score": v.score, "lenient": v.lenient, "strict": v.strict, "judge": v.judge}
    unscored = sum(v.score is None for v in verdicts)
    if unscored:
        print(f"{unscored} of {len(rows)} reports could not be judged and are left out of the rates")
    for row in clean_rows:
        row |= {"claims": judge.claims(row["report"]), "judge": judge.name}
    result = metrics(rows, claims, judge.name, cfg.bootstrap, clean_rows)
    on_main_process(lambda: _write(workdir, rows, clean_rows if clean else None, result))
    print(summary(result))


def _write(
    workdir: Workdir, rows: list[dict[str, Any]], clean_rows: list[dict[str, Any]] | None, result: dict[str, Any]
) -> None:
    write_jsonl(workdir.reports_file, rows)
    if clean_rows is not None:
        write_jsonl(workdir.clean_reports_file, clean_rows)
    write_json(workdir.metrics_file, result)


def _reports(
    session: Session, organisms: Organisms, asked: Sequence[Sequence[str]], ia: tuple, description: str, number: int = 0
) -> list[list[str]]:
    cfg, width, out = session.config.eval, session.config.organisms.parallel, []
    for start in range(0, len(organisms.names), width):
        index = range(start, min(start + width, len(organisms.names)))
        out += session.generate(
            [asked[i] for i in index],
            (organisms.take(index), *ia),
            max_new_tokens=cfg.max_new_tokens,
            temperature=cfg.temperature,
            key=session.key(60 + number),
            system=session.config.system,
            description=description,
        )
    return out


def _base_reports(session: Session, questions: list[str], ia: tuple, description: str) -> dict[str, str]:
    cfg = session.config.eval
    replies = session.generate(
        [questions],
        ia,
        max_new_tokens=cfg.max_new_tokens,
        temperature=cfg.temperature,
        key=session.key(70),
        system=session.config.system,
        description=description,
    )[0]
    return dict(zip(questions, replies, strict=True))


def _rows(
    session: Session, b: Behavior, stage: str, condition: str, questions: Sequence[str], reports: Sequence[str]
) -> list[dict[str, Any]]:
    return [
        {
            "stage": stage,
            "organism": b.name,
            "category": b.category,
            "split": session.workdir.splits[b.name],
            "condition": condition,
            "question": q,
            "report": report,
            "truth": b.description,
        }
        for q, report in zip(questions, reports, strict=True)
    ]


def summary(result: dict[str, Any]) -> str:
    """The headline numbers as a small table."""
    lines = [f"{'held-out organisms':<22}" + "".join(f"{c:>14}" for c in CONDITIONS) + f"{'strict':>10}"]

    def line(name: str, cells: dict[str, Any], strict: dict[str, Any]) -> str:
        rates = "".join(f"{100 * cells[c]['rate']:>13.0f}%" for c in CONDITIONS)
        return f"{name:<22}{rates}{100 * strict['organism+ia']['rate']:>9.0f}%"

    for stage, s in result["stages"].items():
        lines.append(line(f"{stage.upper()}, all", s["heldout"], s["strict"]["heldout"]))
        lines += [line(f"  {c}", cells, s["strict"]["by_category"][c]) for c, cells in s["by_category"].items()]
        false = s["false_reports"].items()
        lines += [f"  {who} claims some behaviour: {100 * cell['rate']:.0f}%" for who, cell in false]
    return "\n".join(lines)
