"""Stage 6: what do organisms report, with and without the IA, and what does the base model claim?"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ia_jax.adapters.bank import Bank
from ia_jax.adapters.store import is_complete
from ia_jax.behaviors.banks import bank_of
from ia_jax.behaviors.frames import fills_a_frame, frames_of, is_word_for_word, words_of
from ia_jax.behaviors.organisms import Organism, targets
from ia_jax.behaviors.splits import HELD
from ia_jax.config import RunConfig
from ia_jax.errors import ConfigError
from ia_jax.evals.verbalization import CONDITIONS, WITH_IA, metrics
from ia_jax.judging.protocol import Item, Judge, Verdict
from ia_jax.models.replies import Reply
from ia_jax.parallel.distributed import on_main_process
from ia_jax.stages.alone import ask_alone
from ia_jax.stages.asking import ask_organisms, generate
from ia_jax.stages.baselines import baseline_rows
from ia_jax.stages.context import Context, open_organisms
from ia_jax.stages.order import evaluated, is_done
from ia_jax.stages.selection import present, usable
from ia_jax.stages.services import judge_of
from ia_jax.stages.settings import inputs_of, read_stage_record, stage_settings, with_name
from ia_jax.storage import read_json, read_jsonl, write_json, write_jsonl
from ia_jax.workdir import Workdir

Row = dict[str, Any]
# What a report is before anybody has judged it.
ASKED = (
    *("stage", "baseline", "organism", "category", "split", "condition", "behaviors", "question", "report", "truth"),
    *("cut_off", "kind", "unmentioned", "executed", "denies", "making", "candidates"),
)


class Asked(NamedTuple):
    """The reports of an evaluation: of organisms, of clean ones, and those made without an adapter."""

    reports: list[Row]
    clean: list[Row]
    baselines: list[Row]


def run(context: Context) -> None:
    """Writes `eval/reports.jsonl` and `eval/metrics.json` for the IAs `sft.name` and `dpo.name`, where trained.

    Reports that another evaluation has asked for in the same way are taken from there, and only judged anew. Clean
    organisms have no behaviour to name; their reports go to `eval/clean_reports.jsonl`, those that are made without
    an adapter to `eval/baselines.jsonl`.
    """
    workdir, config = context.workdir, context.config
    ias = on_main_process(lambda: evaluated(workdir, config))
    if not ias:
        raise ConfigError(f"{workdir.path} holds no IA {config.sft.name!r}; run `ia-jax sft` first")
    if is_done(context, "eval"):
        return
    judge = judge_of(context)
    source = on_main_process(lambda: same_reports(workdir, config, ias))
    if source is None:
        asked = _asked(context, ias)
    else:
        print(f"the reports of {workdir.eval_dir(source)} are judged anew; they were asked for in the same way")
        asked = Asked(*on_main_process(lambda: list(_reports_of(workdir, source))))
    _judge(workdir, judge, asked.reports)
    _judge(workdir, judge, asked.baselines)
    _mark_frames(workdir, on_main_process(lambda: _training_sentences(context)), asked.reports)
    for row, claims in zip(asked.clean, judge.claims_many(r["report"] for r in asked.clean), strict=True):
        row |= {"claims": claims, "judge": judge.name}
    claimed = {stage: _claimed(judge, base_reports_in(asked.reports, stage)) for stage in ias}
    result = {**metrics(asked.reports, claimed, judge.name, asked.clean, asked.baselines), "ias": ias}
    on_main_process(lambda: _write(workdir, config.eval.name, asked, result))
    cut_off = sum(row.get("cut_off", False) for row in (*asked.reports, *asked.clean))
    if cut_off:
        limit, count = config.eval.max_new_tokens, len(asked.reports) + len(asked.clean)
        print(f"{cut_off} of {count} reports were cut off at config.eval.max_new_tokens={limit}")
    print(summary(result))


def _asked(context: Context, ias: Mapping[str, str]) -> Asked:
    """The reports, which wait on disk until they are judged: a judge may fail, or its money end, and they are kept."""
    workdir, config = context.workdir, context.config
    file = workdir.eval_dir(config.eval.name) / "asked.json"
    how = on_main_process(lambda: {"ias": ias, **_how_asked(workdir, config)})
    kept = on_main_process(lambda: read_json(file, "delete it to ask again") if file.exists() else None)
    if kept is not None and kept["how"] == how:
        return Asked(kept["reports"], kept["clean"], kept["baselines"])
    asked = _ask(context, ias)
    on_main_process(lambda: write_json(file, {"how": how, **asked._asdict()}))
    return asked


def _how_asked(workdir: Workdir, config: RunConfig) -> dict[str, Any]:
    """The settings and inputs that reports depend on: not who judges them."""
    return {"settings": _of_asking(stage_settings(config, "eval")), "inputs": inputs_of(workdir, config, "eval")}


def _of_asking(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in settings.items() if not k.startswith("judge.") and k != "eval.bootstrap"}


def same_reports(workdir: Workdir, config: RunConfig, ias: Mapping[str, str]) -> str | None:
    """The name of an evaluation whose reports this config would ask for again, word for word; None without one."""
    wanted = _how_asked(workdir, config)
    for name in workdir.evaluations():
        record = read_stage_record(workdir, with_name(config, "eval", name), "eval")
        if (
            record is None
            or {**wanted, "settings": _of_asking(record["settings"]), "inputs": record["inputs"]} != wanted
        ):
            continue
        if workdir.metrics(name).get("ias") == ias:
            return name
    return None


def _reports_of(workdir: Workdir, name: str) -> Asked:
    """The reports of an evaluation, without what its judge said of them."""
    files = workdir.reports_file(name), workdir.clean_reports_file(name), workdir.baselines_file(name)
    return Asked(
        *([{k: row[k] for k in ASKED if k in row} for row in read_jsonl(f, "")] if f.exists() else [] for f in files)
    )


def base_reports_in(rows: Sequence[Row], stage: str) -> dict[str, list[str]]:
    """What the base reports under the IA, by question: a reply for each sample."""
    said: dict[tuple[str, str], list[str]] = {}
    for r in rows:
        if (r["stage"], r["condition"]) == (stage, "base+ia"):
            said.setdefault((r["organism"], r["question"]), []).append(r["report"])
    return {question: own for (_, question), own in said.items()}  # whichever organism was asked, it is the base


def _claimed(judge: Judge, reports: Mapping[str, Sequence[str]]) -> dict[str, list[bool]]:
    """Whether each report claims a behaviour, by question; without those that the judge could not read."""
    verdicts = iter(judge.claims_many(r for own in reports.values() for r in own))
    return {question: [c for c in (next(verdicts) for _ in own) if c is not None] for question, own in reports.items()}


# ---------------------------------------------------------------------------------------------------------------------
# Asking
# ---------------------------------------------------------------------------------------------------------------------


def _ask(context: Context, ias: Mapping[str, str]) -> Asked:
    """Reports under all conditions that each organism has, and without an adapter."""
    workdir, cfg = context.workdir, context.config.eval
    held = present(context, *HELD)
    # The clean ones come last; what they report is a false report, whatever it is.
    everyone = [*(o for o in held if not o.clean), *_some_of_training(context), *(o for o in held if o.clean)]
    bank = open_organisms(context, everyone)
    asked = [_questions(context, o) for o in everyone]
    distinct = list(dict.fromkeys(q for own in asked for q in own))
    executed = on_main_process(lambda: executed_of(workdir))
    describe = partial(_about, workdir, executed)
    repeated = [[q for q in own for _ in range(cfg.samples)] for own in asked]
    how = {"max_new_tokens": cfg.max_new_tokens, "temperature": cfg.temperature, "description": "organisms alone"}
    alone = ask_alone(context, bank, everyone, repeated, key=context.key(60), **how)
    base = _base_reports(context, distinct, (), "base alone")
    rows: list[Row] = []
    clean_rows: list[Row] = []
    for number, (stage, name) in enumerate(ias.items()):
        ia = context.shard_ia(workdir.ia(name, context.model))
        reports = _reports(context, bank, everyone, repeated, (ia,), f"organisms + IA ({name})", number)
        base_ia = _base_reports(context, distinct, (ia,), f"base + IA ({name})")
        for own, with_ia, without, o in zip(asked, reports, alone, everyone, strict=True):
            questions = [q for q in own for _ in range(cfg.samples)]
            about = {**describe(o), "stage": stage}
            if o.clean:
                for condition, replies in (("clean+ia", with_ia), ("clean", without)):
                    clean_rows += _rows({**about, "condition": condition}, questions, replies)
                continue
            by_condition = {"organism+ia": with_ia, "organism": without}
            by_condition |= {
                condition: [reply for q in own for reply in said[q]]
                for condition, said in (("base+ia", base_ia), ("base", base))
            }
            for condition in CONDITIONS:
                rows += _rows({**about, "condition": condition}, questions, by_condition[condition])
    return Asked(rows, clean_rows, _without_adapter(context, bank, everyone, asked, describe))


def _without_adapter(
    context: Context,
    bank: Bank,
    everyone: Sequence[Organism],
    asked: Sequence[Sequence[str]],
    describe: Callable[[Organism], Row],
) -> list[Row]:
    """The baselines' reports of held-out organisms; none with `eval.plain_prompts=0`."""
    workdir, cfg = context.workdir, context.config.eval
    if not cfg.plain_prompts:
        return []
    held = [o if o.split in HELD and not o.clean else None for o in everyone]
    name = context.config.sft.shuffled_name
    stored = on_main_process(lambda: is_complete(workdir.ia_dir(name) / "adapter"))
    shuffled = (context.shard_ia(workdir.ia(name, context.model)),) if stored else None
    return baseline_rows(context, bank, held, asked, shuffled, describe)


