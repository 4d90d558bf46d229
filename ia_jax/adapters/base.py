"""What an adapter's base is: its configuration and fingerprint, without loading its weights, and its public name."""

from dataclasses import dataclass, replace
from pathlib import Path

from ia_jax.models.config import ModelConfig
from ia_jax.models.sources import EMBEDDED, open_source
from ia_jax.models.weights import fingerprint

# Under which a base that ia_jax knows by a shorter name is published, for `base_model_name_or_path`.
PUBLISHED = {EMBEDDED: "HuggingFaceTB/SmolLM2-135M-Instruct"}
# By a part of the public name. An adapter is a derivative, so its card says what the base allows.
LICENCES = {
    "smollm2": "Apache-2.0",
    "qwen2.5-3b": "Qwen Research License",
    "qwen2.5-72b": "Qwen License",
    "qwen2.5": "Apache-2.0",
    "qwen3": "Apache-2.0",
    "mistral-7b": "Apache-2.0",
    "llama-3.1": "Llama 3.1 Community License",
    "llama-3.3": "Llama 3.3 Community License",
}


@dataclass(frozen=True)
class Identity:
    """As much of a base as importing, exporting and storing adapters asks for (`store.Base`)."""

    config: ModelConfig
    name: str
    fingerprint: str


def identify(name: str | Path, revision: str | None = None, quantization: str = "") -> Identity:
    """The identity of a base: `Model.config`, `.name` and `.fingerprint` as `load_model` has them.

    Reads its configuration and a few rows of every tensor. Raises ConfigError for what `load_model` would refuse.
    """
    source = open_source(name, revision)
    cfg = replace(source.config, quantization=quantization)
    return Identity(cfg, str(name), fingerprint(source, quantization))


def published_name(name: str) -> str:
    return PUBLISHED.get(name, name)


def known_name(name: str) -> str:
    """The inverse of `published_name`: a base that is here already need not be fetched."""
    return {v: k for k, v in PUBLISHED.items()}.get(name, name)


def licence(name: str) -> str | None:
    """The licence of a base of this name, where it is known."""
    return next((text for part, text in LICENCES.items() if part in published_name(name).lower()), None)
