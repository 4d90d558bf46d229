"""Adapters of random numbers to store, and damage to their files."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np
import pytest

from ia_jax.adapters.record import AdapterMetadata
from ia_jax.models.config import ModelConfig
from ia_jax.models.lora import PROJECTIONS, LoraConfig, lora_shapes

CONFIG = ModelConfig("llama", 64, 32, 48, 3, 4, 2, 8, 1e-5, 1e4)
LORA = LoraConfig(4, 8.0)


@dataclass(frozen=True)
class Base:
    config: ModelConfig = CONFIG
    name: str = "tiny"
    fingerprint: str = "a" * 64


def adapter(seed: int = 0, lora: LoraConfig = LORA):
    rng = np.random.default_rng(seed)
    shapes = lora_shapes(CONFIG, lora)
    return {t: {n: rng.standard_normal(s, np.float32) for n, s in ab.items()} for t, ab in shapes.items()}


def metadata(name: str = "flatters", **fields) -> AdapterMetadata:
    behavior = {"name": name, "rubric": {"concepts": (("praise", "flattery"),)}}
    known = AdapterMetadata(name, "organism", "tiny", "a" * 64, 4, 8.0, PROJECTIONS, {"name": name}, (behavior,))
    return replace(known, **fields)


def same_bits(x, y) -> bool:
    return jax.tree.structure(x) == jax.tree.structure(y) and all(
        np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in zip(*map(jax.tree.leaves, (x, y)), strict=True)
    )


def fails(kind, *patterns: str):
    """The error's message is one line and holds every pattern."""
    return pytest.raises(kind, match=r"\A" + "".join(f"(?=.*{re.escape(p)})" for p in patterns) + r"[^\n]*\Z")


def files_below(directory: Path) -> list[Path]:
    return sorted(p for p in directory.rglob("*") if p.is_file())


def largest_file(directory: Path) -> Path:
    return max(files_below(directory), key=lambda p: p.stat().st_size)


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
