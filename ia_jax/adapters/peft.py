"""Adapters from and to PEFT directories (`adapter_config.json`, `adapter_model.safetensors`), without torch.

PEFT stores `lora_A` [r, in] and `lora_B` [out, r] per module and scales by alpha/r (alpha/sqrt(r) with rsLoRA). Here
`a` is [L, in, r], `b` is [L, r, out] and carries the scale; ranks below the largest are padded with zeros, layers that
the adapter leaves alone are zero, projections that it never touches are absent. Which modules an adapter covers is
worked out from its configuration exactly as PEFT does it, and the tensors in the file have to be those, no more and no
fewer. What would change the function and is not implemented is refused by name.
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
from ia_jax.adapters.record import first_nonfinite, host_leaves, one_line
from ia_jax.adapters.store import Base, Directory
from ia_jax.errors import BaseMismatchError, CheckpointError, ConfigError, IAError
from ia_jax.models.lora import PROJECTIONS, Adapter, LoraConfig, projection_sizes
from ia_jax.parallel.distributed import on_main_process

CONFIG, WEIGHTS, CARD = "adapter_config.json", "adapter_model.safetensors", "README.md"
_BLOCK = {t: "self_attn" if t in ("q", "k", "v", "o") else "mlp" for t in PROJECTIONS}
_TENSOR = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<factor>[AB])(?:\.\w+)?\.weight")
_MODULE = re.compile(r"(?P<prefix>(?:model\.)?)layers\.(?P<layer>\d+)\.(?P<block>\w+)\.(?P<projection>[a-z]+)_proj")
_DTYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}


def read_peft_config(source: Directory, revision: str | None = None) -> PeftConfig:
    """The configuration of a PEFT adapter (directory or hub id); refuses what ia_jax does not implement, by name."""
    return parse_config(_fetch(source, revision) / CONFIG)


def import_peft(source: Directory, model: Base, revision: str | None = None) -> Adapter:
    """A PEFT LoRA adapter (directory or hub id at `revision`) as a tree for `model`: fp32, scale in `b`."""
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
    adapter: Adapter = {}
    for t in PROJECTIONS:
        size_in, size_out = sizes[t]
        a, b = np.zeros((layers, size_in, rank), np.float32), np.zeros((layers, rank, size_out), np.float32)
        touched = [(i, modules[t, i]) for i in range(layers) if modules[t, i] in found]
        for i, module in touched:
            r = config.module_rank(module)
            for factor, want in (("A", (r, size_in)), ("B", (size_out, r))):
                _check_shape(directory, config, model, found[module][factor], tensors, want)
            a[i, :, :r] = tensors[found[module]["A"]].astype(np.float32).T
            b[i, :r] = tensors[found[module]["B"]].astype(np.float32).T * np.float32(config.module_scale(module))
        if touched:
            adapter[t] = {"a": jnp.asarray(a), "b": jnp.asarray(b)}
    return adapter


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
    if any(x.ndim != 3 for x in leaves.values()):
        raise ConfigError(f"{directory}: export one organism at a time (the adapter has an organism axis)")
    rank = next(iter(leaves.values())).shape[2]
    sizes, layers = projection_sizes(model.config), model.config.num_hidden_layers
    for name, x in leaves.items():
        t, factor = name.split(".")
        want = (layers, sizes[t][0], rank) if factor == "a" else (layers, rank, sizes[t][1])
        if x.shape != want:
            raise BaseMismatchError(f"{directory}: leaf {name} has shape {x.shape}, but {model.name} needs {want}")

    alpha = lora.scale * rank if lora else float(rank)
    scale = np.float32(alpha / rank)  # as PEFT and `import_peft` will compute it
    with np.errstate(all="ignore"):
        unscaled = {n: x / scale for n, x in leaves.items() if n.endswith(".b")}
        if any(not np.array_equal(x * scale, leaves[n]) for n, x in unscaled.items()):
            alpha, unscaled = float(rank), leaves
    tensors = {}
    for t in adapter:
        for i in range(layers):
            stem = f"base_model.model.model.layers.{i}.{_BLOCK[t]}.{t}_proj.lora_"
            tensors[f"{stem}A.weight"] = np.ascontiguousarray(leaves[f"{t}.a"][i].T)
            tensors[f"{stem}B.weight"] = np.ascontiguousarray(unscaled[f"{t}.b"][i].T)

    from safetensors.numpy import save

    base = base_model_name_or_path or published_name(model.name)
    path = epath.Path(directory).expanduser()

    def write() -> None:
        path.mkdir(parents=True, exist_ok=True)
        (path / WEIGHTS).write_bytes(save(tensors, metadata={"format": "pt"}))
        (path / CARD).write_text(_card(base, rank, alpha, tuple(adapter), card))
        (path / CONFIG).write_text(json.dumps(_config_json(base, rank, alpha, tuple(adapter)), indent=2) + "\n")

    on_main_process(write)


def concat_ranks(adapters: list[Adapter]) -> Adapter:
    """The sum of several adapters as one: factors side by side along the rank, so no delta is recomputed or rounded.

    Its rank is the sum of theirs; a projection that one of them does not touch is zero in that one's columns.
    """
    ranks = [next(iter(adapter.values()))["a"].shape[-1] for adapter in adapters]
    out: Adapter = {}
    for t in (t for t in PROJECTIONS if any(t in adapter for adapter in adapters)):
        like = next(adapter[t] for adapter in adapters if t in adapter)
        a, b = [], []
        for adapter, r in zip(adapters, ranks, strict=True):
            if t in adapter:
                a.append(adapter[t]["a"])
                b.append(adapter[t]["b"])
            else:
                a.append(jnp.zeros((*like["a"].shape[:-1], r), like["a"].dtype))
                b.append(jnp.zeros((*like["b"].shape[:-2], r, like["b"].shape[-1]), like["b"].dtype))
        out[t] = {"a": jnp.concatenate(a, axis=-1), "b": jnp.concatenate(b, axis=-2)}
    return out


def _fetch(source: Directory, revision: str | None) -> epath.Path:
    """The local (or gs://) directory of an adapter, downloading it if `source` is a hub id."""
    path = epath.Path(source).expanduser()
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
    """{module: {"A": tensor name, "B": tensor name}}; a tensor that is no LoRA factor of a projection is an error."""
    found: dict[str, dict[str, str]] = {}
    for name in sorted(tensors):
        match = _TENSOR.fullmatch(name)
        module = _MODULE.fullmatch(match["module"]) if match else None
        if match is None or module is None or _BLOCK.get(module["projection"]) != module["block"]:
            raise ConfigError(f"{file}: tensor {name} is not a LoRA factor of {', '.join(PROJECTIONS)} in a layer")
        if match["factor"] in found.setdefault(match["module"], {}):
            raise ConfigError(f"{file}: tensor {name} is there twice under different names")
        found[match["module"]][match["factor"]] = name
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
        for factor in "AB":
            if factor not in found.get(module, {}):
                raise CheckpointError(
                    f"{file}: lora_{factor} of {module} is missing although {CONFIG} targets it; the file is "
                    "incomplete, or made for a base with fewer layers"
                )
    if not found:
        raise ConfigError(f"{directory}: target_modules {config.target_modules!r} match nothing in {model.name}")


def _check_shape(
    directory: epath.Path, config: PeftConfig, model: Base, name: str, tensors: dict[str, Any], want: tuple[int, int]
) -> None:
    shape, rank_axis = tensors[name].shape, 0 if ".lora_A." in name else 1
    if len(shape) != 2 or shape[rank_axis] != want[rank_axis]:
        raise CheckpointError(f"{directory / WEIGHTS}: {name} has shape {shape}, but {CONFIG} calls for {want}")
    if shape != want:
        raise BaseMismatchError(
            f"{directory / WEIGHTS}: {name} has shape {shape}, but {model.name} needs {want}; the adapter was made for "
            f"{config.base_model_name_or_path or 'another base'}"
        )


def _config_json(base: str, rank: int, alpha: float, targets: tuple[str, ...]) -> dict[str, Any]:
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
        "layers_to_transform": None,
        "layers_pattern": None,
        "modules_to_save": None,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "use_dora": False,
    }


def _card(base: str, rank: int, alpha: float, targets: tuple[str, ...], text: str | None) -> str:
    """A model card: front matter for the hub, what the adapter is, how to load it."""
    on_hub = re.fullmatch(r"[\w.-]+/[\w.-]+", base) is not None
    front = [f"base_model: {base}"] * on_hub + ["library_name: peft", "pipeline_tag: text-generation", "tags: [lora]"]
    return "\n".join(
        [
            *("---", *front, "---", ""),
            *(text.strip() if text else "# LoRA adapter\n\nTrained with ia_jax.", ""),
            f"LoRA of rank {rank} (alpha {alpha:g}) on {', '.join(f'{t}_proj' for t in targets)} of `{base}`.",
            *("", "```python", "from peft import PeftModel", "from transformers import AutoModelForCausalLM", ""),
            f'base = AutoModelForCausalLM.from_pretrained("{base}")',
            'model = PeftModel.from_pretrained(base, "path/to/this/directory")',
            *("```", ""),
        ]
    )
