"""The logit lens: the state that each layer hands on, read as if it were the last (nostalgebraist 2020).

Through the final norm and the unembedding every layer's state is a distribution over the vocabulary. The last layer's
is the model's own; of the ones before it says what these would lead to if nothing came after.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ia_jax.models.config import ModelConfig
from ia_jax.models.norm import rms_norm
from ia_jax.models.transformer import Params, logits_from_hidden
from ia_jax.parallel.mesh import TRAINING, Rules


class Lens(NamedTuple):
    """What some tokens get after the embeddings and after each layer.

    logps: [L + 1, K, B, T, M] log-probabilities, fp32. ranks: [L + 1, K, B, T, R] int32 of the first R of these tokens,
    1 plus how many tokens of the vocabulary are likelier.
    """

    logps: jax.Array
    ranks: jax.Array


def normed_states(params: Params, states: jax.Array, cfg: ModelConfig) -> jax.Array:
    """`forward(…, every_layer=True)`, [L + 1, ..., D], with all of them through the final norm; the last one was."""
    normed = rms_norm(states[:-1], params["final_norm"], cfg.rms_norm_eps)
    return jnp.concatenate([normed, states[-1:]])


def read_tokens(
    params: Params, states: jax.Array, tokens: jax.Array, ranked: int, cfg: ModelConfig, rules: Rules = TRAINING
) -> Lens:
    """states [L + 1, K, B, T, D] of `forward(…, every_layer=True)`, tokens [K, M] -> what these tokens get.

    ranked: of how many of them, from the first, the rank is counted too (each costs a pass over the vocabulary). A
    layer's logits [K, B, T, V] are held at a time, whole on every device of an organism's rows.
    """

    def own(logits: jax.Array, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        index = jnp.broadcast_to(tokens[:, None, None], (*logits.shape[:3], tokens.shape[-1]))
        picked = jnp.take_along_axis(logits, index, -1)
        likelier = (logits[..., None, :] > picked[..., :ranked, None]).sum(-1, dtype=jnp.int32)
        return picked - jax.nn.logsumexp(logits, -1, keepdims=True), likelier + 1

    rows, each = rules.spec("organism", "rows", None, None), rules.spec("organism", None)
    local = jax.shard_map(own, in_specs=(rows, each), out_specs=(rows, rows))
    tokens = jax.sharding.reshard(tokens, each)

    def layer(hidden: jax.Array) -> tuple[jax.Array, jax.Array]:
        return local(jax.sharding.reshard(logits_from_hidden(params, hidden, rules), rows), tokens)

    return Lens(*jax.lax.map(layer, normed_states(params, states, cfg)))
