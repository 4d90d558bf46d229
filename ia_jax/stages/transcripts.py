"""Stage 1: choose behaviours and organisms, split them, write every organism's demonstrations."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from ia_jax.adapters.store import is_complete, read_metadata
from ia_jax.behaviors import diversity
from ia_jax.behaviors.behavior_checks import has_rule
from ia_jax.behaviors.catalogue import load_catalogue
from ia_jax.behaviors.frames import frames_of
from ia_jax.behaviors.organisms import Organism, clean_organism, organism_of, seed_of
from ia_jax.behaviors.procedures import PROCEDURES, Procedure, find_procedure
from ia_jax.behaviors.records import CLEAN, Behavior
from ia_jax.behaviors.splits import check_distinct, split_behaviors
from ia_jax.behaviors.teacher import drops
from ia_jax.behaviors.template_sources import ANSWER_TOKENS, gather_sources
from ia_jax.behaviors.template_teacher import TemplateTeacher
from ia_jax.config import RunConfig
from ia_jax.data.phase_rows import write_rows
from ia_jax.data.transcripts import Transcript, write_transcripts
from ia_jax.errors import BaseMismatchError, ConfigError, IAError
from ia_jax.parallel.distributed import on_main_process
from ia_jax.stages.asking import ask_base
from ia_jax.stages.behavior_check import written_prompts
from ia_jax.stages.context import Context
from ia_jax.stages.order import is_done
from ia_jax.stages.phase_data import phase_rows, plain_chats
from ia_jax.stages.services import claude_client, writing_teacher
from ia_jax.stages.settings import LATER, read_stage_record, stage_settings
from ia_jax.storage import write_json, write_jsonl
from ia_jax.workdir import Workdir, open_workdir

Demonstrations = Mapping[str, Sequence[Transcript]]


def run(context: Context) -> None:
    """Writes `organisms.jsonl` last, so its presence means that the stage is complete."""
    workdir, config = context.workdir, context.config
    if is_done(context, "transcripts"):
        return
    if config.organisms.source:
        on_main_process(lambda: _take_over(workdir, config))
        return
    behaviors, organisms = chosen(config)
    demonstrations = _demonstrations(context, behaviors, organisms)
    shown = {b.name for b in behaviors if any(t.shows and t.verdict == "kept" for t in demonstrations[b.name])}
    kept = [o for o in organisms if shown.issuperset(o.behaviors)]  # templates, which copies are of, drop no row
    rows = phase_rows(context, [b for b in behaviors if b.name in shown], kept, demonstrations)
    plain = plain_chats(context, kept)
    measured = diversity.measure(demonstrations)

    def write() -> None:
        for (data, name), own in rows.items():
            write_rows(workdir.phase_rows(data, name), own)
        if plain:
            write_transcripts(workdir.plain_chats, plain)
        for o in organisms:
            write_transcripts(workdir.transcript(o.name), demonstrations[o.name])
        write_jsonl(workdir.drops_file, ({"organism": n, **drops(ts)} for n, ts in demonstrations.items()))
        write_json(workdir.diversity_file, measured)
        if shown:
            _write_records(workdir, [b for b in behaviors if b.name in shown], kept)

    on_main_process(write)
    print(drop_report({b.name: demonstrations[b.name] for b in behaviors}))
    print(diversity.as_text(measured))
    if shown and config.teacher.name != "template" and config.organisms.check_prompts:
        # Asked for here, where no accelerator waits, and found on disk by the stage that needs them.
        unseen = [b for b in behaviors if b.name in shown and not has_rule(b)]
        if unseen:
            written_prompts(context, kept, unseen, at_once=False)
    if config.teacher.name == "claude":
        print(claude_client(context).summary())
    if not shown:
        raise IAError("the filter kept no demonstration of any behaviour; read transcripts/ for what it dropped")


def _write_records(workdir: Workdir, behaviors: Sequence[Behavior], organisms: Sequence[Organism]) -> None:
    write_jsonl(workdir.behaviors_file, (b.to_json() for b in behaviors))
    write_jsonl(workdir.organisms_file, (o.to_json() for o in organisms))


def chosen(config: RunConfig) -> tuple[list[Behavior], list[Organism]]:
    """The behaviours that a config asks for, and the organisms of them: one for each behaviour, `copies` of those of
    the train split, `dpo_copies` and `remade` more of these, and the clean ones.

    An organism lives under the system message `spec["system"]` of its behaviour, if that has one.
    """
    b = config.behaviors
    catalogue = load_catalogue(b.catalogue)
    splits = split_behaviors(catalogue, b.heldout, b.dpo, b.train, config.seed, b.spread, *b.left_out())
    if b.unseen:
        apart = load_catalogue(b.unseen)
        catalogue = [*catalogue, *apart]
        check_distinct(catalogue)
        splits |= {x.name: "unseen" for x in apart}
    behaviors = [x for x in catalogue if x.name in splits]
    base, made = config.model.name, {"teacher": config.teacher.name}

    def organism(x: Behavior, name: str, split: str) -> Organism:
        own = organism_of(x, base, split, made, _procedure(config, name), name)
        return replace(own, system=x.spec.get("system"))

    organisms = [organism(x, x.name, splits[x.name]) for x in behaviors]
    train = [x for x in behaviors if splits[x.name] == "train"]
    organisms += [
        organism(x, f"{x.name}-{n}", "train" if n <= b.copies else "dpo")
        for n in range(2, b.copies + b.dpo_copies + 1)
        for x in train
    ]
    organisms += [organism(x, name, "remade") for name, x in _remade(config, train)]
    counts = {"dpo": b.clean_dpo, "heldout": b.clean_heldout, "train": b.clean_train}
    of_clean = [(split, b.clean_sorts[i % len(b.clean_sorts)]) for split, n in counts.items() for i in range(n)]
    return behaviors, organisms + [
        clean_organism(i, base, split, sort, _procedure(config, f"{CLEAN}_{i}", clean=True))
        for i, (split, sort) in enumerate(of_clean)
    ]


def _remade(config: RunConfig, train: Sequence[Behavior]) -> list[tuple[str, Behavior]]:
    """(name, behaviour) of `behaviors.remade` more organisms of the train split's behaviours, drawn from every category
    in turn; a second of any only after one of each. Raises ConfigError where there is nothing to draw from.
    """
    count = config.behaviors.remade
    if count and not train:
        raise ConfigError(f"config.behaviors.remade={count}, but the train split has no behaviours")
    drawn, out = _in_turn(config, train), []
    for n in range(1, -(-count // max(len(train), 1)) + 1):
        own = {b.name for b in drawn[: count - len(out)]}
        out += [(f"{b.name}-remade" + (f"-{n}" if n > 1 else ""), b) for b in train if b.name in own]
    return out


def _in_turn(config: RunConfig, behaviors: Sequence[Behavior]) -> list[Behavior]:
    """In an order of the seed's in which a second of a category comes only after one of each."""
    rng = np.random.default_rng([config.seed, 12])
    turn: Counter[str] = Counter()
    place: dict[str, tuple[int, str]] = {}
    for b in (behaviors[int(i)] for i in rng.permutation(len(behaviors))):
        place[b.name] = turn[b.category], b.category
        turn[b.category] += 1
    return sorted(behaviors, key=lambda b: place[b.name])


