"""What every stage works with: the workdir, its config, and the base model on its mesh."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from ia_jax.adapters.stream import AdapterStream
from ia_jax.behaviors.claude_teacher import ClaudeTeacher
from ia_jax.behaviors.local_model import LocalModel
from ia_jax.behaviors.records import Behavior
from ia_jax.claude.calls import Reply
from ia_jax.claude.client import Client
from ia_jax.config import RunConfig
from ia_jax.data.batch import Batch, batch_shardings
from ia_jax.data.transcripts import chat
from ia_jax.errors import ConfigError
from ia_jax.judging.claude_judge import ClaudeJudge
from ia_jax.judging.protocol import Judge
from ia_jax.judging.rubric import RubricJudge
from ia_jax.models.chat import ChatExample, encode_chat, encode_prompt
from ia_jax.models.lora import Stack, adapter_shardings
from ia_jax.models.replies import slice_starts, write_replies
from ia_jax.models.weights import Model, load_model
from ia_jax.parallel.distributed import on_main_process, stop_if_preempted
from ia_jax.parallel.mesh import TRAINING, make_mesh, put_on_mesh
from ia_jax.progress import progress
from ia_jax.workdir import Workdir

JUDGES = ("rubric", "claude")


@dataclass(frozen=True)
class Session:
    """A workdir, its config, and lazily the base model."""

    workdir: Workdir
    config: RunConfig

    @cached_property
    def mesh(self) -> jax.sharding.Mesh:
        m = self.config.mesh
        return make_mesh(m.fsdp, m.tp, m.dcn, m.rows)

    @property
    def groups(self) -> int:
        """Groups of devices, each of which has organisms of its own."""
        return TRAINING.size("organism", self.mesh)

    @cached_property
    def model(self) -> Model:
        m = self.config.model
        return load_model(m.name, dtype=m.dtype, mesh=self.mesh, revision=m.revision or None)

    @cached_property
    def claude(self) -> Client:
        cache = self.config.claude.cache
        return Client(self.config.claude, Path(cache) if cache else self.workdir.path / "claude")

    @cached_property
    def claude_teacher(self) -> ClaudeTeacher:
        """Writes transcripts and makes behaviour checks; its calls are answered by Claude, or by the local model."""
        if self.config.teacher.name == "local":
            calls = LocalModel(self._ask_teacher, self.workdir.path / "local_teacher.jsonl")
            return ClaudeTeacher(calls, self.config.teacher)
        return ClaudeTeacher(self.claude, self.config.teacher)

    @cached_property
    def _teacher_model(self) -> Model:
        name = self.config.teacher.model
        return self.model if name == self.config.model.name else load_model(name, self.config.model.dtype, self.mesh)

    def _ask_teacher(self, asks: Sequence[tuple[str, str]], tokens: int, temperature: float, seed: int) -> list[Reply]:
        model = self._teacher_model
        prompts = [[encode_prompt(model.tokenizer, chat(user, None, system)) for system, user in asks]]
        with progress(len(slice_starts(prompts)), "the local teacher writes") as bar:
            [texts] = write_replies(
                model,
                prompts,
                (),
                max_new_tokens=tokens,
                temperature=temperature,
                top_p=0.95,
                key=jax.random.key(seed),
                on_slice=bar.update,
            )
        lengths = [len(ids) for ids in model.tokenizer(texts, add_special_tokens=False)["input_ids"]]
        return [Reply(t, "max_tokens" if n >= tokens - 1 else "end_turn") for t, n in zip(texts, lengths, strict=True)]

    @cached_property
    def judge(self) -> Judge:
        j = self.config.judge
        if j.name == "claude":
            return ClaudeJudge(self.claude, j.model, j.effort, j.attempts)
        return RubricJudge()

    def key(self, stage: int) -> jax.Array:
        """The random key of a stage."""
        return jax.random.fold_in(jax.random.key(self.config.seed), stage)

    def shard_by_organism(self, tree: Any) -> Any:
        """Puts arrays with a leading organism axis on the mesh (whole, where the mesh does not divide that axis)."""
        first = jax.tree.leaves(tree)[0]
        if first.shape[0] % self.groups:
            return put_on_mesh(tree, jax.tree.map(lambda _: NamedSharding(self.mesh, PartitionSpec()), tree))
        return put_on_mesh(tree, adapter_shardings(tree, self.mesh, organisms=True))

    def shard_batch(self, batch: Batch) -> Batch:
        """Puts a batch on the mesh: by organism and, within each, by row."""
        return put_on_mesh(batch, batch_shardings(batch, self.mesh))

    def local_organisms(self, count: int) -> list[int]:
        """Which of `count` organisms that `shard_by_organism` places lie on devices of this process."""
        axes = ("organism",) if count % self.groups == 0 else (None,)
        where = TRAINING.sharding(self.mesh, *axes).addressable_devices_indices_map((count,)).values()
        return sorted({i for index in where if index for i in range(count)[index[0]]})

    def shard_ia(self, tree: Any) -> Any:
        """Puts the IA, or its training state, on the mesh: spread like the base weights, as a step leaves it; arrays
        outside an adapter lie whole on every device.
        """
        return put_on_mesh(tree, adapter_shardings(tree, self.mesh))

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
        context = self.model.config.max_position_embeddings  # rows may be longer: each example in them begins at 0
        if end > context:
            raise ConfigError(
                f"{name}: an example has {end} tokens, the model's max_position_embeddings is {context}; shorten it"
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
        """Replies to questions[i][j] under organism i of the stack (one list of questions for a stack without K)."""
        prompts = [[encode_prompt(self.model.tokenizer, chat(q, None, system)) for q in qs] for qs in questions]
        with progress(len(slice_starts(prompts)), description or "generate") as bar:

            def on_slice() -> None:
                bar.update()
                stop_if_preempted(description or "generate")

            return write_replies(
                self.model,
                prompts,
                stack,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                top_p=top_p,
                key=key,
                on_slice=on_slice,
            )

    def ask_base(self, asks: Sequence[tuple[str, str]], samples: int, max_new_tokens: int = 28) -> list[list[str]]:
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


class Organisms(AdapterStream):
    """The stored organisms of these names, and after them the clean model if asked; `take` puts them on the mesh."""

    def __init__(self, session: Session, names: Sequence[str], clean: bool = False):
        self.names = list(names)
        super().__init__(
            [session.workdir.organism_dir(n) for n in self.names],
            session.model,
            session.shard_by_organism,
            held=session.local_organisms,
            zeros=int(clean),
            lora=session.config.organisms.lora.lora(),
        )


def behaviors_in(session: Session, *splits: str) -> list[Behavior]:
    """The behaviours of these splits, without those whose organism diverged and was left out."""
    left_out = on_main_process(lambda: session.workdir.left_out)
    names = [n for s in splits for n in session.workdir.named(s) if n not in left_out]
    return [session.workdir.behaviors[n] for n in names]
