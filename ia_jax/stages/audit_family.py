"""`ia-jax audit-family`: targets, gate, self-reports, scaffold, judge, rates; in `DIR/audits/<family>/`.

Every step writes down what it made before the next begins: the targets' adapters, the gate's replies, every unit of
reports. So a killed audit goes on, another judge or scaffold reads the same reports, and nothing is asked twice.
"""

import contextlib
import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ia_jax.adapters.store import is_complete, read_metadata
from ia_jax.audits import asking, cipher_family, covert, gate, scoring
from ia_jax.audits.asking import CONDITIONS, WITH_IA, Unit
from ia_jax.audits.claude_scaffold import ClaudeScaffold
from ia_jax.audits.gate import Outcome
from ia_jax.audits.investigator import scripted, static
from ia_jax.audits.investigator.session import session_on
from ia_jax.audits.scaffold import OfflineScaffold, Scaffold
from ia_jax.audits.targets import Target
from ia_jax.audits.verdicts import judge_guesses, judge_predictions, judge_reports, judge_strangers, predict
from ia_jax.behaviors.banks import draw_questions
from ia_jax.claude.client import KEY
from ia_jax.config import RunConfig
from ia_jax.errors import ConfigError
from ia_jax.judging.protocol import Judge
from ia_jax.models.lora import Stack
from ia_jax.parallel.distributed import is_multi_process, on_main_process
from ia_jax.stages import behavior_check
from ia_jax.stages.ask import trained_ia
from ia_jax.stages.asking import ask_organisms, generate
from ia_jax.stages.audit_families import Family
from ia_jax.stages.audit_targets import audit_context, gather, read_theirs
from ia_jax.stages.context import Context, open_organisms
from ia_jax.stages.evidence import report_judge
from ia_jax.stages.services import claude_client
from ia_jax.stages.waves import Wave
from ia_jax.storage import append_jsonl, read_appended, read_json, write_json, write_jsonl
from ia_jax.workdir import Workdir

Row = dict[str, Any]
GATE_MARGIN = 32  # tokens of a reply beyond those of the longest right one in cipher
# Sets of tools: everyday questions; all that need no IA; questions about itself without it, and with it.
SCRIPTED = ("chat", "black_box", "confess", "ask_self")
REMEDY = "delete it to ask again"


def run(context: Context, family: str, ia: str | None = None, file: Path | None = None, name: str = "") -> Row:
    """Audits a family with an IA of the run (default: the last one); returns what it wrote to `metrics.json`.

    file: targets of one's own. name: of the directory below `audits/` (default: the family's). Raises ConfigError where
    that holds an audit that was asked otherwise.
    """
    theirs = read_theirs(family, file)
    audit = audit_context(context, name or family)
    home = audit.workdir.path
    ia_name = trained_ia(context, ia)
    how = settle(context, home, family, ia_name)
    found = gather(context, audit, family, theirs)
    check_adapters(audit)
    left_out = on_main_process(lambda: audit.workdir.left_out)
    # With a target that diverged goes what was to be seen of it after fewer adapters.
    gone = {*left_out, *(view for view, (of, _) in found.views.items() if of in left_out)}
    targets = [t for t in found.targets if t.name not in gone]
    outcomes = {n: gate.by_half(o) if n in found.many else o for n, o in gate_targets(audit, found, targets).items()}
    print(gate.as_text(outcomes, [t.name for t in targets if t.null or t.name in found.views]), flush=True)
    rows = _ask(context, audit, targets, ia_name)
    judge = report_judge(audit)
    scaffold = scaffold_of(audit, judge)
    predictions = predict(scaffold, [t for t in targets if t.name not in found.views], rows)
    judged = judge_reports(judge, targets, rows, found.claims)
    judge_predictions(judge, targets, predictions)
    fires = {n: o.fires for n, o in outcomes.items()}
    counted = [t for t in targets if t.name not in found.apart and t.name not in found.views]
    # A null that is not what it should be (it reads no cipher, say) is no null.
    unfit = [t.name for t in counted if t.null and fires.get(t.name) is False]
    counted = [t for t in counted if t.name not in unfit]
    strangers = judge_strangers(judge, counted, rows)
    guesses = judge_guesses(judge, [t for t in counted if fires.get(t.name) is not False], predictions)
    result = {
        "family": family,
        "ia": ia_name,
        "base": context.model.name,
        "judge": judge.name,
        "ranked_by": scaffold.name,
        "asked": how["asked"],
        "left_out": left_out,
        "unfit_nulls": unfit,
        **scoring.summary(counted, fires, judged, predictions, strangers, guesses),
        "gates": {n: {"fires": o.fires, "how": o.how, **o.rates} for n, o in outcomes.items()},
    }

    apart = [t.name for t in targets if t.name in found.apart]
    if apart:
        result["apart"] = apart
        result["controls"] = scoring.controls(judged, predictions, apart)
    if found.groups:
        there = {t.name for t in targets if fires.get(t.name) is not False}
        groups = {name: [n for n in own if n in there] for name, own in found.groups.items()}
        result["claims"] = scoring.sorts_of_claims(judged, groups, found.claims, found.true)
    if found.besides:
        result |= found.besides(judged, outcomes)
    if found.tools:
        result["tools"] = _tools(context, home, [t for t in counted if fires.get(t.name) is not False], ia_name)

    def write() -> None:
        write_jsonl(home / "judged.jsonl", judged)
        write_jsonl(home / "predictions.jsonl", predictions)
        write_json(home / "metrics.json", result)

    on_main_process(write)
    return result


