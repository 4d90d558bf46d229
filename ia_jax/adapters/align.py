"""Undoing function-preserving changes of a fine-tune's weights, so that adapters made for the base fit it again.

A model computes the same if its hidden units are renamed, rotated or rescaled and the next matrix undoes it; an adapter
in the old basis then no longer fits ("Symmetry Defeats Auditing", arXiv 2605.27836). What a layer allows:

| what | change | undone by |
|---|---|---|
| norms | weight times s, rows of the matrices that read it over s | the base's own norm |
| MLP columns | a permutation of gate, up and down | assignment by cosine |
| MLP scales | up's column times c, down's row over c; c may be negative | both norms |
| key/value groups, query heads of a group | permutations | assignment by linear CKA |
| values | a group's V times an orthogonal R, its heads' O times R^T | Procrustes |
| queries and keys | a RoPE pair's rotation by φ, q times r and k over r | a complex number for each pair |

RoPE allows no other change between queries and keys, and a norm on them (Qwen3) none at all. A change of the basis of
the residual stream is not undone, but refused (`stages.align`).

Every change is exactly undone by another of its kind, so that the aligned model computes what the given one did,
whatever was found. One is begun only where it takes away at least half of the squared distance to the base of what it
moves: fine-tuning alone looks like none of them, and is left as it is.

A layer is a dict like `weight_specs(cfg)["layers"]` without the layer axis, numpy fp32: q, k, v [D, heads * H], o
[heads * H, D], gate, up [D, F], down [F, D], norms [D].
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
from scipy.linalg import orthogonal_procrustes
from scipy.optimize import linear_sum_assignment

from ia_jax.models.config import ModelConfig

Layer = dict[str, np.ndarray]
WORTH = 0.5  # a change is undone where the squared distance falls at least to this share
BLOCK = 4096  # columns of an MLP that are compared with all at a time


@dataclass(frozen=True)
class Undone:
    """How much was undone: columns, heads and dimensions that were moved, scaled or rotated."""

    norms: int = 0
    mlp_moved: int = 0
    mlp_scaled: int = 0
    groups_moved: int = 0
    heads_moved: int = 0
    values_rotated: int = 0
    pairs_turned: int = 0

    def __add__(self, other: "Undone") -> "Undone":
        return Undone(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    def __bool__(self) -> bool:
        return any(getattr(self, f.name) for f in fields(self))

    def in_words(self) -> str:
        words = {
            "norms": "dimensions of norms rescaled",
            "mlp_moved": "MLP columns moved",
            "mlp_scaled": "MLP columns rescaled",
            "groups_moved": "key/value groups moved",
            "heads_moved": "query heads moved within their group",
            "values_rotated": "groups' values rotated",
            "pairs_turned": "query/key pairs turned or rescaled",
        }
        found = [f"{getattr(self, name)} {text}" for name, text in words.items() if getattr(self, name)]
        return "; ".join(found) or "nothing"


def align_layer(base: Layer, layer: Layer, cfg: ModelConfig) -> tuple[Layer, Undone]:
    """A layer in the base's basis, and what was undone; neither argument is changed."""
    out = dict(layer)
    norms = _norm(base, out, "attn_norm", ("q", "k", "v"), "v") + _norm(base, out, "mlp_norm", ("gate", "up"), "gate")
    undone = Undone(norms=norms) + _mlp(base, out)
    if "q_bias" in base:  # a bias is one more row of its matrix
        out |= {n: np.vstack([out[n], out[f"{n}_bias"]]) for n in "qkv"}
        base = base | {n: np.vstack([base[n], base[f"{n}_bias"]]) for n in "qkv"}
    undone += _heads(base, out, cfg)
    undone += Undone(values_rotated=_values(base, out, cfg))
    if not cfg.qk_norm:
        undone += Undone(pairs_turned=_queries(base, out, cfg))
    if "q_bias" in base:
        out |= {f"{n}_bias": out[n][-1] for n in "qkv"} | {n: out[n][:-1] for n in "qkv"}
    if undone.norms:
        _refine(base, out, "attn_norm", ("q", "k", "v"))
        _refine(base, out, "mlp_norm", ("gate", "up"))
    return {n: np.ascontiguousarray(out[n]) for n in layer}, undone