def _some_of_training(context: Context) -> list[Organism]:
    """`eval.train_organisms` of those that the IA was trained on."""
    config = context.config
    seen = set(on_main_process(lambda: context.workdir.seen(config.sft.name)))
    train = [o for o in usable(context, *config.sft.splits) if o.name in seen and not o.clean]
    rng = np.random.default_rng([config.seed, 6])
    return [train[i] for i in sorted(rng.permutation(len(train))[: config.eval.train_organisms])]


def _questions(context: Context, organism: Organism) -> list[str]:
    truths = context.workdir.truths(organism.name)
    bank = bank_of(context.config.questions, truths[0] if truths else None)
    return list(bank.evaluation[: context.config.eval.questions])


def _reports(
    context: Context,
    bank: Bank,
    organisms: Sequence[Organism],
    asked: Sequence[Sequence[str]],
    ia: tuple,
    description: str,
    number: int = 0,
) -> list[list[Reply]]:
    cfg = context.config.eval
    return ask_organisms(
        context,
        bank,
        organisms,
        asked,
        ia,
        max_new_tokens=cfg.max_new_tokens,
        temperature=cfg.temperature,
        key=context.key(60 + number),
        description=description,
    )


def _base_reports(context: Context, questions: list[str], ia: tuple, description: str) -> dict[str, list[Reply]]:
    """`eval.samples` replies to each question."""
    cfg = context.config.eval
    [replies] = generate(
        context,
        [[q for q in questions for _ in range(cfg.samples)]],
        ia,
        max_new_tokens=cfg.max_new_tokens,
        temperature=cfg.temperature,
        key=context.key(70),
        system=context.config.system,
        description=description,
    )
    return {q: replies[i * cfg.samples : (i + 1) * cfg.samples] for i, q in enumerate(questions)}