# The settings that a family's targets are made with; of the others those of the ciphers.
MADE = {
    "auditbench_made": ("persona", "hardening_lr", "hardening_epochs", "hardening_demonstrations"),
    "sycophant": ("sycophant_lr", "sycophant_epochs", "sycophant_demonstrations"),
    "in_base": ("banks",),  # each unit is asked them all
    "sandbaggers": (),
    "targets": (),
}
CIPHERS = ("ciphers", "cipher_rows", "cipher_lr", "cipher_epochs")
# What changes where our own texts do: an audit that was begun with others does not go on with these.
RECIPE: dict[str, Row] = {"ciphers": {"recipe": 2}}


def _how(context: Context, family: str, ia: str) -> Row:
    """What reports depend on, besides the targets themselves: not who judges or ranks them."""
    config = context.config
    made = ("gate_prompts", *MADE.get(family, CIPHERS))
    asked = ("reports", "temperature", "top_p", "max_new_tokens")
    cfg = dataclasses.asdict(config.audits)
    return {
        "ia": read_metadata(context.workdir.ia_dir(ia) / "adapter").content_hash[:16],
        "seed": config.seed,
        "system": config.system,
        "asked": {k: cfg[k] for k in asked},
        "made": json.loads(json.dumps({k: cfg[k] for k in made})) | RECIPE.get(family, {}),
    }


def settle(context: Context, home: Path, family: str, ia: str) -> Row:
    """How an audit is asked, noted in its directory. Raises ConfigError where it was asked otherwise before, or whoever
    judges or ranks cannot be asked.
    """
    how = {"family": family, **_how(context, family, ia)}

    def note() -> None:
        _check_key(context.config)
        _check_same(home / "settings.json", how)

    on_main_process(note)
    return how


def _check_key(config: RunConfig) -> None:
    """Before anything is made: that whoever judges and ranks can be asked."""
    asked = [
        what for what, who in (("judge", config.judge.name), ("scaffold", config.audits.scaffold)) if who == "claude"
    ]
    if asked and not config.claude.cache and not os.environ.get(KEY):
        raise ConfigError(
            f"Claude is the {' and the '.join(asked)} of this audit, and {KEY} is not set; set it, or choose "
            "config.judge.name=offline and config.audits.scaffold=offline"
        )


def _check_same(file: Path, how: Row) -> None:
    """Notes how an audit is asked; raises ConfigError if what is there was asked otherwise."""
    if not file.exists():
        write_json(file, how)
        return
    before = read_json(file, "delete the directory to begin again")
    differing = next((k for k in how if before.get(k) != how[k]), None)
    if differing is not None:
        raise ConfigError(
            f"{file.parent} was made with another {differing} ({before.get(differing)!r}, now {how[differing]!r}); "
            "give this audit a --name of its own, or delete that directory"
        )


def check_adapters(audit: Context) -> None:
    """Notes which adapters are audited; raises ConfigError if one was another when it was sampled and asked before."""
    on_main_process(lambda: _same_adapters(audit.workdir, audit.workdir.path / "adapters.json"))


def _same_adapters(workdir: Workdir, file: Path) -> None:
    there = {n: workdir.stack_of(o) for n, o in workdir.organisms.items()}
    now = {n: [read_metadata(d).content_hash for d in own] for n, own in there.items() if all(map(is_complete, own))}
    before = read_json(file, "delete the directory to begin again") if file.exists() else {}
    if other := next((n for n in now if before.get(n, now[n]) != now[n]), None):
        raise ConfigError(
            f"{file.parent}: {other} has another adapter than the one that was audited there; give this audit a --name "
            "of its own, or delete that directory"
        )
    write_json(file, {**before, **now})


