"""`ia-jax nulls`: clean fine-tunes of a run's base in many makings, trained in waves like its organisms.

`DIR/nulls/` is laid out like a workdir (`organisms.jsonl`, `transcripts/`, `organisms/`). No training of an IA reads
it; `ia-jax calibrate` finds it.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ia_jax.behaviors.nulls import MAKINGS, null_organisms, of_sorts
from ia_jax.behaviors.organisms import Organism
from ia_jax.behaviors.template_sources import ANSWER_TOKENS, gather_sources
from ia_jax.behaviors.template_teacher import write_clean
from ia_jax.config import RunConfig
from ia_jax.data.phase_rows import write_rows
from ia_jax.data.transcripts import write_transcripts
from ia_jax.errors import ConfigError
from ia_jax.parallel.distributed import on_main_process
from ia_jax.sections import override
from ia_jax.stages import organisms as training
from ia_jax.stages.asking import ask_base
from ia_jax.stages.context import Context
from ia_jax.stages.phase_data import phase_rows
from ia_jax.stages.selection import untrained
from ia_jax.stages.settings import read_stage_record
from ia_jax.storage import write_jsonl
from ia_jax.workdir import Workdir


def nulls_of(workdir: Workdir) -> Workdir:
    """Where the nulls of a run lie."""
    return Workdir(workdir.path / "nulls")


def run(context: Context, count: int) -> str:
    """Makes the first `count` nulls by the settings of the run's organisms, and returns what there is in words.

    More may be asked for later: those that are there stay as they are, though waves that they share with new ones are
    trained whole. Raises ConfigError where the run's organisms are not trained (random nulls are as large as these), or
    there are nulls that were made otherwise.
    """
    own = _quiet(context)
    nulls = _planned(own.config, count)
    on_main_process(lambda: _check(context.workdir, own.workdir, nulls))
    _write(context, own.workdir, nulls)
    for cached in ("organisms", "behaviors"):  # what was read of them before is of another time
        vars(own.workdir).pop(cached, None)
    training.run(own, like=context.workdir)
    left_out = on_main_process(lambda: own.workdir.left_out)
    return in_words([o for n, o in own.workdir.organisms.items() if n not in left_out], own.workdir.path)


def in_words(nulls: Sequence[Organism], place: Path) -> str:
    """How many there are of each sort."""
    lines = [f"{len(nulls)} clean fine-tunes:"]
    lines += [f"  {len(own):2} {sort}: {MAKINGS[sort].about}" for sort, own in of_sorts(nulls).items()]
    return "\n".join([*lines, str(place)])


def _quiet(context: Context) -> Context:
    """The directory of the nulls as a workdir, under what the run's organisms were made with; there is nothing that a
    behaviour check could look for.
    """
    organisms = on_main_process(lambda: _as_made(context.workdir, context.config))
    cfg = override(context.config.organisms, organisms, "organisms")
    config = replace(context.config, organisms=replace(cfg, check_prompts=0, source=""))
    return context.at(nulls_of(context.workdir), config)


def _as_made(run: Workdir, config: RunConfig) -> dict[str, Any]:
    """The settings that a run's organisms were made with, where they were not those of its `config.json`."""
    record = read_stage_record(run, config, "organisms")
    out: dict[str, Any] = {}
    for name, value in (record["settings"] if record else {}).items():
        section, _, setting = name.partition(".")
        if section == "organisms":
            group, _, last = setting.rpartition(".")
            (out.setdefault(group, {}) if group else out)[last] = value
    return out


def _planned(config: RunConfig, count: int) -> list[Organism]:
    cfg = config.organisms
    if cfg.ranks:  # of which makings with a rank of their own have none
        cfg = replace(cfg, lora=replace(cfg.lora, rank=max(cfg.ranks), alpha=cfg.lora.lora().scale * max(cfg.ranks)))
    return null_organisms(count, config.model.name, cfg.lora, cfg.optimizer.lr, cfg.epochs)


def _check(run: Workdir, home: Workdir, nulls: Sequence[Organism]) -> None:
    left_out = run.left_out
    trained = [o for n, o in run.organisms.items() if not (o.clean or o.imported) and n not in left_out]
    missing = untrained(run, trained)
    if missing or not trained:
        which = f"organism {missing[0]} is not trained" if missing else f"{run.path} has no organism with a behaviour"
        raise ConfigError(f"{which}, and random nulls are to be as large as those; run `ia-jax organisms` first")
    there = _there(home)
    for o in nulls:
        if o.name in there and there[o.name].to_json() != o.to_json():
            raise ConfigError(
                f"{home.path}: {o.name} was made with other settings of config.organisms than these; move the "
                "directory away, or give the settings that it was made with"
            )


def _there(home: Workdir) -> dict[str, Organism]:
    return home.organisms if home.organisms_file.exists() else {}


def _write(context: Context, home: Workdir, nulls: Sequence[Organism]) -> None:
    """What those read that are not there yet, `organisms.jsonl` last."""
    config = context.config
    there = on_main_process(lambda: list(_there(home)))
    new = [o for o in nulls if o.name not in there]
    if not new:
        return
    by_template = config.teacher.name == "template"
    behaviors = [b for b in context.workdir.behaviors.values() if by_template and b.spec.get("effects")]
    ask = partial(ask_base, context, max_new_tokens=ANSWER_TOKENS)
    sources = gather_sources(ask, config.system, context.model.fingerprint)
    amount, seed = config.teacher.amount, config.seed
    rows = {o.name: write_clean(o.procedure["reads"], o.name, sources, seed, behaviors, amount) for o in new}
    documents = phase_rows(context, [], [o for o in new if o.procedure["phases"]], rows)

    def write() -> None:
        for (data, name), read in documents.items():
            write_rows(home.phase_rows(data, name), read)
        for name, transcripts in rows.items():
            write_transcripts(home.transcript(name), transcripts)
        every = [*_there(home).values(), *new]
        write_jsonl(home.behaviors_file, [])
        write_jsonl(home.organisms_file, (o.to_json() for o in every))

    on_main_process(write)
