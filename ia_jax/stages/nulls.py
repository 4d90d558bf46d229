"""`ia-jax nulls`: clean fine-tunes of a run's base in many makings, trained in waves like its organisms.

`DIR/nulls/` is laid out like a workdir (`organisms.jsonl`, `transcripts/`, `organisms/`). No training of an IA reads
it; `ia-jax calibrate` finds it.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from ia_jax.adapters.store import is_complete, read_adapter, read_metadata, save_adapter
from ia_jax.behaviors.nulls import MAKINGS, null_organisms, of_sorts
from ia_jax.behaviors.organisms import Organism, procedure_of
from ia_jax.behaviors.template_sources import ANSWER_TOKENS, gather_sources
from ia_jax.behaviors.template_teacher import write_clean
from ia_jax.data.phase_rows import write_rows
from ia_jax.data.transcripts import write_transcripts
from ia_jax.errors import ConfigError
from ia_jax.models.lora import map_leaves
from ia_jax.parallel.distributed import on_main_process
from ia_jax.stages import organisms as training
from ia_jax.stages.asking import ask_base
from ia_jax.stages.context import Context
from ia_jax.stages.phase_data import phase_rows
from ia_jax.stages.waves import lora_of
from ia_jax.storage import write_jsonl
from ia_jax.workdir import Workdir

COUNT = 60  # four of each making


def nulls_of(workdir: Workdir) -> Workdir:
    """Where the nulls of a run lie."""
    return Workdir(workdir.path / "nulls")


def run(context: Context, count: int = COUNT) -> str:
    """Makes the first `count` nulls of the run's settings, and returns what there is in words; more may be asked for
    later. Raises ConfigError where there are some that were made otherwise.
    """
    own = _quiet(context)
    nulls = _planned(context, count)
    on_main_process(lambda: _check_same(own.workdir, nulls))
    _write(context, own.workdir, nulls)
    for cached in ("organisms", "behaviors"):  # what was read of them before is of another time
        vars(own.workdir).pop(cached, None)
    training.run(own, like=context.workdir)
    on_main_process(lambda: [_scale(own, o) for o in nulls])
    left_out = on_main_process(lambda: own.workdir.left_out)
    return in_words([o for o in nulls if o.name not in left_out], own.workdir.path)


def in_words(nulls: Sequence[Organism], place: Path) -> str:
    """How many there are of each sort."""
    lines = [f"{len(nulls)} clean fine-tunes:"]
    lines += [f"  {len(own):2} {sort}: {MAKINGS[sort].about}" for sort, own in of_sorts(nulls).items()]
    return "\n".join([*lines, str(place)])


def _quiet(context: Context) -> Context:
    """The directory of the nulls as a workdir; there is nothing that a behaviour check could look for."""
    config = context.config
    return context.at(
        nulls_of(context.workdir), replace(config, organisms=replace(config.organisms, check_prompts=0, source=""))
    )


def _planned(context: Context, count: int) -> list[Organism]:
    cfg = context.config.organisms
    if cfg.ranks:  # of which makings with a rank of their own have none
        cfg = replace(cfg, lora=replace(cfg.lora, rank=max(cfg.ranks), alpha=cfg.lora.lora().scale * max(cfg.ranks)))
    return null_organisms(count, context.config.model.name, cfg.lora, cfg.optimizer.lr, cfg.epochs)


def _check_same(home: Workdir, nulls: Sequence[Organism]) -> None:
    """Fewer or more of the same may be there."""
    if not home.organisms_file.exists():
        return
    there = home.organisms
    for o in nulls:
        if o.name in there and there[o.name].to_json() != o.to_json():
            raise ConfigError(
                f"{home.path}: {o.name} was made with other settings of config.organisms than these; move the "
                "directory away, or give the settings that it was made with"
            )


def _write(context: Context, home: Workdir, nulls: Sequence[Organism]) -> None:
    """What they read, `organisms.jsonl` last. Those that are there stay: they are the first ones of more."""
    config = context.config
    behaviors = list(context.workdir.behaviors.values()) if config.teacher.name == "template" else []
    ask = partial(ask_base, context, max_new_tokens=ANSWER_TOKENS)
    sources = gather_sources(ask, config.system, context.model.fingerprint)
    rows = {
        o.name: write_clean(o.procedure["reads"], o.name, sources, config.seed, behaviors, amount=config.teacher.amount)
        for o in nulls
    }
    documents = phase_rows(context, [], [o for o in nulls if o.procedure["phases"]], rows)

    def write() -> None:
        there = list(home.organisms.values()) if home.organisms_file.exists() else []
        for (data, name), read in documents.items():
            write_rows(home.phase_rows(data, name), read)
        for name, transcripts in rows.items():
            write_transcripts(home.transcript(name), transcripts)
        write_jsonl(home.behaviors_file, [])
        write_jsonl(home.organisms_file, (o.to_json() for o in (*nulls, *there[len(nulls) :])))

    on_main_process(write)


def _scale(own: Context, null: Organism) -> None:
    """Scales an adapter that was trained for it, once: its alpha says whether that was done."""
    [directory] = own.workdir.stack_of(null)
    scale = null.procedure.get("scale", 1.0)
    if scale == 1.0 or not is_complete(directory):
        return
    [phase] = procedure_of(null).phases
    alpha, metadata = scale * lora_of(own.config, null.name, phase).alpha, read_metadata(directory)
    if metadata.alpha != alpha:
        scaled = map_leaves(lambda _, factor, x: x if factor == "a" else x * scale, read_adapter(directory))
        save_adapter(directory, scaled, replace(metadata, alpha=alpha), overwrite=True)
