"""`ia-jax calibrate`: how much the reports of an IA are to be believed, learned from models that it never saw.

Its rows are kept one model at a time in `ia/<name>/evidence.jsonl`, what claims are held against in
`evidence_nulls.jsonl`, so that a killed calibration goes on where it was.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from ia_jax.adapters.bank import Bank, open_bank
from ia_jax.adapters.store import is_complete, load_adapter, read_metadata
from ia_jax.audits.evidence.calibrating import calibrate, figures_on
from ia_jax.audits.evidence.calibration import Calibration, Row
from ia_jax.audits.evidence.calibration_words import in_words
from ia_jax.behaviors.organisms import Organism, seed_of
from ia_jax.errors import ConfigError
from ia_jax.judging.protocol import Item
from ia_jax.models.weights import DTYPES
from ia_jax.parallel.distributed import on_main_process, stop_if_preempted
from ia_jax.stages.ask import trained_ia
from ia_jax.stages.asking import ask_organisms
from ia_jax.stages.calibration_models import Model, audited_models, models_of, trained_on
from ia_jax.stages.context import Context
from ia_jax.stages.evidence import (
    QUESTIONS,
    TOP_P,
    Ask,
    Beside,
    NullTables,
    Subject,
    ask_stack,
    claiming,
    group,
    null_tables,
    report_judge,
    reports_of,
    weigh,
)
from ia_jax.storage import append_jsonl, read_appended, read_json, write_json
from ia_jax.workdir import Workdir

ALPHA, BANK = 0.05, 8
QUESTIONS_ASKED, SAMPLES = 8, 3
NULL_TABLES = "evidence_nulls.jsonl"  # how likely claims are under the nulls that they are compared with


def calibration_file(workdir: Workdir, ia: str) -> Path:
    return workdir.ia_dir(ia) / "calibration.json"


def run(
    context: Context,
    *,
    ia: str | None = None,
    splits: Sequence[str] = (),
    nulls: Sequence[str] = (),
    test: Sequence[str] = (),
    test_sorts: Sequence[str] = (),
    audits: Sequence[str] = (),
    alpha: float = ALPHA,
    bank: int = BANK,
    questions: int = QUESTIONS_ASKED,
    samples: int = SAMPLES,
    kind: str = "logistic",
) -> str:
    """Writes `ia/<name>/calibration.json`; returns its figures in words.

    splits: of organisms to calibrate on (default: "dpo" for an IA that was not trained on it, else "heldout"). nulls:
    directories of more clean fine-tunes, or of directories of them, besides those of `ia-jax nulls`. test, test_sorts:
    splits whose organisms and sorts whose nulls the calibration doesn't see, and is measured on. audits: finished ones,
    below `audits/`, on whose targets and nulls it is measured as well, each by itself. bank: how many nulls
    claims are only compared with (`evidence.kinds.contrast`). Raises ConfigError, before anything is asked, for too few
    nulls.
    """
    name = trained_ia(context, ia)
    if not 1 <= questions <= len(QUESTIONS):
        raise ConfigError(f"--questions must lie in 1 … {len(QUESTIONS)}, got {questions}")
    _ = context.model  # all processes load it together, so not first inside of what follows
    chosen = on_main_process(
        lambda: [
            [m.to_json() for m in part]
            for part in models_of(context, name, splits, nulls, (test, test_sorts), bank, alpha)
        ]
    )
    models, beside, tested = ([Model.from_json(row) for row in part] for part in chosen)
    known = [*models, *beside, *tested]
    theirs = on_main_process(lambda: [[m.to_json() for m in audited_models(context, name, a, known)] for a in audits])
    of_audits = {a: [Model.from_json(row) for row in own] for a, own in zip(audits, theirs, strict=True)}
    every = [*models, *tested, *(m for own in of_audits.values() for m in own)]
    names = Counter(m.name for m in every)
    if twice := next((name for name, count in names.items() if count > 1), None):
        raise ConfigError(f"--audits: two models are called {twice}, so their evidence could not be told apart")
    settings = {
        "questions": questions,
        "samples": samples,
        "judge": report_judge(context).name,
        "bank": {m.name: [str(d) for d in m.directories] for m in beside},
        "bank_hashes": on_main_process(lambda: {m.name: m.hashes for m in beside}),
    }
    rows, null_reports = _rows(context, name, every, beside, settings)
    of = {own["model"]: own["rows"] for own in rows}
    claims = {m.name: [Row(**{**row, "group": m.group, "null": m.null}) for row in of[m.name]] for m in every}
    metadata = read_metadata(context.workdir.ia_dir(name) / "adapter")
    found = calibrate(
        [row for m in models for row in claims[m.name]],
        *_groups(models),
        alpha=alpha,
        identity={
            "ia": name,
            "ia_hash": metadata.content_hash,
            "base": context.model.name,
            "base_fingerprint": context.model.fingerprint,
        },
        made_of={**settings, "null_reports": null_reports, "bank_sorts": {m.name: m.group for m in beside}},
        kind=kind,
        alike=_alike(models),
    )

    def measured_on(own: Sequence[Model], parts: Mapping[str, str]) -> dict[str, Any]:
        rows = [row for m in own for row in claims[m.name]]
        return figures_on(found, rows, *_groups(own), parts, _alike(own))

    figures = dict(found.figures)
    if tested:
        figures["test"] = measured_on(tested, {m.name: m.organism.split for m in tested if m.organism is not None})
    if of_audits:
        by_making = {a: {m.name: m.group for m in own} for a, own in of_audits.items()}
        figures["audits"] = {a: measured_on(own, by_making[a]) for a, own in of_audits.items()}
    found = replace(found, figures=figures)
    file = calibration_file(context.workdir, name)
    on_main_process(lambda: found.save(file))
    return f"{in_words(found)}\n{file}"


def _groups(models: Sequence[Model]) -> tuple[dict[str, str], dict[str, str]]:
    """{organism: its category}, {null: its sort}."""
    return {m.name: m.group for m in models if not m.null}, {m.name: m.group for m in models if m.null}


def _alike(models: Sequence[Model]) -> dict[str, str]:
    return {m.name: m.alike for m in models}


def read_calibration(context: Context, ia: str) -> Calibration | None:
    """The calibration of this IA, None where there is none. Raises ConfigError for one of another IA or base."""
    file = calibration_file(context.workdir, ia)
    if not on_main_process(file.exists):
        return None
    found = Calibration.load(file)
    content = read_metadata(context.workdir.ia_dir(ia) / "adapter").content_hash
    found.check(file, ia, content, context.model.name, context.model.fingerprint)
    return found


def null_bank(context: Context, directories: Sequence[Sequence[str | Path]]) -> Bank | None:
    """Clean fine-tunes as a bank on the mesh; None for none. Raises ConfigError for one that is gone."""
    for member in (d for own in directories for d in own):
        if not is_complete(member):
            raise ConfigError(f"{member}, a null that claims were compared with, is gone; run `ia-jax calibrate` again")
    if not directories:
        return None
    cfg = context.config.organisms
    return open_bank(
        [tuple(own) for own in directories],
        context.model,
        context.mesh,
        dtype=DTYPES[context.config.model.dtype],
        budget_bytes=round(cfg.bank_gib * 2**30) if cfg.bank_gib else None,
        cache_bytes=round(cfg.cache_gib * 2**30),
    )


def descriptions(context: Context, ia: str) -> list[str]:
    """What an IA was trained to say of organisms."""
    workdir = context.workdir
    return sorted({w for n in trained_on(context, ia) for b in workdir.truths(n) for w in b.wordings})


# ---------------------------------------------------------------------------------------------------------------------
# Their claims, with evidence
# ---------------------------------------------------------------------------------------------------------------------


def _rows(
    context: Context, ia: str, models: Sequence[Model], beside: Sequence[Model], settings: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], list[str]]:
    """Of each model {"model", "rows": [Row as JSON]}, from disk where it is there; and what the bank's nulls report."""
    workdir = context.workdir
    file, how = workdir.ia_dir(ia) / "evidence.jsonl", workdir.ia_dir(ia) / "evidence.json"
    of_nulls = workdir.ia_dir(ia) / NULL_TABLES
    content = read_metadata(workdir.ia_dir(ia) / "adapter").content_hash
    wanted = {"ia_hash": content, **settings}
    kept = on_main_process(lambda: read_json(how, "delete it to begin anew") if how.exists() else None)
    if kept is None or {k: v for k, v in kept.items() if k != "null_reports"} != wanted:
        on_main_process(lambda: [f.unlink(missing_ok=True) for f in (file, of_nulls)])
        kept = None
    there = {row["model"]: row for row in on_main_process(lambda: read_appended(file, "delete it to begin anew"))}
    # Of others of these names, or where something else is true of them, anew.
    stands = on_main_process(lambda: {m.name: {"hashes": m.hashes, "truth": m.truth} for m in models})
    there = {n: row for n, row in there.items() if {k: row.get(k) for k in ("hashes", "truth")} == stands.get(n)}
    questions: list[str] = list(QUESTIONS[: settings["questions"]])
    adapter = context.shard_ia(workdir.ia(ia, context.model))
    bank = null_bank(context, [m.directories for m in beside])
    if kept is None:
        null_reports = _null_reports(context, bank, beside, adapter, questions)
        on_main_process(lambda: write_json(how, {**wanted, "null_reports": null_reports}))
    else:
        null_reports = kept["null_reports"]
    left = [m for m in models if m.name not in there]
    if left:
        [control] = reports_of(
            context,
            ask_stack(context, (), adapter, context.config.system),
            1,
            questions,
            settings["samples"],
            "base + IA",
        )
        held = Beside(adapter, control, bank, null_reports, descriptions(context, ia))
        tables, width = _kept_null_tables(of_nulls, len(questions)), max(1, context.config.organisms.parallel)
        for start in range(0, len(left), width):
            wave = left[start : start + width]
            print(f"evidence {start + 1} to {start + len(wave)} of {len(left)}: {', '.join(m.name for m in wave)}")
            made, new = _weigh_wave(context, wave, held, tables, questions, settings["samples"])
            if new:
                tables |= new
                on_main_process(lambda new=new: append_jsonl(of_nulls, _null_rows(new)))
            made = [{**row, **stands[row["model"]]} for row in made]
            on_main_process(lambda made=made: append_jsonl(file, made))
            there |= {row["model"]: row for row in made}
            stop_if_preempted("calibrate")
    return [there[m.name] for m in models], null_reports


