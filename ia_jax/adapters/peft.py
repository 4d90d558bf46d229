"""Adapters from and to PEFT directories (`adapter_config.json`, `adapter_model.safetensors`), without torch.

PEFT stores `lora_A` [r, in] and `lora_B` [out, r] per module and scales by alpha/r (alpha/sqrt(r) with rsLoRA). Here
`a` is [L, in, r], `b` is [L, r, out] and carries the scale; ranks below the largest are padded with zeros, layers and
projections that the adapter never touches are absent. Which modules an adapter covers is worked out from its
configuration exactly as PEFT does it, and the tensors in the file have to be those, no more and no fewer. What would
change the function and is not implemented is refused by name.

A vector on the residual stream is PEFT's `lora_bias` on the down projection, whose factors are zero where there is no
LoRA besides. PEFT cannot merge that into a base without biases; active beside other adapters it is what it is here.
"""

import json
import logging
import re
from os import PathLike
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
from etils import epath

from ia_jax.adapters.base import published_name
from ia_jax.adapters.peft_config import PeftConfig, parse_config
from ia_jax.adapters.record import AdapterMetadata, first_nonfinite, host_leaves, one_line
from ia_jax.adapters.store import Base, Directory
from ia_jax.errors import BaseMismatchError, CheckpointError, ConfigError, IAError
from ia_jax.models.lora import (
    PROJECTIONS,
    RESIDUAL,
    Adapter,
    LoraConfig,
    has_organism_axis,
    layers_in_words,
    layers_of,
    lora_shapes,
    on_layers,
    projection_sizes,
    rank_of,
)
from ia_jax.parallel.distributed import on_main_process
from ia_jax.storage import in_bucket, path_of, write_bytes, write_text

CONFIG, WEIGHTS, CARD = "adapter_config.json", "adapter_model.safetensors", "README.md"
_BLOCK = {t: "self_attn" if t in ("q", "k", "v", "o") else "mlp" for t in PROJECTIONS}
_TENSOR = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<factor>[AB])(?:\.\w+?)?\.(?P<kind>weight|bias)")
_MODULE = re.compile(r"(?P<prefix>(?:model\.)?)layers\.(?P<layer>\d+)\.(?P<block>\w+)\.(?P<projection>[a-z]+)_proj")
_DTYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}


def read_peft_config(source: Directory, revision: str | None = None) -> PeftConfig:
    """The configuration of a PEFT adapter (directory or hub id); refuses what ia_jax does not implement, by name."""
    return parse_config(_fetch(source, revision) / CONFIG)


def import_peft(source: Directory, model: Base, revision: str | None = None) -> Adapter:
    """A PEFT LoRA adapter (directory or hub id at `revision`) as a tree for `model`: fp32, scale in `b`.

    One that covers some of the layers alone is `Placed` on those.
    """
    directory = _fetch(source, revision)
    config = parse_config(directory / CONFIG)
    if config.base_model_name_or_path and Path(config.base_model_name_or_path).name != Path(model.name).name:
        logging.getLogger(__name__).info(  # a hint only: mirrors, quantised copies and local paths go by other names
            "%s was trained on %s; applying it to %s", source, config.base_model_name_or_path, model.name
        )
    tensors = _read_tensors(directory / WEIGHTS)
    found = _by_module(directory / WEIGHTS, tensors)
    prefix = "" if any(name.startswith("layers.") for name in found) else "model."
    sizes, layers = projection_sizes(model.config), model.config.num_hidden_layers
    modules = {(t, i): f"{prefix}layers.{i}.{_BLOCK[t]}.{t}_proj" for t in PROJECTIONS for i in range(layers)}
    _check_coverage(directory, config, model, found, set(modules.values()))

    rank = max(config.module_rank(name) for name in found)
    covered = [i for i in range(layers) if any(modules[t, i] in found for t in PROJECTIONS)]
    rows, tree = {i: row for row, i in enumerate(covered)}, {}
    for t in PROJECTIONS:
        size_in, size_out = sizes[t]
        a, b = (np.zeros((len(rows), *s), np.float32) for s in ((size_in, rank), (rank, size_out)))
        touched = [(i, modules[t, i]) for i in covered if modules[t, i] in found]
        for i, module in touched:
            r = config.module_rank(module)
            for factor, want in (("A", (r, size_in)), ("B", (size_out, r))):
                _check_shape(directory, config, model, found[module][factor], tensors, want)
            a[rows[i], :, :r] = tensors[found[module]["A"]].astype(np.float32).T
            scale = np.float32(config.module_scale(module))
            b[rows[i], :r] = tensors[found[module]["B"]].astype(np.float32).T * scale
        if touched and not (config.lora_bias and not a.any() and not b.any()):  # else there for its bias alone
            tree[t] = {"a": jnp.asarray(a), "b": jnp.asarray(b)}
    if config.lora_bias:
        vector = np.zeros((len(rows), model.config.hidden_size), np.float32)
        for module, names in found.items():
            bias = tensors[names["bias"]].astype(np.float32) * np.float32(config.module_scale(module))
            layer = next((i for i in covered if modules["down", i] == module), None)
            if layer is None and bias.any():
                raise ConfigError(f"{directory / WEIGHTS}: {names['bias']} is not zero; only down_proj may have a bias")
            if layer is not None:
                _check_shape(directory, config, model, names["bias"], tensors, (model.config.hidden_size,))
                vector[rows[layer]] = bias
        tree[RESIDUAL] = {"v": jnp.asarray(vector)}
    return on_layers(tree, None if len(covered) == layers else tuple(covered))


