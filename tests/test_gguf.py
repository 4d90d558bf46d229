"""GGUF: files come back as they were written, and what is wrong with one is named; whose rows are permuted."""

import jax
import ml_dtypes
import numpy as np
import pytest

from ia_jax.errors import ConfigError
from ia_jax.models.hf_config import config_from_json
from ia_jax.models.sources import open_source, unpermute
from ia_jax.models.transformer import param_shardings
from ia_jax.models.weights import read_weights
from ia_jax.parallel.mesh import make_mesh
from tests.base_files import LLAMA, gguf_tensors, random_params, write_gguf


@pytest.mark.parametrize("tied", [True, False])
def test_gguf_round_trip(tmp_path, tied):
    cfg = config_from_json(LLAMA | {"tie_word_embeddings": tied})
    params = random_params(cfg, seed=1)
    write_gguf(tmp_path / "m.gguf", cfg, gguf_tensors(cfg, params))
    read_cfg, read = read_weights(tmp_path / "m.gguf")
    assert read_cfg == cfg
    jax.tree.map(np.testing.assert_array_equal, read, params)
    _, placed = read_weights(tmp_path / "m.gguf", shardings=param_shardings(cfg, make_mesh(fsdp=4, tp=2)))
    jax.tree.map(np.testing.assert_array_equal, placed, params)
    _, half = read_weights(tmp_path / "m.gguf", "bfloat16")
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(ml_dtypes.bfloat16)), half, params)


@pytest.mark.parametrize(
    ("change", "metadata", "message"),
    [
        (lambda t: t.pop("blk.1.ffn_up.weight"), {}, "missing .*blk.1.ffn_up.weight"),
        (lambda t: t.update({"rope_freqs.weight": np.ones(2, np.float32)}), {}, "unexpected .*rope_freqs.weight"),
        (lambda t: t.update({"output_norm.weight": np.ones(15, np.float32)}), {}, "output_norm.weight has shape"),
        (lambda t: None, {"architecture": "gpt2"}, "general.architecture = 'gpt2'"),
        (lambda t: None, {"scaling": "yarn"}, "llama.rope.scaling.type"),
        (lambda t: None, {"scales": {"llama.rope.scaling.factor": 4.0}}, r"llama.rope.scaling.factor = 4.0 is not"),
        (lambda t: None, {"scales": {"llama.rope.scale_linear": 2.0}}, r"llama.rope.scale_linear = 2.0 is not"),
    ],
)
def test_a_wrong_gguf_names_what_is_wrong(tmp_path, change, metadata, message):
    cfg = config_from_json(LLAMA)
    tensors = gguf_tensors(cfg, random_params(cfg, seed=1))
    change(tensors)
    write_gguf(tmp_path / "m.gguf", cfg, tensors, **metadata)
    with pytest.raises(ConfigError, match=message):
        read_weights(tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("scaling", "factor"), [(None, 1.0), ("none", 4.0)], ids=["a factor of 1", "a factor that the type leaves unused"]
)
def test_gguf_without_rope_scaling(tmp_path, scaling, factor):
    cfg = config_from_json(LLAMA)
    metadata = {"scaling": scaling} if scaling else {}
    scales = {"llama.rope.scaling.factor": factor, "llama.rope.scale_linear": factor}
    write_gguf(tmp_path / "m.gguf", cfg, gguf_tensors(cfg, random_params(cfg)), scales=scales, **metadata)
    assert open_source(tmp_path / "m.gguf").config == cfg


def test_unpermuted_rows_rotate_as_llama_cpp_rotates_the_permuted_ones():
    """Attention scores agree: interleaved RoPE on the stored rows, half-split RoPE on the un-permuted ones."""
    rng = np.random.default_rng(0)
    heads, dim, width = 3, 8, 5
    stored_q, stored_k = rng.normal(size=(2, heads * dim, width))
    x, y = rng.normal(size=(2, width))

    def interleaved(rows, vector, position):
        value = (rows @ vector).reshape(heads, dim // 2, 2)
        angle = position * 10000.0 ** (-np.arange(dim // 2) * 2 / dim)
        turned = (value[..., 0] + 1j * value[..., 1]) * np.exp(1j * angle)
        return np.stack([turned.real, turned.imag], -1).reshape(heads, dim)

    def half_split(rows, vector, position):
        value = (rows @ vector).reshape(heads, dim)
        angle = position * 10000.0 ** (-np.arange(dim // 2) * 2 / dim)
        cos, sin = np.tile(np.cos(angle), 2), np.tile(np.sin(angle), 2)
        turned = np.concatenate([-value[:, dim // 2 :], value[:, : dim // 2]], axis=-1)
        return value * cos + turned * sin

    q, k = unpermute(stored_q, heads), unpermute(stored_k, heads)
    for i, j in [(0, 0), (3, 1), (17, 5)]:
        want = np.einsum("hd,hd->h", interleaved(stored_q, x, i), interleaved(stored_k, y, j))
        np.testing.assert_allclose(np.einsum("hd,hd->h", half_split(q, x, i), half_split(k, y, j)), want, rtol=1e-12)
        wrong = np.einsum("hd,hd->h", half_split(stored_q, x, i), half_split(stored_k, y, j))
        assert i == j or not np.allclose(wrong, want)
