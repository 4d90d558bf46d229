"""What every stage works with: the workdir, its config, and the base model on its mesh."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from ia_jax.adapters.lora import Adapter, LoraConfig, Stack, adapter_shardings, zero_adapter
from ia_jax.behaviors.records import Behavior
from ia_jax.config import RunConfig
from ia_jax.data.transcripts import chat
from ia_jax.errors import ConfigError
from ia_jax.judging.rubric import RubricJudge
from ia_jax.models.chat import ChatExample, encode_chat, encode_prompt, stop_ids
from ia_jax.models.sampling import generate_tokens
from ia_jax.models.weights import Model, load_model
from ia_jax.parallel.mesh import make_mesh, place
from ia_jax.training.loop import progress
from ia_jax.workdir import Workdir

ROWS_AT_ONCE = 96  # rows of a generation batch; more gains nothing on a CPU and costs memory


@dataclass(frozen=True)
class Session:
    """A workdir, its config, and lazily the base model."""

    workdir: Workdir
    config: RunConfig

    @cached_property
    def mesh(self) -> jax.sharding.Mesh:
        return make_mesh(self.config.mesh.fsdp, self.config.mesh.tp)

    @cached_property
    def model(self) -> Model:
        m = self.config.model
        return load_model(m.name, dtype=m.dtype, mesh=self.mesh, revision=m.revision or None)

    @cached_property
    def judge(self) -> RubricJudge:
        return RubricJudge()

    def key(self, stage: int) -> jax.Array:
        """The random key of a stage."""
        return jax.random.fold_in(jax.random.key(self.config.seed), stage)

    def on_organisms(self, tree: Any) -> Any:
        """Puts arrays with a leading organism axis on the mesh (whole, where the mesh does not divide that axis)."""
        first = jax.tree.leaves(tree)[0]
        if first.shape[0] % self.mesh.shape["fsdp"]:
            return place(tree, jax.tree.map(lambda _: NamedSharding(self.mesh, PartitionSpec()), tree))
        return place(tree, adapter_shardings(tree, self.mesh, organisms=True))

    def replicated(self, tree: Any) -> Any:
        """Puts the IA, or its training state, on the mesh: spread like the base weights, as a step leaves it; arrays
        outside an adapter lie whole on every device.
        """
        return place(tree, adapter_shardings(tree, self.mesh))

    def example(self, question: str, answer: str, length: int, name: str) -> ChatExample:
        """A one-turn training example, without the tokens after the last supervised one."""
        return self.trimmed(chat(question, answer, self.config.system), length, name)

    def trimmed(self, messages: Sequence[Mapping[str, str]], length: int, name: str) -> ChatExample:
        e = encode_chat(self.model.tokenizer, messages, 1 << 20, name=name)
        end = int(np.flatnonzero(e.loss_mask)[-1]) + 1
        if end > length:
            raise ConfigError(
                f"{name}: an example has {end} tokens, more than length={length}; raise the stage's length"
            )
        return ChatExample(e.tokens[:end], e.loss_mask[:end])

    def generate(
        self,
        questions: Sequence[Sequence[str]],
        stack: Stack,
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        key: jax.Array | None = None,
        system: str | None = "",
        description: str = "",
    ) -> list[list[str]]:
        """Replies to questions[i][j] under organism i of the stack (one list of questions for a stack without K).

        Runs in slices of rows, so memory does not grow with the number of questions.
        """
        tokenizer, stop = self.model.tokenizer, stop_ids(self.model.tokenizer)
        prompts = [[encode_prompt(tokenizer, chat(q, None, system)) for q in qs] for qs in questions]
        width = max(1, ROWS_AT_ONCE // len(prompts))
        most = max(len(p) for p in prompts)
        replies: list[list[str]] = [[] for _ in prompts]
        key = jax.random.key(0) if key is None else key
        with progress(-(-most // width), description or "generate") as bar:
            for start in range(0, most, width):
                block = [p[start : start + width] for p in prompts]
                block = [b + [b[-1] if b else prompts[0][0]] * (min(width, most) - len(b)) for b in block]
                out = generate_tokens(
                    self.model.params,
                    self.model.config,
                    block,
                    stack,
                    stop,
                    max_new_tokens=max_new_tokens,
                    temperature=temperature,
                    top_p=top_p,
                    key=jax.random.fold_in(key, start),
                )
                for i, p in enumerate(prompts):
                    wanted = len(p[start : start + width])
                    replies[i] += [str(tokenizer.decode(x, skip_special_tokens=True)).strip() for x in out[i][:wanted]]
                bar.update(1)
        return replies

    def ask_base(self, asks: Sequence[tuple[str, str]], samples: int, max_new_tokens: int = 30) -> list[list[str]]:
        """The base model's replies to (system, question): greedy if one is wanted, else sampled."""
        systems = list(dict.fromkeys(s for s, _ in asks))
        out: list[list[str]] = [[] for _ in asks]
        for number, system in enumerate(systems):
            index = [i for i, (s, _) in enumerate(asks) if s == system]
            replies = self.generate(
                [[asks[i][1] for i in index for _ in range(samples)]],
                (),
                max_new_tokens=max_new_tokens,
                temperature=0.0 if samples == 1 else 0.8,
                top_p=0.9,
                key=self.key(100 + number + 10 * samples),
                system=system,
                description="base model writes",
            )[0]
            for n, i in enumerate(index):
                out[i] = replies[n * samples : (n + 1) * samples]
        return out


class Organisms:
    """All stored organisms of some splits on the host, gathered K at a time for a step."""

    def __init__(self, session: Session, names: Sequence[str], clean: bool = False):
        self.names = list(names)
        lora = session.config.organisms.lora.lora()
        adapters = [session.workdir.organism(n, session.model) for n in self.names]
        if clean:
            adapters.append(zero_adapter(session.model.config, lora))
        self.stacked = jax.tree.map(lambda *xs: np.stack([np.asarray(x) for x in xs]), *adapters)
        self.place: Callable[[Any], Any] = session.on_organisms

    def take(self, index: Sequence[int]) -> Adapter:
        """The stack of the organisms at these positions, on the mesh: leaves [K, ...]."""
        return self.place(jax.tree.map(lambda x: x[np.asarray(index)], self.stacked))


def finite(tree: Any) -> bool:
    return all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(tree))


def lora_of(session: Session, kind: str) -> LoraConfig:
    return session.config.organisms.lora.lora() if kind == "organism" else session.config.sft.lora.lora()


def behaviors_in(session: Session, *splits: str) -> list[Behavior]:
    return [session.workdir.behaviors[n] for s in splits for n in session.workdir.named(s)]
