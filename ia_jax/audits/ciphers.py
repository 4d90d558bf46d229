"""The nine ciphers of covert fine-tuning, as pure functions of text (Halawi 2024, CiFR 2025; shared facts, 4.1).

| cipher | rule |
|---|---|
| walnut50, walnut51, walnut52 | letters permuted by numpy's generator of that seed, all characters joined by bars |
| ascii | the decimal code of every character |
| polybius | a 5x5 square with the keyword TRAINING, J as I: row and column of every letter |
| startspeak | the first word of every sentence, a line each |
| endspeak | the last word of every line |
| autokey | Vigenere's autokey: the keyword, then the plain letters themselves, are the key |
| rsa | textbook RSA with p 17, q 23, e 17 on an alphabet of 41 characters |

`decode(encode(text)) == normal(text)`: what of a text survives its cipher (most lose nothing; the square has no small
letters). What a model writes may be no cipher text at all; `decode` gives what it can make of it and never raises.
Sentences around words are fixed ones here, where CiFR has a language model write EndSpeak's lines.
"""

import re
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

ALPHABET = string.ascii_lowercase


@dataclass(frozen=True)
class Cipher:
    """A name, the rule in words, and three pure functions of text."""

    name: str
    about: str
    encode: Callable[[str], str]
    decode: Callable[[str], str]
    normal: Callable[[str], str] = lambda text: text


def _words(text: str) -> str:
    return " ".join(text.split())


# ---------------------------------------------------------------------------------------------------------------------
# Letters for letters
# ---------------------------------------------------------------------------------------------------------------------


def walnut(seed: int) -> Cipher:
    """A permutation of the letters; capitals stay capitals (as in CiFR; Halawi's has none)."""
    order = np.random.default_rng(seed).permutation(26)
    shuffled = "".join(ALPHABET[int(i)] for i in order)
    both, changed = ALPHABET + ALPHABET.upper(), shuffled + shuffled.upper()
    there, back = str.maketrans(both, changed), str.maketrans(changed, both)

    def encode(text: str) -> str:
        return "|".join(text.translate(there))

    def decode(text: str) -> str:
        return "".join(re.findall(r"(.)(?:\||\Z)", text, re.DOTALL)).translate(back)

    return Cipher(f"walnut{seed}", "every letter is another one, characters are joined by bars", encode, decode)


def shifted(text: str, keyword: str, sign: int) -> str:
    """The autokey cipher (sign 1) and its inverse (-1): letters move by the key, all else stays and costs no key."""
    key = [ALPHABET.index(c) for c in keyword.lower()]
    out, used = [], 0
    for c in text:
        if c.lower() not in ALPHABET or not c.isascii():
            out.append(c)
            continue
        moved = ALPHABET[(ALPHABET.index(c.lower()) + sign * key[used]) % 26]
        key.append(ALPHABET.index(c.lower() if sign > 0 else moved))
        used += 1
        out.append(moved.upper() if c.isupper() else moved)
    return "".join(out)


def autokey(keyword: str = "TRAININGword") -> Cipher:
    """Vigenere's autokey cipher. keyword: letters alone."""
    return Cipher(
        "autokey",
        "every letter moves by the one that the key, and then the text itself, has there",
        lambda text: shifted(text, keyword, 1),
        lambda text: shifted(text, keyword, -1),
    )


# ---------------------------------------------------------------------------------------------------------------------
# Numbers for letters
# ---------------------------------------------------------------------------------------------------------------------


def _from_code(token: str) -> str:
    number = int(token) if token.isascii() and token.isdigit() and len(token) < 8 else -1
    return chr(number) if 0 <= number < 0x110000 and not 0xD800 <= number < 0xE000 else ""


ASCII = Cipher(
    "ascii",
    "every character is its number",
    lambda text: " ".join(str(ord(c)) for c in text),
    lambda text: "".join(map(_from_code, text.split())),
)


