"""One question to one organism (or to the clean base), with or without the IA."""

import difflib

from ia_jax.adapters.store import is_complete
from ia_jax.errors import ConfigError
from ia_jax.models.lora import Adapter
from ia_jax.stages.session import Session

MAX_NEW_TOKENS = 64


def plain(text: str) -> str:
    """A model's text for the terminal: without control characters, which could be commands to it."""
    return "".join(c for c in text if c in "\n\t" or c.isprintable())


def trained_stage(session: Session, wanted: str | None = None) -> str:
    """Which IA to use: the wanted one, else after DPO if there is one, else after SFT. Raises if it is not trained."""
    stages = (wanted,) if wanted else ("dpo", "sft")
    for stage in stages:
        if is_complete(session.workdir.ia_dir(stage) / "adapter"):
            return stage
    raise ConfigError(f"{session.workdir.path} holds no trained IA; run `ia-jax {wanted or 'sft'}` first")


def organism(session: Session, name: str) -> Adapter:
    """The adapter of an organism of this workdir. Raises ConfigError, with the nearest names, if there is none."""
    known = list(session.workdir.behaviors)
    if name not in known:
        near = difflib.get_close_matches(name, known, 4, 0.3) or known[:4]
        raise ConfigError(
            f"no organism {name!r} in {session.workdir.behaviors_file} ({len(known)} lines); near it: {', '.join(near)}"
        )
    if name in session.workdir.left_out:
        raise ConfigError(f"organism {name} was left out ({session.workdir.left_out[name]}); ask about another")
    if not is_complete(session.workdir.organism_dir(name)):
        raise ConfigError(f"organism {name} is not trained yet; run `ia-jax organisms` first")
    return session.workdir.organism(name, session.model)


def ask(
    session: Session,
    question: str,
    *,
    name: str | None = None,
    use_ia: bool = True,
    stage: str | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> str:
    """The greedy reply of an organism (None: the clean base), with the IA on top unless told otherwise."""
    stack: list[Adapter] = []
    if name is not None:
        stack.append(session.shard_ia(organism(session, name)))
    if use_ia:
        stack.append(session.shard_ia(session.workdir.ia(trained_stage(session, stage), session.model)))
    return session.generate(
        [[question]],
        tuple(stack),
        max_new_tokens=max_new_tokens,
        system=session.config.system,
        description="answering",
    )[0][0]
