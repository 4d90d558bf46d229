"""A run's configuration: frozen dataclasses inside, an ml-collections ConfigDict at the edge.

A recipe file in `configs/` starts from `default_config()` and changes what it needs; the command line may change any
field (`--config.sft.steps=50`). `parse_config` turns the result into a `RunConfig`; unknown keys and wrong types raise.
"""

import dataclasses
import hashlib
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import ml_collections

from ia_jax.behaviors.teacher import TeacherSettings
from ia_jax.claude.settings import ClaudeSettings
from ia_jax.errors import ConfigError
from ia_jax.models.lora import PROJECTIONS, LoraConfig
from ia_jax.training.optimizer import AdamW


@dataclass(frozen=True)
class ModelSection:
    """Base model: "smollm2" (embedded), a checkpoint directory or a hub id; the dtype it computes in; `remat`, what its
    backward pass computes again to save memory: "none", "mlp" or "full".
    """

    name: str = "smollm2"
    dtype: str = "bfloat16"
    revision: str = ""
    remat: str = "none"


@dataclass(frozen=True)
class MeshSection:
    """Devices as fsdp x rows x tp, `dcn` times: on so many slices, each with organisms of its own. Organisms lie on
    fsdp, and where a step has fewer of them than there are devices, the rows of each on `rows`.
    """

    fsdp: int = 1
    tp: int = 1
    dcn: int = 1
    rows: int = 1


@dataclass(frozen=True)
class LoraSection:
    """Rank, alpha and target projections of one kind of adapter."""

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = PROJECTIONS
    init: str = "b_zero"

    def lora(self) -> LoraConfig:
        return LoraConfig(self.rank, self.alpha, self.targets, self.init)


@dataclass(frozen=True)
class BehaviorsSection:
    """How many behaviours are trained on, kept for DPO and held out.

    heldout_categories: categories of which every organism is held out, whatever the counts say (leave-one-out).
    catalogue: "demo", "study" (small models' own, in four or eight categories), "paper" (682 in eight) or the path of a
    JSONL file of one's own. spread: "even" over the categories, or "proportional" to their sizes.
    clean_train, clean_dpo, clean_heldout: clean organisms besides, which are trained on the base's own answers alone.
    """

    catalogue: str = "demo"
    spread: str = "even"
    train: int = 32
    dpo: int = 8
    heldout: int = 12
    heldout_categories: tuple[str, ...] = ()
    clean_train: int = 0
    clean_dpo: int = 0
    clean_heldout: int = 0


JUDGES = ("rubric", "claude")


@dataclass(frozen=True)
class JudgeSection:
    """Who judges reports: "rubric" (offline) or "claude"; the rest is Claude's.

    An answer that cannot be read is asked again, `attempts` times in all; then the report stays unscored.
    """

    name: str = "rubric"
    model: str = "claude-sonnet-5-5"
    effort: str = "low"
    attempts: int = 3


@dataclass(frozen=True)
class OrganismsSection:
    """Training of the organisms, `parallel` at a time, each step `rows` packed rows of `length` tokens for each, in
    `accumulate` parts one after the other (as in SFT and DPO: the same gradient in less memory).

    Organisms that fail their behaviour check are kept out of SFT and DPO, unless `keep_failed`. It asks `check_prompts`
    questions of each sort (0: no check). A wave's training state is kept every `checkpoint_every` steps and at its end
    (0: a killed wave begins again). With `ranks`, each organism has one of these, drawn by its name and the seed, and
    alpha/rank as in `lora`: fine-tunes to audit come in many. With `source`, another workdir, its organisms are used
    where they lie and none is trained here.

    Later stages hold all of them on the devices where they fit into `bank_gib` of each (0: half of what is free), else
    they stream them from the host, which keeps those read last up to `cache_gib`.
    """

    lora: LoraSection = field(default_factory=lambda: LoraSection(rank=8, alpha=16.0))
    ranks: tuple[int, ...] = ()
    source: str = ""
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
        mixed = (dataclasses.replace(one, rank=rank, alpha=one.scale * rank) for rank in sorted(self.ranks))
        return tuple(mixed) or (one,)


