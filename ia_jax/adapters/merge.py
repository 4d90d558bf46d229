"""Base and adapters as one checkpoint: full weights in Hugging Face's layout, written shard by shard."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from ia_jax.adapters.record import host_leaves, nest
from ia_jax.errors import ConfigError
from ia_jax.models.hf_config import config_to_json
from ia_jax.models.lora import RESIDUAL, Adapter, layers_of
from ia_jax.models.sources import SafetensorsSource, TensorSource, open_source
from ia_jax.models.weights import DTYPES, hf_name_table, name_table

SHARD_BYTES = 2 << 30


def write_merged(
    base: str | Path,
    adapters: Sequence[Adapter],
    directory: str | Path,
    dtype: str = "bfloat16",
    shard_bytes: int = SHARD_BYTES,
) -> int:
    """Writes base + sum of the adapters, with the base's config and tokenizer; returns the number of shards.

    base: anything that `open_source` takes; a GGUF file's weights are written as they are read, dequantized. Products
    are fp32, rounded once to `dtype`. Memory: the adapters and one shard. Raises ConfigError for an adapter that does
    not fit the base, or a vector.
    """
    if any(RESIDUAL in adapter for adapter in adapters):
        raise ConfigError(f"{directory}: {base} has no weight that a vector could be merged into; export it as PEFT")
    source = open_source(base)
    written = hf_name_table(source.config)
    count = source.config.num_hidden_layers
    trees = [(layers_of(adapter) or tuple(range(count)), nest(host_leaves(adapter))) for adapter in adapters]

    def merged() -> Iterator[tuple[str, np.ndarray]]:
        for (leaf, layer), (name, _) in name_table(source).items():
            weight = source.read(name, (slice(None),) * len(source.shapes[name]))
            for layers, tree in trees if layer is not None else []:
                if leaf[-1] in tree and layer in layers:
                    a, b, row = tree[leaf[-1]]["a"], tree[leaf[-1]]["b"], layers.index(layer)
                    if (b.shape[-1], a.shape[-2]) != weight.shape or a.shape[0] != len(layers) or layers[-1] >= count:
                        raise ConfigError(f"an adapter's {leaf[-1]} does not fit {name} {weight.shape} of {base}")
                    weight = weight.astype(np.float32) + (a[row].astype(np.float32) @ b[row].astype(np.float32)).T
            yield written[leaf, layer].name, weight

    return write_checkpoint(merged(), source, directory, dtype, shard_bytes)


def write_checkpoint(
    tensors: Iterable[tuple[str, np.ndarray]],
    like: TensorSource,
    directory: str | Path,
    dtype: str = "bfloat16",
    shard_bytes: int = SHARD_BYTES,
) -> int:
    """Writes tensors by their Hugging Face names, with the configuration and tokenizer of `like`, as shards of about
    `shard_bytes`; returns how many. Memory: one shard.
    """
    from safetensors.numpy import save_file

    path = Path(directory)
    path.mkdir(parents=True, exist_ok=True)
    shards: list[list[str]] = []
    shard: dict[str, np.ndarray] = {}
    total = 0

    def flush() -> None:
        save_file(shard, path / f"part-{len(shards)}.safetensors", metadata={"format": "pt"})
        shards.append(list(shard))
        shard.clear()

    for name, weight in tensors:
        weight = np.ascontiguousarray(weight.astype(DTYPES[dtype]))
        if shard and sum(x.nbytes for x in shard.values()) + weight.nbytes > shard_bytes:
            flush()
        shard[name] = weight
        total += weight.nbytes
    flush()
    _finish(like, path, shards, total, dtype)
    return len(shards)


def _finish(like: TensorSource, path: Path, shards: list[list[str]], total: int, dtype: str) -> None:
    """Names the shards as Hugging Face does, and puts configuration, tokenizer and, last, the index beside them."""
    weight_map = {}
    for n, names in enumerate(shards):
        file = f"model-{n + 1:05d}-of-{len(shards):05d}.safetensors"
        (path / f"part-{n}.safetensors").rename(path / file)
        weight_map |= dict.fromkeys(names, file)
    if isinstance(like, SafetensorsSource):
        for file in like.small_files():
            if file.path.name not in ("README.md", "config.json"):
                (path / file.path.name).write_bytes(file.path.read_bytes())
        config = json.loads((like.directory / "config.json").read_text(encoding="utf-8"))
    else:
        tokenizer = like.tokenizer()
        tokenizer.save_pretrained(path)
        config = {**config_to_json(like.config), "eos_token_id": tokenizer.eos_token_id}
    key = "dtype" if "dtype" in config else "torch_dtype"
    (path / "config.json").write_text(json.dumps({**config, key: dtype}, indent=2) + "\n")
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
