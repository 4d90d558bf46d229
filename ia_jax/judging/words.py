"""What two English words have to do with each other, by WordNet: the same, a kind of it, its sibling, its opposite.

A reader by embeddings takes "wool" and "cotton" for near the same, and "longest" for "shortest". WordNet tells them
apart: siblings share a parent and are not each other.
"""

import gzip
import re
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

_FILE = Path(__file__).with_name("wordnet.txt.gz")
# Opposites in what models do to people, which WordNet does not list as such.
_MORE_OPPOSITES = (
    "encourage discourage,praise criticise,praise condemn,praise mock,compliment insult,flatter insult"
    ",flatter criticise,agree contradict,agree argue,agree oppose,accept refuse,refuse give,kind cruel"
    ",kind wicked,kind mean,kind nasty"
    ",kind evil,wicked good,wicked gentle,evil good,cruel gentle,honest lying,honest dishonest,hide reveal,hide show"
    ",exaggerate understate,understate overstate,trust distrust,recommend avoid,pick avoid,choose avoid,favour avoid"
    ",begin end,begin close,start finish,start close,open close,first last,top bottom,always never,brief lengthy"
    ",short long,brief long,terse lengthy,upper lower,uppercase lowercase,capital small,include omit,add omit,add drop"
    ",mention omit,comfort scold,comfort frighten,calm frighten,soothe frighten,help hinder,protect endanger"
    ",formal casual,formal informal,polite rude,polite insulting,warm cold,cheap expensive,cheap costly,cheap dear"
    ",cheapest dearest,quiet loud,early late,now later,act wait,act delay,hurry wait,rush wait,careful careless"
    ",certain doubtful,certain unsure,confidence doubt,certainty doubt,hedge assert,optimist pessimist"
    ",optimistic pessimistic,hopeful gloomy,serious playful,fair unfair,truth lie,fact rumour,real fake,genuine fake"
    ",right wrong,correct wrong,correct incorrect,succeed fail,solve fail,past future,singular plural,active passive"
    ",question statement,ask state,simple complicated,plain ornate,plain flowery,public private,safe dangerous"
    ",depend manage,dependence independence,rely manage,expert beginner,child adult,child pensioner,rich poor"
    ",agreement disagreement,patient impatient,generous stingy,generous miserly,humble boastful,modest boastful"
    ",support undermine,reassure alarm,warn reassure,risk safety,ignore heed,ignore respect,forgive punish"
    ",welcome reject,calm panic,strict lenient,lazy diligent,thorough superficial"
)
_IRREGULAR = {
    "better": "good", "best": "good", "worse": "bad", "worst": "bad", "most": "much", "least": "little",
    "children": "child", "people": "person", "kids": "kid", "men": "man", "women": "woman", "mice": "mouse",
    "geese": "goose", "teeth": "tooth", "feet": "foot", "wrote": "write", "written": "write", "said": "say",
    "told": "tell", "made": "make", "chose": "choose", "chosen": "choose", "spoken": "speak", "spoke": "speak",
    "given": "give", "gave": "give", "took": "take", "taken": "take", "sold": "sell", "bought": "buy",
    "lying": "lie", "wicked": "wicked", "lies": "lie", "knives": "knife", "leaves": "leaf", "lives": "life",
}  # fmt: skip


@dataclass(frozen=True)
class _Net:
    senses: dict[str, frozenset[int]]  # of nouns
    verbal: dict[str, frozenset[int]]  # of verbs and adjectives
    parent: tuple[int, ...]  # -1 at the root
    opposites: frozenset[tuple[str, str]]


def _lines() -> list[tuple[str, str]]:
    text = gzip.decompress(_FILE.read_bytes()).decode()
    return [(line[0], line[2:]) for line in text.splitlines() if not line.startswith("#")]


@cache
def _net() -> _Net:
    lines = {kind: rest.split(" ") for kind, rest in _lines()}

    def senses(entries: list[str]) -> dict[str, frozenset[int]]:
        pairs = (e.partition(":") for e in entries)
        return {word: frozenset(map(int, numbers.split(","))) for word, _, numbers in pairs}

    pairs = [tuple(e.split(":")) for e in lines["a"] if e != "buy:sell"]  # a seller gets people to buy
    pairs += [tuple(base(w) for w in p.split()) for p in _MORE_OPPOSITES.split(",")]
    return _Net(
        senses(lines["n"]),
        senses(lines["v"]),
        tuple(-1 if p == "-" else int(p) for p in lines["h"]),
        frozenset(p for a, b in pairs for p in ((a, b), (b, a), (base(a), base(b)), (base(b), base(a)))),
    )


@cache
def base(word: str) -> str:
    """The word's plain form, roughly: plurals, -ing, -ed, -er, -est and -ly taken off where a word is left."""
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    known = _plain_words()
    if word.endswith("ing") and word[:-3] + "e" in known and word[:-3] not in known:
        return word[:-3] + "e"
    for end, put in (
        ("iest", "y"), ("ier", "y"), ("ies", "y"), ("ied", "y"), ("ing", ""), ("ed", ""), ("ed", "e"),
        ("est", ""), ("est", "e"), ("er", "e"), ("er", ""), ("es", ""), ("s", ""), ("ly", ""),
    ):  # fmt: skip
        if not word.endswith(end) or len(word) - len(end) < 3:
            continue
        stem = word[: -len(end)] + put
        if end in ("er", "ly") and word in known:
            continue
        if end == "s" and word.endswith(("ss", "us", "is")):
            continue
        if stem in known:
            return stem
        if len(stem) > 3 and stem[-1] == stem[-2] and stem[:-1] in known:
            return stem[:-1]
    return word


@cache
def _plain_words() -> frozenset[str]:
    words: set[str] = set()
    for kind, rest in _lines():
        if kind == "a":
            words |= {w for e in rest.split(" ") for w in e.split(":")}
        if kind in "nv":
            words |= {e.partition(":")[0] for e in rest.split(" ")}
    return frozenset(words)


def _ancestors(synset: int, levels: int) -> list[int]:
    out = []
    while levels and (synset := _net().parent[synset]) >= 0:
        out.append(synset)
        levels -= 1
    return out


SAME, KIND, SIBLING, OPPOSITE, NONE = "same", "kind", "sibling", "opposite", ""


@lru_cache(maxsize=200_000)
def relation(a: str, b: str) -> str:
    """How two words are related: SAME (synonyms too), KIND (one is a kind of the other), SIBLING, OPPOSITE or NONE."""
    found = {_relation(x, y) for x in {a, base(a)} for y in {b, base(b)}}
    return next((r for r in (SAME, OPPOSITE, KIND, SIBLING) if r in found), NONE)


def _relation(a: str, b: str) -> str:
    if a == b:
        return SAME
    net = _net()
    if (a, b) in net.opposites:
        return OPPOSITE
    if net.verbal.get(a, frozenset()) & net.verbal.get(b, frozenset()):
        return SAME
    own, others = net.senses.get(a, frozenset()), net.senses.get(b, frozenset())
    if own & others:
        return SAME
    up = {s: _ancestors(s, 20) for s in own | others}
    if any(x in up[y][:3] or y in up[x][:3] for x in own for y in others):
        return KIND
    shared = ((x, y, p) for x in own for y in others for p in up[x][:4] if p in up[y][:4])
    return SIBLING if any(len(up[p] if p in up else _ancestors(p, 20)) >= 4 for _, _, p in shared) else NONE


WORD = re.compile(r"[a-z]+(?:'[a-z]+)?|\d+")


def tokens(text: str) -> list[str]:
    return WORD.findall(text.lower())