@dataclass(frozen=True)
class SftSection:
    """Joint IA training: k organisms a step, each the next `per_slot` questions, or as many as fit into `rows` rows of
    `length` tokens; the rows in `accumulate` parts.

    Which organisms: those of `splits`, of `categories` (() for all), and of these `organisms` (at most 1: a fraction;
    more: a count), evenly over the categories; fewer are always a part of more. The IA is stored as `ia/<name>`.
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
    clean_slot: bool = True
    checkpoint_every: int = 20


@dataclass(frozen=True)
class PreferencesSection:
    """Reports sampled from the SFT IA and paired: chosen >= min_chosen, rejected at least `gap` lower.

    `abstention_pairs` on the clean base; `clean_pairs` on each clean organism of the dpo split (0: they stay out).
    Stored as `preferences/<name>.jsonl`.
    """

    name: str = "dpo"
    questions: int = 6
    samples: int = 4
    temperature: float = 1.0
    top_p: float = 0.95
    max_new_tokens: int = 32
    min_chosen: int = 7
    gap: int = 2
    sampled_per_organism: int = 8
    truth_per_organism: int = 8
    abstention_pairs: int = 24
    clean_pairs: int = 0


@dataclass(frozen=True)
class DpoSection:
    """DPO from the IA `sft.name`; the reference is that IA with the same organism. Steps as in SFT, of pairs.

    The refined IA is stored as `ia/<name>`. Without organisms for it (behaviors.dpo=0) there is no DPO.
    """

    name: str = "dpo"
    optimizer: AdamW = field(default_factory=lambda: AdamW(lr=1e-5))
    beta: float = 0.1
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

    Written to `eval/`, or to `eval/<name>/`.
    """

    name: str = ""
    questions: int = 6
    train_organisms: int = 12
    max_new_tokens: int = 32
    temperature: float = 0.0
    bootstrap: int = 2000


@dataclass(frozen=True)
class RunConfig:
    """Everything a run depends on.

    system: the system message of every chat that has none of its own: of demonstrations, questions and checks alike.
    "" is an empty system turn; None is no system turn, unless the model's template writes one by itself.
    questions: the bank that IA training, pairs and evaluation draw from. "short" (32 wordings), "general" (over a
    hundred, family-blind) or "family" (each category in the paper's style, which gives the category away).
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


def default_config() -> ml_collections.ConfigDict:
    """The defaults as a ConfigDict that recipes change."""
    return ml_collections.ConfigDict(dataclasses.asdict(RunConfig()))


T = TypeVar("T")


def parse_config(config: Mapping[str, Any]) -> RunConfig:
    """ConfigDict or mapping -> RunConfig. Raises ConfigError naming an unknown key, a value of a wrong type, or a batch
    that the mesh does not divide.
    """
    parsed = _parse(RunConfig, config, "config")
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


def _parse(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]  # pyright: ignore[reportArgumentType]
    unknown = sorted(set(values) - set(names))
    if unknown:
        raise ConfigError(f"{where}.{unknown[0]} is not a known setting; {where} has: {', '.join(names)}")
    return cls(**{n: _value(hints[n], values[n], f"{where}.{n}") for n in names if n in values})


def _value(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping | ml_collections.ConfigDict):
            raise ConfigError(f"{where} must be a group of settings, got {value!r}")
        return _parse(typing.cast(type, hint), typing.cast(Mapping, value), where)
    if typing.get_origin(hint) is tuple:
        if isinstance(value, str) or not isinstance(value, list | tuple):
            raise ConfigError(f"{where} must be a list, got {value!r}")
        entry = typing.get_args(hint)[0]
        if not all(isinstance(x, entry) and not isinstance(x, bool) for x in value):
            raise ConfigError(f"{where} must be a list of {entry.__name__}, got {value!r}")
        return tuple(value)
    if isinstance(hint, types.UnionType):  # `str | None`; on the command line, None is a word
        if value in (None, "None"):
            return None
        [hint] = [kind for kind in typing.get_args(hint) if kind is not types.NoneType]
    wanted = (int, float) if hint is float else hint
    if not isinstance(value, wanted) or (isinstance(value, bool) != (hint is bool)):
        raise ConfigError(f"{where} must be {getattr(hint, '__name__', hint)}, got {value!r}")
    return float(value) if hint is float else value


def config_hash(config: RunConfig) -> str:
    """Short hash of every setting; adapters and caches carry it."""
    text = json.dumps(dataclasses.asdict(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
