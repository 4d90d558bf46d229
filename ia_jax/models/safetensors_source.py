"""A Hugging Face directory, on a disk or in a bucket: configuration, tokenizer, and tensors that are read in part.

Safetensors files are a header (8 bytes with its length, then JSON) and the tensors' bytes one after the other, rows
contiguous (github.com/huggingface/safetensors, "Format"). So any rows of a tensor are one range of bytes.
"""

import json
import math
import os
import re
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import ml_dtypes
import numpy as np

from ia_jax.errors import ConfigError
from ia_jax.models.chat import declare_stops
from ia_jax.models.config import ModelConfig
from ia_jax.models.hf_config import config_from_json
from ia_jax.storage import each, in_bucket, path_of
from ia_jax.storage.ranges import StoredFile, files_in, local_copies, read_into

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Constants that old Llama checkpoints store beside the weights.
CONSTANTS = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")
DTYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}
MOST_HEADER = 100 * 2**20  # bytes; the format's own limit
FIRST_LOOK = 64 * 2**10  # bytes of a file that are read for its header; of 70B's shards it has about 10,000
SPAN = 256 * 2**10  # bytes that are read at once rather than some of them one by one
LARGEST_SMALL = 256 * 2**20  # bytes of what lies beside the weights

Index = tuple[slice, ...]


class StoredTensor(NamedTuple):
    """dtype as the file names it; the bytes from `start` to `stop` of the file."""

    file: StoredFile
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


