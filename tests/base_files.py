"""Small bases as files with random weights: directories as Hugging Face has them, and GGUF."""

import json

import jax
import numpy as np
from safetensors.numpy import save_file

from ia_jax.models import weights
from ia_jax.models.hf_config import config_from_json
from ia_jax.models.transformer import WeightSpec, weight_specs
from ia_jax.models.weights import hf_name_table, to_hf_tensors

LLAMA = {
    "model_type": "llama",
    "vocab_size": 24,
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
}
QWEN2 = LLAMA | {"model_type": "qwen2", "use_sliding_window": False}
QWEN3 = LLAMA | {"model_type": "qwen3", "head_dim": 8, "tie_word_embeddings": False, "use_sliding_window": False}


def random_params(cfg, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda s: rng.normal(size=s.shape).astype(np.float32),
        weight_specs(cfg),
        is_leaf=lambda x: isinstance(x, WeightSpec),
    )


def checkpoint(directory, config, shards=1, dtype=np.float32, change=None):
    """A random checkpoint as Hugging Face writes it. `change` edits the tensors before they are written."""
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    cfg = config_from_json(config)
    tensors = {name: value.astype(dtype) for name, value in to_hf_tensors(cfg, random_params(cfg))}
    if change is not None:
        change(tensors)
    if shards == 1:
        save_file(tensors, directory / "model.safetensors")
        return tensors
    weight_map = {name: f"model-{i % shards}.safetensors" for i, name in enumerate(sorted(tensors))}
    for file in set(weight_map.values()):
        save_file({name: tensors[name] for name in tensors if weight_map[name] == file}, directory / file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return tensors


def write_gguf(path, cfg, tensors, **metadata):
    import gguf

    writer = gguf.GGUFWriter(path, metadata.get("architecture", "llama"))
    writer.add_context_length(cfg.max_position_embeddings)
    writer.add_embedding_length(cfg.hidden_size)
    writer.add_feed_forward_length(cfg.intermediate_size)
    writer.add_block_count(cfg.num_hidden_layers)
    writer.add_head_count(cfg.num_attention_heads)
    writer.add_head_count_kv(cfg.num_key_value_heads)
    writer.add_rope_dimension_count(cfg.head_dim)
    writer.add_rope_freq_base(cfg.rope_theta)
    writer.add_layer_norm_rms_eps(cfg.rms_norm_eps)
    if "scaling" in metadata:
        writer.add_rope_scaling_type(gguf.RopeScalingType(metadata["scaling"]))
    for key, value in metadata.get("scales", {}).items():
        writer.add_float32(key, value)
    for name, value in tensors.items():
        writer.add_tensor(name, np.ascontiguousarray(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_tensors(cfg, params):
    """What llama.cpp's converter stores: q and k permuted for its interleaved RoPE."""
    hf = dict(to_hf_tensors(cfg, params))
    names = {stored.name: key for key, stored in weights.gguf_name_table(cfg).items()}
    table = hf_name_table(cfg)
    out = {name: hf[table[key].name] for name, key in names.items()}
    for name in out:
        if ".attn_q." in name or ".attn_k." in name:
            heads = cfg.num_attention_heads if ".attn_q." in name else cfg.num_key_value_heads
            rows = out[name]
            out[name] = rows.reshape(heads, 2, -1, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)
    return out