def align_final(base: Mapping[str, np.ndarray], top: Mapping[str, np.ndarray]) -> tuple[Layer, Undone]:
    """The final norm [D] with an output matrix of its own, lm_head [D, V]. A tied one allows no change."""
    out = dict(top)
    if "lm_head" not in top:
        return out, Undone()
    norms = _norm(dict(base), out, "final_norm", ("lm_head",), "lm_head")
    return out, Undone(norms=norms)


def _distance(*pairs: tuple[np.ndarray, np.ndarray]) -> float:
    """Sum of squared distances (base, other), each relative to the base's own size."""
    return sum(float(((b - x) ** 2).sum() / max(float((b**2).sum()), 1e-30)) for b, x in pairs)


def _worth(before: float | np.ndarray, after: float | np.ndarray) -> np.ndarray:
    return np.asarray((after < WORTH * np.asarray(before)) & (np.asarray(before) > 1e-12))


def _norm(base: Layer, out: Layer, norm: str, reads: tuple[str, ...], by: str) -> int:
    """The base's norm weight put back, the ratio moved into the rows of the matrices that read it.

    Judged by the lengths of rows of the matrix `by`, which no other change alters.
    """
    scale = np.divide(out[norm], base[norm], out=np.ones_like(base[norm]), where=base[norm] != 0)
    scale = np.where(scale == 0, 1.0, scale)
    length, own = (np.linalg.norm(x[by], axis=1) + 1e-30 for x in (base, out))
    ratio, moved = np.log(own / length), np.log(np.abs(scale))
    before = float((ratio**2 + moved**2 + (scale < 0)).sum())
    if not _worth(before, float(((ratio + moved) ** 2).sum())):
        return 0
    out[norm] = out[norm] / scale
    for name in reads:
        out[name] = out[name] * scale[:, None]
    return int((np.abs(scale - 1) > 1e-6).sum())


def _refine(base: Layer, out: Layer, norm: str, reads: tuple[str, ...]) -> None:
    """Scales of a norm once more, by least squares of whole rows, now that their columns lie where the base's do: a
    norm's own weight is a bad witness where it is small and was trained.
    """
    ours, theirs = (np.hstack([x[n][: len(base[norm])] for n in reads]) for x in (base, out))
    scale = (ours * theirs).sum(1) / np.maximum((theirs**2).sum(1), 1e-30)
    scale = np.where(scale == 0, 1.0, scale).astype(np.float32)

    def far(layer: Layer) -> float:
        return _distance(*((base[n][: len(base[norm])], layer[n][: len(base[norm])]) for n in (norm, *reads)))

    other = {norm: out[norm] / scale, **{n: out[n] * scale[:, None] for n in reads}}
    if far(other) < far(out):
        out |= other


def assignment(similarity: np.ndarray) -> np.ndarray:
    """[n]: of each row its column, so that the sum is the largest. Where the rows' own maxima do not collide they are
    that, and no assignment is solved.
    """
    best = similarity.argmax(1)
    if len(np.unique(best)) == len(best):
        return best
    return linear_sum_assignment(similarity, maximize=True)[1]


def _unit(columns: np.ndarray) -> np.ndarray:
    return columns / np.maximum(np.linalg.norm(columns, axis=0), 1e-30)


