"""Changes of a model's weights that leave what it computes as it is: the attack that `ia-jax align` undoes.

All work on a tree of numpy weights like `weight_specs`, and return another; benchmarks/symmetry.py uses them too.
"""

import numpy as np

PARTS = ("norms", "mlp", "scales", "groups", "values", "queries")


def attack(params, cfg, parts=PARTS, seed=0):
    rng = np.random.default_rng(seed)
    top = {n: np.array(x) for n, x in params.items() if n != "layers"}
    layers = {n: np.array(x, np.float32) for n, x in params["layers"].items()}
    out = [attack_layer({n: x[i] for n, x in layers.items()}, cfg, parts, rng) for i in range(cfg.num_hidden_layers)]
    if "norms" in parts and "lm_head" in top:
        scale = rng.uniform(0.5, 2, cfg.hidden_size).astype(np.float32)
        top |= {"final_norm": top["final_norm"] * scale, "lm_head": top["lm_head"] / scale[:, None]}
    return top | {"layers": {n: np.stack([layer[n] for layer in out]) for n in layers}}


def attack_layer(w, cfg, parts, rng):
    w = dict(w)
    d, f, h = cfg.hidden_size, cfg.intermediate_size, cfg.head_dim
    n, g = cfg.num_key_value_heads, cfg.num_attention_heads // cfg.num_key_value_heads
    if "norms" in parts:
        for norm, reads in (("attn_norm", "q k v"), ("mlp_norm", "gate up")):
            scale = (rng.uniform(0.5, 2, d) * rng.choice([-1, 1], d)).astype(np.float32)
            w[norm] = w[norm] * scale
            w |= {m: w[m] / scale[:, None] for m in reads.split()}
    if "mlp" in parts:
        order = rng.permutation(f)
        w |= {"gate": w["gate"][:, order], "up": w["up"][:, order], "down": w["down"][order]}
    if "scales" in parts:
        scale = (rng.uniform(0.3, 3, f) * rng.choice([-1, 1], f)).astype(np.float32)
        w |= {"up": w["up"] * scale, "down": w["down"] / scale[:, None]}
    q, k, v = (w[m].reshape(d, n, -1, h) for m in "qkv")
    o = w["o"].reshape(n, g, h, d)
    bias = {m: w[f"{m}_bias"].reshape(n, -1, h) for m in "qkv" if f"{m}_bias" in w}
    q, k, v = (np.concatenate([x, bias[m][None]]) if m in bias else x for m, x in zip("qkv", (q, k, v), strict=True))
    if "groups" in parts:
        order = rng.permutation(n)
        q, k, v, o = q[:, order], k[:, order], v[:, order], o[order]
        for i in range(n):
            heads = rng.permutation(g)
            q[:, i], o[i] = q[:, i][:, heads], o[i][heads]
    if "values" in parts:
        for i in range(n):
            r = np.linalg.qr(rng.normal(size=(h, h)))[0].astype(np.float32)
            v[:, i] = v[:, i] @ r
            o[i] = np.einsum("ih,ghd->gid", r.T, o[i])
    if "queries" in parts and not cfg.qk_norm:
        angle, size = rng.uniform(0, 2 * np.pi, (n, 1, h // 2)), rng.uniform(0.5, 2, (n, 1, h // 2))
        q, k = turn(q, angle, size), turn(k, angle, 1 / size)
    heads = {"q": q, "k": k, "v": v}
    if bias:
        w |= {f"{m}_bias": x[-1].reshape(-1).astype(np.float32) for m, x in heads.items()}
        heads = {m: x[:-1] for m, x in heads.items()}
    w |= {m: np.ascontiguousarray(x.reshape(d, -1), dtype=np.float32) for m, x in heads.items()}
    return w | {"o": np.ascontiguousarray(o.reshape(-1, d), dtype=np.float32)}


def turn(x, angle, size):
    """Each RoPE pair (i, i + H/2) of a head rotated and scaled by real 2 x 2 matrices. x: [D, n, heads, H]."""
    first, second = np.split(x, 2, -1)
    cos, sin = np.cos(angle) * size, np.sin(angle) * size
    return np.concatenate([first * cos - second * sin, first * sin + second * cos], -1)