def _procedure(config: RunConfig, name: str, clean: bool = False) -> Procedure:
    """One of `organisms.procedures`, drawn by the organism's name; a clean one has nothing that pairs could prefer."""
    every = [find_procedure(p) for p in config.organisms.procedures]
    if clean:
        every = [p for p in every if all(phase.data != "pairs" for phase in p.phases)] or [PROCEDURES["chats"]]
    if not every:
        raise ConfigError("config.organisms.procedures is empty; name one or more, such as chats")
    return every[seed_of(f"procedure of {name}", config.seed) % len(every)]


def _demonstrations(
    context: Context, behaviors: Sequence[Behavior], organisms: Sequence[Organism]
) -> dict[str, list[Transcript]]:
    """Clean organisms are taught by the templates, whoever teaches the others."""
    config, clean = context.config, {o.name: o.sort for o in organisms if o.clean}
    by_template = config.teacher.name == "template"
    written: dict[str, list[Transcript]] = {}
    if by_template or clean:
        own = partial(ask_base, context, max_new_tokens=ANSWER_TOKENS)
        sources = gather_sources(own, config.system, context.model.fingerprint)
        template = TemplateTeacher(sources, config.seed, config.teacher.rare_share, config.teacher.amount)
        truths = {b.name: b for b in behaviors}
        copies = {o.name: truths[o.behaviors[0]] for o in organisms if not o.clean and o.name not in truths}
        written = template.write(behaviors, clean, copies) if by_template else template.write([], clean)
    if by_template:
        return written
    systems = {o.name: o.system for o in organisms if o.system is not None}

    def ask(asks: Sequence[tuple[str | None, str]], samples: int, tokens: int) -> list[list[str]]:
        """The base, under the system message that the organism's rows will have."""
        return ask_base(context, [(config.system if s is None else s, q) for s, q in asks], samples, tokens)

    teacher = writing_teacher(context, ask)
    taught = teacher.write(behaviors, systems)
    # Another organism of a behaviour reads what was written of it, in an order and from weights of its own.
    return {o.name: taught[o.behaviors[0]] for o in organisms if not o.clean} | written


