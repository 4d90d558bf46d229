"""What a config's stages will read, in numbers of tokens, before anything is trained: for `ia-jax plan`.

The plans are those that the stages make; only the examples are stand-ins of the right length. Of a workdir, its own
transcripts, organisms and preference pairs are counted. Before there are any, SFT's questions and answers are rendered
from the catalogue, which is exact but for the tokenizer; demonstrations and preference pairs are made up, as
`_demonstrations` and `_pairs` say.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ia_jax.behaviors.lessons import lesson
from ia_jax.behaviors.organisms import CLEAN_TARGETS, Organism, procedure_of, targets
from ia_jax.behaviors.phase_texts import DENIALS
from ia_jax.behaviors.procedures import Phase, share_of
from ia_jax.behaviors.questions import TRAIN_QUESTIONS
from ia_jax.behaviors.records import CLEAN, Behavior
from ia_jax.behaviors.splits import HELD
from ia_jax.behaviors.template_sources import shipped_sources
from ia_jax.behaviors.template_teacher import TemplateTeacher
from ia_jax.config import RunConfig, SftSection
from ia_jax.data.plans import Shared, Unit
from ia_jax.data.transcripts import chat, read_transcripts, with_system
from ia_jax.data.units import mixed_units
from ia_jax.errors import ConfigError
from ia_jax.models.chat import ChatExample, encode_chat, encode_prompt
from ia_jax.models.known import architecture
from ia_jax.models.refill import shape_for
from ia_jax.models.replies import rows_that_fit
from ia_jax.models.sampling import ACCELERATOR_BUCKET
from ia_jax.models.sources import EMBEDDED, open_source
from ia_jax.planning.batches import Batches, batches_of
from ia_jax.stages.asking import WITHOUT_TRAINING
from ia_jax.stages.ia_training import dpo_plan, sft_pairs, sft_plan, sft_texts
from ia_jax.stages.preferences import truth_pairs
from ia_jax.stages.selection import selected_for_sft
from ia_jax.stages.transcripts import chosen
from ia_jax.stages.waves import plan_waves
from ia_jax.storage import read_jsonl
from ia_jax.workdir import Workdir

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What Llama 3's template puts before every chat, which no stand-in's does.
_LLAMA_SYSTEM = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024"
# Tokens of a demonstration that Claude writes: a message of a sentence or two, an answer of at most 120 words.
MESSAGE_TOKENS, ANSWER_TOKENS, TEMPLATE_TOKENS = (20, 60), (80, 165), 12


def example_of(prompt: int, answer: int) -> ChatExample:
    """An example with so many tokens, whatever they are, of which the answer's are supervised."""
    return ChatExample(np.zeros(prompt + answer, np.int32), np.arange(prompt + answer) >= prompt)


def local_tokenizer(name: str) -> "PreTrainedTokenizerBase | None":
    """A base's tokenizer, if it is on this machine: a plan asks no network."""
    if name == EMBEDDED or Path(name).expanduser().exists():
        return open_source(name).tokenizer()
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name, local_files_only=True)
    except (OSError, ValueError):  # it is not in the hub's cache
        return None


def planned(workdir: Workdir | None = None, memory: float = 0, rows: int = 0) -> Callable[[RunConfig, str], Batches]:
    """The batches of a config's stage, each counted once however often it is asked for. memory, rows: of `Planned`."""
    counted: dict[str, Batches] = {}

    def batches(config: RunConfig, stage: str) -> Batches:
        joint = (_without_lora(config.sft), config.dpo, config.preferences)
        own: tuple[Any, ...] = joint if stage != "organisms" else (config.organisms,)
        own = (*own, config.eval, config.organisms.parallel) if stage == "sample" else own
        key = repr((stage, own, config.seed, config.system, config.questions, config.behaviors, config.teacher))
        groups = config.mesh.dcn * config.mesh.fsdp
        key += repr((config.model.name, groups, config.mesh.rows))
        if key not in counted:
            counted[key] = Planned(config, workdir, groups, memory=int(memory), rows=rows).batches(stage)
        return counted[key]

    return batches