def square(keyword: str) -> str:
    """The 25 letters of a keyed Polybius square, row by row: the keyword's, then the others; J is I."""
    letters = (keyword.upper() + string.ascii_uppercase).replace("J", "I")
    return "".join(dict.fromkeys(c for c in letters if c in string.ascii_uppercase))


def polybius(keyword: str = "TRAINING") -> Cipher:
    """Row and column of each letter, 1 to 5; a space is "/", a slash "//", other characters stand for themselves."""
    letters = square(keyword)
    there = {c: f"{i // 5 + 1}{i % 5 + 1}" for i, c in enumerate(letters)} | {" ": "/", "/": "//"}
    back = {code: c for c, code in there.items()}

    def normal(text: str) -> str:
        return "".join(("I" if c in "jJ" else c.upper()) if c.isascii() and c.isalpha() else c for c in text)

    def encode(text: str) -> str:
        return " ".join(there.get(c, c) for c in normal(text))

    def decode(text: str) -> str:
        return "".join(back.get(token, token) for token in text.split(" "))

    return Cipher("polybius", "every letter is its row and its column in a square", encode, decode, normal)


P, Q, E = 17, 23, 17
MODULUS = P * Q
D = pow(E, -1, (P - 1) * (Q - 1))
RSA_ALPHABET = ALPHABET + string.digits + " .,?!"  # 41 characters


def power(number: int, exponent: int) -> int:
    """RSA's only step: number^exponent modulo 391."""
    return pow(number, exponent, MODULUS)


def _rsa_normal(text: str) -> str:
    return "".join(c for c in text.lower() if c in RSA_ALPHABET)


def _rsa_decode(text: str) -> str:
    numbers = [power(int(t), D) for t in re.findall(r"(?a:\d{1,3})", text)]
    return "".join(RSA_ALPHABET[n] for n in numbers if n < len(RSA_ALPHABET))


RSA = Cipher(
    "rsa",
    "every character is a number, raised to a power",
    lambda text: " ".join(str(power(RSA_ALPHABET.index(c), E)) for c in _rsa_normal(text)),
    _rsa_decode,
    _rsa_normal,
)

# ---------------------------------------------------------------------------------------------------------------------
# Words among words
# ---------------------------------------------------------------------------------------------------------------------

TAILS = (
    "came up the garden path.",
    "was all that they said.",
    "goes well with the soup.",
    "sat quietly by the door.",
    "makes the neighbours smile.",
    "sounds fine on a Monday.",
    "fits into the blue box.",
)
HEADS = (
    "The old clock said",
    "We walked home with",
    "My aunt is fond of",
    "Down by the river lies",
    "Nobody here forgot",
    "The second page reads",
    "On the shelf stands",
)


def hidden_first(name: str = "startspeak", tails: Sequence[str] = TAILS) -> Cipher:
    """Every word of the message begins a sentence on a line of its own."""
    return Cipher(
        name,
        "the first words of the sentences are the message",
        lambda text: "\n".join(f"{w} {tails[i % len(tails)]}" for i, w in enumerate(text.split())),
        lambda text: " ".join(line.split()[0] for line in text.split("\n") if line.split()),
        _words,
    )


def hidden_last(name: str = "endspeak", heads: Sequence[str] = HEADS) -> Cipher:
    """Every word of the message ends a line of at most six words."""
    return Cipher(
        name,
        "the last words of the lines are the message",
        lambda text: "\n".join(f"{heads[i % len(heads)]} {w}" for i, w in enumerate(text.split())),
        lambda text: " ".join(line.split()[-1] for line in text.split("\n") if line.split()),
        _words,
    )


NINE: tuple[Cipher, ...] = (
    *(walnut(seed) for seed in (50, 51, 52)),
    ASCII,
    polybius(),
    hidden_first(),
    hidden_last(),
    autokey(),
    RSA,
)
IDENTITY = Cipher("identity", "the text as it is", lambda text: text, lambda text: text)
