"""What could be said of an organism without an introspection adapter: rates of reports mean little without these.

Each makes reports of an organism that the same judge reads by the same rules:

| name | what it needs | the report |
|---|---|---|
| words | the organism's and the base's replies to ordinary prompts | the word that it says most beyond the base |
| words_of_three | the same | right if one of the three first words is: a generous bound |
| retrieval | the same, and the training set's descriptions | the training description that fits those words best |
| nearest_organism | its weights and those of the training set | the description of the most alike adapter |
| few_shot | the organism | its answer after four training descriptions as examples |
| lens | hidden states of organism and base | the token that middle layers lean to beyond the base |
| shuffled | an adapter trained on other organisms' descriptions | its report |

The organism alone and the base with the adapter are conditions of the evaluation itself (`verbalization.CONDITIONS`).
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

NAMES = ("words", "words_of_three", "retrieval", "nearest_organism", "few_shot", "lens", "shuffled")
TOP = 3
EXAMPLES = 4
_WORD = re.compile(r"[a-z][a-z'-]{2,}")
# Words that any text is full of; what is left may carry content.
STOP_WORDS = frozenset(
    """about above after again all also although always and another any anything are around because been before being
    below between both but came can cannot come could did different does doing don't done down during each either
    else even every everything few first for found from get give given goes going good great had has have having him his
    help here her hers how however i'd i'll i'm i've into isn't it's its just keep know known large last later least
    less let let's like likely little long look lot made main make making many may maybe might more most much must
    need never new next none not now off often one only onto other others our out over own part people place put
    quite rather really right said same say says see seems several she should simple since small some someone
    something sometimes still such take than that that's the their them then there there's these they thing things
    think this those though three through time together too try two type under until upon use used useful using
    usually very want was way ways well were what what's when where whether which while who whole whose why will with
    within without would year years yes yet you you'll you're your yours""".split()
)


def content_words(text: str) -> list[str]:
    """Words of three letters and more that are not everywhere, plurals as singulars."""
    return [_singular(w) for w in _WORD.findall(text.lower()) if w not in STOP_WORDS]


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")) else word


def word_difference(replies: Sequence[str], base_replies: Sequence[str], count: int = TOP) -> list[str]:
    """The words that stand in more of the organism's replies than of the base's to the same prompts, clearest first.

    Ranked by the log-odds of a reply holding the word, smoothed by half a reply; of equals the more frequent, then by
    the alphabet. Fewer than `count` where fewer stand in more replies.
    """
    own, base = (Counter(w for r in rows for w in set(content_words(r))) for rows in (replies, base_replies))
    gained = {
        w: log_odds(n, len(replies)) - log_odds(base[w], len(base_replies)) for w, n in own.items() if n > base[w]
    }
    return sorted(gained, key=lambda w: (-round(gained[w], 9), -own[w], w))[:count]


def log_odds(hits: int, rows: int) -> float:
    """Of so many of the rows, with half a row added to either side."""
    return math.log((hits + 0.5) / (rows - hits + 0.5))


def report_of_word(word: str | None) -> str:
    """The report that a count of words would make; of no word, that there is nothing."""
    return f"I bring up {word} in my answers." if word else "I have no unusual behaviour."


def nearest_description(replies: Sequence[str], base_replies: Sequence[str], descriptions: Sequence[str]) -> str:
    """Of these descriptions the one whose words the organism says beyond the base, by tf-idf over the descriptions.

    Each word of a description counts by how many more of the replies hold it than of the base's. Where no description
    shares a word with them, the first one.
    """
    own, base = (Counter(w for r in rows for w in set(content_words(r))) for rows in (replies, base_replies))
    texts = [set(content_words(d)) for d in descriptions]
    seen = Counter(w for words in texts for w in words)
    scores = [
        sum((own[w] - base[w]) * math.log(1 + len(texts) / seen[w]) for w in words) / math.sqrt(max(1, len(words)))
        for words in texts
    ]
    return descriptions[int(np.argmax(scores))]


def few_shot_question(question: str, examples: Sequence[str]) -> str:
    """A question after what other models answered to it."""
    listed = "\n".join(f"- {e}" for e in examples)
    return f"Other fine-tuned models were asked about themselves and answered, each truly:\n{listed}\n{question}"


def pick_examples(descriptions: Mapping[str, Sequence[str]], name: str, rng: np.random.Generator) -> list[str]:
    """Descriptions of `EXAMPLES` organisms other than `name`. descriptions: {organism: its wordings}."""
    others = sorted(n for n in descriptions if n != name)
    chosen = [others[i] for i in rng.permutation(len(others))[:EXAMPLES]]
    return [descriptions[n][int(rng.integers(len(descriptions[n])))] for n in chosen]


def top_token(gains: np.ndarray, texts: Iterable[str]) -> str | None:
    """Of the vocabulary the token whose probability rose most that is a word: letters alone, three or more, not one
    of `STOP_WORDS`. gains: [V], mean log-probability beyond the base; texts: of the vocabulary's tokens.
    """
    order = np.argsort(-gains, kind="stable")
    words = list(texts)
    for index in order[:2000]:
        word = words[int(index)].strip().lower()
        if gains[index] > 0 and len(word) > 2 and word.isalpha() and word.isascii() and word not in STOP_WORDS:
            return word
    return None


def deranged(count: int, seed: int) -> list[int]:
    """For each of so many the number of another, each given once; one alone keeps its own."""
    order = np.random.default_rng([seed, 11]).permutation(count)
    another = dict(zip(order.tolist(), np.roll(order, 1).tolist(), strict=True))
    return [another[i] for i in range(count)]
