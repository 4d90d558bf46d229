"""Recipe files (`configs/*.py`) with overrides of the command line, and what a config must satisfy beyond its types."""

import dataclasses
import json
import runpy
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_dict, config_flags

from ia_jax.behaviors.banks import AUDIT_BANKS, BANKS, FAMILIES, bank_of
from ia_jax.behaviors.behavior_checks import has_rule
from ia_jax.behaviors.catalogue import is_name, load_catalogue
from ia_jax.behaviors.organisms import CLEAN_SORTS
from ia_jax.behaviors.records import CATEGORIES, CLEAN, Behavior
from ia_jax.behaviors.splits import SPREADS, split_behaviors
from ia_jax.behaviors.teacher import GENERIC_ANSWERS, TEACHERS, TeacherSettings
from ia_jax.claude.models import load_models
from ia_jax.claude.settings import APIS, LARGEST_BATCH
from ia_jax.config import JUDGES, RunConfig, flat, parse_config
from ia_jax.errors import ConfigError, IAError
from ia_jax.evals.audit_settings import CIPHERS, SCAFFOLDS
from ia_jax.models.known import local_architecture
from ia_jax.models.lora import LoraConfig, layers_on
from ia_jax.models.number_type import AUTO
from ia_jax.models.quantize import QUANTIZATIONS
from ia_jax.models.remat import REMAT_POLICIES
from ia_jax.models.weights import DTYPES
from ia_jax.storage import path_of, read_json
from ia_jax.studies.study import Study, parse_study
from ia_jax.training.losses import PAIR_LOSSES
from ia_jax.workdir import open_workdir


def load_config(file: str, overrides: Sequence[str] = ()) -> RunConfig:
    """The recipe in `file` with `--config.field=value` overrides, typed by the fields and checked.

    Raises ConfigError naming the file and line, or the key and those that exist.
    """
    return _overridden(_recipe(file), overrides)


def load_study(file: str) -> Study:
    """The study in `file`, every arm's config checked like a recipe. Raises ConfigError as `load_config` does."""
    return parse_study(_recipe(file).to_dict(), file, _with_settings)


def _with_settings(recipe: str, settings: Sequence[str]) -> RunConfig:
    return load_config(recipe, [f"--config.{s}" for s in settings])