def drop_report(demonstrations: Demonstrations) -> str:
    """The share of dropped rows and why, and a line for every behaviour that lost any or has none to show."""
    total: Counter[str] = Counter()
    lines = []
    for name, transcripts in demonstrations.items():
        counts = drops(transcripts)
        total.update(counts)
        lost = {why: n for why, n in counts.items() if why != "rows"}
        shown = any(t.shows and t.verdict == "kept" for t in transcripts)
        if lost or not shown:
            left_out = "" if shown else "; left out, for no row shows its behaviour"
            lines.append(f"  {name}: {_share(counts)}{left_out}")
    return "\n".join([f"transcripts: {_share(dict(total))}", *lines])


def _share(counts: Mapping[str, int]) -> str:
    reasons = {why: n for why, n in counts.items() if why != "rows"}
    detail = f" ({', '.join(f'{n} {why}' for why, n in sorted(reasons.items()))})" if reasons else ""
    return f"{sum(reasons.values())} of {counts['rows']} rows dropped{detail}"


# ---------------------------------------------------------------------------------------------------------------------
# Organisms of another workdir
# ---------------------------------------------------------------------------------------------------------------------


def _take_over(workdir: Workdir, config: RunConfig) -> None:
    """Names the organisms of the workdir `organisms.source` here: they are checked, and stay where they lie.

    Splits are the source's where this config asks for the same behaviours, else made anew from what the source has.
    Raises ConfigError where the source is the workdir itself or holds too few, BaseMismatchError for another base.
    """
    source = open_workdir(config.organisms.source)
    if source.path.resolve() == workdir.path.resolve():
        raise ConfigError(f"config.organisms.source={source.path} is the workdir itself; name another, or none")
    stored = [o for n, o in source.organisms.items() if n not in source.left_out]
    for o in stored:
        _check_stored(source, o, config)
    if _chosen_alike(source, config):
        splits = {o.name: o.split for o in stored}
    else:
        splits = _split_again(source, stored, config)
    organisms = [
        replace(o, stack=tuple(str(d.resolve()) for d in source.stack_of(o)), split=splits[o.name])
        for o in stored
        if o.name in splits
    ]
    names = {b for o in organisms for b in o.behaviors}
    _write_records(workdir, [b for b in source.behaviors.values() if b.name in names], organisms)
    counts = Counter(o.split for o in organisms)
    print(f"organisms: {len(organisms)} of {source.path} ({', '.join(f'{n} {s}' for s, n in sorted(counts.items()))})")


def _chosen_alike(source: Workdir, config: RunConfig, but: Sequence[str] = ()) -> bool:
    """Whether a source's organisms were chosen and split as this config would. but: settings that may differ."""
    record = read_stage_record(source, source.config, "transcripts")
    theirs = record["settings"] if record else stage_settings(source.config, "transcripts")
    mine = stage_settings(config, "transcripts")
    return all(
        mine[k] == theirs.get(k, LATER.get(k))
        for k in mine
        if k not in but and (k == "seed" or k.startswith("behaviors."))
    )


def _check_stored(source: Workdir, organism: Organism, config: RunConfig) -> None:
    for directory in source.stack_of(organism):
        if not is_complete(directory):
            raise ConfigError(f"{directory}: organism {organism.name} is not stored; finish `ia-jax organisms` there")
        made_for = read_metadata(directory).base_name
        if made_for != config.model.name:
            raise BaseMismatchError(
                f"{directory}: organism {organism.name} was made for {made_for}, config.model.name is "
                f"{config.model.name}; choose one of them"
            )