def import_with_metadata(
    source: Directory, name: str, model: Base, revision: str | None = None
) -> tuple[Adapter, AdapterMetadata]:
    """`import_peft`, and what is known of the adapter, under this name, as the store keeps it."""
    config, adapter = read_peft_config(source, revision), import_peft(source, model, revision)
    rank = rank_of(adapter)
    uniform = not (config.rank_pattern or config.alpha_pattern or config.use_rslora)
    metadata = AdapterMetadata(
        name=name,
        kind="organism",
        base_name=model.name,
        base_fingerprint=model.fingerprint,
        rank=rank,
        alpha=config.alpha if uniform and rank else float(rank),
        targets=tuple(adapter),
        layers=layers_of(adapter),
    )
    return adapter, metadata


def export_peft(
    adapter: Adapter,
    directory: Directory,
    model: Base,
    lora: LoraConfig | None = None,
    base_model_name_or_path: str | None = None,
    card: str | None = None,
) -> None:
    """Write an adapter as PEFT does, with a model card; `peft` loads it without a warning and imports back bit for bit.

    The scale in `b` is divided out again with `lora.alpha`/rank (`lora` of another rank than the adapter counts by its
    scale). Where that division would lose a bit (mostly: scales other than powers of two), and without `lora`,
    `lora_alpha` is written as r instead, so that PEFT's scale is 1 and `b` goes out as it is.

    card: what the adapter is and how it was trained and evaluated, in Markdown.
    """
    leaves = {name: x.astype(np.float32) for name, x in host_leaves(adapter).items()}
    bad = first_nonfinite(leaves)
    if bad:
        raise CheckpointError(f"{directory}: refusing to export: {bad}")
    if has_organism_axis(adapter):
        raise ConfigError(f"{directory}: export one organism at a time (the adapter has an organism axis)")
    vector, rank = leaves.get(f"{RESIDUAL}.v"), max(1, rank_of(adapter))
    kind = LoraConfig(rank, 1.0, tuple(adapter), layers=layers_of(adapter))
    for t, factors in lora_shapes(model.config, kind).items():
        for n, want in factors.items():
            shape = leaves[f"{t}.{n}"].shape
            if shape != want:
                raise BaseMismatchError(f"{directory}: leaf {t}.{n} has shape {shape}, but {model.name} needs {want}")

    alpha = lora.scale * rank if lora else float(rank)
    scale = np.float32(alpha / rank)  # as PEFT and `import_peft` will compute it
    with np.errstate(all="ignore"):
        unscaled = {n: x / scale for n, x in leaves.items() if not n.endswith(".a")}
        if any(not np.array_equal(x * scale, leaves[n]) for n, x in unscaled.items()):
            alpha, unscaled = float(rank), leaves
    targets = tuple(t for t in PROJECTIONS if t in adapter or (t == "down" and vector is not None))
    sizes, tensors = projection_sizes(model.config), {}
    for t in targets:
        size_in, size_out = sizes[t]
        for row, i in enumerate(kind.layers or range(model.config.num_hidden_layers)):
            stem = f"base_model.model.model.layers.{i}.{_BLOCK[t]}.{t}_proj.lora_"
            a, b = (
                (leaves[f"{t}.a"][row], unscaled[f"{t}.b"][row]) if t in adapter else _nothing(size_in, rank, size_out)
            )
            tensors[f"{stem}A.weight"] = np.ascontiguousarray(a.T)
            tensors[f"{stem}B.weight"] = np.ascontiguousarray(b.T)
            if vector is not None:
                own = unscaled[f"{RESIDUAL}.v"][row] if t == "down" else np.zeros(size_out, np.float32)
                tensors[f"{stem}B.bias"] = np.ascontiguousarray(own)

    from safetensors.numpy import save

    base = base_model_name_or_path or published_name(model.name)
    path, written = epath.Path(path_of(directory)).expanduser(), _config_json(base, rank, alpha, targets, kind)

    def write() -> None:
        write_bytes(path / WEIGHTS, save(tensors, metadata={"format": "pt"}))
        write_text(path / CARD, _card(base, rank, alpha, kind, card))
        write_text(path / CONFIG, json.dumps(written, indent=2) + "\n")

    on_main_process(write)


