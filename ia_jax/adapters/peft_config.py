"""What a PEFT `adapter_config.json` says: which modules an adapter covers, with which rank and scale."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from etils import epath

from ia_jax.errors import ConfigError

_READ = {
    *("peft_type", "base_model_name_or_path", "revision", "r", "lora_alpha", "use_rslora", "rank_pattern"),
    *("alpha_pattern", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("init_lora_weights", "bias", "lora_bias"),
}
# Training, initialisation or loading only, or without effect on a Linear layer: the finished function is the same.
_WITHOUT_EFFECT = {
    *("task_type", "auto_mapping", "peft_version", "inference_mode", "lora_dropout", "fan_in_fan_out"),
    *("megatron_config", "megatron_core", "loftq_config", "eva_config", "corda_config", "lora_ga_config"),
    *("runtime_config", "qalora_group_size", "ensure_weight_tying", "_custom_modules"),
}
# Initialisations that leave the base weights alone; pissa, olora, corda, loftq and lora_ga change them.
_INITS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")


@dataclass(frozen=True)
class PeftConfig:
    """What decides the function of a PEFT LoRA adapter, from its `adapter_config.json`."""

    rank: int
    alpha: float
    target_modules: tuple[str, ...] | str
    exclude_modules: tuple[str, ...] | str = ()
    use_rslora: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict, hash=False)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict, hash=False)
    layers_to_transform: tuple[int, ...] | None = None
    layers_pattern: tuple[str, ...] = ()
    lora_bias: bool = False
    base_model_name_or_path: str | None = None
    peft_version: str | None = None

    def targets(self, module: str) -> bool:
        """Whether PEFT puts a LoRA on the module of this name (`model.layers.0.self_attn.q_proj`)."""
        if self.exclude_modules and _names(self.exclude_modules, module):
            return False
        if isinstance(self.target_modules, str):
            return self.target_modules.lower() == "all-linear" or _names(self.target_modules, module)
        if self.layers_to_transform is None or module in self.target_modules or not _names(self.target_modules, module):
            return _names(self.target_modules, module)
        patterns = [rf"(?:^|.*?\.){p}\.(\d+)\." for p in self.layers_pattern] or [r".*?\.[^.]*\.(\d+)\."]
        match = next(filter(None, (re.match(p, module) for p in patterns)), None)
        return match is not None and int(match[1]) in self.layers_to_transform

    def module_rank(self, module: str) -> int:
        return _by_pattern(self.rank_pattern, module, self.rank)

    def module_scale(self, module: str) -> float:
        rank = self.module_rank(module)
        return _by_pattern(self.alpha_pattern, module, self.alpha) / (math.sqrt(rank) if self.use_rslora else rank)


def parse_config(file: epath.Path) -> PeftConfig:
    try:
        raw = json.loads(file.read_text())
        kind = raw.get("peft_type")
    except (ValueError, AttributeError) as error:
        raise ConfigError(f"{file}: not a PEFT configuration ({error})") from error
    if kind != "LORA":
        raise ConfigError(f"{file}: peft_type {kind!r} is not supported, only LORA is")
    refused = {k: v for k, v in raw.items() if k not in _READ | _WITHOUT_EFFECT and v not in (None, False, [], {}, "")}
    if raw.get("bias", "none") != "none":
        refused["bias"] = raw["bias"]
    if raw.get("init_lora_weights", True) not in _INITS:
        refused["init_lora_weights"] = raw["init_lora_weights"]
    if refused:
        told = ", ".join(f"{k} = {str(v)[:60]!r}" for k, v in sorted(refused.items()))
        raise ConfigError(f"{file}: {told} changes what the adapter computes and is not supported; merge it with peft")
    layers = raw.get("layers_to_transform")
    try:
        config = PeftConfig(
            rank=int(raw["r"]),
            alpha=float(raw["lora_alpha"]),
            target_modules=_as_names(raw["target_modules"]),
            exclude_modules=_as_names(raw.get("exclude_modules") or ()),
            use_rslora=bool(raw.get("use_rslora")),
            rank_pattern=dict(raw.get("rank_pattern") or {}),
            alpha_pattern=dict(raw.get("alpha_pattern") or {}),
            layers_to_transform=(layers,) if isinstance(layers, int) else tuple(layers or ()) or None,
            layers_pattern=_as_tuple(raw.get("layers_pattern") or ()),
            lora_bias=bool(raw.get("lora_bias")),
            base_model_name_or_path=raw.get("base_model_name_or_path"),
            peft_version=raw.get("peft_version"),
        )
        config.targets("model.layers.0.self_attn.q_proj")  # a malformed regular expression shows here
        config.module_scale("model.layers.0.self_attn.q_proj")
    except (KeyError, TypeError, ValueError, ZeroDivisionError, re.error) as error:
        raise ConfigError(f"{file}: r, lora_alpha, target_modules or a pattern is malformed ({error!r})") from error
    return config


def _names(pattern: tuple[str, ...] | str, module: str) -> bool:
    """PEFT's rule: a string is a regular expression for the whole name, a list holds names or their last parts."""
    if isinstance(pattern, str):
        return re.fullmatch(pattern, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in pattern)


def _by_pattern(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """The value of the first key that matches the module's name or its last parts."""
    return next((v for k, v in patterns.items() if re.match(rf"(.*\.)?({k})$", module)), default)


def _as_names(value: Any) -> tuple[str, ...] | str:
    return value if isinstance(value, str) else tuple(value)


def _as_tuple(value: Any) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)