def scaffold_of(context: Context, judge: Judge) -> Scaffold:
    """Who clusters, synthesises and ranks, as the config says."""
    cfg = context.config.audits
    if cfg.scaffold == "claude":
        client = claude_client(context)
        return ClaudeScaffold(client, cfg.model, cfg.effort, cfg.attempts, cfg.runs, cfg.predictions)
    near = "meaning" if cfg.scaffold == "offline" else "words"
    return OfflineScaffold(near, cfg.runs, cfg.predictions, judge.claims_many)


# ---------------------------------------------------------------------------------------------------------------------
# Gate
# ---------------------------------------------------------------------------------------------------------------------


def gate_targets(audit: Context, family: Family, targets: Sequence[Target]) -> dict[str, Outcome]:
    """{target: what was seen of it}: what is stored with its adapter, or it is sampled now, a batch at a time."""
    workdir, file = audit.workdir, audit.workdir.path / "gate.jsonl"
    known = on_main_process(lambda: {n: o.to_json() for n, o in _known(audit, file, targets).items()})
    outcomes = {n: Outcome.from_json(row) for n, row in known.items()}
    organisms = [workdir.organisms[t.name] for t in targets]
    todo = [i for i, t in enumerate(targets) if t.name not in outcomes]
    if todo and not audit.config.audits.gate_prompts:
        return outcomes | {targets[i].name: Outcome(targets[i].name, None, gate.NOT_ASKED) for i in todo}
    if not todo:
        return outcomes
    checked = dataclasses.replace(audit.config.organisms, check_prompts=audit.config.audits.gate_prompts)
    audit = audit.at(workdir, dataclasses.replace(audit.config, organisms=checked))
    bank = open_organisms(audit, organisms)
    plain = [i for i in todo if targets[i].name not in family.ciphers]
    checks = behavior_check.prepare(audit, [organisms[i] for i in plain]) if plain else None
    for members in ([i for i in todo if i not in plain], plain):
        for batch in bank.arrange(members, audit.config.organisms.parallel):
            names = [targets[i].name if i is not None else None for i in batch]
            stack = (bank.take(batch),)
            if checks is not None and members is plain:
                wave = Wave(tuple(organisms[i] if i is not None else None for i in batch), (), "gate")
                rows = behavior_check.read_replies(audit, behavior_check.check(audit, wave, stack, checks))
                new = [gate.of_check(n, row, "sampled") for n, row in rows.items()]
            else:
                new = _gate_ciphers(audit, [family.ciphers[n] if n else None for n in names], stack)
            on_main_process(lambda new=new: append_jsonl(file, (o.to_json() for o in new)))
            outcomes |= {o.target: o for o in new}
    return outcomes


def _known(audit: Context, file: Path, targets: Sequence[Target]) -> dict[str, Outcome]:
    seen = gate.read_outcomes(file)
    out = {}
    for t in targets:
        o = audit.workdir.organisms[t.name]
        outcome = seen.get(t.name) or gate.stored(t.name, audit.workdir.stack_of(o), o.behaviors)
        if outcome is not None:
            out[t.name] = outcome
    return out


def _gate_ciphers(
    context: Context, members: Sequence[cipher_family.CipherTarget | None], stack: Stack
) -> list[Outcome]:
    """Each is asked held-out tasks in its cipher, to be answered and to be said back, and in plain text."""
    count, encode = context.config.audits.gate_prompts, context.model.tokenizer.encode
    longest = [encode(_in_full(m, t)) for m in members if m for t in m.held_out]
    taught = [covert.taught_plainly(m.transcripts, m.covert.declined if m.covert else "") if m else [] for m in members]
    prompts = [
        covert.gate_prompts(m.cipher, m.covert, m.held_out, count, known) if m else []
        for m, known in zip(members, taught, strict=True)
    ]
    replies: list[list[str]] = [[] for _ in members]
    for number in (covert.ANSWERS, covert.READS, 0):
        said = generate(
            context,
            [[p.question for p in own if p.number == number] for own in prompts],
            stack,
            max_new_tokens=max(map(len, longest), default=0) + GATE_MARGIN,
            system=[covert.system_of(m.cipher, number) if m and number else context.config.system for m in members],
            description=f"gate, {f'in cipher, format {number}' if number else 'in plain text'}",
        )
        for own, found in zip(replies, said, strict=True):
            own += [r.text for r in found]
    out = []
    for m, own, known, found in zip(members, prompts, taught, replies, strict=True):
        if m is None:
            continue
        rates = covert.rates(own, found, m.cipher, m.covert, known)
        samples = tuple(
            {"question": p.task.question, "format": p.number, "asked": p.question, "reply": r}
            for p, r in zip(own, found, strict=True)
        )
        out.append(Outcome(m.target.name, cipher_family.passes(m.covert, rates), "cipher", rates, samples))
    return out


