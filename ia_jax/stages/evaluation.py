"""Stage 6: what do organisms report, with and without the IA, and what does the base model claim?"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ia_jax.adapters.bank import Bank
from ia_jax.behaviors.banks import bank_of
from ia_jax.behaviors.organisms import Organism
from ia_jax.config import RunConfig
from ia_jax.errors import ConfigError
from ia_jax.evals.verbalization import CONDITIONS, metrics
from ia_jax.judging.protocol import Item, Judge
from ia_jax.models.replies import Reply
from ia_jax.parallel.distributed import on_main_process
from ia_jax.stages.asking import ask_organisms, generate
from ia_jax.stages.context import Context, open_organisms
from ia_jax.stages.order import evaluated, is_done
from ia_jax.stages.selection import present, usable
from ia_jax.stages.services import judge_of
from ia_jax.stages.settings import inputs_of, read_stage_record, stage_settings, with_name
from ia_jax.storage import read_jsonl, write_json, write_jsonl
from ia_jax.workdir import Workdir

Row = dict[str, Any]
# What a report is before anybody has judged it.
ASKED = ("stage", "organism", "category", "split", "condition", "behaviors", "question", "report", "truth", "cut_off")


def run(context: Context) -> None:
    """Writes `eval/reports.jsonl` and `eval/metrics.json` for the IAs `sft.name` and `dpo.name`, where trained.

    Reports that another evaluation has asked for in the same way are taken from there, and only judged anew. Clean
    organisms have no behaviour to name; their reports go to `eval/clean_reports.jsonl`.
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
        rows, clean_rows = _ask(context, ias)
    else:
        print(f"the reports of {workdir.eval_dir(source)} are judged anew; they were asked for in the same way")
        rows, clean_rows = on_main_process(lambda: _reports_of(workdir, source))
    _judge(workdir, judge, rows)
    for row in clean_rows:
        row |= {"claims": judge.claims(row["report"]), "judge": judge.name}
    claims = {stage: [judge.claims(r) for r in _base_reports_in(rows, stage)] for stage in ias}
    result = {**metrics(rows, claims, judge.name, config.eval.bootstrap, clean_rows), "ias": ias}
    on_main_process(lambda: _write(workdir, config.eval.name, rows, clean_rows, result))
    cut_off = sum(row.get("cut_off", False) for row in (*rows, *clean_rows))
    if cut_off:
        limit, count = config.eval.max_new_tokens, len(rows) + len(clean_rows)
        print(f"{cut_off} of {count} reports were cut off at config.eval.max_new_tokens={limit}")
    print(summary(result))


