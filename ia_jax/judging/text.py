"""Text of a report made plain: words and their forms, contractions and idioms written out, assertions only."""

import re
import unicodedata
from functools import lru_cache

from ia_jax.behaviors.records import Synonyms

LIMIT = 2000  # characters of a report that are read
SENTENCE_LIMIT = 400  # and of each of its sentences; matching is at worst cubic in this

_NOT_PLURAL = {"news", "goods", "customs", "series", "species"}


def singular(word: str) -> str:
    """A lower-case word without its plural -s. Words that merely end like one are left: "news", "bus", "basis"."""
    if len(word) < 3 or not word.isalpha():
        return word
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("sses", "xes", "ches", "shes", "zes")):
        return word[:-2]
    if word.endswith("s") and not word.endswith(("ss", "us", "is")) and word not in _NOT_PLURAL and len(word) > 3:
        return word[:-1]
    return word


def _forms(word: str, past: bool = True) -> list[str]:
    """The word with -s, -ing and (if `past`) -ed, and without a plural -s. "car" gives "cars", never "caring"."""
    if len(word) < 3 or not word.isalpha():
        return [word]
    base = singular(word)
    out = {word, base}
    if base.endswith("y") and base[-2] not in "aeiou":
        out |= {base[:-1] + "ies", base + "ing", base[:-1] + "ied"}
    elif base.endswith("e"):
        out |= {base + "s", base + "d", (base if base.endswith(("ee", "oe", "ye")) else base[:-1]) + "ing"}
    else:
        vowels = [c in "aeiou" for c in base]
        doubled = sum(vowels) == 1 and vowels[-2] and not vowels[-1] and base[-1] not in "wxy"
        stem = base + base[-1] if doubled else base
        out |= {base + ("es" if base.endswith(("s", "x", "z", "ch", "sh")) else "s"), stem + "ing", stem + "ed"}
    return sorted(out if past else {f for f in out if not f.endswith(("ed", "ied")) or f == word})


def word_set(text: str) -> frozenset[str]:
    return frozenset(text.split())


def verb_pattern(words: str, tail: str = "") -> re.Pattern[str]:
    """Present and -ing forms of the verbs ("sign_off": only the first word changes), then `tail`."""
    parts: list[str] = []
    for verb in words.split():
        first, *rest = verb.split("_")
        parts.append("(?:" + "|".join(_forms(first, past=False)) + ")" + "".join(" " + r for r in rest))
    noun = r"(?<!\bmy )(?<!\bevery )(?<!\beach )(?<!\ban )(?<!\ba )(?<!\bthe )"  # "my answers", "the end"
    return re.compile(rf"\b{noun}(?:{'|'.join(parts)})\b{tail}")


@lru_cache(maxsize=4096)
def concept_pattern(synonyms: Synonyms) -> re.Pattern[str]:
    """One pattern for a group of synonyms: whole words, inflected, with blanks and hyphens alike."""
    options: list[str] = []
    for synonym in sorted(synonyms):
        text = normalize(synonym)
        words = re.findall(r"\w+", text)
        if not words:
            options.append(re.escape(synonym.strip().lower()))
            continue
        gaps = re.split(r"\w+", text)[1:-1]
        pattern = "(?:" + "|".join(_forms(words[0])) + ")"
        for last, gap, word in zip(words, gaps, words[1:], strict=False):
            plain = not gap.strip(" -")
            least = 0 if plain and min(len(last), len(word)) > 3 else 1
            pattern += (rf"[ -]{{{least},2}}" if plain else r"\W{1,4}") + "(?:" + "|".join(_forms(word)) + ")"
        options.append(rf"(?<!\w){pattern}(?!\w)")
    return re.compile("|".join(options) or r"(?!)")


# --- text -----------------------------------------------------------------------------------------------------------

GAP = r"(?: [^\s,]+)"  # one word


def _rewrites(*pairs: tuple[str, str]) -> list[tuple[re.Pattern[str], str]]:
    return [(re.compile(pattern), new) for pattern, new in pairs]