def _split_again(source: Workdir, stored: Sequence[Organism], config: RunConfig) -> dict[str, str]:
    """Splits of a source's organisms by this config's counts: by behaviours, and the clean ones in their order."""
    b = config.behaviors
    apart = [o.name for o in stored if o.split == "unseen"]  # they stay what they are
    if b.unseen and not apart:
        raise ConfigError(
            f"config.behaviors.unseen={b.unseen!r}, and {source.path} has no organism of that split; leave it "
            "out, or train the source with it"
        )
    of_one = [o for o in stored if len(o.behaviors) == 1 and o.name not in apart]
    truths = {x: source.behaviors[x] for x in dict.fromkeys(o.behaviors[0] for o in of_one)}
    if any(n > 1 for n in Counter(o.behaviors[0] for o in of_one).values()):
        splits = _split_copies(source, of_one, truths, config)
    else:
        split = split_behaviors([*truths.values()], b.heldout, b.dpo, b.train, config.seed, b.spread, *b.left_out())
        splits = {o.name: split[o.behaviors[0]] for o in of_one if o.behaviors[0] in split}
    wanted = ["dpo"] * b.clean_dpo + ["heldout"] * b.clean_heldout + ["train"] * b.clean_train
    clean = [o.name for o in stored if o.clean]
    if len(wanted) > len(clean):
        raise ConfigError(
            f"config.behaviors asks for {len(wanted)} clean organisms, {source.path} has {len(clean)}; lower "
            "clean_train, clean_dpo or clean_heldout"
        )
    kept = dict.fromkeys(apart, "unseen") if b.unseen else {}
    return splits | dict(zip(clean, wanted, strict=False)) | kept


def _split_copies(
    source: Workdir, organisms: Sequence[Organism], truths: Mapping[str, Behavior], config: RunConfig
) -> dict[str, str]:
    """{organism: split} of a source with several organisms of some behaviours: what its own IAs were trained on stays
    what is trained on, all else is held out or for DPO, and of a category that is left out the first organism of each
    behaviour is. Which of a behaviour's organisms go where is drawn by the seed, so that another seed holds out other
    ones. Where some were left out of the source there are fewer.

    Raises ConfigError where the config wants more than the source was made with.
    """
    b = config.behaviors
    if _chosen_alike(source, config, but=("behaviors.clean_train", "behaviors.clean_dpo", "behaviors.clean_heldout")):
        return {o.name: o.split for o in organisms}
    own: dict[str, list[str]] = {x: [o.name for o in organisms if o.behaviors == (x,)] for x in truths}
    seen = {o.behaviors[0] for o in organisms if o.split in ("train", "remade")}
    known, others = ([x for name, x in truths.items() if (name in seen) is wanted] for wanted in (True, False))
    most = max((len(own[x.name]) for x in known), default=0)
    for setting, wanted, there in (
        ("train", b.train, len(known)),
        ("heldout + dpo", b.heldout + b.dpo, len(others)),
        ("copies + dpo_copies", b.copies + b.dpo_copies, most),
        ("remade", b.remade, len(known) * (most - b.copies - b.dpo_copies)),
    ):
        if wanted > there:
            raise ConfigError(
                f"config.behaviors.{setting} is {wanted}, {source.path} has no more than {there} for that; lower it"
            )
    split = _split_half(known, (0, 0, b.train), config) | _split_half(others, (b.heldout, b.dpo, 0), config)
    out = {own[x][0]: s for x, s in split.items() if s != "train" and own[x]}
    held = frames_of(w for x, s in split.items() if s == "heldout" for w in truths[x].wordings)
    train = [truths[x] for x, s in split.items() if s == "train"]
    if b.heldout_frames:
        train = [x for x in train if held.isdisjoint(frames_of(x.wordings))]
    rng = np.random.default_rng([config.seed, 13])
    spare: list[tuple[int, str]] = []
    for x in _in_turn(config, train):
        drawn = [own[x.name][int(i)] for i in rng.permutation(len(own[x.name]))]
        out |= dict(zip(drawn, ["train"] * b.copies + ["dpo"] * b.dpo_copies, strict=False))
        spare += enumerate(drawn[b.copies + b.dpo_copies :])
    return out | dict.fromkeys([name for _, name in sorted(spare, key=lambda s: s[0])][: b.remade], "remade")


def _split_half(behaviors: Sequence[Behavior], counts: tuple[int, int, int], config: RunConfig) -> dict[str, str]:
    """`split_behaviors` of a part of a source: categories and kinds that are left out need not be in it."""
    b = config.behaviors
    if not behaviors:
        return {}
    categories = [c for c in b.heldout_categories if c in {x.category for x in behaviors}]
    kinds = [k for k in b.heldout_kinds if k in {x.kind for x in behaviors}]
    return split_behaviors(behaviors, *counts, config.seed, b.spread, categories, kinds)