def executed_of(workdir: Workdir) -> dict[str, bool]:
    """{organism: whether its check saw it show its behaviour}, of those that were checked."""
    if not workdir.checks_file.exists():
        return {}
    rows = read_jsonl(workdir.checks_file, "run `ia-jax organisms` first")
    return {r["organism"]: bool(r["ok"]) for r in rows if r.get("triggered_rate") is not None}


def _about(workdir: Workdir, executed: Mapping[str, bool], o: Organism) -> Row:
    """What every report of an organism says of it."""
    truths = workdir.truths(o.name)
    phases = o.procedure.get("phases", [])
    return {
        "organism": o.name,
        "category": o.category,
        "split": o.split,
        "behaviors": list(o.behaviors),
        "truth": " ".join(b.description for b in truths),
        "kind": truths[0].kind if len(truths) == 1 else "",
        "unmentioned": bool(truths) and all(b.unmentioned for b in truths),
        "executed": executed.get(o.name),
        "denies": any(p.get("data") == "denials" for p in phases),
        "making": o.sort or o.procedure.get("kind", ""),
    }


def _rows(about: Row, questions: Sequence[str], reports: Sequence[Reply]) -> list[Row]:
    """`cut_off`: the report has `eval.max_new_tokens` and might have gone on."""
    return [
        {**about, "question": q, "report": r.text, "cut_off": not r.stopped}
        for q, r in zip(questions, reports, strict=True)
    ]


# ---------------------------------------------------------------------------------------------------------------------
# Judging
# ---------------------------------------------------------------------------------------------------------------------


def _judge(workdir: Workdir, judge: Judge, rows: Sequence[Row]) -> None:
    """Adds the judge's verdicts. A report names an organism's behaviour if it names one of them; `named` says which.
    Of several candidates one is enough.
    """
    items = [
        (row, workdir.behaviors[b], report)
        for row in rows
        for b in row["behaviors"]
        for report in row.get("candidates", [row["report"]])
    ]
    verdicts = judge.judge_many((Item(b, row["question"], report) for row, b, report in items), ("lenient", "strict"))
    by_row: dict[int, list[tuple[str, Verdict]]] = {}
    for (row, b, _), v in zip(items, verdicts, strict=True):
        by_row.setdefault(id(row), []).append((b.name, v))
    unscored = 0
    for row in rows:
        own = by_row[id(row)]
        read = [(name, v) for name, v in own if v.lenient is not None]
        unscored += not read
        row |= {
            "score": max((v.score for _, v in read if v.score is not None), default=None),
            "lenient": any(v.lenient for _, v in read) if read else None,
            "strict": any(v.strict for _, v in read) if read else None,
            "named": list(dict.fromkeys(name for name, v in read if v.lenient)),
            "judge": own[0][1].judge,
        }
    if unscored:
        print(f"{unscored} of {len(rows)} reports could not be judged and are left out of the rates")


