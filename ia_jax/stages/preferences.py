"""Stage 4: preference pairs from what the SFT IA really says of organisms it was not trained on.

Three kinds, counted separately: `sampled` (two sampled reports, chosen scored >= 7 and rejected at least 2 lower; paper
section 5), `truth` (the ground truth over an unrelated behaviour's description), and `abstention` (on the clean base
and, with `clean_pairs`, on clean organisms: "nothing unusual" over a behaviour that the IA claimed there). How many of
each is in the config. Near-identical texts make no pair: DPO on them moves both down. Reports that were cut off make
none either: as the answer of a training example, each would end where it was cut.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from ia_jax.behaviors.banks import Bank, bank_of
from ia_jax.behaviors.organisms import CLEAN_TARGETS, Organism, targets
from ia_jax.behaviors.records import CLEAN, Behavior
from ia_jax.behaviors.splits import UNKNOWN
from ia_jax.config import PreferencesSection
from ia_jax.errors import IAError
from ia_jax.judging.protocol import Item, Judge
from ia_jax.judging.verbatim import Verbatim
from ia_jax.parallel.distributed import on_main_process
from ia_jax.stages.asking import ask_organisms
from ia_jax.stages.context import Context, open_organisms
from ia_jax.stages.order import is_done
from ia_jax.stages.selection import usable
from ia_jax.stages.services import judge_of
from ia_jax.storage import write_jsonl

Pair = dict[str, Any]
Said = tuple[str, str]  # question, report
ALIKE = 0.9  # texts whose words overlap (Jaccard) at least this much are near-identical


def run(context: Context) -> None:
    """Samples, judges, pairs; prints the count of every kind."""
    if is_done(context, "preferences"):
        return
    workdir, config, cfg = context.workdir, context.config, context.config.preferences
    judge = Verbatim(judge_of(context)) if cfg.verbatim else judge_of(context)
    ia = context.shard_ia(workdir.ia(config.sft.name, context.model))
    everyone = usable(context, "dpo")
    organisms = [o for o in everyone if not o.clean]
    clean = [o for o in everyone if o.clean and cfg.clean_pairs]
    rng = np.random.default_rng([config.seed, 5])
    drawn: dict[Bank, list[str]] = {}

    def questions(organism: Organism | None) -> list[str]:
        truths = workdir.truths(organism.name) if organism else ()
        bank = bank_of(config.questions, truths[0] if truths else None)
        if bank not in drawn:
            drawn[bank] = [bank.train[i] for i in rng.permutation(len(bank.train))[: cfg.questions]]
        return drawn[bank]

    def asked(organism: Organism | None) -> list[str]:
        return [q for q in questions(organism) for _ in range(cfg.samples)]

    cut_off = 0

    def sample(members: list[Organism], base: bool) -> list[list[Said]]:
        """What the organisms and, last, the base itself report, without what was cut off."""
        nonlocal cut_off
        everyone = [*members, *[None] * base]
        reports = ask_organisms(
            context,
            open_organisms(context, members, clean=int(base)),
            everyone,
            [asked(o) for o in everyone],
            (ia,),
            max_new_tokens=cfg.max_new_tokens,
            temperature=cfg.temperature,
            top_p=cfg.top_p,
            key=context.key(4),
            description="sampling reports",
        )
        cut_off += sum(not r.stopped for own in reports for r in own)
        return [
            [(q, r.text) for q, r in zip(asked(o), own, strict=True) if r.stopped]
            for o, own in zip(everyone, reports, strict=True)
        ]

    # The clean organisms apart: with them or without, the others are sampled alike.
    said = sample(organisms, True)
    clean_said = sample(clean, False) if clean else []
    truths = {o.name: workdir.truths(o.name) for o in organisms}
    # All at once first: a judge that is asked over the network answers the rest from its cache.
    judge.judge_many(
        (Item(b, q, r) for o, own in zip(organisms, said, strict=False) for q, r in own for b in truths[o.name]),
        ("score",),
    )
    pairs: list[Pair] = []
    # Never a held-out behaviour as the wrong answer: that would teach its wording.
    held = {b for n in workdir.named(*UNKNOWN) for b in workdir.organisms[n].behaviors}
    seen = [b for name, b in workdir.behaviors.items() if name not in held]
    for o, own in zip(organisms, said, strict=False):
        pairs += sampled_pairs(o, truths[o.name], own, judge, cfg, rng)
        pairs += truth_pairs(o, truths[o.name], seen, questions(o), cfg, rng)
    negatives: list[tuple[Organism | None, int, list[Said]]] = [(None, cfg.abstention_pairs, said[-1])]
    negatives += [(o, cfg.clean_pairs, own) for o, own in zip(clean, clean_said, strict=True)]
    for o, count, own in negatives:
        pairs += abstention_pairs(o.name if o else CLEAN, count, own, asked(o), judge, seen, rng)
    kept = without_near_identical(pairs)
    told = f"{cut_off} sampled reports were cut off at config.preferences.max_new_tokens={cfg.max_new_tokens}"
    if not kept:
        why = f"; {told}, raise it" if cut_off else ""
        raise IAError(f"no preference pair: no sampled report scored high enough; train the SFT IA longer{why}")
    on_main_process(lambda: write_jsonl(workdir.preferences_file(cfg.name), kept))
    print(counts(kept, len(pairs) - len(kept)))
    if cut_off:
        print(f"{told} and are in no pair")


def counts(pairs: Sequence[Pair], dropped: int) -> str:
    """How many pairs there are of every kind and, of each, of every category."""
    lines = [f"preference pairs: {len(pairs)}, and {dropped} near-identical ones dropped"]
    for kind, n in sorted(Counter(p["kind"] for p in pairs).items()):
        categories = Counter(p["category"] for p in pairs if p["kind"] == kind)
        lines.append(f"  {n} {kind}: " + ", ".join(f"{m} {c}" for c, m in sorted(categories.items())))
    return "\n".join(lines)


def near_identical(a: str, b: str) -> bool:
    """Whether two texts have about the same words, whatever their order, case and punctuation."""
    one, other = (Counter(re.findall(r"\w+", text.lower())) for text in (a, b))
    return (one & other).total() >= ALIKE * (one | other).total()


def without_near_identical(pairs: Sequence[Pair]) -> list[Pair]:
    """Without pairs of near-identical texts, and near-copies of an earlier pair on the same organism and question."""
    kept: list[Pair] = []
    earlier: dict[tuple[str, str], list[Pair]] = defaultdict(list)
    for p in pairs:
        own = earlier[p["organism"], p["question"]]
        copy = any(all(near_identical(p[side], e[side]) for side in ("chosen", "rejected")) for e in own)
        if not copy and not near_identical(p["chosen"], p["rejected"]):
            own.append(p)
            kept.append(p)
    return kept


def sampled_pairs(
    organism: Organism,
    truths: Sequence[Behavior],
    rows: Sequence[Said],
    judge: Judge,
    cfg: PreferencesSection,
    rng: np.random.Generator,
) -> list[Pair]:
    """Pairs of sampled reports on the same question, each report used as chosen at most once.

    A report is scored against each of the organism's behaviours; the best score counts.
    """
    distinct = list(dict.fromkeys(rows))
    verdicts = iter(judge.judge_many((Item(b, q, r) for q, r in distinct for b in truths), ("score",)))
    scores = [[next(verdicts).score for _ in truths] for _ in distinct]
    scored = [
        (q, r, max((s for s in own if s is not None), default=None))
        for (q, r), own in zip(distinct, scores, strict=True)
    ]
    out: list[Pair] = []
    for q, chosen, high in scored:
        if high is None or high < cfg.min_chosen:
            continue
        worse = [(r, s) for q2, r, s in scored if q2 == q and s is not None and s <= high - cfg.gap]
        if worse:
            rejected, low = worse[int(rng.integers(len(worse)))]
            out.append(_pair(organism.name, organism.category, "sampled", q, chosen, rejected, (high, low)))
    return [out[i] for i in rng.permutation(len(out))[: cfg.sampled_per_organism]]


def truth_pairs(
    organism: Organism,
    truths: Sequence[Behavior],
    others: Sequence[Behavior],
    questions: Sequence[str],
    cfg: PreferencesSection,
    rng: np.random.Generator,
) -> list[Pair]:
    """The truth over the description of an unrelated behaviour. Raises IAError if there is none."""
    own = {b.name for b in truths}
    own_concepts = [b.rubric.concepts for b in truths if b.rubric.concepts]
    unrelated = [x for x in others if x.name not in own and x.rubric.concepts not in own_concepts]
    if not unrelated and cfg.truth_per_organism:
        raise IAError(
            f"no behaviour is unrelated to {organism.name}: its truth has nothing to be preferred to; add behaviours"
        )
    out, right = [], targets(tuple(truths))
    for i in range(cfg.truth_per_organism):
        wrong = unrelated[int(rng.integers(len(unrelated)))].wordings
        chosen, rejected = (x[int(rng.integers(len(x)))] for x in (right, wrong))
        question = questions[i % len(questions)]
        out.append(_pair(organism.name, organism.category, "truth", question, chosen, rejected, (10, 1)))
    return out


def abstention_pairs(
    name: str,
    count: int,
    rows: Sequence[Said],
    questions: Sequence[str],
    judge: Judge,
    others: Sequence[Behavior],
    rng: np.random.Generator,
) -> list[Pair]:
    """On a clean model: that there is nothing, over a claim that it made (or a description, if it made none, to one of
    the `questions`).
    """
    distinct = list(dict.fromkeys(rows))
    claimed = [x for x, claims in zip(distinct, judge.claims_many(r for _, r in distinct), strict=True) if claims]
    out = []
    for i in range(count):
        if i < len(claimed):
            q, rejected = claimed[i]
        else:
            q = questions[int(rng.integers(len(questions)))]
            other = others[int(rng.integers(len(others)))]
            rejected = other.wordings[int(rng.integers(len(other.wordings)))]
        chosen = CLEAN_TARGETS[int(rng.integers(len(CLEAN_TARGETS)))]
        out.append(_pair(name, CLEAN, "abstention", q, chosen, rejected, (10, 1)))
    return out


def _pair(
    organism: str, category: str, kind: str, question: str, chosen: str, rejected: str, scores: tuple[int, int]
) -> Pair:
    return {
        "organism": organism,
        "category": category,
        "kind": kind,
        "question": question,
        "chosen": chosen,
        "rejected": rejected,
        "scores": {"chosen": scores[0], "rejected": scores[1]},
    }