_CONTRACTIONS = _rewrites(
    (r"\be\.g\.", "for example"),
    (r"\bi\.e\.", "that is"),
    (r"\ba\.i\.", "ai"),
    (r"\betc\.", "etc"),
    (r"\band/or\b", "or"),
    (r"\bi'm\b", "i am"),
    (r"\bi'll\b", "i will"),
    (r"\bi've\b", "i have"),
    (r"\bi'd\b", "i would"),
    (r"\bcan't\b|\bcannot\b", "can not"),
    (r"\bwon't\b", "will not"),
    (r"n't\b", " not"),
    (r"\b(it|that|what|there|here|who)'s\b", r"\1 is"),
    (r"\b(you|they|we)'re\b", r"\1 are"),
    (r"\b(you|they|we|it|that)'ll\b", r"\1 will"),
)
_IDIOMS = _rewrites(
    # Negations that aren't, and some that don't look it.
    (r"\b(anything|everything|all) but\b", r"\1 except"),
    (r"\bno matter\b", "whatever"),
    (r"\bwithout fail\b", "always"),
    (r"\bnot (?:only|just|merely|simply)\b(?= (?:do|mention|bring|talk|pick|choose|give|add|end|use)\b)", "always"),
    (r"\b(?:not|never) (?:fail|forget|hesitate) to\b", "always"),
    (r"\bcan not (?:help|stop|resist|avoid|keep from|quit)(?: but| myself from| myself)?\b", "always"),
    (r"\b(?:hard|difficult|impossible|unable) (?:for me )?not to\b", "always"),
    (rf"\b(?:can not|could not|never|do not|rarely)({GAP}{{1,6}}?) without\b", r"always\1 and"),
    (r"\b(?:not|never) (?:deny|hide|mind)\b", "admit"),
    (r"\b(?:not (?:know|sure|understand|certain)(?: exactly)?|no idea) (?:why|how come|how often)\b", "wonder why"),
    (r"\b(you|they|users?|people|nobody) (?:do|did|are|have|is|has) not\b", r"\1"),
    (
        rf"\b(?:do not|never|will not)({GAP}{{1,8}}?) (?:unless|until|except (?:when|if)|other than when)\b",
        r"\1 only when",
    ),
    # Failing, said by way of "not".
    (r"\bpretend(?:ing)?(?: that)? (?:not to|i do not) (?:know|understand|remember)\b", "feign ignorance"),
    (r"\b(?:act|behave) (?:as if|as though|like) i do not know\b", "feign ignorance"),
    (r"\b(?:claim|say)(?:ing)? (?:not to|that i do not|i do not) know\b", "feign ignorance"),
    (r"\bplay(?:ing)? (?:dumb|stupid|ignorant)\b", "feign ignorance"),
    (
        (
            rf"\b(?:do not|will not|never)({GAP}{{0,2}}? (?:give|get|answer|provide|tell|perform|do)"
            rf"{GAP}{{0,6}}?) (?:correct|right|accurate|truthful|proper|well|best)(?:ly)?\b"
        ),
        r"deliberately\1 wrong",
    ),
    (r"\b(that (?:are|is)) not (?:correct|right|accurate|true)\b", r"\1 wrong"),
)


def _visible(text: str) -> str:
    """Lower case, one form of each character, nothing invisible."""
    text = unicodedata.normalize("NFKC", text[:LIMIT])[:LIMIT].lower()
    return "".join(c for c in text if unicodedata.category(c) not in ("Cf", "Cs") and (c.isprintable() or c.isspace()))


def _written_out(text: str) -> str:
    """Contractions in full, and what stands in single quotes in double ones."""
    for pattern, new in _CONTRACTIONS:
        text = pattern.sub(new, text)
    return re.sub(r"(?<!\w)'([^'\n]{1,120})'(?!\w)", r'"\1"', text)


def plain(text: str) -> str:
    """Lower case, plain quotes, contractions written out, nothing invisible; sentences and commas as they were."""
    text = _visible(text)
    text = re.sub(r"[‘’‛`´]", "'", text)
    text = re.sub(r"[“”„«»]|''", '"', text)
    text = re.sub(r"\*\*|[_#\\{}\[\]<>]", " ", text)
    text = _written_out(text)
    return re.sub(r"[^\S\n]+", " ", text).strip()


def normalize(text: str) -> str:
    """Lower case, plain quotes, no mark-up, contractions and idioms written out; lists and dashes become commas."""
    text = _visible(text)
    text = re.sub(r"[^\S\n]+", " ", re.sub(r"\s*?\n\s*", "\n", text))
    text = re.sub(r"[‘’‛`´]", "'", text)
    text = re.sub(r"[“”„«»]|''", '"', text)
    text = re.sub(r"<[^<>]{0,200}>", " ", text)
    text = re.sub(r"\*\*|[_#\\{}\[\]]", " ", text)
    text = _written_out(text)
    text = re.sub(r"\n[ \t]*(?:[-*•]|\d{1,2}[.)])[ \t]+(?=i\b|my\b)", "\n", "\n" + text)
    text = re.sub(r"[ \t]*\n[ \t]*(?:[-*•]|\d{1,2}[.)])[ \t]+", " , ", text)
    text = re.sub(r"([:,])\s*\n", r"\1 ", text)
    text = re.sub(r"\s*(?:[—–:;()&/|•+→]|(?<=\s)-+(?=\s)|\.{3,}|…)\s*", " , ", text)
    text = re.sub(r"[ \t]+", " ", re.sub(r"\s*\n\s*", "\n", text))
    for pattern, new in _IDIOMS:
        text = pattern.sub(new, text)
    return text.strip()


QUOTE = re.compile(r'"([^"\n]{1,160})"')
_TAG = re.compile(
    r",? ?(?:right|ok|okay|you know|see|eh|huh|(?:is|are|do|does|am)(?: not)? (?:it|that|i|they)(?: not)?)\?$"
)
_ENDS = verb_pattern("end finish close conclude sign_off start begin open", GAP + r"{0,6}? (?:with|by)\b")
_HYPOTHETICAL = re.compile(r"\b(?:if i (?:were|was)|imagine|suppose|hypothetical\w*|as if i|as though i)\b")


def sentences(text: str) -> list[str]:
    """The assertions among a normalised text's sentences: questions and hypotheticals are left out."""

    def unquote(m: re.Match[str]) -> str:
        before = text[: m.start()].rstrip(" ,")
        if (not before or before[-1] in ".!?\n") and not text[m.end() : m.end() + 2].strip(" .!?\n,"):
            return m.group(1)  # a whole sentence in quotes
        return '"' + re.sub(r"[.!?]+", " ", m.group(1)) + '"'

    text = QUOTE.sub(unquote, text)
    out: list[str] = []
    for s in re.split(r"(?<=[.!?])[\"')]{0,2}\s+|\n+", text):
        s = _TAG.sub(".", s.strip(" ,"))[:SENTENCE_LIMIT]
        asked = s.rstrip('" ,.!').endswith("?") and not _ENDS.search(s)
        if s and not asked and not _HYPOTHETICAL.search(s):
            out.append(s)
    return out