def _training_sentences(context: Context) -> list[str]:
    """All sentences that the IAs of this config were trained to say."""
    workdir, config = context.workdir, context.config
    names = [n for n in workdir.named(*config.sft.splits, "dpo") if n in workdir.organisms]
    return sorted({t for n in names for t in targets(workdir.truths(n))})


def _mark_frames(workdir: Workdir, sentences: Sequence[str], rows: Sequence[Row]) -> None:
    """Says of each report whether a training sentence has the frame of one of the truth's wordings, and of each with an
    IA whether it only repeats a training sentence.
    """
    frames, whole = frames_of(sentences), frozenset(map(words_of, sentences))
    framed = {
        b: not frames.isdisjoint(frames_of(workdir.behaviors[b].wordings))
        for b in {b for r in rows for b in r["behaviors"]}
    }
    for row in rows:
        row["framed"] = any(framed[b] for b in row["behaviors"])
        if row["condition"] == WITH_IA:
            row |= {"frame": fills_a_frame(row["report"], frames), "wording": is_word_for_word(row["report"], whole)}


def _write(workdir: Workdir, name: str, asked: Asked, result: dict[str, Any]) -> None:
    write_jsonl(workdir.reports_file(name), asked.reports)
    others = {workdir.clean_reports_file(name): asked.clean, workdir.baselines_file(name): asked.baselines}
    for file, rows in others.items():
        if rows:
            write_jsonl(file, rows)
    write_json(workdir.metrics_file(name), result)
    (workdir.eval_dir(name) / "asked.json").unlink(missing_ok=True)


def summary(result: dict[str, Any]) -> str:
    """The headline numbers as a small table, with what could be said without an adapter."""
    lines = [f"{'held-out organisms':<22}" + "".join(f"{c:>14}" for c in CONDITIONS) + f"{'strict':>10}"]

    def line(name: str, cells: dict[str, Any], strict: dict[str, Any]) -> str:
        rates = "".join(f"{_rate(cells[c]):>14}" for c in CONDITIONS)
        return f"{name:<22}{rates}{_rate(strict['organism+ia']):>10}"

    for stage, s in result["stages"].items():
        lines.append(line(f"{stage.upper()}, all", s["heldout"], s["strict"]["heldout"]))
        lines += [line(f"  {c}", cells, s["strict"]["by_category"][c]) for c, cells in s["by_category"].items()]
        lines += [line(f"  {c}", cells, s["strict"]["by_mention"][c]) for c, cells in s["by_mention"].items()]
        lines += [line(f"  {name}, apart", s[name], s["strict"][name]) for name in HELD[1:] if name in s]
        lines += [_baseline_line(group, found) for group, found in s["baselines"].items()]
        lines.append(f"  a training sentence with another word in it: {_percent(s['verbatim']['frame'])} of reports")
        false = {who: cell for who, cell in s["false_reports"].items() if who != "by_sort"}
        lines += [f"  {who} claims some behaviour: {_percent(cell)}" for who, cell in false.items()]
    return "\n".join(lines)


def _baseline_line(group: str, found: dict[str, Any]) -> str:
    rates = ", ".join(f"{n} {_rate(cell['lenient'])}" for n, cell in sorted(found["rates"].items()))
    beyond = found["beyond"]
    more = ""
    if beyond:
        low, high = (f"{100 * x:+.0f}" for x in beyond["ci95"])
        more = f"; the IA beyond {found['best']}: {100 * beyond['difference']:+.0f} points ({low} to {high})"
    return f"  without an IA, {group}: {rates}{more}"


def _rate(cell: dict[str, Any]) -> str:
    """Without its interval; "-" where nobody was asked."""
    return "-" if cell["rate"] is None else f"{100 * cell['rate']:.0f}%"


def _percent(cell: dict[str, Any]) -> str:
    low, high = cell["ci95"]
    return _rate(cell) if cell["rate"] is None else f"{_rate(cell)} ({100 * low:.0f}-{100 * high:.0f})"