def _mlp(base: Layer, out: Layer) -> Undone:
    """Columns moved to where the base has them, then scales of up and down."""
    pairs = [(_unit(base[n]), _unit(out[n])) for n in ("gate", "up")]
    pairs.append((_unit(base["down"].T), _unit(out["down"].T)))
    width = base["gate"].shape[1]
    similarity = np.empty((width, width), np.float32)
    for start in range(0, width, BLOCK):
        gate, up, down = (b[:, start : start + BLOCK].T @ x for b, x in pairs)
        similarity[start : start + BLOCK] = gate + np.abs(up) + np.abs(down)
    order = assignment(similarity)
    # A permutation is taken only for what it gains: of equal columns (all zero) none is moved.
    gained = float(similarity[np.arange(width), order].sum() - np.trace(similarity))
    moved = int((order != np.arange(width)).sum()) if gained > 1e-3 else 0
    if moved:
        out |= {"gate": out["gate"][:, order], "up": out["up"][:, order], "down": out["down"][order]}
    sizes = [np.linalg.norm(x, axis=0) + 1e-30 for x in (base["up"], out["up"], base["down"].T, out["down"].T)]
    sign = np.sign((base["up"] * out["up"]).sum(0) * 1.0)
    scale = np.where(sign == 0, 1.0, sign) * np.sqrt(sizes[1] / sizes[0] * sizes[2] / sizes[3])

    def far(up: np.ndarray, down: np.ndarray) -> np.ndarray:
        ups = ((base["up"] - up) ** 2).sum(0) / sizes[0] ** 2
        return ups + ((base["down"] - down) ** 2).sum(1) / sizes[2] ** 2

    worth = _worth(far(out["up"], out["down"]), far(out["up"] / scale, out["down"] * scale[:, None]))
    scale = np.where(worth, scale, 1.0).astype(np.float32)
    if worth.any():
        out |= {"up": out["up"] / scale, "down": out["down"] * scale[:, None]}
    return Undone(mlp_moved=moved, mlp_scaled=int(worth.sum()))


def _by_head(matrix: np.ndarray, heads: int) -> np.ndarray:
    """[D, heads * H] -> [heads, D, H]."""
    return np.moveaxis(matrix.reshape(len(matrix), heads, -1), 1, 0)


def _flat(heads: np.ndarray) -> np.ndarray:
    """The inverse of `_by_head`."""
    return np.moveaxis(heads, 0, 1).reshape(heads.shape[1], -1)


def _cka(base: np.ndarray, other: np.ndarray) -> np.ndarray:
    """[n, D, H], [m, D, H] -> [n, m]: linear CKA (Kornblith 2019, without centring), 1 for heads that are equal up to a
    rotation of H.
    """
    cross = (np.einsum("ndh,mdi->nmhi", base, other) ** 2).sum((2, 3))
    own = [np.linalg.norm(np.einsum("ndh,ndi->nhi", x, x), axis=(1, 2)) + 1e-30 for x in (base, other)]
    return cross / (own[0][:, None] * own[1][None])


def _heads(base: Layer, out: Layer, cfg: ModelConfig) -> Undone:
    """Key/value groups, and within each the query heads, put where the base has them."""
    n, heads = cfg.num_key_value_heads, cfg.num_attention_heads
    each = heads // n

    def parts(layer: Layer) -> dict[str, np.ndarray]:
        q, o = _by_head(layer["q"], heads), _by_head(layer["o"].T, heads)
        own = {"k": _by_head(layer["k"], n), "v": _by_head(layer["v"], n)}
        return own | {"q": q.reshape(n, each, *q.shape[1:]), "o": o.reshape(n, each, *o.shape[1:])}

    ours, theirs = parts(base), parts(out)
    groups = _moves(_cka(ours["k"], theirs["k"]) + _cka(ours["v"], theirs["v"]))
    theirs = {name: x[groups] for name, x in theirs.items()}
    moved = 0
    for g in range(n):
        order = _moves(_cka(ours["q"][g], theirs["q"][g]) + _cka(ours["o"][g], theirs["o"][g]))
        moved += int((order != np.arange(each)).sum())
        theirs["q"][g], theirs["o"][g] = theirs["q"][g][order], theirs["o"][g][order]
    undone = Undone(groups_moved=int((groups != np.arange(n)).sum()), heads_moved=moved)
    if undone:
        q, o = (theirs[name].reshape(heads, *theirs[name].shape[2:]) for name in "qo")
        out |= {"q": _flat(q), "k": _flat(theirs["k"]), "v": _flat(theirs["v"]), "o": _flat(o).T}
    return undone


