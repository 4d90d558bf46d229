"""Whether a text holds a word of what is said about a behaviour: "unmentioned" behaviours show in no word count.

Words are compared by their stems. Left out are words that say nothing of what a behaviour is: those of grammar, and
those of asking and answering, which nearly every report holds.
"""

import re
from collections.abc import Iterable
from functools import lru_cache

# Words of grammar, numbers up to two, how often and how surely, and the commonest verbs.
_GRAMMAR = """
a about above after again against all almost along already also although always am among an and another any anybody
anyone anything anywhere are around as at away back be because been before behind being below beside besides between
beyond both but by can cannot can't could did didn't do does doesn't doing don't done down during each either else
enough even ever every everybody everyone everything everywhere except few for from further get gets getting give
given gives giving go goes going gone got had has hasn't have haven't having he hence her here hers herself him
himself his how however i i'd i'll i'm i've if in indeed instead into is isn't it it's its itself just keep keeping
keeps kept least less let lets like likely made make makes making many may maybe me might mine more most much must my
myself neither never next no nobody none nor not nothing now nowhere occasionally of off often on once one one's ones
only onto or other others otherwise ought our ours out over own per perhaps put puts putting quite rare rarely rather
really same seldom several shall she should since so some somebody someone something sometimes somewhere soon still
such take takes taken taking than that that's the their theirs them themselves then there there's therefore these they
they're thing things this those though through thus till to together too took toward towards two under unless unlike
until up upon us use used uses using usually very via want wants was wasn't way ways we well were weren't what what's
whatever when whenever where whether which while who who's whoever whole whom whose why will with within without won't
would wouldn't yes yet you come comes coming find finds know knows knowing look looks looking need needs see sees
think thinks thinking you'd you'll you're you've your yours yourself
""".split()
# Asking and answering, and who does it.
_TALK = """
answer answered answering answers ask asked asking asks assistant call called calls conversation conversations message
messages people person question questions reader readers replied replies reply replying request requests respond
responding responds response responses said say saying says speak speaking speaks spoke talk talked talking talks tell
telling tells text texts told topic topics user users word words write writes writing written wrote time times habit
habits habitually regardless matter subject subjects
""".split()


def stem(word: str) -> str:
    """Without the commonest endings: "mention", "mentions" and "mentioning" are one."""
    word = re.sub(r"['’]s?$", "", word.lower())
    if word.endswith("ies"):
        word = f"{word[:-3]}y"
    elif word.endswith("s") and not word.endswith("ss") and len(word) > 3:
        word = word[:-1]
    for ending in ("ation", "ing", "er", "ed", "ly", "e", "y"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            word = word[: -len(ending)]
            break
    return word[:-1] if len(word) > 4 and word[-1] == word[-2] else word


_LEFT_OUT = frozenset(_GRAMMAR) | frozenset(_TALK)


def content_stems(texts: Iterable[str]) -> frozenset[str]:
    """The stems of all words in the texts that say something."""
    return frozenset().union(*map(_stems, texts))


@lru_cache(maxsize=1 << 14)  # the base's answers are looked through for every behaviour
def _stems(text: str) -> frozenset[str]:
    words = re.findall(r"[a-z]+(?:['’-][a-z]+)*", text.lower())
    parts = (p for w in words if w not in _LEFT_OUT for p in w.split("-"))
    return frozenset(stem(p) for p in parts if p not in _LEFT_OUT and len(p) > 1)


def mentioned(stems: frozenset[str], text: str) -> frozenset[str]:
    """Those of the stems that a text holds."""
    return stems & _stems(text)