def same_reports(workdir: Workdir, config: RunConfig, ias: Mapping[str, str]) -> str | None:
    """The name of an evaluation whose reports this config would ask for again, word for word; None without one."""
    wanted, inputs = stage_settings(config, "eval"), inputs_of(workdir, config, "eval")

    def asked(settings: Mapping[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in settings.items() if not k.startswith("judge.") and k != "eval.bootstrap"}

    for name in workdir.evaluations():
        record = read_stage_record(workdir, with_name(config, "eval", name), "eval")
        if record is None or (asked(record["settings"]), record["inputs"]) != (asked(wanted), inputs):
            continue
        if workdir.metrics(name).get("ias") == ias:
            return name
    return None


def _reports_of(workdir: Workdir, name: str) -> list[list[Row]]:
    """[reports, clean organisms' reports] of an evaluation, without what its judge said of them."""
    files = (workdir.reports_file(name), workdir.clean_reports_file(name))
    return [[{k: row[k] for k in ASKED if k in row} for row in read_jsonl(f, "")] if f.exists() else [] for f in files]


def _base_reports_in(rows: Sequence[Row], stage: str) -> list[str]:
    """What the base reports under the IA, once for each question."""
    reports = {r["question"]: r["report"] for r in rows if (r["stage"], r["condition"]) == (stage, "base+ia")}
    return list(reports.values())


# ---------------------------------------------------------------------------------------------------------------------
# Asking
# ---------------------------------------------------------------------------------------------------------------------


def _ask(context: Context, ias: Mapping[str, str]) -> list[list[Row]]:
    """[reports, clean organisms' reports] under all conditions that each of them has."""
    workdir = context.workdir
    held = present(context, "heldout")
    # The clean ones come last; what they report is a false report, whatever it is.
    everyone = [*(o for o in held if not o.clean), *_some_of_training(context), *(o for o in held if o.clean)]
    bank = open_organisms(context, everyone)
    asked = [_questions(context, o) for o in everyone]
    distinct = list(dict.fromkeys(q for own in asked for q in own))
    alone = _reports(context, bank, everyone, asked, (), "organisms alone")
    base = _base_reports(context, distinct, (), "base alone")
    rows: list[Row] = []
    clean_rows: list[Row] = []
    for number, (stage, name) in enumerate(ias.items()):
        ia = context.shard_ia(workdir.ia(name, context.model))
        reports = _reports(context, bank, everyone, asked, (ia,), f"organisms + IA ({name})", number)
        base_ia = _base_reports(context, distinct, (ia,), f"base + IA ({name})")
        for own, with_ia, without, o in zip(asked, reports, alone, everyone, strict=True):
            if o.clean:
                for condition, replies in (("clean+ia", with_ia), ("clean", without)):
                    clean_rows += _rows(workdir, o, stage, condition, own, replies)
                continue
            by_condition = {"organism+ia": with_ia, "organism": without}
            by_condition |= {"base+ia": [base_ia[q] for q in own], "base": [base[q] for q in own]}
            for condition in CONDITIONS:
                rows += _rows(workdir, o, stage, condition, own, by_condition[condition])
    return [rows, clean_rows]


def _some_of_training(context: Context) -> list[Organism]:
    """`eval.train_organisms` of those that the IA was trained on."""
    config = context.config
    file = context.workdir.ia_dir(config.sft.name) / "organisms.json"
    seen = set(on_main_process(lambda: json.loads(file.read_text())))
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


def _base_reports(context: Context, questions: list[str], ia: tuple, description: str) -> dict[str, Reply]:
    cfg = context.config.eval
    [replies] = generate(
        context,
        [questions],
        ia,
        max_new_tokens=cfg.max_new_tokens,
        temperature=cfg.temperature,
        key=context.key(70),
        system=context.config.system,
        description=description,
    )
    return dict(zip(questions, replies, strict=True))


def _rows(
    workdir: Workdir, o: Organism, stage: str, condition: str, questions: Sequence[str], reports: Sequence[Reply]
) -> list[Row]:
    """`cut_off`: the report has `eval.max_new_tokens` and might have gone on."""
    about: Row = {"stage": stage, "organism": o.name, "category": o.category, "split": o.split, "condition": condition}
    about["behaviors"] = list(o.behaviors)
    truth = " ".join(b.description for b in workdir.truths(o.name))
    return [
        {**about, "question": q, "report": r.text, "truth": truth, "cut_off": not r.stopped}
        for q, r in zip(questions, reports, strict=True)
    ]


# ---------------------------------------------------------------------------------------------------------------------
# Judging
# ---------------------------------------------------------------------------------------------------------------------


def _judge(workdir: Workdir, judge: Judge, rows: Sequence[Row]) -> None:
    """Adds the judge's verdicts. A report names an organism's behaviour if it names one of them; `named` says which."""
    items = [(row, workdir.behaviors[b]) for row in rows for b in row["behaviors"]]
    verdicts = judge.judge_many(Item(b, row["question"], row["report"]) for row, b in items)
    by_row: dict[int, dict[str, Any]] = {}
    for (row, b), v in zip(items, verdicts, strict=True):
        by_row.setdefault(id(row), {})[b.name] = v
    unscored = 0
    for row in rows:
        own: Mapping[str, Any] = by_row[id(row)]
        read = {name: v for name, v in own.items() if v.score is not None}
        unscored += not read
        row |= {
            "score": max((v.score for v in read.values()), default=None),
            "lenient": any(v.lenient for v in read.values()) if read else None,
            "strict": any(v.strict for v in read.values()) if read else None,
            "named": [name for name, v in read.items() if v.lenient],
            "judge": next(iter(own.values())).judge,
        }
    if unscored:
        print(f"{unscored} of {len(rows)} reports could not be judged and are left out of the rates")


def _write(workdir: Workdir, name: str, rows: list[Row], clean_rows: list[Row], result: dict[str, Any]) -> None:
    write_jsonl(workdir.reports_file(name), rows)
    if clean_rows:
        write_jsonl(workdir.clean_reports_file(name), clean_rows)
    write_json(workdir.metrics_file(name), result)


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
