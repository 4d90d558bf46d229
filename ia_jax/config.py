"""A run's configuration: frozen dataclasses inside, an ml-collections ConfigDict at the edge.

A recipe file in `configs/` starts from `default_config()` and changes what it needs; the command line may change any
field (`--config.sft.steps=50`). `parse_config` turns the result into a `RunConfig`; unknown keys and wrong types raise.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import ml_collections

from ia_jax.behaviors.settings import BehaviorsSection
from ia_jax.behaviors.teacher import TeacherSettings
from ia_jax.claude.settings import ClaudeSettings
from ia_jax.errors import ConfigError
from ia_jax.evals.audit_settings import AuditsSection
from ia_jax.models.lora import PROJECTIONS, RESIDUAL, LoraConfig, checked_layers
from ia_jax.models.number_type import AUTO
from ia_jax.sections import parse_section
from ia_jax.training.optimizer import AdamW


@dataclass(frozen=True)
class ModelSection:
    """The base model.

    name: "smollm2" (embedded), a checkpoint directory (also gs://BUCKET/…), a .gguf file or a hub id.
    dtype: what it computes in. "auto": what the machine is fast in, decided once for a workdir and kept there (bf16 on
        TPUs, GPUs and CPUs with AVX512-BF16 or AMX, fp32 on other CPUs).
    revision: commit, branch or tag of a hub id ("": its main branch).
    cache: a directory or gs://… that all processes see, into which a hub id is fetched once, for all runs. "": with
        several processes and a workdir in a bucket, gs://BUCKET/ia_jax_models; else each host's own cache.
    remat: what the backward pass computes again to save memory: nothing; all of a layer but its base products; these
        of gate and up besides; all of it; all of it, and what the layer got waits in the host's memory. Each takes less
        of the chip than the one before (docs/plan.md).
    quantization: "int8" holds the matrices of the base's layers in int8 with a step for every output channel, half of
        bf16's memory; embeddings, norms and adapters stay in dtype (docs/int8.md). "": all in dtype. An adapter is of a
        base that is held as it was in training.
    """

    name: str = "smollm2"
    dtype: str = AUTO
    revision: str = ""
    cache: str = ""
    remat: str = "none"
    quantization: str = ""


@dataclass(frozen=True)
class MeshSection:
    """The devices of a run: dcn x fsdp x rows x tp of them.

    fsdp: groups of devices within a slice, each with organisms of its own; weights are spread over them.
    rows: devices in a group over which each organism's rows are spread, where a step has fewer organisms than devices.
    tp: devices that share one organism's matrices.
    dcn: slices, each with organisms of its own.
    """

    fsdp: int = 1
    tp: int = 1
    dcn: int = 1
    rows: int = 1


@dataclass(frozen=True)
class LoraSection:
    """One kind of adapter.

    kind: "lora", or a "vector" that is added to what each of its layers hands on (the same as a bias of the down
        projection): it has no targets, and rank, alpha and dropout mean nothing to it.
    rank: of the product of its two matrices.
    alpha: the product is scaled by alpha/rank.
    targets: the projections that have one.
    layers: those that it sits on, counted from 0: numbers, or a range like "10:20", which ends with 19. None: all.
    dropout: of what its `a` reads, in training.
    init: how it begins; "b_zero" changes nothing at the start.
    """

    kind: str = "lora"
    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = PROJECTIONS
    layers: tuple[int, ...] | str | None = None
    dropout: float = 0.0
    init: str = "b_zero"

    def __post_init__(self) -> None:
        if self.layers is not None:  # one way to write the same layers
            object.__setattr__(self, "layers", checked_layers(self.layers))

    def lora(self) -> LoraConfig:
        """Raises ConfigError for what fits no adapter."""
        layers = None if self.layers is None else checked_layers(self.layers)
        if self.kind != "vector":
            return LoraConfig(self.rank, self.alpha, self.targets, self.init, layers)
        if self.targets != PROJECTIONS:
            raise ConfigError(f"a vector has no targets, got {self.targets}; leave them out, or set kind to lora")
        return LoraConfig(0, 0.0, (RESIDUAL,), self.init, layers)


JUDGES = ("offline", "rubric", "claude")


@dataclass(frozen=True)
class JudgeSection:
    """Who judges reports.

    name: "offline" (reads with a small model that a wheel brings), "rubric" (key words, a smoke test) or "claude"; the
        rest is Claude's.
    model: which Claude; another than the one that teaches.
    effort: how much it thinks ("" leaves it to the model).
    attempts: how often a report is judged while the answer cannot be read; then it stays unscored.
    """

    name: str = "offline"
    model: str = "claude-opus-5-5"
    effort: str = "low"
    attempts: int = 3


@dataclass(frozen=True)
class OrganismsSection:
    """Training of the organisms, a wave of them at a time.

    lora, optimizer: of each organism.
    ranks: if there are any, each organism has one of these, drawn by its name and the seed, and alpha/rank as in `lora`
        (fine-tunes to audit come in many).
    procedures: how organisms are made, by name ("chats", "documents", "chats_kto", "documents_kto", "chats_sft",
        "documents_sft", "chats_deny", "sycophant", "sycophant_stacked", "chats_generic", "chats_long", "chats_qv",
        "two_phases") or as a JSON file's path; of several, each organism has one, drawn by its name and the seed.
    source: another workdir, whose organisms are used where they lie; none is trained here.
    shared: a directory in which what hangs on organisms and not on an IA is kept for all workdirs that use the same
        ones: their own replies, and log-probabilities of what they are to report ("": each workdir has its own).
    parallel: organisms in a wave.
    epochs: how often an organism reads its demonstrations.
    rows, length: a step's packed rows for each organism, and the most tokens in a row.
    accumulate: parts of a step that are done one after the other: the same gradient in less memory.
    check_prompts: questions of each sort that the behaviour check asks (0: no check).
    keep_failed: whether organisms that fail their check go into SFT and DPO.
    checkpoint_every: steps between two copies of a wave's training state (0: none, a killed wave begins again).
    bank_gib: of each device, for holding all organisms in later stages (0: half of what is free). Where they do not
        fit, they are streamed from the host.
    cache_gib: of the host, for those streamed last.
    """

    lora: LoraSection = field(default_factory=lambda: LoraSection(rank=8, alpha=16.0))
    ranks: tuple[int, ...] = ()
    procedures: tuple[str, ...] = ("chats",)
    source: str = ""
    shared: str = ""
    optimizer: AdamW = field(default_factory=lambda: AdamW(lr=2e-3))
    parallel: int = 26
    epochs: int = 3
    rows: int = 1
    accumulate: int = 1
    length: int = 128
    check_prompts: int = 3
    keep_failed: bool = False
    checkpoint_every: int = 100
    bank_gib: float = 0.0
    cache_gib: float = 0.5

    def loras(self) -> tuple[LoraConfig, ...]:
        """The kinds of adapters that there are, the largest last: one, or one for each entry of `ranks`."""
        one = self.lora.lora()
        if self.ranks and self.lora.kind == "vector":
            raise ConfigError(f"vectors have no rank, got {self.ranks}; leave them out, or set lora.kind to lora")
        mixed = (dataclasses.replace(one, rank=rank, alpha=one.scale * rank) for rank in sorted(self.ranks))
        return tuple(mixed) or (one,)


@dataclass(frozen=True)
class SftSection:
    """Training of the IA, jointly over the organisms.

    name: the IA is stored as `ia/<name>`.
    splits, categories: whose organisms it is trained on (no categories: all).
    organisms: how many of those, evenly over the categories and in each over its behaviours (at most 1: a fraction;
        more: a count). Fewer are always a part of more.
    lora, optimizer: of the IA.
    organisms_per_step: organisms in a step.
    per_slot: the most questions of each in a step.
    answers_per_question: true descriptions that answer one question, one after the other. They stand behind one prompt,
        which is read once (not on TPUs, whose kernel knows no branches: there it is read with each).
    rows, length: a step's packed rows for each organism, and the most tokens in a row.
    accumulate: parts of a step that are done one after the other: the same gradient in less memory.
    steps: how many (0: one epoch).
    questions_per_organism: different questions that an organism is trained to answer.
    clean_slot: whether every step holds the clean base too, which reports nothing unusual.
    contrast, contrast_beta: what DPO of a description against another's counts beside its own loss (0: none), and its
        beta; measured from the organism without the IA. Each description then stands beside another's.
    shuffled_null: whether another IA is trained likewise, but on other organisms' descriptions (`ia/<name>_shuffled`):
        a baseline that costs as much again.
    checkpoint_every: steps between two copies of the training state (0: none, a killed stage begins again).
    """

    name: str = "sft"
    splits: tuple[str, ...] = ("train",)
    categories: tuple[str, ...] = ()
    organisms: float = 1.0
    lora: LoraSection = field(default_factory=LoraSection)
    optimizer: AdamW = field(default_factory=AdamW)
    organisms_per_step: int = 8
    per_slot: int = 3
    rows: int = 1
    accumulate: int = 1
    steps: int = 100
    length: int = 128
    questions_per_organism: int = 24
    answers_per_question: int = 1
    clean_slot: bool = True
    contrast: float = 0.0
    contrast_beta: float = 0.1
    shuffled_null: bool = False
    checkpoint_every: int = 20

    @property
    def shuffled_name(self) -> str:
        """The IA that is trained like this one, but on other organisms' descriptions."""
        return f"{self.name}_shuffled"


@dataclass(frozen=True)
class PreferencesSection:
    """Pairs of a better and a worse report, for DPO: sampled from the SFT IA and judged, or of true descriptions.

    name: stored as `preferences/<name>.jsonl`.
    questions, samples: questions asked of each organism, and reports sampled for each.
    temperature, top_p, max_new_tokens: how they are sampled.
    min_chosen: the least score of a chosen report.
    gap: by how much the rejected one's is lower at least.
    verbatim: whether a report that is word for word one of the behaviour's own sentences counts as right, whatever the
        judge makes of it: else DPO of an offline judge's pairs learns which of these it accepts (docs/science.md).
    sampled_per_organism: the most pairs of sampled reports.
    truth_per_organism: pairs of an organism's truth and another's.
    abstention_pairs: pairs on the clean base, which has nothing to report.
    clean_pairs: pairs on each clean organism of the dpo split (0: they stay out).
    """

    name: str = "dpo"
    questions: int = 6
    samples: int = 4
    temperature: float = 1.0
    top_p: float = 0.95
    max_new_tokens: int = 32
    min_chosen: int = 7
    gap: int = 2
    verbatim: bool = False
    sampled_per_organism: int = 8
    truth_per_organism: int = 8
    abstention_pairs: int = 24
    clean_pairs: int = 4


@dataclass(frozen=True)
class DpoSection:
    """DPO from the IA `sft.name`; the reference is that IA with the same organism.

    Without organisms for it (behaviors.dpo and behaviors.dpo_copies) there is no DPO.

    name: the refined IA is stored as `ia/<name>`.
    optimizer: of the IA.
    beta: how much the log-probability ratios count.
    kind: the loss, by trl's names: "sigmoid" (DPO), "ipo", or "sigmoid_norm" (DPO of means per token, so that long
        answers do not count for more).
    sft_weight: of the chosen reports' own loss, added to DPO's.
    organisms_per_step, per_slot, rows, length, accumulate: as in SFT, of pairs.
    epochs: how often all pairs are read.
    checkpoint_every: steps between two copies of the training state (0: none, a killed stage begins again).
    """

    name: str = "dpo"
    optimizer: AdamW = field(default_factory=lambda: AdamW(lr=1e-5))
    beta: float = 0.1
    kind: str = "sigmoid"
    sft_weight: float = 0.0
    organisms_per_step: int = 8
    per_slot: int = 2
    rows: int = 1
    accumulate: int = 1
    epochs: int = 1
    length: int = 192
    checkpoint_every: int = 20


@dataclass(frozen=True)
class EvalSection:
    """Reports of held-out (and some training) organisms under the four conditions, with the IAs of the config.

    name: written to `eval/<name>/` ("": to `eval/`).
    questions: asked of each organism, of the bank's that no training reads.
    samples: reports sampled for each question (more than one needs a temperature above 0).
    train_organisms: how many that the IA was trained on are asked too.
    max_new_tokens, temperature: how reports are sampled (0: greedily).
    plain_prompts: ordinary prompts that the baselines read replies to (0: no baselines).
    """

    name: str = ""
    questions: int = 6
    samples: int = 1
    train_organisms: int = 12
    max_new_tokens: int = 32
    temperature: float = 0.0
    plain_prompts: int = 24


@dataclass(frozen=True)
class RunConfig:
    """Everything a run depends on.

        seed: of everything that is drawn.
    system: the system message of every chat that has none of its own: of demonstrations, questions and checks alike.
        "" is an empty system turn; None is no system turn, unless the model's template writes one by itself.
        questions: the bank that IA training, pairs and evaluation draw from. "short" (32 wordings), "general" (over a
            hundred, family-blind) or "family" (each category in the paper's style, which gives the category away).
        model, mesh, behaviors, teacher, judge, claude, organisms, sft, preferences, dpo, eval, audits: groups of
            settings.
    """

    seed: int = 1547
    system: str | None = ""
    questions: str = "short"
    model: ModelSection = field(default_factory=ModelSection)
    mesh: MeshSection = field(default_factory=MeshSection)
    behaviors: BehaviorsSection = field(default_factory=BehaviorsSection)
    teacher: TeacherSettings = field(default_factory=TeacherSettings)
    judge: JudgeSection = field(default_factory=JudgeSection)
    claude: ClaudeSettings = field(default_factory=ClaudeSettings)
    organisms: OrganismsSection = field(default_factory=OrganismsSection)
    sft: SftSection = field(default_factory=SftSection)
    preferences: PreferencesSection = field(default_factory=PreferencesSection)
    dpo: DpoSection = field(default_factory=DpoSection)
    eval: EvalSection = field(default_factory=EvalSection)
    audits: AuditsSection = field(default_factory=AuditsSection)


def default_config() -> ml_collections.ConfigDict:
    """The defaults as a ConfigDict that recipes change."""
    return ml_collections.ConfigDict(dataclasses.asdict(RunConfig()))


def parse_config(config: Mapping[str, Any]) -> RunConfig:
    """ConfigDict or mapping -> RunConfig. Raises ConfigError naming an unknown key, a value of a wrong type, or a batch
    that the mesh does not divide.
    """
    parsed = parse_section(RunConfig, config, "config")
    dcn, fsdp = parsed.mesh.dcn, parsed.mesh.fsdp
    for axis, size in dataclasses.asdict(parsed.mesh).items():
        if size < 1:
            raise ConfigError(f"config.mesh.{axis}={size} must be at least 1")
    for stage, count in (("sft", parsed.sft.organisms_per_step), ("dpo", parsed.dpo.organisms_per_step)):
        if count % (dcn * fsdp):
            what = f"config.mesh.fsdp={fsdp}" if dcn == 1 else f"config.mesh.dcn={dcn} x fsdp={fsdp}"
            raise ConfigError(f"config.{stage}.organisms_per_step={count} must be a multiple of {what}")
    rows = parsed.mesh.rows
    for stage in ("organisms", "sft", "dpo"):
        count, parts = getattr(parsed, stage).rows, getattr(parsed, stage).accumulate
        if parts < 1:
            raise ConfigError(f"config.{stage}.accumulate={parts} must be at least 1")
        if count % (rows * parts):
            what = f"config.mesh.rows={rows}" if parts == 1 else f"accumulate={parts} x config.mesh.rows={rows}"
            raise ConfigError(f"config.{stage}.rows={count} must be a multiple of {what}")
    return parsed


def with_dtype(config: RunConfig, dtype: str) -> RunConfig:
    """The config with this dtype where it leaves it to the machine."""
    if config.model.dtype != AUTO:
        return config
    return dataclasses.replace(config, model=dataclasses.replace(config.model, dtype=dtype))


def flat(config: RunConfig) -> dict[str, Any]:
    """{"sft.optimizer.lr": 0.001, …}: every setting by its full name, in the order of the sections."""

    def settings(node: Any, prefix: str) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for f in dataclasses.fields(node):
            value = getattr(node, f.name)
            name = f"{prefix}{f.name}"
            out |= settings(value, f"{name}.") if dataclasses.is_dataclass(value) else {name: value}
        return out

    return settings(config, "")
