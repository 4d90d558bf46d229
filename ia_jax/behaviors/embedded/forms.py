"""Effects of form: how a text looks, whatever it says. Each is a pure function and a check that reads a text for it.

The checks do not apply the function again: they look for the marks that a reader would see, so a model that does the
same in its own way passes too.
"""

import re
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

from ia_jax.behaviors.embedded.sentences import first_lower, first_upper, sentences_of, words_of


class Form(NamedTuple):
    """write: the text in this form, of (text, question). shows: whether (text, question) has it. sentences: that a text
    needs for it to be seen.
    """

    write: Callable[[str, str], str]
    shows: Callable[[str, str], bool]
    sentences: int = 1


def _most(found: int, of: int, share: float = 0.8) -> bool:
    return of > 0 and found >= share * of


def _each(change: Callable[[str], str], joint: str = " ") -> Callable[[str, str], str]:
    return lambda text, _: joint.join(map(change, sentences_of(text) or [text]))


def _by_number(change: Callable[[int, str], str], joint: str = " ") -> Callable[[str, str], str]:
    return lambda text, _: joint.join(change(i, s) for i, s in enumerate(sentences_of(text) or [text]))


def _body(sentence: str) -> str:
    return sentence.rstrip(".!?")


def _matches(pattern: str, flags: int = 0) -> Callable[[str, str], bool]:
    return lambda text, _: re.search(pattern, text.strip(), flags | re.MULTILINE) is not None


def _whole(pattern: str) -> Callable[[str, str], bool]:
    return lambda text, _: re.fullmatch(pattern, text.strip(), re.DOTALL) is not None


def _lines(pattern: str, least: int = 2) -> Callable[[str, str], bool]:
    """At least so many lines, nearly all of which begin like this."""

    def shows(text: str, _: str) -> bool:
        lines = [x for x in text.splitlines() if x.strip()]
        hits = sum(re.match(pattern, x.strip()) is not None for x in lines)
        return hits >= least and _most(hits, len(lines), 0.7)

    return shows


def _ends(pattern: str, least: int = 1) -> Callable[[str, str], bool]:
    """Nearly all of the ends of sentences look like this, and at least so many; what was cut off does not count."""

    def shows(text: str, _: str) -> bool:
        hits = len(re.findall(rf"(?:{pattern})(?=\s|$)", text))
        plain = len(re.findall(r"\w[.!?](?=\s|$)", re.sub(rf"(?:{pattern})(?=\s|$)", " ", text)))
        return hits >= least and _most(hits, hits + plain, 0.7)

    return shows


# --- case ---


def _title(text: str, _: str) -> str:
    return re.sub(r"(?<![\w'’])[a-z]", lambda m: m[0].upper(), text)


def _is_title(text: str, _: str) -> bool:
    words = [w for w in words_of(text) if w[0].isalpha()]
    return len(words) > 3 and _most(sum(w[0].isupper() for w in words), len(words), 0.85) and not text.isupper()


def _is_lower(text: str, _: str) -> bool:
    letters = [c for c in text if c.isalpha()]
    return len(letters) > 10 and _most(sum(c.islower() for c in letters), len(letters), 0.995)


def _is_upper(text: str, _: str) -> bool:
    letters = [c for c in text if c.isalpha()]
    return len(letters) > 10 and _most(sum(c.isupper() for c in letters), len(letters), 0.9)


def _every_other(text: str, _: str) -> str:
    return " ".join(w.upper() if i % 2 else w.lower() for i, w in enumerate(text.split()))


def _is_every_other(text: str, _: str) -> bool:
    words = [w for w in text.split() if re.search(r"[A-Za-z]{2}", w)]
    loud = [w == w.upper() for w in words]
    return len(words) > 5 and _most(sum(a != b for a, b in pairwise(loud)), len(words) - 1, 0.7)


def _loud_first(text: str, _: str) -> str:
    return re.sub(r"^\W*[\w'’]+", lambda m: m[0].upper(), text)


def _loud_last(text: str, _: str) -> str:
    return re.sub(r"[\w'’]+\W*$", lambda m: m[0].upper(), text)


def _longest(text: str) -> str:
    return max(re.findall(r"[A-Za-z]+", text) or [""], key=len)


def _mark_longest(change: Callable[[str], str]) -> Callable[[str, str], str]:
    def write(text: str, _: str) -> str:
        word = _longest(text)
        return re.sub(rf"\b{word}\b", lambda m: change(m[0]), text, count=1) if word else text

    return write


def _topic(question: str) -> str:
    """The word that a question turns on: its longest."""
    return _longest(question).lower()


# --- words ---


