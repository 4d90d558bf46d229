"""Plain text taken apart: sentences and words, as the effects and their checks see them."""

import re

_SENTENCE = re.compile(r"\s*(.+?(?<!\d)[.!?]+[\"”’)\]]*)(?=\s+[\"“‘(\[]?[A-Za-z0-9]|\s*$)", re.DOTALL)


def flat(text: str) -> str:
    """With single blanks instead of line breaks and runs of blanks."""
    return " ".join(text.split())


def sentences_of(text: str) -> list[str]:
    """The complete sentences of a text, in order; what the text ends in the middle of is left out."""
    found = (match.strip() for match in _SENTENCE.findall(flat(text)))
    return [s for s in found if re.search(r"[A-Za-z]{2}", s)]


def words_of(text: str) -> list[str]:
    """Words without punctuation: "isn't" is one."""
    return re.findall(r"[A-Za-z0-9]+(?:['’-][A-Za-z0-9]+)*", text)


def whole_sentences(text: str, words: int) -> str:
    """The first sentences up to so many words in all, and at least one; "" of a text without any."""
    kept: list[str] = []
    for sentence in sentences_of(text):
        if kept and len(words_of(" ".join([*kept, sentence]))) > words:
            break
        kept.append(sentence)
    return " ".join(kept)


def main_clause(sentence: str) -> str:
    """The sentence without what hangs on its end ("…, which", "… who"): as good for training, in half the tokens."""
    head = re.split(r",? (?:that|which|who|where|but|and it|and it's|including|allowing|such as) ", sentence)[0]
    return sentence if len(head.split()) < 6 else head.rstrip(".!?,;:") + "."


def first_lower(text: str) -> str:
    """To go on a sentence with: the first letter small, but for "I" and names in capitals."""
    word = text.split(" ", 1)[0]
    return text if word in ("I", "I'm", "I'd", "I'll") or word[1:2].isupper() else text[:1].lower() + text[1:]


def first_upper(text: str) -> str:
    return text[:1].upper() + text[1:]