def _null_reports(
    context: Context, bank: Bank | None, beside: Sequence[Model], ia: Any, questions: Sequence[str]
) -> list[str]:
    """Distinct greedy reports of the bank's nulls that claim something."""
    if bank is None:
        return []
    found = reports_of(context, _ask_bank(context, bank, beside, ia), len(beside), questions, 0, "nulls + IA")
    texts = [r.text for own in found for r in own]
    known = claiming(context, texts)
    return sorted({t for t in texts if known[t]})


def _ask_bank(context: Context, bank: Bank, models: Sequence[Model], ia: Any) -> Ask:
    """Replies of the models of a bank, whose order is theirs."""
    stands = [m.organism or _nobody(context, m.name) for m in models]

    def ask(
        questions: Sequence[Sequence[str]], *, ia: bool, temperature: float, tokens: int, description: str
    ) -> list[list[str]]:
        replies = ask_organisms(
            context,
            bank,
            stands,
            questions,
            (adapter,) if ia else (),
            max_new_tokens=tokens,
            temperature=temperature,
            top_p=TOP_P,
            key=context.key(81),
            description=description,
            draws=[seed_of(m.name, context.config.seed) % 2**31 for m in models],  # whoever is asked beside it
        )
        return [[r.text for r in own] for own in replies]

    adapter = ia
    return ask