class SafetensorsSource:
    """`model.safetensors`, or the files that `model.safetensors.index.json` names.

    Bytes are read, not mapped: what was read is nobody's memory, and the same in a bucket. Raises ConfigError naming
    the file that is missing, cut or not what the others say.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = path_of(directory)
        self.where = str(self.directory)
        self.config = read_hf_config(self.directory)
        there = files_in(self.directory)
        index = self.directory / "model.safetensors.index.json"
        weight_map: dict[str, str] = {}
        if "model.safetensors" in there:
            names = ["model.safetensors"]
        elif index.name in there:
            try:
                weight_map = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
            except (ValueError, KeyError, TypeError) as error:
                raise ConfigError(f"{index}: not a readable safetensors index ({error})") from error
            names = sorted(set(weight_map.values()))
        else:
            raise ConfigError(f"{directory}: neither model.safetensors nor model.safetensors.index.json is there")
        if missing := [name for name in names if name not in there]:
            raise ConfigError(
                f"{self.directory / missing[0]}: not there ({len(missing)} of the {len(names)} files that {index.name} "
                "names); fetch or copy the rest"
            )
        self._tensors: dict[str, StoredTensor] = {}
        for found in each(_tensors_in, [there[name] for name in names], many=in_bucket(self.directory)):
            for name, tensor in found.items():
                if name in self._tensors:
                    raise ConfigError(f"{tensor.file.path}: {name} is stored twice")
                if tensor.dtype not in DTYPES and not CONSTANTS.fullmatch(name):
                    raise ConfigError(f"{tensor.file.path}: {name} has the unsupported dtype {tensor.dtype}")
                self._tensors[name] = tensor
        self.shapes = {name: tensor.shape for name, tensor in self._tensors.items()}
        if lost := sorted(weight_map.keys() - self.shapes.keys()):
            raise ConfigError(f"{index}: {lost[0]} is not in {weight_map[lost[0]]}")
        self._there = there

    def nbytes(self, name: str) -> int:
        return self._tensors[name].stop - self._tensors[name].start

    def read(self, name: str, index: Index) -> np.ndarray:
        """Reads the whole rows of the slice, which are one range, and cuts them."""
        tensor = self._tensors[name]
        first, last, _ = index[0].indices(tensor.shape[0])
        rows = np.empty((last - first, *tensor.shape[1:]), DTYPES[tensor.dtype])
        _read(tensor, first, rows.view(np.uint8).reshape(-1))
        return rows[:, *index[1:]]

    def raw_rows(self, name: str, rows: np.ndarray) -> tuple[str, bytes]:
        tensor = self._tensors[name]
        width = (tensor.stop - tensor.start) // tensor.shape[0]
        low, high = int(rows.min()), int(rows.max()) + 1
        # Few bytes in all come at once. The rest row by row.
        pieces = [(low, high)] if (high - low) * width <= SPAN else [(int(r), int(r) + 1) for r in rows]
        found: dict[int, bytes] = {}
        for first, last in pieces:
            content = np.empty((last - first) * width, np.uint8)
            _read(tensor, first, content)
            found |= {first + n: content[n * width : (n + 1) * width].tobytes() for n in range(last - first)}
        return tensor.dtype, b"".join(found[int(row)] for row in rows)

    def tokenizer(self) -> "PreTrainedTokenizerBase":
        if not (self.directory / "tokenizer.json").is_file():
            raise ConfigError(f"{self.where}: there is no tokenizer.json")
        stops = declared_stops(self.directory, self.config.vocab_size)
        remote = in_bucket(self.directory)
        with local_copies(self.small_files()) if remote else nullcontext(self.directory) as directory:
            try:
                tokenizer = transformers_library().AutoTokenizer.from_pretrained(str(directory))
            except Exception as error:  # of many kinds
                text = str(error).replace(str(directory), self.where)
                raise ConfigError(f"{self.where}: the tokenizer cannot be loaded ({text})") from error
        tokenizer.name_or_path = self.where
        declare_stops(tokenizer, stops)
        return tokenizer

    def small_files(self) -> list[StoredFile]:
        """What lies beside the weights: configuration, tokenizer, licence."""
        weights = (".safetensors", ".bin", ".pth", ".pt", ".gguf", ".index.json")
        files = [f for name, f in self._there.items() if not name.endswith(weights) and not name.startswith(".")]
        return [f for f in files if f.size <= LARGEST_SMALL]


def _read(tensor: StoredTensor, row: int, into: np.ndarray) -> None:
    """Fills `into`, bytes, with what the tensor has from this row on."""
    width = (tensor.stop - tensor.start) // tensor.shape[0]
    try:
        read_into(tensor.file, tensor.start + row * width, memoryview(into))
    except FileNotFoundError:
        raise ConfigError(
            f"{tensor.file.path}: gone, or written anew, since this run began to read it; give the same command again"
        ) from None


def _tensors_in(file: StoredFile) -> dict[str, StoredTensor]:
    """What a safetensors file says that it holds. Raises ConfigError where that is not what is there."""

    def bad(why: object) -> ConfigError:
        return ConfigError(f"{file.path}: not a readable safetensors file ({why}); fetch or copy it again")

    start = np.empty(min(file.size, FIRST_LOOK), np.uint8)
    read_into(file, 0, memoryview(start))
    length = int.from_bytes(start[:8].tobytes(), "little")
    if file.size < 8 or length > MOST_HEADER:
        raise bad(f"its {file.size} bytes begin with no header")
    if file.size < 8 + length:
        raise bad(f"{file.size} bytes, the header alone has {8 + length}")
    header = np.empty(length, np.uint8)
    known = min(length, len(start) - 8)
    header[:known] = start[8 : 8 + known]
    if known < length:
        read_into(file, 8 + known, memoryview(header[known:]))
    found: dict[str, StoredTensor] = {}
    try:
        entries = json.loads(header.tobytes())
        entries.pop("__metadata__", None)
        for name, entry in entries.items():
            (begin, end), shape = map(int, entry["data_offsets"]), tuple(map(int, entry["shape"]))
            size = DTYPES[entry["dtype"]].itemsize * math.prod(shape) if entry["dtype"] in DTYPES else end - begin
            if end - begin != size:
                raise bad(f"{name} has {end - begin} bytes, its shape {size}")
            found[name] = StoredTensor(file, entry["dtype"], shape, 8 + length + begin, 8 + length + end)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise bad(f"{type(error).__name__} in its header") from error
    at = 8 + length
    for name, tensor in sorted(found.items(), key=lambda item: item[1][3:]):
        if tensor.start != at:
            raise bad(f"{name} begins at byte {tensor.start}, what is before it ends at {at}")
        at = tensor.stop
    if at != file.size:
        raise ConfigError(f"{file.path}: {file.size} bytes are there of {at}; fetch or copy it again")
    return found


# ------------------------------------------------------------------------------------------------------ configuration


def read_hf_config(directory: str | os.PathLike[str]) -> ModelConfig:
    path = path_of(directory) / "config.json"
    content = read_json_file(path)
    try:
        return config_from_json(content)
    except ConfigError as error:
        raise ConfigError(f"{path.parent}/{error}") from error


def read_json_file(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the model configuration ({error.strerror})") from error
    except ValueError as error:
        raise ConfigError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: not a JSON object")
    return content


def declared_stops(directory: Path, vocabulary: int) -> list[int]:
    """`eos_token_id` of generation_config.json or else, as in transformers, of config.json."""
    for file in (directory / "generation_config.json", directory / "config.json"):
        declared = read_json_file(file).get("eos_token_id") if file.is_file() else None
        if declared is None:
            continue
        ids = declared if isinstance(declared, list) else [declared]
        for token in ids:
            if type(token) is not int or not 0 <= token < vocabulary:
                raise ConfigError(
                    f"{file}: eos_token_id = {token!r} is not a token of the vocabulary (must be 0 to {vocabulary - 1})"
                )
        return ids
    return []


def transformers_library() -> Any:
    """transformers, imported late (it takes seconds) and without its notice that torch is absent."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    import transformers

    return transformers