def _moves(similarity: np.ndarray) -> np.ndarray:
    """The assignment, or none at all where it gains next to nothing (heads that are alike)."""
    order, stay = assignment(similarity), np.arange(len(similarity))
    return order if similarity[stay, order].sum() - np.trace(similarity) > 1e-3 else stay


def _values(base: Layer, out: Layer, cfg: ModelConfig) -> int:
    """Each group's values rotated back: R of the least |[V; O^T] R - [V'; O'^T]|."""
    n, heads = cfg.num_key_value_heads, cfg.num_attention_heads

    def parts(layer: Layer) -> tuple[np.ndarray, np.ndarray]:
        o = _by_head(layer["o"].T, heads)
        return _by_head(layer["v"], n), o.reshape(n, heads // n, *o.shape[1:])

    (v, o), (v_, o_) = parts(base), tuple(x.copy() for x in parts(out))
    rotated = 0
    for g in range(n):
        weights = 1 / (np.linalg.norm(v[g]) + 1e-30), 1 / (np.linalg.norm(o[g]) + 1e-30)
        stacked = [
            np.vstack([weights[0] * x, weights[1] * y.reshape(-1, y.shape[-1])])
            for x, y in ((v[g], o[g]), (v_[g], o_[g]))
        ]
        rotation, _ = orthogonal_procrustes(stacked[0], stacked[1])
        back_v, back_o = v_[g] @ rotation.T, o_[g] @ rotation.T
        if _worth(_distance((v[g], v_[g]), (o[g], o_[g])), _distance((v[g], back_v), (o[g], back_o))):
            v_[g], o_[g], rotated = back_v, back_o, rotated + 1
    if rotated:
        out |= {"v": _flat(v_), "o": _flat(o_.reshape(heads, *o_.shape[2:])).T}
    return rotated


def _queries(base: Layer, out: Layer, cfg: ModelConfig) -> int:
    """Each RoPE pair of a group's queries and keys turned and scaled back.

    A pair (i, i + H/2) is a complex number, on which RoPE is a rotation. q times a and k over the conjugate of a leave
    every score as it was, for one a of each group and pair.
    """
    n, heads = cfg.num_key_value_heads, cfg.num_attention_heads

    def parts(layer: Layer) -> tuple[np.ndarray, np.ndarray]:
        q, k = (_by_head(layer["q"], heads), _by_head(layer["k"], n))
        half = q.shape[-1] // 2
        q, k = (x[..., :half] + 1j * x[..., half:] for x in (q, k))
        return q.reshape(n, heads // n, *q.shape[1:]), k[:, None]

    ours, theirs = parts(base), parts(out)
    sizes = [[np.linalg.norm(x, axis=(1, 2)) + 1e-30 for x in pair] for pair in (ours, theirs)]  # [n, H/2]
    turned = sum((np.conj(x) * y).sum((1, 2)) / (s * t) for x, y, s, t in zip(ours, theirs, *sizes, strict=True))
    ratio = np.sqrt(sizes[1][0] / sizes[0][0] * sizes[0][1] / sizes[1][1])
    a = ratio * np.exp(1j * np.angle(turned))
    back = theirs[0] / a[:, None, None], theirs[1] * np.conj(a)[:, None, None]

    def far(pair: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        parts = zip(ours, pair, sizes[0], strict=True)
        return np.asarray(sum((np.abs(x - y) ** 2).sum((1, 2)) / s**2 for x, y, s in parts))

    worth = _worth(far(theirs), far(back))[:, None, None]
    if not worth.any():
        return 0
    for name, x, y in zip("qk", theirs, back, strict=True):
        kept = np.where(worth, y, x)
        real = np.concatenate([np.real(kept), np.imag(kept)], -1)
        out[name] = _flat(real.reshape(-1, *real.shape[2:])).astype(np.float32)
    return int(worth.sum())
