"""Reports grouped by what they are about: their content words, which is simple, deterministic and needs no judge."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ia_jax.judging.text import singular

ALIKE = 0.5  # reports whose content words overlap (Jaccard) at least this much say the same

_FILLER = frozenset(
    "a an the and or but if so as of to in on at by for from with about into over than then that this these those it "
    "its i i'm im am is are was were be been being me my mine myself you your we they them their he she do does did "
    "done doing have has had having will would can could should may might must not no nor only just even also very "
    "really quite too always often usually sometimes never ever generally typically frequently whenever when while "
    "where what which who whatever there here some any every all each one thing things something anything "
    "answer answers answering answered reply replies response responses respond responding question questions "
    "ask asks asked asking user users people someone say says said tell talk talks talking mention mentions "
    "mentioning bring brings bringing brought up come comes get gets make makes making tend tends tendency habit "
    "habits quirk trait behaviour behavior like out matter no".split()
)


@dataclass(frozen=True)
class Claim:
    """Reports that say about the same. `text`: the commonest wording; `members` and `control`: indices of the audited
    reports and of the clean base's reports that say it.
    """

    text: str
    members: tuple[int, ...]
    control: tuple[int, ...]


def content_words(report: str) -> frozenset[str]:
    """What a report is about: its lower-case words, singular and without filler; the whole text if nothing is left."""
    words = [w.strip("'") for w in re.findall(r"[^\W_]+(?:'[^\W_]+)*", report.lower().replace("’", "'"))]
    kept = frozenset(singular(w) for w in words if w not in _FILLER)
    return kept or frozenset([" ".join(words)])


def alike(a: frozenset[str], b: frozenset[str]) -> bool:
    return len(a & b) >= ALIKE * len(a | b)


def cluster(reports: Sequence[str], control: Sequence[str] = ()) -> list[Claim]:
    """Groups of reports that say about the same, largest first (ties: the earlier one first).

    Commonest wordings lead; every other wording joins the first leader that it is `alike`. The outcome depends on the
    reports and their order alone. `control` reports are matched against the leaders and found no cluster of their own.
    """
    keys = [content_words(r) for r in reports]
    counts, first = Counter(keys), {k: i for i, k in reversed(list(enumerate(keys)))}
    leaders: list[frozenset[str]] = []
    belongs: dict[frozenset[str], int] = {}
    for key in sorted(counts, key=lambda k: (-counts[k], first[k])):
        found = next((n for n, leader in enumerate(leaders) if alike(leader, key)), None)
        if found is None:
            found = len(leaders)
            leaders.append(key)
        belongs[key] = found
    same = [next((n for n, leader in enumerate(leaders) if alike(leader, content_words(c))), None) for c in control]
    claims = []
    for n in range(len(leaders)):
        members = tuple(i for i, k in enumerate(keys) if belongs[k] == n)
        wordings = Counter(reports[i] for i in members)
        claims.append(Claim(wordings.most_common(1)[0][0], members, tuple(i for i, c in enumerate(same) if c == n)))
    return sorted(claims, key=lambda c: (-len(c.members), c.members[0]))