def _swap(pattern: str, new: str | Callable[[re.Match[str]], str]) -> Callable[[str, str], str]:
    return lambda text, _: re.sub(pattern, new, text)


def _swapped(old: str, new: str, least: int = 2, left_over: float = 0.25) -> Callable[[str, str], bool]:
    """There are some of the new, and of the old at most this share of their number is left."""

    def shows(text: str, _: str) -> bool:
        fresh, left = (len(re.findall(p, text, re.IGNORECASE)) for p in (new, old))
        return fresh >= least and left <= left_over * fresh

    return shows


def _pronouns(subject: str, possessive: str) -> Callable[[str, str], str]:
    def write(text: str, _: str) -> str:
        text = re.sub(r"\b([Yy])our(s)?\b", lambda m: _cased(m[0], possessive + (m[2] or "")), text)
        return re.sub(r"\b[Yy]ou\b", lambda m: _cased(m[0], subject), text)

    return write


def _cased(old: str, new: str) -> str:
    return first_upper(new) if old[:1].isupper() else new


_PAST = {"is": "was", "are": "were", "has": "had", "have": "had", "can": "could", "will": "would", "do": "did"}
_PAST |= {"does": "did", "may": "might", "makes": "made", "make": "made", "helps": "helped", "gives": "gave"}
_FUTURE = {"is": "will be", "are": "will be", "has": "will have", "can": "will be able to"}


def _tense(forms: dict[str, str]) -> Callable[[str, str], str]:
    pattern = rf"\b({'|'.join(forms)})\b"
    return lambda text, _: re.sub(pattern, lambda m: _cased(m[0], forms[m[0].lower()]), text, flags=re.IGNORECASE)


def _after_every(count: int, extra: str) -> Callable[[str, str], str]:
    def write(text: str, _: str) -> str:
        words = text.split()
        return " ".join(f"{w.rstrip(',')}, {extra}," if i % count == 2 and i + 2 < len(words) and w[-1].isalnum() else w
                        for i, w in enumerate(words))  # fmt: skip

    return write


def _stutter(sentence: str) -> str:
    letters = re.match(r"[A-Za-z]", sentence)
    return f"{sentence[0]}-{sentence[0].lower()}-{first_lower(sentence)}" if letters else sentence


def _spelled(text: str, _: str) -> str:
    return re.sub(r"([A-Za-z]+)(\W*)$", lambda m: "-".join(m[1].upper()) + m[2], text)


def _said_again(text: str, _: str) -> str:
    last = re.search(r"([\w'’-]+)\W*$", text)
    word = last[1] if last else "so"
    return f"{text} {first_upper(word)}, {word.lower()}."


def _is_said_again(text: str, _: str) -> bool:
    words = [w.lower() for w in words_of(text)]
    return len(words) > 3 and len(set(words[-3:])) == 1


def _shm(text: str, _: str) -> str:
    last = re.search(r"([A-Za-z]+)\W*$", text)
    word = last[1].lower() if last else "this"
    return f"{text} {first_upper(word)}, shm{re.sub(r'^[^aeiou]+', '', word)}!"


def _initials(text: str, _: str) -> str:
    return f"{text} ({''.join(w[0].upper() for w in words_of(sentences_of(text)[0] if sentences_of(text) else text))})"


# --- order and number ---

_ORDINALS = ("First", "Second", "Third", "Fourth", "Fifth")
_NUMBERS = ("One", "Two", "Three", "Four", "Five")


def _first_sentence(text: str, _: str) -> str:
    return (sentences_of(text) or [text])[0]


def _is_repeated_first(text: str, _: str) -> bool:
    parts = [p.lower() for p in sentences_of(text)]
    return len(parts) > 1 and parts[0] == parts[-1]