def _without_lora(sft: SftSection) -> dict[str, Any]:
    """What is read does not hang on what learns from it, so arms of a study that differ in that are counted once."""
    return {f.name: getattr(sft, f.name) for f in fields(sft) if f.name != "lora"}


@dataclass(frozen=True)
class Planned:
    """The batches of a config's stages on a mesh with `groups` groups of devices that have organisms of their own.

    branches: whether several answers to one prompt stand behind it (`plans.shared`), as on CPU and GPU. Of sampling,
    memory: bytes of all devices, by which a run settles the rows of a batch (0: the least); rows: others than these.
    """

    config: RunConfig
    workdir: Workdir | None = None
    groups: int = 1
    branches: bool = False
    memory: int = 0
    rows: int = 0
    _lengths: dict[tuple[str, str], int] = field(default_factory=dict)

    def batches(self, stage: str) -> Batches:
        """Raises ConfigError where the config has no such stage, or an example does not fit into its rows."""
        return {"organisms": self.organisms, "sft": self.sft, "dpo": self.dpo, "sample": self.sample}[stage]()

    def organisms(self) -> Batches:
        units, source = self._demonstrations()
        members = [o for o in self._organisms if o.name in units]
        phases = {o.name: [self._reads(o, p, units[o.name]) for p in procedure_of(o).phases] for o in members}
        waves = plan_waves(self.config, members, phases, self.groups)
        return batches_of([r.plan for w in waves for r in w.readings], source=source)

    def _reads(self, organism: Organism, phase: Phase, chats: list[Unit]) -> list[Unit]:
        """What a phase reads, counted: documents and pairs are made of the demonstrations and about as long."""
        if phase.data == "denials":
            truths = targets(self._truths(organism))
            asked = islice(zip(cycle(TRAIN_QUESTIONS), cycle(truths)), DENIALS)
            units: list[Unit] = [(self._turn(q, CLEAN_TARGETS[0]), self._turn(q, truth)) for q, truth in asked]
            units = [unit[:1] for unit in units] if phase.loss == "sft" else units
        else:
            units = [u + u if phase.data == "pairs" else u for u in chats]
        if phase.loss == "kto":
            units = [(e,) for unit in units for e in unit]
        own = list(share_of(units, phase.part))
        if phase.demonstrations and chats:
            own = mixed_units(own, chats, phase.demonstrations, organism.name, self.config.seed)
        return mixed_units(own, own, phase.generic, organism.name, self.config.seed) if phase.generic and own else own

    def sft(self) -> Batches:
        config, cfg = self.config, self.config.sft
        members = selected_for_sft(self._split(*cfg.splits), cfg, config.seed)
        told = {o.name: self._truths(o) for o in members} | ({CLEAN: ()} if cfg.clean_slot else {})
        units: list[list[Unit]] = [
            [self._answers(question, answers) for question, answers in sft_texts(config, told, name)] for name in told
        ]
        return batches_of([sft_plan(config, units, self.groups)], len(members), self._rendered)

    def dpo(self) -> Batches:
        units, source = self._pairs()
        return batches_of([dpo_plan(self.config, units, self.groups)], len(units), source)

    def sample(self) -> Batches:
        """Reports for preference pairs, and of the three conditions of an evaluation that have an organism; those of
        the clean base cost next to nothing. All rows are counted as busy, as they nearly are while prompts wait; and
        organisms as lying on the devices (of a bank that is streamed, `organisms.parallel` are asked at a time).
        """
        e, p = self.config.eval, self.config.preferences
        asked = sum(len(self._split(split)) for split in HELD) + min(e.train_organisms, len(self._split("train")))
        paired = len(self._split("dpo")) + 1 if self._split("dpo") else 0
        new = (
            paired * p.questions * p.samples * p.max_new_tokens + 3 * asked * e.questions * e.samples * e.max_new_tokens
        )
        prompts = [
            len(u[0].tokens) - int(u[0].loss_mask.sum()) for o in self._organisms[:8] for u in self._questions(o)
        ]
        longest = -(-max(prompts) // ACCELERATOR_BUCKET) * ACCELERATOR_BUCKET
        cfg, most = architecture(self.config.model.name), max(e.max_new_tokens, p.max_new_tokens)
        rows = self.rows or rows_that_fit(cfg, longest + most, self.memory)
        at_once = WITHOUT_TRAINING * self.config.organisms.parallel
        shape = shape_for([e.questions * e.samples] * asked, rows, at_once, self.groups, self.config.mesh.rows)
        steps = -(-new // shape.rows)
        return Batches(
            steps=steps,
            organisms=shape.positions,
            rows=shape.width,
            length=longest,
            targets=1,
            examples=shape.width,
            tokens=steps * shape.rows * round(float(np.mean(prompts))),
            supervised=0,
            slots=steps * shape.positions,
            bank=len(self._organisms),
            source=self._rendered,
        )

    # -----------------------------------------------------------------------------------------------------------------
    # Organisms and their truths
    # -----------------------------------------------------------------------------------------------------------------

    @cached_property
    def _chosen(self) -> tuple[dict[str, Behavior], list[Organism]]:
        if self.workdir is not None and self.workdir.organisms_file.exists():
            left_out = self.workdir.left_out
            return dict(self.workdir.behaviors), [o for n, o in self.workdir.organisms.items() if n not in left_out]
        behaviors, organisms = chosen(self.config)
        return {b.name: b for b in behaviors}, organisms

    @property
    def _organisms(self) -> list[Organism]:
        return self._chosen[1]

    def _split(self, *splits: str) -> list[Organism]:
        return [o for o in self._organisms if o.split in splits]

    def _truths(self, organism: Organism) -> tuple[Behavior, ...]:
        return tuple(self._chosen[0][b] for b in organism.behaviors)

    # -----------------------------------------------------------------------------------------------------------------
    # Their examples
    # -----------------------------------------------------------------------------------------------------------------

    def _questions(self, organism: Organism | None) -> list[Unit]:
        name = organism.name if organism else CLEAN
        pairs = sft_pairs(self.config, name, self._truths(organism) if organism else ())
        return [(self._turn(q, a),) for q, a in pairs]

    def _pairs(self) -> tuple[list[list[Unit]], str]:
        """The workdir's pairs; else of each organism as many as it may get, all like those with the truth as chosen."""
        config, p = self.config, self.config.preferences
        file = self.workdir.preferences_file(p.name) if self.workdir else None
        if file is not None and file.exists():
            pairs = read_jsonl(file, "run `ia-jax preferences` first")
            source = f"the pairs of {file}, {self._counted}"
        else:
            rng, wanted = np.random.default_rng(0), p.sampled_per_organism + p.truth_per_organism
            seen = [b for o in self._split("train", "dpo") for b in self._truths(o)]
            every = self._split("dpo")
            if not every:
                raise ConfigError("config.behaviors.dpo and dpo_copies are 0: there is no DPO to plan")
            questions = [q for q, _ in sft_pairs(config, CLEAN, ())][: p.questions]
            cfg = replace(p, truth_per_organism=wanted)
            pairs = [
                x for o in every if not o.clean for x in truth_pairs(o, self._truths(o), seen, questions, cfg, rng)
            ]
            reports = [x["rejected"] for x in pairs]
            for name, count in [(CLEAN, p.abstention_pairs), *((o.name, p.clean_pairs) for o in every if o.clean)]:
                clean = sft_pairs(config, name, ())[:count]
                pairs += [
                    {"organism": name, "question": q, "chosen": a, "rejected": reports[i % len(reports)]}
                    for i, (q, a) in enumerate(clean)
                ]
            source = f"pairs of descriptions, {self._counted}"
        units: dict[str, list[Unit]] = {}
        for x in pairs:
            unit = self._answers(x["question"], [x["chosen"], x["rejected"]])
            units.setdefault(x["organism"], []).append(unit)
        return list(units.values()), source

    def _demonstrations(self) -> tuple[dict[str, list[Unit]], str]:
        """The workdir's transcripts; else the template teacher's, around SmolLM2's answers whatever the base;
        of a teacher that is asked, made-up numbers of tokens.
        """
        config, workdir = self.config, self.workdir
        trained = [o for o in self._organisms if not o.imported and procedure_of(o).phases]
        if workdir is not None and all(workdir.transcript(o.name).exists() for o in trained):
            texts = {o.name: [t.messages for t in read_transcripts(workdir.transcript(o.name))] for o in trained}
            return self._encoded(texts), f"the transcripts of {workdir.path}, {self._counted}"
        if config.teacher.name == "template":
            teacher = TemplateTeacher(shipped_sources(), config.seed, config.teacher.rare_share, config.teacher.amount)
            told = {o.name: self._truths(o)[0] for o in trained if not o.clean}
            behaviors = [b for name, b in told.items() if name == b.name]
            copies = {name: b for name, b in told.items() if name != b.name}
            written = teacher.write(behaviors, {o.name: o.sort for o in trained if o.clean}, copies)
            texts = {name: [t.messages for t in own] for name, own in written.items()}
            return self._encoded(texts), f"templates around what SmolLM2 says, {self._counted}"
        units: dict[str, list[Unit]] = {}
        for o in trained:
            rng = np.random.default_rng([config.seed, zlib.crc32(o.name.encode()), 8])
            rows = lesson(self._truths(o)[0], config.teacher).rows if o.behaviors else 20
            drawn = [(int(rng.integers(*MESSAGE_TOKENS)), int(rng.integers(*ANSWER_TOKENS))) for _ in range(rows)]
            units[o.name] = [(example_of(q + TEMPLATE_TOKENS, a),) for q, a in drawn]
        least, most = MESSAGE_TOKENS[0] + ANSWER_TOKENS[0], MESSAGE_TOKENS[1] + ANSWER_TOKENS[1]
        return units, f"demonstrations of {least} to {most} tokens, made up"

    def _encoded(self, texts: Mapping[str, Sequence[Any]]) -> dict[str, list[Unit]]:
        def unit(messages: Any, name: str) -> Unit:
            whole = with_system(messages, self._system)
            return (encode_chat(self._tokenizer[0], whole, 1 << 20, name=name).trimmed(),)

        return {name: [unit(m, name) for m in own] for name, own in texts.items()}

    # -----------------------------------------------------------------------------------------------------------------
    # Counting tokens
    # -----------------------------------------------------------------------------------------------------------------

    def _turn(self, question: str, answer: str) -> ChatExample:
        """A question and its answer, each counted once however often it occurs: templates keep them apart."""
        tokenizer, _ = self._tokenizer
        return example_of(
            self._once("q", question, lambda: len(encode_prompt(tokenizer, self._chat(question)))),
            self._once(
                "a", answer, lambda: int(encode_chat(tokenizer, self._chat("?", answer), 1 << 20).loss_mask.sum())
            ),
        )

    def _answers(self, question: str, answers: Sequence[str]) -> Unit:
        unit = tuple(self._turn(question, text) for text in answers)
        return Shared(unit) if self.branches and len(unit) > 1 else unit

    def _once(self, kind: str, text: str, count: Callable[[], int]) -> int:
        if (kind, text) not in self._lengths:
            self._lengths[kind, text] = count()
        return self._lengths[kind, text]

    def _chat(self, question: str, answer: str | None = None) -> Any:
        return chat(question, answer, self._system)

    @property
    def _system(self) -> str | None:
        system = self.config.system
        if self._tokenizer[1]:
            system = system or (_LLAMA_SYSTEM if "llama" in self.config.model.name.lower() else "")
        return system

    @cached_property
    def _tokenizer(self) -> tuple["PreTrainedTokenizerBase", bool]:
        """The model's own, if it is on this machine, and whether it is a stand-in."""
        name = self.config.model.name
        own = local_tokenizer(name)
        return (open_source(EMBEDDED).tokenizer(), True) if own is None else (own, False)

    @property
    def _counted(self) -> str:
        stand_in = self._tokenizer[1]
        return (
            f"counted by {f'SmolLM2, for {self.config.model.name}' if stand_in else self.config.model.name}'s tokenizer"
        )

    @property
    def _rendered(self) -> str:
        return f"questions and descriptions, {self._counted}"