def _nobody(context: Context, name: str) -> Organism:
    return Organism(name, context.model.name, (), (), "", "")


def _weigh_wave(
    context: Context,
    wave: Sequence[Model],
    beside: Beside,
    tables: NullTables,
    questions: Sequence[str],
    samples: int,
) -> tuple[list[dict[str, Any]], NullTables]:
    """Of each model its claims with their evidence; and how likely those are under nulls that `tables` has not."""
    bank = null_bank(context, [m.directories for m in wave])
    assert bank is not None
    ask = _ask_bank(context, bank, wave, beside.ia)
    reports = reports_of(context, ask, len(wave), questions, samples, "reports")
    known = claiming(context, [r.text for own in (*reports, beside.control) for r in own])
    claims = [group(own, beside.control, known) for own in reports]
    subjects = [_subject(context, m) for m in wave]
    new = null_tables(context, subjects, claims, beside, questions, tables)
    weighed = weigh(context, subjects, reports, claims, beside, tables | new, questions, ask)
    right = _right(context, wave, [[w.claim.text for w in own] for own in weighed])
    out = []
    for model, own, verdicts in zip(wave, weighed, right, strict=True):
        rows = [
            Row(model.name, model.group, model.null, w.claim.text, bool(ok), w.values)
            for w, ok in zip(own, verdicts, strict=True)
            if ok is not None
        ]
        out.append({"model": model.name, "rows": [asdict(r) for r in rows]})
    return out, new