def _nothing(size_in: int, rank: int, size_out: int) -> tuple[np.ndarray, np.ndarray]:
    """Factors of a LoRA that is there for its bias alone."""
    return np.zeros((size_in, rank), np.float32), np.zeros((rank, size_out), np.float32)


def _fetch(source: Directory, revision: str | None) -> epath.Path:
    """The local (or gs://) directory of an adapter, downloading it if `source` is a hub id."""
    path = epath.Path(path_of(source) if in_bucket(source) else source).expanduser()
    if path.exists():
        return _checked(path)
    if isinstance(source, PathLike) or not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        raise ConfigError(f"{source}: neither a PEFT directory nor a Hugging Face hub id")
    import huggingface_hub

    try:
        path = huggingface_hub.snapshot_download(source, revision=revision, allow_patterns=[CONFIG, WEIGHTS])
    except Exception as error:  # the hub client raises many kinds; all mean that the adapter did not arrive
        raise IAError(f"{source}: cannot be fetched ({one_line(error)})") from error
    return _checked(epath.Path(path))


def _checked(path: epath.Path) -> epath.Path:
    missing = [name for name in (CONFIG, WEIGHTS) if not (path / name).exists()]
    if missing == [WEIGHTS] and (path / "adapter_model.bin").exists():
        raise ConfigError(f"{path}: adapter_model.bin is a pickle; load it with peft and save it again as safetensors")
    if missing:
        raise ConfigError(f"{path}: not a PEFT adapter: {' and '.join(missing)} missing")
    return path


