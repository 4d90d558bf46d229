"""Function-preserving changes: the changed model computes the same, and `align` finds the way back."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from ia_jax.adapters.align import Undone, align_final, align_layer, assignment
from tests import symmetry, tiny

WIDE = replace(tiny.TINY, num_attention_heads=8, num_key_value_heads=4)  # 4 groups of 2 heads of 8
BIASED = replace(WIDE, attention_bias=True)
QWEN = replace(WIDE, family="qwen3", qk_norm=True)


def finetuned(cfg, size=0.01, seed=5):
    """A base, and the base with every weight changed a little."""
    base = tiny.params(cfg)
    rng = np.random.default_rng(seed)
    layers = {n: x * (1 + size * rng.normal(size=x.shape)).astype(np.float32) for n, x in base["layers"].items()}
    return base, base | {"layers": {n: np.asarray(x) for n, x in layers.items()}}


def aligned(base, model, cfg):
    undone, layers = Undone(), []
    for i in range(cfg.num_hidden_layers):
        own, theirs = ({n: np.asarray(x[i]) for n, x in tree["layers"].items()} for tree in (base, model))
        layer, found = align_layer(own, theirs, cfg)
        layers.append(layer)
        undone += found
    tops = ({n: np.asarray(x) for n, x in tree.items() if n != "layers"} for tree in (base, model))
    top, found = align_final(*tops)
    return top | {"layers": {n: np.stack([x[n] for x in layers]) for n in layers[0]}}, undone + found


def hidden(params, cfg, stack=()):
    tokens, segments, positions = tiny.rows(1, 2, 12)
    params = {n: x if n == "layers" else jnp.asarray(x) for n, x in params.items()}
    params = params | {"layers": {n: jnp.asarray(x) for n, x in params["layers"].items()}}
    out = tiny.forward(params, tokens, segments, positions, stack, cfg)
    return np.asarray(out) @ np.asarray(params["lm_head"] if "lm_head" in params else params["embed"].T)


def away(params, other):
    pairs = [(np.asarray(params["layers"][n]), np.asarray(x)) for n, x in other["layers"].items()]
    return max(float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in pairs)


@pytest.mark.parametrize("cfg", [replace(WIDE, tie_word_embeddings=False), BIASED, QWEN], ids=["llama", "bias", "qwen"])
def test_all_changes_at_once_are_undone(cfg):
    base, tuned = finetuned(cfg)
    attacked = symmetry.attack(tuned, cfg)
    assert away(attacked, base) > 0.5
    logits, adapter = hidden(tuned, cfg), (tiny.adapter(cfg=cfg),)
    np.testing.assert_allclose(hidden(attacked, cfg), logits, atol=2e-3 * np.abs(logits).max())
    back, undone = aligned(base, attacked, cfg)
    assert undone
    np.testing.assert_allclose(hidden(back, cfg), logits, atol=2e-3 * np.abs(logits).max())
    assert away(back, tuned) < 0.02
    # The adapter of the base fits again: it did not, in the changed basis.
    fits = hidden(tuned, cfg, adapter)
    error, before = (np.abs(hidden(p, cfg, adapter) - fits).max() / np.abs(fits).max() for p in (back, attacked))
    assert error < 0.05 < 0.3 < before


def test_a_norm_whose_sign_says_the_wrong_thing():
    """Noise turned a small weight of a norm negative: by its sign alone, its rows would come back upside down."""
    base, tuned = finetuned(WIDE, 0.0)
    for tree, value in ((base, 1e-4), (tuned, -1e-4)):
        norms = np.array(tree["layers"]["mlp_norm"])
        norms[:, 3] = value
        tree["layers"] = {**tree["layers"], "mlp_norm": norms}
    back, undone = aligned(base, symmetry.attack(tuned, WIDE), WIDE)
    assert undone.norms
    for name in ("gate", "up"):
        own, theirs = (np.asarray(tree["layers"][name])[:, 3] for tree in (back, base))
        assert np.linalg.norm(own - theirs) < 0.1 * np.linalg.norm(theirs)  # upside down it would be 2


@pytest.mark.parametrize("part", symmetry.PARTS)
def test_each_change_alone_is_named_and_undone(part):
    base, tuned = finetuned(WIDE)
    back, undone = aligned(base, symmetry.attack(tuned, WIDE, [part], seed=3), WIDE)
    names = {
        "norms": {"norms"},
        "mlp": {"mlp_moved"},
        "scales": {"mlp_scaled"},
        "groups": {"groups_moved", "heads_moved"},
        "values": {"values_rotated"},
        "queries": {"pairs_turned"},
    }[part]
    assert {n for n, x in vars(undone).items() if x} == names
    assert away(back, tuned) < 0.02


def test_an_untouched_finetune_is_left_bit_for_bit():
    for size in (0.001, 0.1):
        base, tuned = finetuned(WIDE, size)
        back, undone = aligned(base, tuned, WIDE)
        assert undone == Undone()
        assert undone.in_words() == "nothing"
        assert all(np.array_equal(back["layers"][n], x) for n, x in tuned["layers"].items())


@pytest.mark.parametrize("noise", [0.001, 0.01])
def test_noise_on_top_of_the_changes(noise):
    base, tuned = finetuned(WIDE)
    attacked, rng = symmetry.attack(tuned, WIDE), np.random.default_rng(8)
    for n, x in attacked["layers"].items():
        step = rng.normal(size=x.shape)
        attacked["layers"][n] = (x + noise * step * np.linalg.norm(x) / np.linalg.norm(step)).astype(np.float32)
    back, _ = aligned(base, attacked, WIDE)
    assert away(back, tuned) < 0.02 + 2 * noise


def test_assignment_where_maxima_collide():
    similarity = np.array([[0.9, 0.8, 0.0], [0.9, 0.1, 0.0], [0.0, 0.0, 0.1]])
    assert assignment(similarity).tolist() == [1, 0, 2]  # by hand: 0.8 + 0.9 + 0.1 beats 0.9 + 0.1 + 0.1
