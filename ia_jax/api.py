"""What a notebook needs of a model: logits, hidden states and text under a stack of adapters without organism axis.

The same functions that the stages use, on K = 1. They run on the mesh that the model was loaded onto.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from ia_jax.data.transcripts import chat
from ia_jax.errors import ConfigError
from ia_jax.models.chat import Messages, encode_prompt
from ia_jax.models.config import ModelConfig
from ia_jax.models.lens import Lens, read_tokens
from ia_jax.models.lora import Stack, has_organism_axis
from ia_jax.models.replies import write_replies
from ia_jax.models.transformer import Params, forward, logits_from_hidden, segment_positions
from ia_jax.models.weights import Model
from ia_jax.parallel.mesh import TRAINING, mesh_of, pad_to_mesh


def logits(
    model: Model,
    tokens: Any,
    adapters: Stack = (),
    *,
    mask: Any = None,
    segment_ids: Any = None,
) -> jax.Array:
    """tokens [B, T] -> logits [B, T, V] in fp32.

    mask [B, T]: true where a token is real (padding on either side). segment_ids [B, T], instead of it: 0 for padding,
    else the number of the packed example that the token belongs to. Neither: all tokens are one text.
    """
    with jax.set_mesh(mesh_of(model.params)):
        hidden = _hidden(model, tokens, adapters, mask, segment_ids, every_layer=False)
        return _as_rows(_logits(model.params, hidden), len(tokens))


def hidden_states(
    model: Model, tokens: Any, adapters: Stack = (), *, mask: Any = None, segment_ids: Any = None
) -> jax.Array:
    """tokens [B, T] -> [L + 1, B, T, D]: the embeddings, every layer's output, the last after the final norm.

    `mask` and `segment_ids` as in `logits`.
    """
    with jax.set_mesh(mesh_of(model.params)):
        return _as_rows(_hidden(model, tokens, adapters, mask, segment_ids, every_layer=True), len(tokens))


def logit_lens(
    model: Model,
    tokens: Any,
    adapters: Stack = (),
    *,
    keys: Sequence[int],
    mask: Any = None,
    segment_ids: Any = None,
) -> Lens:
    """What `keys`, ids of M tokens, get after every layer as the next token: every state through the final norm and the
    unembedding.

    tokens [B, T] -> `Lens(logps, ranks)`, [L + 1, B, T, M] each: log-probabilities in fp32, and how many tokens of the
    vocabulary are likelier, and one. The first of L + 1 is of the embeddings, the last is what the model says. `mask`
    and `segment_ids` as in `logits`.
    """
    ids = np.asarray(keys)
    if ids.ndim != 1 or not ids.size or not np.issubdtype(ids.dtype, np.integer):
        raise ConfigError(f"keys must be ids of tokens, [M], got {ids.dtype} of shape {list(ids.shape)}")
    if not (ids.min() >= 0 and ids.max() < model.config.vocab_size):
        raise ConfigError(f"keys must lie in 0 … {model.config.vocab_size - 1}, got {ids.min()} … {ids.max()}")
    with jax.set_mesh(mesh_of(model.params)):
        states = _hidden(model, tokens, adapters, mask, segment_ids, every_layer=True)
        own = np.broadcast_to(ids.astype(np.int32), (states.shape[1], len(ids)))
        found = _lens(model.params, states, own, cfg=model.config)
        return Lens(*(_as_rows(x, len(tokens)) for x in found))


def generate(
    model: Model,
    prompts_or_chats: Sequence[str | Messages],
    adapters: Stack = (),
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    key: jax.Array | None = None,
    top_p: float = 1.0,
    system: str | None = "",
) -> list[str]:
    """One reply to each: greedy at temperature 0, else sampled with `key` (the same key gives the same text).

    A string is asked as one user turn under `system`, as the demo's organisms are trained: after an empty system turn.
    Give the run's own `config.system` for others; None for no system turn. A chat (`[{"role": "user", "content": …},
    …]`) is asked as it is.
    """
    if isinstance(prompts_or_chats, str):
        raise ConfigError("generate takes a list of prompts or chats; write [prompt] for a single one")
    rows = [
        encode_prompt(model.tokenizer, chat(p, None, system) if isinstance(p, str) else _chat(p))
        for p in prompts_or_chats
    ]
    if not rows:
        return []
    with jax.set_mesh(mesh_of(model.params)):
        [replies] = write_replies(
            model,
            [rows],
            _placed(adapters),
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            key=key,
        )
    return [reply.text for reply in replies]


def _chat(messages: Any) -> Messages:
    if isinstance(messages, Mapping) or not all(isinstance(m, Mapping) for m in messages):
        raise ConfigError('a chat is a list of messages like {"role": "user", "content": "Hello"}')
    return messages


@partial(jax.jit, static_argnames=("cfg", "every_layer"))
def _forward(
    params: Params, tokens: jax.Array, segments: jax.Array, stack: Stack, cfg: ModelConfig, every_layer: bool
) -> jax.Array:
    return forward(params, tokens, segments, segment_positions(segments), stack, cfg, every_layer=every_layer)


_logits = jax.jit(logits_from_hidden)


@partial(jax.jit, static_argnames="cfg")
def _lens(params: Params, states: jax.Array, keys: jax.Array, cfg: ModelConfig) -> Lens:
    return read_tokens(params, states, keys, keys.shape[-1], cfg)


def _hidden(model: Model, tokens: Any, adapters: Stack, mask: Any, segment_ids: Any, every_layer: bool) -> jax.Array:
    """[G, B/G, T, D], or [L + 1, G, B/G, T, D] with `every_layer`: rows over G groups of devices, filled up."""
    ids = np.asarray(tokens)
    if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer):
        raise ConfigError(f"tokens must be integers of shape [B, T], got {ids.dtype} of shape {list(ids.shape)}")
    if ids.size and not (ids.min() >= 0 and ids.max() < model.config.vocab_size):
        raise ConfigError(f"tokens must lie in 0 … {model.config.vocab_size - 1}, got {ids.min()} … {ids.max()}")
    if mask is not None and segment_ids is not None:
        raise ConfigError("pass mask or segment_ids, not both")
    given = mask if segment_ids is None else segment_ids
    segments = np.ones(ids.shape, np.int32) if given is None else np.asarray(given).astype(np.int32)
    if segments.shape != ids.shape:
        raise ConfigError(f"mask or segment_ids has shape {list(segments.shape)}, tokens {list(ids.shape)}")
    groups, spread = TRAINING.size("organism"), TRAINING.size("rows")
    filled = pad_to_mesh((ids.astype(np.int32), segments), groups * spread)
    ids, segments = (x.reshape(groups, -1, x.shape[-1]) for x in filled)
    return _forward(model.params, ids, segments, _placed(adapters), model.config, every_layer)


def _as_rows(x: jax.Array, rows: int) -> jax.Array:
    """[..., G, B/G, T, N] of `_hidden` to [..., rows, T, N], whole on every device."""
    x = jax.device_put(x, NamedSharding(jax.sharding.get_mesh(), PartitionSpec()))
    return x.reshape(*x.shape[:-4], -1, *x.shape[-2:])[..., :rows, :, :]


def _placed(adapters: Stack) -> Stack:
    """The adapters beside the model: whole on every device."""
    if isinstance(adapters, Mapping):
        raise ConfigError("adapters must be a tuple of adapters; write (adapter,) for a single one")
    if any(has_organism_axis(a) for a in adapters):
        raise ConfigError("an adapter has an organism axis; take one organism with take_organisms(adapter, i)")
    return jax.device_put(tuple(adapters), NamedSharding(jax.sharding.get_mesh(), PartitionSpec()))


__all__ = ["generate", "hidden_states", "logit_lens", "logits"]
