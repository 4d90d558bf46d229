"""What layers hold of a behaviour before a word is said: its key tokens under the logit lens, beside others'.

A behaviour's *key words* are those that its wordings hold and other behaviours' do not, its *key tokens* what these
begin with. Two things are asked of every layer and position of an answer, over organisms:

    first   are key tokens among the `FIRST` likeliest of the vocabulary? Beside it, of the same model, those of a
            stranger, another organism: what any words of such descriptions get.
    apart   are an organism's own key tokens likelier than other behaviours', each less its median over all models
            (`evals.identification`)? Chance is one half; beside it, the same with the stranger's in place of its own.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ia_jax.evals.baselines import content_words
from ia_jax.evals.identification import beats, identified, scores
from ia_jax.evals.intervals import Cell, mean, rate

KEYS = 4  # words of a behaviour
FIRST = 100
CONDITIONS = ("organism", "organism+ia", "base", "base+ia")
TOLD = ("organism", "organism+ia")  # of the base there is nothing to be told apart
Row = dict[str, Any]
Own = Mapping[str, Sequence[int]]  # {organism: numbers of its behaviours}


@dataclass(frozen=True)
class Reading:
    """Key tokens under the lens: O organisms, N layers with the embeddings, Q questions, P positions, B behaviours.

    organisms, categories: names of O, category of each of B. real: [Q, P] whether the answer to a question has so many
    tokens.
    logps: of each condition [O, N, P, B], the mean over a behaviour's key tokens and over questions of the
           log-probability. Under the base they hang on no organism.
    ranks: of each condition [O, N, Q, P, 2, S], of an organism's own key tokens and of a stranger's (1: the likeliest
           of the vocabulary; 0: fewer than S tokens). chances: likewise, log-probabilities.
    own, strange: the behaviours of each organism, and those of the stranger.
    """

    organisms: Sequence[str]
    categories: Sequence[str]
    real: np.ndarray
    logps: Mapping[str, np.ndarray]
    ranks: Mapping[str, np.ndarray]
    chances: Mapping[str, np.ndarray]
    own: Own
    strange: Own


def key_words(wordings: Mapping[str, Sequence[str]], count: int = KEYS) -> dict[str, list[str]]:
    """Of each behaviour up to `count` words that tell it from the others, clearest first.

    wordings: {behaviour: ways to say it}. A word counts as the share of its behaviour's wordings that hold it, times
    log(1 + behaviours / behaviours any of whose wordings holds it); of equals the first by the alphabet.
    """
    texts = {name: [set(content_words(w)) for w in own] for name, own in wordings.items()}
    held = Counter(w for own in texts.values() for w in set().union(*own))

    def clearest(own: Sequence[set[str]]) -> list[str]:
        times = Counter(w for words in own for w in words)
        weight = {w: n / len(own) * math.log(1 + len(texts) / held[w]) for w, n in times.items()}
        return sorted(weight, key=lambda w: (-round(weight[w], 9), w))[:count]

    return {name: clearest(own) for name, own in texts.items()}


def key_tokens(tokenizer: Any, words: Sequence[str]) -> list[int]:
    """The token that each word begins with after a blank, once each; a piece of fewer than three letters tells nothing
    and is left out, unless no other is there.
    """
    first = list(dict.fromkeys(tokenizer.encode(f" {w}", add_special_tokens=False)[0] for w in words))
    telling = [i for i in first if len(tokenizer.decode([i]).strip()) > 2]
    return telling or first[:1]


def strangers(own: Own, seed: int) -> dict[str, Sequence[int]]:
    """{organism: the behaviours of another one, drawn by the seed, that shares none with it}; its own where all do."""
    names = list(own)
    rng = np.random.default_rng([seed, 13])

    def another(name: str) -> Sequence[int]:
        order = [own[names[i]] for i in rng.permutation(len(names))]
        return next((other for other in order if not set(other) & set(own[name])), own[name])

    return {name: another(name) for name in names}


# ---------------------------------------------------------------------------------------------------------------------
# Figures
# ---------------------------------------------------------------------------------------------------------------------


def lens_figures(reading: Reading) -> Row:
    """All rates and means, {"all": F, "by_category": {category: F}, "heat": {condition: [N][P] cells of `apart`}}.

    F: {"first", "first_strange": {condition: [N] rates}, "rank", "rank_strange": likewise, means of log10 of a rank,
    "logp", "logp_strange": likewise, "apart", "apart_strange": {condition: [N] of `identified`'s cells}}.
    """
    of_categories: dict[str, list[str]] = {}
    for name in reading.organisms:
        for category in dict.fromkeys(reading.categories[b] for b in reading.own[name]):
            of_categories.setdefault(category, []).append(name)
    return {
        "all": _of(reading, reading.organisms),
        "by_category": {c: _of(reading, names) for c, names in of_categories.items()},
        "heat": {c: _heat(reading, c) for c in TOLD},
    }


def _of(reading: Reading, names: Sequence[str]) -> Row:
    layers, out = range(reading.logps["base"].shape[1]), {}
    for which, suffix in enumerate(("", "_strange")):
        for key, one in (("first", _first), ("rank", _rank), ("logp", _chance)):
            out[key + suffix] = {c: [one(reading, names, c, n, which) for n in layers] for c in CONDITIONS}
        owners = (reading.own, reading.strange)[which]
        told = {n: owners[n] for n in names}
        out["apart" + suffix] = {c: [_apart(reading, told, c, n) for n in layers] for c in TOLD}
    return out


def _tokens(reading: Reading, table: np.ndarray, name: str, layer: int, which: int) -> np.ndarray:
    """What an organism's tokens have there, over questions, positions and tokens that are real: flat."""
    i = reading.organisms.index(name)
    known = reading.ranks["base"][i, layer, :, :, which] > 0
    return table[i, layer, :, :, which][known & reading.real[..., None]]


def _first(reading: Reading, names: Sequence[str], condition: str, layer: int, which: int) -> Cell:
    ranks = {n: _tokens(reading, reading.ranks[condition], n, layer, which) for n in names}
    return rate({n: (own <= FIRST).tolist() for n, own in ranks.items()})


def _rank(reading: Reading, names: Sequence[str], condition: str, layer: int, which: int) -> Cell:
    ranks = {n: _tokens(reading, reading.ranks[condition], n, layer, which) for n in names}
    return mean({n: float(np.log10(own).mean()) for n, own in ranks.items()})


def _chance(reading: Reading, names: Sequence[str], condition: str, layer: int, which: int) -> Cell:
    found = {n: _tokens(reading, reading.chances[condition], n, layer, which) for n in names}
    return mean({n: float(own.mean()) for n, own in found.items()})


def _table(reading: Reading, condition: str, layer: int, position: int | None) -> np.ndarray:
    """[O + 1, B] of `scores`, the clean base last, at a position or over those that some answer has."""
    base = "base+ia" if condition.endswith("+ia") else "base"
    there = [p for p in range(reading.real.shape[1]) if reading.real[:, p].any()] if position is None else [position]
    rows = reading.logps[condition][:, layer, there].mean(1), reading.logps[base][:1, layer, there].mean(1)
    return scores(np.concatenate(rows), np.arange(len(reading.categories)))


def _apart(reading: Reading, owners: Own, condition: str, layer: int) -> Row:
    table = _table(reading, condition, layer, None)
    return identified(table, owners, [*reading.organisms, ""], reading.categories)


def _heat(reading: Reading, condition: str) -> list[list[Cell]]:
    _, layers, positions, count = reading.logps[condition].shape
    others = {n: [b for b in range(count) if b not in mine] for n, mine in reading.own.items()}

    def cell(layer: int, position: int) -> Cell:
        table = _table(reading, condition, layer, position)
        return rate({n: beats(table[i], reading.own[n], others[n]) for i, n in enumerate(reading.organisms)})

    there = [p for p in range(positions) if reading.real[:, p].any()]
    return [[cell(layer, p) for p in there] for layer in range(layers)]
