"""What a workdir of organisms made by hand (tests/echo.py) must lead to: what each says, and the loss of each alone."""

import json
from dataclasses import dataclass, replace
from functools import cached_property

import jax
import numpy as np
import pytest

from ia_jax import api
from ia_jax.adapters.record import AdapterMetadata
from ia_jax.adapters.store import save_adapter
from ia_jax.behaviors.organisms import CLEAN_TARGETS, clean_organism, organism_of
from ia_jax.behaviors.records import CLEAN
from ia_jax.config import RunConfig
from ia_jax.models.attention import BRANCH
from ia_jax.models.lora import rank_of
from ia_jax.models.weights import load_model
from ia_jax.stages.settings import start_workdir
from ia_jax.storage import write_jsonl
from ia_jax.training.optimizer import AdamW
from tests import echo

MESHES = {"one device": (1, 1), "fsdp 2 x tp 2": (2, 2)}
# Five of each kind are asked at once: the dpo organisms and the base; three held-out, a clean one and one of train.
# No mesh divides five, and one compiled program serves both stages.
SPLITS = ["train"] * 4 + ["dpo"] * 4 + ["heldout"] * 3 + ["dpo", "heldout"]


def apart(tokens, segments):
    """The examples of a row as lists of tokens: of a prompt that several answers share, once with each of them."""
    out = []
    for n in dict.fromkeys(int(s) % BRANCH for s in segments if s):
        stem = tokens[segments == n].tolist()
        branches = dict.fromkeys(int(s) for s in segments if s % BRANCH == n and s != n)
        out += [stem + tokens[segments == b].tolist() for b in branches] or [stem]
    return out


@dataclass(frozen=True)
class Oracle:
    """What a workdir of hand-made organisms must lead to. `model` lies on one device, without a mesh."""

    path: object
    model: object

    @cached_property
    def organisms(self):
        behaviors = list(zip(echo.behaviors(), SPLITS, strict=False))
        taught = [organism_of(b, self.model.name, split, {}) for b, split in behaviors]
        clean = [
            clean_organism(i, self.model.name, split, "own_answers") for i, split in enumerate(SPLITS[len(taught) :])
        ]
        return {o.name: o for o in (*taught, *clean)}

    @cached_property
    def adapters(self):
        return {name: echo.organism(self.model.config, n) for n, name in enumerate(self.organisms)}

    @cached_property
    def truths(self):
        """{who: what the IA is to say of it}."""
        return {b.name: b.wordings for b in echo.behaviors()} | {CLEAN: CLEAN_TARGETS}

    def reply(self, name, question, ia):
        """What organism `name` (None: the base) says, with or without the IA."""
        if name is None:
            return echo.parrot.SENTENCE + echo.MARK * ia
        return f"{echo.WORDS[list(self.organisms).index(name)]}{self._answer(question)}{echo.MARK * ia}"

    def _answer(self, question):
        if question not in self._answers:
            word = echo.WORDS[0]
            own = (echo.organism(self.model.config, 0),)
            [reply] = api.generate(self.model, [question], own, max_new_tokens=4)
            assert reply.removeprefix(word) in echo.ANSWERS
            self._answers[question] = reply.removeprefix(word)
        return self._answers[question]

    @cached_property
    def _answers(self):
        return {}

    def whose(self, text):
        """The name of the organism that a training example is about: the one whose truth stands in it."""
        found = {name for name, wordings in self.truths.items() if any(w in text for w in wordings)}
        [name] = found
        return name

    def answer_logps(self, tokens, segments, stack):
        """[(text, log-probabilities of the answer's tokens)] of the examples of one row, each by itself. By other code
        than the library's: what is supervised is found between the assistant's header and the end of its turn.
        """
        tokenizer = self.model.tokenizer
        header = tokenizer.encode("<|im_start|>assistant\n")
        out = []
        for own in apart(tokens, segments):
            alone, ids = np.zeros_like(tokens), (np.arange(len(tokens)) < len(own)).astype(np.int32)
            alone[: len(own)] = own
            logits = np.asarray(api.logits(self.model, alone[None], stack, segment_ids=ids[None]), np.float64)[0]
            logps = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
            [start] = [i for i in range(len(own)) if own[i : i + len(header)] == header]
            end = own.index(tokenizer.eos_token_id, start)
            told = [logps[i - 1, own[i]] for i in range(start + len(header), end + 1)]
            out.append((tokenizer.decode(own), np.array(told)))
        return out

    def slot(self, batch, i, ia):
        """(whose rows the i-th slot holds, [log-probabilities of each example's answer, in order]) under that
        organism alone.
        """
        tokens, segments = np.asarray(batch.tokens)[i], np.asarray(batch.segment_ids)[i]
        rows = zip(tokens, segments, strict=True)
        [name] = {self.whose(self.model.tokenizer.decode(own)) for t, s in rows for own in apart(t, s)}
        own = jax.tree.map(np.zeros_like, next(iter(self.adapters.values()))) if name == CLEAN else self.adapters[name]
        rows = [self.answer_logps(t, s, (own, ia)) for t, s in zip(tokens, segments, strict=True)]
        return name, [told for row in rows for _, told in row]


def config(model, mesh):
    fsdp, tp = MESHES[mesh]
    c = RunConfig()
    small = replace(c.organisms.lora, rank=2, targets=("down",))
    ia = replace(c.sft.lora, rank=1, targets=("gate", "up", "down"))
    training = {"optimizer": AdamW(lr=0.05), "checkpoint_every": 0}
    joint = {**training, "organisms_per_step": 4, "per_slot": 2, "length": 192}
    return replace(
        c,
        model=replace(c.model, name=str(model), dtype="float32"),
        mesh=replace(c.mesh, fsdp=fsdp, tp=tp),
        organisms=replace(
            c.organisms, **training, lora=small, parallel=5, epochs=8, length=64, check_prompts=1, keep_failed=True
        ),
        sft=replace(c.sft, **joint, lora=ia, steps=3),
        preferences=replace(
            c.preferences, questions=4, samples=1, temperature=0.0, max_new_tokens=8, abstention_pairs=4, clean_pairs=4
        ),
        dpo=replace(c.dpo, **joint),
        eval=replace(c.eval, questions=4, train_organisms=1, max_new_tokens=8, plain_prompts=0),
    )


@pytest.fixture(scope="module")
def oracle(tmp_path_factory):
    root = tmp_path_factory.mktemp("wiring")
    model = load_model(str(echo.write_model(root / "model")))
    made = Oracle(root / "workdir", model)
    workdir = start_workdir(made.path, config(root / "model", "one device"))
    write_jsonl(workdir.behaviors_file, [b.to_json() for b in echo.behaviors()])
    write_jsonl(workdir.organisms_file, [o.to_json() for o in made.organisms.values()])

    def save(directory, adapter, name, kind):
        about = AdapterMetadata(
            name, kind, model.name, model.fingerprint, rank_of(adapter), float(rank_of(adapter)), tuple(adapter)
        )
        save_adapter(directory, adapter, about)

    for name, adapter in made.adapters.items():
        save(workdir.organism_dir(name), adapter, name, "organism")
    save(workdir.ia_dir("sft") / "adapter", echo.introspection(model.config), "sft", "ia")
    (workdir.ia_dir("sft") / "organisms.json").write_text(json.dumps(workdir.named("train")))
    return made
