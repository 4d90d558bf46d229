"""One question to one organism (or to the clean base), with or without the IA."""

import difflib

from ia_jax.adapters.store import is_complete
from ia_jax.errors import ConfigError
from ia_jax.models.lora import Adapter
from ia_jax.parallel.distributed import on_main_process
from ia_jax.stages.asking import generate
from ia_jax.stages.context import Context

MAX_NEW_TOKENS = 64


def plain(text: str) -> str:
    """A model's text for the terminal: without control characters, which could be commands to it."""
    return "".join(c for c in text if c in "\n\t" or c.isprintable())


def trained_ia(context: Context, wanted: str | None = None) -> str:
    """Which IA to use: the wanted one, else the one after DPO if there is one, else after SFT. Raises if it is not
    trained.
    """
    workdir, config = context.workdir, context.config
    names = (wanted,) if wanted else (config.dpo.name, config.sft.name)

    def choose() -> str:
        for name in names:
            if is_complete(workdir.ia_dir(name) / "adapter"):
                return name
        there = sorted(p.parent.name for p in (workdir.path / "ia").glob("*/adapter") if is_complete(p))
        if there:
            raise ConfigError(f"{workdir.path} holds no IA {names[0]!r}; there are: {', '.join(there)}")
        raise ConfigError(f"{workdir.path} holds no trained IA; run `ia-jax sft` first")

    return on_main_process(choose)


def stored_organism(context: Context, name: str) -> tuple[Adapter, ...]:
    """The adapters of an organism of this workdir. Raises ConfigError, with the nearest names, if there is none."""
    workdir = context.workdir
    known = list(workdir.organisms)
    if name not in known:
        near = difflib.get_close_matches(name, known, 4, 0.3) or known[:4]
        raise ConfigError(
            f"no organism {name!r} in {workdir.organisms_file} ({len(known)} lines); near it: {', '.join(near)}"
        )
    if name in workdir.left_out:
        raise ConfigError(f"organism {name} was left out ({workdir.left_out[name]}); ask about another")
    if not all(map(is_complete, workdir.stack_of(workdir.organisms[name]))):
        raise ConfigError(f"organism {name} is not trained yet; run `ia-jax organisms` first")
    return workdir.organism(name, context.model)


def ask(
    context: Context,
    question: str,
    *,
    name: str | None = None,
    use_ia: bool = True,
    ia: str | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> str:
    """The greedy reply of an organism (None: the clean base), with the IA on top unless told otherwise."""
    system, stack = context.config.system, []
    if name is not None:
        stack += [context.shard_ia(adapter) for adapter in stored_organism(context, name)]
        own = context.workdir.organisms[name].system
        system = system if own is None else own
    if use_ia:
        stack.append(context.shard_ia(context.workdir.ia(trained_ia(context, ia), context.model)))
    [[reply]] = generate(
        context,
        [[question]],
        tuple(stack),
        max_new_tokens=max_new_tokens,
        system=system,
        description="answering",
    )
    return reply.text