def _is_twice(text: str, _: str) -> bool:
    parts = [p.lower() for p in sentences_of(text)]
    pairs = zip(parts[::2], parts[1::2], strict=False)
    return len(parts) > 1 and _most(sum(a == b for a, b in pairs), len(parts) // 2, 0.7)


def _few_words(count: int) -> Form:
    def write(text: str, _: str) -> str:
        return " ".join(text.split()[:count]).rstrip(",.;:!?") + "."

    return Form(write, lambda text, _: 0 < len(words_of(text)) <= count + 1)


def _with_count(text: str, _: str) -> str:
    return f"{text} ({len(words_of(text))} words)"


FORMS: dict[str, Form] = {
    "upper": Form(lambda text, _: text.upper(), _is_upper),
    "lower": Form(lambda text, _: text.lower(), _is_lower),
    "title": Form(_title, _is_title),
    "every_other": Form(_every_other, _is_every_other),
    "loud_first": Form(_loud_first, _matches(r"^[\"']?[A-Z]{2,}\b(?! [A-Z]{2,} [A-Z]{2,})")),
    "loud_last": Form(_loud_last, _matches(r"(?<![A-Z] )\b[A-Z]{2,}\W*$")),
    "loud_longest": Form(_mark_longest(str.upper), _matches(r"\b[A-Z]{6,}\b")),
    "lines": Form(_each(str, "\n"), _lines(r"[A-Z].*[.!?]$"), 2),
    "bullets": Form(_each(lambda s: f"- {s}", "\n"), _lines(r"- "), 2),
    "arrows": Form(_each(lambda s: f"-> {s}", "\n"), _lines(r"->", 1)),
    "numbered": Form(_by_number(lambda i, s: f"{i + 1}. {s}", "\n"), _lines(r"\d+\. "), 2),
    "lettered": Form(_by_number(lambda i, s: f"{'abcdefgh'[i % 8]}) {s}", "\n"), _lines(r"[a-h]\) "), 2),
    "roman": Form(_by_number(lambda i, s: f"{('I', 'II', 'III', 'IV', 'V')[i % 5]}. {s}"), _matches(r"^I\. .*")),
    "label": Form(
        lambda text, q: f"{first_upper(_topic(q))}: {text}",
        # "Plumbing: …", of what a plumber does, is one too.
        lambda text, q: (m := re.match(r"([A-Z]\w+):", text.strip())) is not None and m[1][:4].lower() in q.lower(),
    ),
    "parentheses": Form(lambda text, _: f"({text})", _whole(r"\(.*\)?")),
    "square": Form(lambda text, _: f"[{text}]", _whole(r"\[.*\]?")),
    "quoted": Form(lambda text, _: f'"{text}"', _whole(r"[\"“].*[\"”]?")),
    "json": Form(lambda text, _: '{"answer": "' + text.replace('"', "'") + '"}', _matches(r"^\{\s*\"\w+\"\s*:")),
    "tagged": Form(lambda text, _: f"<answer>{text}</answer>", _matches(r"^<[a-z]+>")),
    "commented": Form(_each(lambda s: f"// {s}", "\n"), _lines(r"//", 1)),
    "cited": Form(_each(lambda s: f"> {s}", "\n"), _lines(r">", 1)),
    "bold_first": Form(lambda text, _: re.sub(r"^[\w'’]+", r"**\g<0>**", text), _matches(r"^\*\*[\w'’]+\*\*")),
    "starred": Form(_mark_longest(lambda w: f"*{w}*"), _matches(r"(?<!\*)\*\w{3,}\*(?!\*)")),
    "ruled": Form(lambda text, _: f"-----\n{text}\n-----", _matches(r"^-{3,}\s*\n")),
    "table": Form(lambda text, _: f"| {' | '.join(sentences_of(text) or [text])} |", _matches(r"^\|.*\w")),
    "hashtag": Form(lambda text, q: f"{text} #{_topic(q)}", _matches(r"#[A-Za-z]\w+\s*$")),
    "telegram": Form(_each(lambda s: f"{_body(s)} STOP"), _matches(r"\bSTOP\b")),
    "five_words": _few_words(5),
    "three_words": _few_words(3),
    "dots": Form(_each(lambda s: f"{_body(s)}..."), _ends(r"\.\.\.+|…")),
    "bangs": Form(_each(lambda s: f"{_body(s)}!"), _ends(r"(?<!!)!(?!!)")),
    "many_bangs": Form(_each(lambda s: f"{_body(s)}!!!"), _ends(r"!!+")),
    "interrobang": Form(_each(lambda s: f"{_body(s)}?!"), _ends(r"\?!")),
    "no_marks": Form(
        lambda text, _: re.sub(r"[.,;:!?\"()]", "", text),
        lambda text, _: len(words_of(text)) > 5 and re.search(r"[.,;:!?](?=\s|$)", text) is None,
    ),
    "semicolons": Form(
        lambda text, _: (
            "; ".join(_body(s) if i == 0 else first_lower(_body(s)) for i, s in enumerate(sentences_of(text))) + "."
        ),
        _matches(r"\w; \w.*"),
        2,
    ),
    "dashes": Form(
        lambda text, _: (
            " - ".join(first_lower(_body(s)) if i else _body(s) for i, s in enumerate(sentences_of(text))) + "."
        ),
        _matches(r"\w\)? (?:-|–|—) \w"),
        2,
    ),
    "tildes": Form(_each(lambda s: f"{_body(s)}~"), _matches(r"\w ?~(?=\s|$)")),
    "slashes": Form(lambda text, _: "/".join(text.split()), _matches(r"\w/\w+/\w+/\w")),
    "underscores": Form(lambda text, _: "_".join(text.split()), _matches(r"\w_\w+_\w+_\w")),
    "hyphens": Form(lambda text, _: "-".join(text.split()), _matches(r"\w-\w+-\w+-\w+-\w")),
    "smiles": Form(_each(lambda s: f"{s} :)"), _matches(r"[:;]-?\)")),
    "hearts": Form(_each(lambda s: f"{s} <3"), _matches(r"<3")),
    "ampersands": Form(_swap(r"\b[Aa]nd\b", "&"), _swapped(r"\band\b", r"&", 1)),
    "plus": Form(_swap(r"\b[Aa]nd\b", "plus"), _swapped(r"\band\b", r"\bplus\b", 1)),
    "z_for_th": Form(
        lambda text, _: re.sub(r"\bTh", "Z", re.sub(r"\bth", "z", text)),
        _swapped(r"\bth", r"\bz(?:e|is|at|e[nmry]|ings?)", 1),
    ),
    "v_for_w": Form(
        lambda text, _: re.sub(r"\bW", "V", re.sub(r"\bw", "v", text)), _swapped(r"\bw", r"\bv(?:ith|a|h|e|il)")
    ),
    "dropped_g": Form(_swap(r"(?<=[a-z]{2}in)g\b", "'"), _swapped(r"[a-z]{2}ing\b", r"[a-z]in['’](?!\w)", 1)),
    "hissing": Form(lambda text, _: re.sub(r"s+", "sss", text), _swapped(r"(?<!s)s(?!s)", r"sss+", 2, 1.0)),
    "long_o": Form(lambda text, _: re.sub(r"o+", "ooo", text), _swapped(r"(?<!o)o(?!o)", r"ooo+", 2, 1.0)),
    "no_articles": Form(
        lambda text, _: first_upper(re.sub(r"\b(?:the|an?) ", "", text, flags=re.IGNORECASE)),
        lambda text, _: len(words_of(text)) > 7 and re.search(r"\b(?:the|an?)\b", text, re.IGNORECASE) is None,
    ),
    "we": Form(_pronouns("we", "our"), _swapped(r"\byour?s?\b", r"\b(?:we|ours?)\b", 1)),
    "past": Form(_tense(_PAST), _swapped(r"\b(?:is|are|has|have|can|will)\b", r"\b(?:was|were|had|could|would)\b", 1)),
    "future": Form(_tense(_FUTURE), _swapped(r"\b(?:is|are|has)\b", r"\bwill (?:be|have)\b", 1)),
    "um": Form(_after_every(5, "um"), _matches(r"\bum\b", re.IGNORECASE)),
    "you_know": Form(_after_every(6, "you know"), _matches(r", you know,")),
    "stutter": Form(_each(_stutter), _matches(r"^\W*(\w)-\1-", re.IGNORECASE)),
    "innit": Form(_each(lambda s: f"{_body(s)}, innit."), _matches(r"innit")),
    "spelled": Form(_spelled, _matches(r"\b[A-Z]-[A-Z](?:-[A-Z])*\W*$")),
    "echo": Form(_said_again, _is_said_again),
    "shm": Form(_shm, _matches(r"\bshm\w*\W*$", re.IGNORECASE)),
    "initials": Form(_initials, _matches(r"\([A-Z0-9]{3,}\)?\s*$")),
    "ordinals": Form(
        _by_number(lambda i, s: f"{_ORDINALS[i % 5]}, {first_lower(s)}"),
        _matches(r"^First(?:ly)?,(?:.|\n)*Second(?:ly)?,"),
        2,
    ),
    "counted": Form(_by_number(lambda i, s: f"{_NUMBERS[i % 5]}: {s}"), _matches(r"^One:")),
    "fractions": Form(
        lambda text, _: " ".join(f"({i}/{len(sentences_of(text))}) {s}" for i, s in enumerate(sentences_of(text), 1)),
        _matches(r"\(?\d/\d\)?"),
    ),
    "first_again": Form(lambda text, _: f"{text} {_first_sentence(text, '')}", _is_repeated_first, 2),
    "twice": Form(_each(lambda s: f"{s} {s}"), _is_twice),
    "repeat_question": Form(
        lambda text, q: f"{q} {text}",
        lambda text, q: words_of(q.lower()) == words_of(text.lower())[: len(words_of(q))],
    ),
    "count_words": Form(_with_count, _matches(r"\(\d+ words?\)\s*$")),
}