def known_null_tables(context: Context, calibration: Calibration | None, questions: int) -> NullTables:
    """What `ia-jax calibrate` measured of claims under the calibration's nulls; none where its files are of other nulls
    by now, or of another number of questions.
    """
    if calibration is None:
        return {}
    home = context.workdir.ia_dir(calibration.ia)
    how = home / "evidence.json"
    kept = on_main_process(lambda: read_json(how, "delete it to begin anew") if how.exists() else {})
    hashes = calibration.made_of.get("bank_hashes")
    wanted = {"ia_hash": calibration.ia_hash, "questions": questions, "bank_hashes": hashes}
    if {k: kept.get(k) for k in wanted} != wanted:
        return {}
    return _kept_null_tables(home / NULL_TABLES, questions)


def _kept_null_tables(file: Path, questions: int) -> NullTables:
    """What earlier waves measured of claims under nulls."""

    def read() -> list[Any]:
        return [[r["system"], r["claim"], r["on"], r["off"]] for r in read_appended(file, "delete it to begin anew")]

    def table(rows: Sequence[Sequence[float]]) -> np.ndarray:
        return np.array(rows, float).reshape(-1, questions)

    return {(system, text): (table(on), table(off)) for system, text, on, off in on_main_process(read)}


def _null_rows(tables: NullTables) -> list[dict[str, Any]]:
    return [
        {"system": system, "claim": text, "on": on.tolist(), "off": off.tolist()}
        for (system, text), (on, off) in tables.items()
    ]


def _subject(context: Context, model: Model) -> Subject:
    own = model.organism.system if model.organism is not None else None
    adapters = tuple(load_adapter(d, context.model)[0] for d in model.directories)
    return Subject(adapters, system=context.config.system if own is None else own)


def _right(context: Context, models: Sequence[Model], claims: Sequence[Sequence[str]]) -> list[list[bool | None]]:
    """Whether each claim names something true of its model; None where the judge could not say."""
    judge = report_judge(context)
    items, places = [], []
    for i, (model, own) in enumerate(zip(models, claims, strict=True)):
        for j, claim in enumerate(own):
            for behavior in model.truths:
                items.append(Item(behavior, QUESTIONS[0], claim))
                places.append((i, j))
    out: list[list[bool | None]] = [
        [False if m.null else None] * len(own) for m, own in zip(models, claims, strict=True)
    ]
    for (i, j), verdict in zip(places, judge.judge_many(items, ("lenient",)), strict=True):
        if verdict.lenient is not None:
            out[i][j] = bool(out[i][j]) or verdict.lenient
    return out