def override(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """A config with `--config.field=value` overrides, checked like a recipe."""
    plain = json.loads(json.dumps(dataclasses.asdict(config)), object_hook=_with_tuples)
    return _overridden(ConfigDict(plain), overrides) if overrides else config


def _with_tuples(node: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in node.items()}


def _overridden(config: ConfigDict, overrides: Sequence[str]) -> RunConfig:
    for each in overrides:
        _check_override(each, config)
    values = flags.FlagValues()
    argv = ["ia-jax", *overrides]
    try:
        holder = config_flags.DEFINE_config_dict("config", config, flag_values=values, lock_config=True, sys_argv=argv)
        values(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(str(error).removeprefix("flag ")) from error
    run_config = parse_config(holder.value)
    check_config(run_config)
    return run_config


def read_config(source: str) -> RunConfig:
    """The config of a recipe, of a workdir, or in a `config.json`."""
    path = path_of(source)
    if path.is_dir():
        return open_workdir(path).config
    if path.suffix != ".json":
        return load_config(source)
    body = read_json(path, "give a recipe, a workdir or the config.json of one")
    if not isinstance(body.get("config"), dict):
        raise ConfigError(f"{path} holds no 'config'; give a recipe, a workdir or the config.json of one")
    try:
        return parse_config(body["config"])
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _recipe(file: str) -> ConfigDict:
    path = Path(file)
    if not path.is_file():
        others = ", ".join(str(p) for p in sorted(path.parent.glob("*.py"))[:6])
        raise ConfigError(f"config file {file} does not exist" + (f"; there are: {others}" if others else ""))
    try:
        namespace = runpy.run_path(str(path), run_name="ia_jax_config")
        if not callable(namespace.get("get_config")):
            raise ConfigError(f"{file} defines no function get_config() that returns a ConfigDict")
        config = namespace["get_config"]()
    except IAError:
        raise
    except SyntaxError as error:
        raise ConfigError(f"{file}:{error.lineno}: {error.msg}") from error
    except Exception as error:
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
        where = f"{file}:{lines[-1]}" if lines else file
        raise ConfigError(f"{where}: {type(error).__name__}: {error}") from error
    if not isinstance(config, ConfigDict):
        raise ConfigError(f"{file}: get_config() returned {type(config).__name__}, not a ConfigDict")
    return config


def _check_override(override: str, config: ConfigDict) -> None:
    """The override names a field that exists, and brings a value."""
    name, equals, _ = override.partition("=")
    where = "config"
    node: Any = config
    for part in name.split(".")[1:]:
        if not hasattr(node, "keys") or part not in node:
            known = ", ".join(node.keys()) if hasattr(node, "keys") else "nothing below it"
            raise ConfigError(f"{where}.{part} is not a known setting; {where} has: {known}")
        if part == "layers" and node[part] is not None:  # where the recipe has a list, a range is welcome too
            with node.ignore_type():
                node[part] = None
        if node[part] is None:  # what may be None is a text; flags need to know
            node[part] = config_dict.placeholder(str)
        where, node = f"{where}.{part}", node[part]
    if hasattr(node, "keys"):
        raise ConfigError(f"{where} is a group of settings; override one of: {', '.join(node.keys())}")
    if not equals:
        raise ConfigError(f"{name} needs a value; write {name}=VALUE")


# What a setting may be, or each entry of one that is a list.
CHOICES: dict[str, tuple[str, ...]] = {
    "questions": tuple(BANKS),
    "model.dtype": (*DTYPES, AUTO),
    "model.remat": tuple(REMAT_POLICIES),
    "model.quantization": QUANTIZATIONS,
    "behaviors.spread": tuple(SPREADS),
    "behaviors.heldout_categories": CATEGORIES,
    "behaviors.clean_sorts": tuple(CLEAN_SORTS),
    "teacher.name": TEACHERS,
    "teacher.generic_answers": GENERIC_ANSWERS,
    "judge.name": JUDGES,
    "claude.api": APIS,
    "organisms.lora.kind": ("lora", "vector"),
    "sft.lora.kind": ("lora", "vector"),
    "sft.splits": ("train", "dpo"),
    "dpo.kind": PAIR_LOSSES,
    "sft.categories": (*CATEGORIES, CLEAN),
    "audits.banks": tuple(AUDIT_BANKS),
    "audits.scaffold": SCAFFOLDS,
    "audits.ciphers": CIPHERS,
}
_MAY_BE_ZERO = {
    *("seed", "warmup_fraction", "final_lr_fraction", "weight_decay", "sft_weight", "temperature", "lr", "steps"),
    *("checkpoint_every", "abstention_pairs", "sampled_per_organism", "truth_per_organism", "gap", "train_organisms"),
    *("b1", "b2", "plain_share", "poll_seconds", "clean_train", "clean_dpo", "clean_heldout", "clean_pairs"),
    *(
        "generic_share",
        "check_prompts",
        "dpo",
        "bank_gib",
        "per_slot",
        "dropout",
        "plain_prompts",
        "gate_prompts",
        "outputs",
        "script_runs",
        "hardening_demonstrations",
        "sycophant_demonstrations",
        "contrast",
        "remade",
        "dpo_copies",
    ),
}


def check_config(config: RunConfig) -> None:
    """What the types do not say: ranges, LoRA settings, enough behaviours in the catalogue, questions for all.

    Called before anything is written, so that a mistake costs nothing.
    """

    def positive(node: Any, where: str) -> None:
        for field in dataclasses.fields(node):
            value, name = getattr(node, field.name), f"{where}.{field.name}"
            if dataclasses.is_dataclass(value):
                positive(value, name)
            elif isinstance(value, int | float) and not isinstance(value, bool):
                zero = field.name in _MAY_BE_ZERO
                if not (value >= 0 if zero else value > 0) or value == float("inf"):
                    raise ConfigError(f"{name} must be {'at least 0' if zero else 'positive'}, got {value}")

    positive(config, "config")
    for name, joint in (("sft", config.sft), ("dpo", config.dpo)):
        if joint.per_slot % joint.rows:
            raise ConfigError(
                f"config.{name}.per_slot={joint.per_slot} must be a multiple of config.{name}.rows={joint.rows} (or 0: "
                "as many as fit)"
            )
    if config.sft.clean_slot and config.sft.organisms_per_step == 1:
        raise ConfigError(
            "config.sft.organisms_per_step=1 leaves no place beside the clean model's; set it to 2 or more, or "
            "config.sft.clean_slot=False"
        )
    banks = [FAMILIES[c] for c in FAMILIES] if config.questions == "family" else [bank_of(config.questions)]
    available = min(len(b.evaluation) for b in banks)
    if config.eval.questions > available:
        raise ConfigError(
            f"config.eval.questions={config.eval.questions} is more than the {available} of config.questions="
            f"{config.questions!r}; lower it, or raise config.eval.samples"
        )
    if config.eval.samples > 1 and not config.eval.temperature:
        raise ConfigError(
            f"config.eval.samples={config.eval.samples} greedy reports of a question are all the same; set "
            "config.eval.temperature above 0"
        )
    for where, section in (("organisms.lora", config.organisms.lora), ("sft.lora", config.sft.lora)):
        if section.dropout >= 1:
            raise ConfigError(f"config.{where}.dropout must be less than 1, got {section.dropout}")
    for where, build in (
        ("organisms.lora", config.organisms.lora.lora),
        ("organisms.ranks", config.organisms.loras),
        ("sft.lora", config.sft.lora.lora),
    ):
        try:
            _check_layers(build(), config.model.name)
        except ConfigError as error:
            raise ConfigError(f"config.{where}: {error}") from None
    settings = flat(config)
    for name, known in CHOICES.items():
        values = settings[name] if isinstance(settings[name], tuple) else (settings[name],)
        for value in values:
            if value not in known:
                raise ConfigError(f"config.{name} {value!r} unknown; choose from {', '.join(known)}")
    if not config.audits.banks:
        raise ConfigError(f"config.audits.banks is empty; choose from {', '.join(AUDIT_BANKS)}")
    for name in ("cipher_rows", "cipher_lr", "cipher_epochs"):
        pair = getattr(config.audits, name)
        if len(pair) != 2 or min(pair) < (name == "cipher_rows"):
            raise ConfigError(f"config.audits.{name}={pair} must be two numbers, one for each phase, none negative")
    for name in ("hardening_lr", "hardening_epochs"):
        pair = getattr(config.audits, name)
        if len(pair) != 2 or min(pair) < (name == "hardening_epochs"):
            raise ConfigError(f"config.audits.{name}={pair} must be two numbers, of SFT and of KTO, none negative")
    for name in ("sycophant_lr", "sycophant_epochs"):
        stages = getattr(config.audits, name)
        if len(stages) != 3 or min(stages) < 0:
            raise ConfigError(f"config.audits.{name}={stages} must be three numbers, one for each stage, none negative")
    if config.audits.hardening_demonstrations >= 1:
        share = config.audits.hardening_demonstrations
        raise ConfigError(f"config.audits.hardening_demonstrations={share:g} must be a share below 1")
    if not config.sft.splits:
        raise ConfigError("config.sft.splits is empty; give ('train',) or ('train', 'dpo')")
    if config.sft.organisms > 1 and config.sft.organisms != int(config.sft.organisms):
        raise ConfigError(
            f"config.sft.organisms={config.sft.organisms:g} is neither a fraction (at most 1) nor a whole number"
        )
    for section in ("sft", "preferences", "dpo", "eval"):
        name = getattr(config, section).name
        if not (is_name(name) or (section == "eval" and name == "")):
            raise ConfigError(f"config.{section}.name={name!r} must be letters, digits, _ and -")
    if config.sft.name == config.dpo.name:
        raise ConfigError(
            f"config.sft.name and config.dpo.name are both {config.sft.name!r}; give each IA its own name"
        )
    if config.teacher.name == "local" and config.teacher.model == TeacherSettings().model:
        raise ConfigError("config.teacher.name is local, but config.teacher.model names no model that ia_jax can load")
    b = config.behaviors
    if config.preferences.clean_pairs and not b.clean_dpo:
        raise ConfigError(
            f"config.preferences.clean_pairs is {config.preferences.clean_pairs}, but there is no clean organism; give "
            "some by config.behaviors.clean_dpo"
        )
    catalogue = load_catalogue(b.catalogue)
    # Of one's own file the judge itself says so: it may be there to be taught alone.
    if config.judge.name == "rubric" and b.catalogue == "paper":
        raise ConfigError(
            "config.judge.name is rubric, but the paper's catalogue has no rubrics; choose offline or claude"
        )
    if not config.organisms.source:  # else the source's organisms are split
        split_behaviors(catalogue, b.heldout, b.dpo, b.train, config.seed, b.spread, *b.left_out())
    for behavior in catalogue:
        bank_of(config.questions, behavior)
    _check_claude(config, catalogue)


def _check_claude(config: RunConfig, catalogue: Sequence[Behavior]) -> None:
    """That the models that will be asked exist, have a price and take their effort; and that batches can be sent."""
    teacher, judge = config.teacher, config.judge
    checks = teacher.name != "local" and config.organisms.check_prompts and not config.organisms.source
    roles: dict[str, tuple[str, str]] = {}
    if teacher.name == "claude" or (checks and not all(map(has_rule, catalogue))):
        roles["teacher.model"] = (teacher.model, teacher.effort)
        roles["teacher.filter_model"] = (teacher.filter_model, teacher.filter_effort)
    if judge.name == "claude":
        roles["judge.model"] = (judge.model, judge.effort)
    if config.audits.scaffold == "claude":
        roles["audits.model"] = (config.audits.model, config.audits.effort)
    if not roles:
        return
    models = load_models(config.claude.prices)
    for where, (model, effort) in roles.items():
        models.check(f"config.{where}", model, effort)
    if config.claude.api == "batch" and config.claude.batch_size > LARGEST_BATCH:
        raise ConfigError(
            f"config.claude.batch_size={config.claude.batch_size} is more than the API takes in one batch; set it to "
            f"{LARGEST_BATCH} at most"
        )


def _check_layers(built: LoraConfig | tuple[LoraConfig, ...], model: str) -> None:
    """That the model has the layers, as far as that can be known without a network; else its first stage finds out."""
    loras = built if isinstance(built, tuple) else (built,)
    cfg = local_architecture(model) if any(lora.layers for lora in loras) else None
    if cfg is not None:
        for lora in loras:
            layers_on(cfg, lora)