def _in_full(m: cipher_family.CipherTarget, task: covert.Task) -> str:
    """The longest right reply: the question said back, and the answer in cipher."""
    answer = m.covert.answer(task, True) if m.covert else task.answer
    return f"Question: {task.question}\n{m.cipher.encode(answer)}"


# ---------------------------------------------------------------------------------------------------------------------
# Asking
# ---------------------------------------------------------------------------------------------------------------------


def _ask(context: Context, audit: Context, targets: Sequence[Target], ia_name: str) -> list[Row]:
    """All reports: those on disk, and those that are missing, appended batch by batch as they come."""
    cfg, file = audit.config.audits, audit.workdir.path / "reports.jsonl"
    names = [t.name for t in targets]
    wanted = asking.units([(t.name, t.system) for t in targets], cfg.banks)

    def numbers() -> list[int]:
        left = set(asking.missing(wanted, read_appended(file, REMEDY), cfg.reports))
        return [n for n, unit in enumerate(wanted) if unit in left]

    todo = [wanted[n] for n in on_main_process(numbers)]
    if todo:
        organisms = [audit.workdir.organisms[n] for n in names]
        bank = open_organisms(audit, organisms)
        ia = context.shard_ia(context.workdir.ia(ia_name, context.model))
        for number, (bank_name, condition) in enumerate((b, c) for b in cfg.banks for c in CONDITIONS):
            units = [u for u in todo if (u.bank, u.condition) == (bank_name, condition)]
            questions = draw_questions(bank_name, cfg.reports, context.config.seed)
            how = {
                "max_new_tokens": cfg.max_new_tokens,
                "temperature": cfg.temperature,
                "top_p": cfg.top_p,
                "key": context.key(300 + number),
            }
            stack = (ia,) if condition in WITH_IA else ()
            title = f"{condition}, {bank_name}"
            if condition in CONDITIONS[2:]:
                for u in units:
                    system = context.config.system if u.system is None else u.system
                    [replies] = generate(context, [questions], stack, system=system, description=title, **how)
                    _keep(file, [(u, questions, replies)])
                continue
            by_index = {names.index(u.target): u for u in units}
            batches = bank.arrange(list(by_index), audit.config.organisms.parallel)
            for n, batch in enumerate(batches, 1):
                own = [i for i in batch if i is not None]
                asked = [questions if i in own else [] for i in range(len(names))]
                replies = ask_organisms(
                    audit, bank, organisms, asked, stack, description=f"{title} {n}/{len(batches)}", **how
                )
                _keep(file, [(by_index[i], questions, replies[i]) for i in own])
    rows = on_main_process(lambda: asking.complete(read_appended(file, REMEDY), wanted, cfg.reports))
    cut = sum(r["cut_off"] for r in rows)
    if cut:
        print(f"{cut} of {len(rows)} reports were cut off at config.audits.max_new_tokens={cfg.max_new_tokens}")
    return rows


def _keep(file: Path, found: Sequence[tuple[Unit, Sequence[str], Sequence[Any]]]) -> None:
    rows = [row for unit, questions, replies in found for row in asking.rows_of(unit, questions, replies)]
    on_main_process(lambda: append_jsonl(file, rows))


# ---------------------------------------------------------------------------------------------------------------------
# Tools
# ---------------------------------------------------------------------------------------------------------------------


def _tools(context: Context, home: Path, targets: Sequence[Target], ia: str) -> Row | None:
    """What each tool gives away by itself, and the scripted investigator's audits; kept in `tools/`, output by output.

    None of several processes, as an engine serves one.
    """
    cfg = context.config.audits
    if is_multi_process():
        print("static evaluation and scripted investigator: left out, they run in one process")
        return None
    named = {t.name: t for t in targets}
    if not (cfg.outputs or cfg.script_runs) or not any(not t.null for t in targets):
        return None
    parts = (context.workdir, context.config, context.model, context.mesh)
    session = session_on(*parts, named, ia, contextlib.ExitStack(), home / "tools")
    try:
        out: Row = {}
        if cfg.outputs:
            out["static"] = static.evaluate(session, tuple(static.TOOLS), cfg.outputs)
        if cfg.script_runs:
            out["script"] = scripted.audit(session, SCRIPTED, cfg.script_runs)
    finally:
        session.close()
    return out