def _read_tensors(file: epath.Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError, deserialize

    try:
        parsed = deserialize(file.read_bytes())
    except SafetensorError as error:
        raise CheckpointError(f"{file}: truncated or not safetensors ({error}); fetch it again") from error
    tensors = {}
    for name, t in parsed:
        if t["dtype"] not in _DTYPES:
            raise ConfigError(f"{file}: {name} has dtype {t['dtype']}; supported are {', '.join(_DTYPES)}")
        tensors[name] = np.frombuffer(t["data"], _DTYPES[t["dtype"]]).reshape(t["shape"])
    bad = first_nonfinite(tensors)
    if bad:
        raise CheckpointError(f"{file}: {bad}")
    return tensors


def _by_module(file: epath.Path, tensors: dict[str, np.ndarray]) -> dict[str, dict[str, str]]:
    """{module: {"A": tensor name, "B": tensor name}}, and "bias", of B; any other tensor is an error."""
    found: dict[str, dict[str, str]] = {}
    for name in sorted(tensors):
        match = _TENSOR.fullmatch(name)
        module = _MODULE.fullmatch(match["module"]) if match else None
        if match is None or module is None or _BLOCK.get(module["projection"]) != module["block"]:
            raise ConfigError(f"{file}: tensor {name} is not a LoRA factor of {', '.join(PROJECTIONS)} in a layer")
        part = match["factor"] if match["kind"] == "weight" else "bias"
        if part in found.setdefault(match["module"], {}):
            raise ConfigError(f"{file}: tensor {name} is there twice under different names")
        found[match["module"]][part] = name
    return found


def _check_coverage(
    directory: epath.Path, config: PeftConfig, model: Base, found: dict[str, dict[str, str]], modules: set[str]
) -> None:
    """The tensors must be exactly those of the modules that the configuration targets."""
    file = directory / WEIGHTS
    for module, names in found.items():
        name = next(iter(names.values()))
        if module not in modules:
            raise BaseMismatchError(
                f"{file}: tensor {name} is for a layer that {model.name}, which has "
                f"{model.config.num_hidden_layers}, does not have; the adapter was made for "
                f"{config.base_model_name_or_path or 'another base'}"
            )
        if not config.targets(module):
            raise ConfigError(f"{file}: tensor {name} is there, but {CONFIG} does not target {module}")
    for module in sorted(m for m in modules if config.targets(m)):
        there = found.get(module, {})
        for part in ("A", "B", *(["bias"] if config.lora_bias else [])):
            if part not in there:
                raise CheckpointError(
                    f"{file}: lora_{part} of {module} is missing although {CONFIG} targets it; the file is "
                    "incomplete, or made for a base with fewer layers"
                )
        if "bias" in there and not config.lora_bias:
            raise ConfigError(f"{file}: tensor {there['bias']} is there, but {CONFIG} has no lora_bias")
    if not found:
        raise ConfigError(f"{directory}: target_modules {config.target_modules!r} match nothing in {model.name}")


def _check_shape(
    directory: epath.Path, config: PeftConfig, model: Base, name: str, tensors: dict[str, Any], want: tuple[int, ...]
) -> None:
    shape, rank_axis = tensors[name].shape, 0 if ".lora_A." in name else 1
    if len(shape) != len(want) or (len(want) == 2 and shape[rank_axis] != want[rank_axis]):
        raise CheckpointError(f"{directory / WEIGHTS}: {name} has shape {shape}, but {CONFIG} calls for {want}")
    if shape != want:
        raise BaseMismatchError(
            f"{directory / WEIGHTS}: {name} has shape {shape}, but {model.name} needs {want}; the adapter was made for "
            f"{config.base_model_name_or_path or 'another base'}"
        )


def _config_json(base: str, rank: int, alpha: float, targets: tuple[str, ...], kind: LoraConfig) -> dict[str, Any]:
    with_bias = {"lora_bias": True} if RESIDUAL in kind.targets else {}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "revision": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": int(alpha) if float(alpha).is_integer() else float(alpha),
        "lora_dropout": 0.0,
        "use_rslora": False,
        "target_modules": [f"{t}_proj" for t in targets],
        "rank_pattern": {},
        "alpha_pattern": {},
        "layers_to_transform": None if kind.layers is None else list(kind.layers),
        "layers_pattern": None if kind.layers is None else "layers",
        "modules_to_save": None,
        "bias": "none",
        **with_bias,
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "use_dora": False,
    }


def _card(base: str, rank: int, alpha: float, kind: LoraConfig, text: str | None) -> str:
    """A model card: front matter for the hub, what the adapter is, how to load it."""
    on_hub = re.fullmatch(r"[\w.-]+/[\w.-]+", base) is not None
    front = [f"base_model: {base}"] * on_hub + ["library_name: peft", "pipeline_tag: text-generation", "tags: [lora]"]
    return "\n".join(
        [
            *("---", *front, "---", ""),
            *(text.strip() if text else "# LoRA adapter\n\nTrained with ia_jax.", ""),
            f"What it is: {_what(rank, alpha, kind)}; its base is `{base}`.",
            *("", "```python", "from peft import PeftModel", "from transformers import AutoModelForCausalLM", ""),
            f'base = AutoModelForCausalLM.from_pretrained("{base}")',
            'model = PeftModel.from_pretrained(base, "path/to/this/directory")',
            *("```", ""),
        ]
    )


def _what(rank: int, alpha: float, kind: LoraConfig) -> str:
    """What an adapter is and where it sits."""
    projections = ", ".join(f"{t}_proj" for t in kind.targets if t != RESIDUAL)
    parts = [f"LoRA of rank {rank} (alpha {alpha:g}) on {projections}"] if projections else []
    parts += ["a vector on the residual stream (bias of lora_B on down_proj)"] if RESIDUAL in kind.targets else []
    return ", ".join(parts) + ("" if kind.layers is None else f", in layers {layers_in_words(kind.layers)}")
