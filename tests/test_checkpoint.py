"""Shipped checkpoints against their base: what is refused, what a cut to a rank costs, and `ia-jax align` on files."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ia_jax import cli
from ia_jax.adapters.checkpoint import low_rank, open_pair
from ia_jax.errors import ConfigError
from ia_jax.models.hf_config import config_from_json
from ia_jax.models.weights import to_hf_tensors
from tests import symmetry, tiny

CONFIG = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
    "dtype": "float32",
}
CFG = config_from_json(CONFIG)


def write(directory, params, **changes):
    directory.mkdir(parents=True)
    config = CONFIG | changes
    (directory / "config.json").write_text(json.dumps(config))
    save_file(
        {n: np.array(x) for n, x in to_hf_tensors(config_from_json(config), params)}, directory / "model.safetensors"
    )
    return directory


@pytest.fixture
def base(tmp_path):
    return write(tmp_path / "base", tiny.params(CFG))


def changed(**deltas):
    params = tiny.params(CFG)
    layers = {n: np.asarray(x) + deltas.get(n, 0.0) for n, x in params["layers"].items()}
    top = {n: np.asarray(x) + deltas.get(n, 0.0) for n, x in params.items() if n != "layers"}
    return top | {"layers": {n: np.asarray(x, np.float32) for n, x in layers.items()}}


def test_a_cut_to_a_rank_costs_what_it_says(base, tmp_path):
    adapter = {t: {n: np.asarray(x) for n, x in ab.items()} for t, ab in tiny.adapter(1, CFG).items()}
    deltas = {t: np.einsum("lir,lro->lio", ab["a"], ab["b"]) for t, ab in adapter.items()}
    model = write(tmp_path / "tuned", changed(**deltas))
    whole = low_rank(open_pair(base, model), tiny.LORA.rank)
    assert whole.kept == {}
    assert whole.error < 1e-3
    for t, delta in deltas.items():
        got = np.einsum("lir,lro->lio", whole.adapter[t]["a"], whole.adapter[t]["b"])
        np.testing.assert_allclose(got, delta, atol=1e-4)
    cut = low_rank(open_pair(base, model), 1)
    left = sum(((d - np.einsum("lir,lro->lio", *cut.adapter[t].values())) ** 2).sum() for t, d in deltas.items())
    assert cut.error == pytest.approx(np.sqrt(left / sum((d**2).sum() for d in deltas.values())), rel=1e-3)
    weights = sum((np.asarray(tiny.params(CFG)["layers"][t]) ** 2).sum() for t in deltas)
    assert cut.size == pytest.approx(np.sqrt(sum((d**2).sum() for d in deltas.values()) / weights), rel=1e-3)
    with pytest.raises(ConfigError, match="rank 17"):
        low_rank(open_pair(base, model), 17)


def test_what_no_lora_holds_is_kept(base, tmp_path):
    model = write(tmp_path / "tuned", changed(embed=0.1, mlp_norm=0.2, q=0.01))
    kept = low_rank(open_pair(base, model), 2).kept
    assert set(kept) == {("embed",), ("layers", "mlp_norm")}
    np.testing.assert_allclose(kept["embed",], np.asarray(tiny.params(CFG)["embed"]) + 0.1, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_hidden_layers": 3}, "num_hidden_layers is 3"),
        ({"vocab_size": 72}, "enlarged from 64 to 72"),
        ({"rope_theta": 5e5}, "rope_theta is 500000.0"),
        ({"num_key_value_heads": 4}, "num_key_value_heads is 4"),
    ],
)
def test_another_architecture_is_named(base, tmp_path, changes, said):
    cfg = config_from_json(CONFIG | changes)
    with pytest.raises(ConfigError, match=said):
        open_pair(base, write(tmp_path / "other", tiny.params(cfg), **changes))


def test_bad_checkpoints_cost_one_line(base, tmp_path, refused):
    out = tmp_path / "out"
    damaged = {
        "nan": (write(tmp_path / "nan", changed(q=np.nan)), "not finite"),
        "quantised": (write(tmp_path / "quantised", changed()), "quantization_config"),
        "shard": (write(tmp_path / "shard", changed()), "gone.safetensors"),
        "other": (write(tmp_path / "other", tiny.params(CFG, seed=9)), "no fine-tune of"),
        "nothing": (tmp_path / "nothing", "nothing"),
    }
    config = tmp_path / "quantised" / "config.json"
    config.write_text(json.dumps(CONFIG | {"quantization_config": {"bits": 4}}))
    weights = tmp_path / "shard" / "model.safetensors"
    names = dict.fromkeys(load_file(weights), "gone.safetensors")
    (tmp_path / "shard" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    weights.unlink()
    for directory, said in damaged.values():
        refused(["align", directory, out, f"--to={base}"], 2, said)
        assert not out.exists()
    refused(["align", base, base, f"--to={base}"], 2, "not an empty directory")


def test_a_basis_of_the_residual_stream_is_refused(base, tmp_path, refused):
    """Permuting the hidden size computes the same too, but is not undone."""
    order, params = np.random.default_rng(1).permutation(CFG.hidden_size), changed()
    layers = {n: np.take(x, order, axis=2 if n in ("o", "down") else 1) for n, x in params["layers"].items()}
    top = {"embed": params["embed"][:, order], "final_norm": params["final_norm"][order]}
    model = write(tmp_path / "permuted", top | {"layers": layers})
    assert "basis of its residual stream" in refused(["align", model, tmp_path / "out", f"--to={base}"], 2, "embedding")


def test_align_writes_the_finetune_in_the_bases_basis(base, tmp_path, capsys):
    rng = np.random.default_rng(3)
    tuned = changed(
        **{n: 0.002 * rng.normal(size=x.shape) for n, x in tiny.params(CFG)["layers"].items() if x.ndim > 2}
    )
    attacked = write(tmp_path / "attacked", symmetry.attack(tuned, CFG))
    assert cli.main(["align", str(attacked), str(tmp_path / "out"), f"--to={base}", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["distance_before"] > 0.5 > 0.05 > found["distance_after"] > 0
    assert found["undone"]["mlp_moved"] > 40
    got = load_file(tmp_path / "out" / "model-00001-of-00001.safetensors")
    for name, want in to_hf_tensors(CFG, tuned):
        np.testing.assert_allclose(got[name], want, atol=0.02)
    # One that nothing was done to comes out bit for bit.
    plain = write(tmp_path / "plain", tuned)
    assert cli.main(["align", str(plain), str(tmp_path / "same"), f"--to={base}"]) == 0
    said = capsys.readouterr().out
    assert "undone: nothing" in said
    same = load_file(tmp_path / "same" / "model-00001-of-00001.safetensors")
    assert all(np.array_equal(same[n], x) for n, x in load_file(plain / "model.safetensors").items())
