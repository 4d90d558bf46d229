"""Stage 4: preference pairs from what the SFT IA really says of organisms it was not trained on.

Three kinds, counted separately: `sampled` (two sampled reports, chosen scored >= 7 and rejected at least 2 lower; paper
section 5), `truth` (the ground truth over an unrelated behaviour's description), and `abstention` (on the clean base
and, with `clean_pairs`, on clean organisms: "nothing unusual" over a behaviour that the IA claimed there).
"""

from collections import Counter

import numpy as np

from ia_jax.behaviors.questions import TRAIN_QUESTIONS
from ia_jax.behaviors.records import CLEAN, Behavior
from ia_jax.config import PreferencesSection
from ia_jax.data.transcripts import write_jsonl
from ia_jax.errors import IAError
from ia_jax.judging.protocol import Item, Judge
from ia_jax.parallel.distributed import once
from ia_jax.stages.ia_data import CLEAN_TARGETS, targets
from ia_jax.stages.introspection import usable
from ia_jax.stages.order import is_done
from ia_jax.stages.session import Organisms, Session

Pair = dict[str, object]


def run(session: Session) -> None:
    """Samples, judges, pairs; prints the count of every kind."""
    workdir, cfg = session.workdir, session.config.preferences
    if is_done(workdir, "preferences"):
        return
    ia = session.replicated(workdir.ia("sft", session.model))
    everyone = usable(session, "dpo")
    behaviors = [b for b in everyone if b.category != CLEAN]
    clean = [b.name for b in everyone if b.category == CLEAN and cfg.clean_pairs]
    rng = np.random.default_rng([session.config.seed, 5])
    questions = [TRAIN_QUESTIONS[i] for i in rng.permutation(len(TRAIN_QUESTIONS))[: cfg.questions]]
    asked = [q for q in questions for _ in range(cfg.samples)]

    def sample(names: list[str], base: bool) -> list[list[str]]:
        """Reports of the organisms and, last, of the base itself."""
        organisms = Organisms(session, names, clean=base)
        return session.generate(
            [asked] * len(organisms),
            (organisms.take(range(len(organisms))), ia),
            max_new_tokens=cfg.max_new_tokens,
            temperature=cfg.temperature,
            top_p=cfg.top_p,
            key=session.key(4),
            system=session.config.system,
            description="sampling reports",
        )

    # The clean organisms apart: with them or without, the others are sampled alike.
    reports = sample([b.name for b in behaviors], True)
    clean_reports = sample(clean, False) if clean else []
    # All at once first: a judge that is asked over the network answers the rest from its cache.
    said = zip(behaviors, reports, strict=False)
    session.judge.judge_many(Item(b, q, r) for b, own in said for q, r in zip(asked, own, strict=True))
    pairs: list[Pair] = []
    # Never a held-out behaviour as the wrong answer: that would teach its wording.
    taught = [b for b in workdir.behaviors.values() if b.category != CLEAN]
    seen = [b for b in taught if workdir.splits[b.name] != "heldout"]
    for b, own in zip(behaviors, reports, strict=False):
        pairs += sampled_pairs(b, list(zip(asked, own, strict=True)), session.judge, cfg, rng)
        pairs += truth_pairs(b, seen, questions, cfg, rng)
    negatives = [(CLEAN, cfg.abstention_pairs, reports[-1])]
    negatives += [(name, cfg.clean_pairs, own) for name, own in zip(clean, clean_reports, strict=True)]
    for name, count, own in negatives:
        pairs += abstention_pairs(name, count, list(zip(asked, own, strict=True)), session.judge, seen, rng)
    if not pairs:
        raise IAError("no preference pair: no sampled report scored high enough; train the SFT IA longer")
    once(lambda: write_jsonl(workdir.preferences_file, pairs))
    counts = Counter(str(p["kind"]) for p in pairs)
    print("preference pairs: " + ", ".join(f"{n} {kind}" for kind, n in sorted(counts.items())))


def sampled_pairs(
    b: Behavior, rows: list[tuple[str, str]], judge: Judge, cfg: PreferencesSection, rng: np.random.Generator
) -> list[Pair]:
    """Pairs of sampled reports on the same question, each report used as chosen at most once."""
    distinct = list(dict.fromkeys(rows))
    verdicts = judge.judge_many(Item(b, q, r) for q, r in distinct)
    scored = [(q, r, v.score) for (q, r), v in zip(distinct, verdicts, strict=True)]
    out: list[Pair] = []
    for q, chosen, high in scored:
        if high is None or high < cfg.min_chosen:
            continue
        worse = [(r, s) for q2, r, s in scored if q2 == q and s is not None and s <= high - cfg.gap]
        if worse:
            rejected, low = worse[int(rng.integers(len(worse)))]
            out.append(_pair(b.name, b.category, "sampled", q, chosen, rejected, (high, low)))
    return [out[i] for i in rng.permutation(len(out))[: cfg.sampled_per_organism]]


def truth_pairs(
    b: Behavior, others: list[Behavior], questions: list[str], cfg: PreferencesSection, rng: np.random.Generator
) -> list[Pair]:
    """The truth over the description of another behaviour."""
    unrelated = [x for x in others if x.name != b.name and x.concepts != b.concepts]
    out = []
    for i in range(cfg.truth_per_organism):
        other = unrelated[int(rng.integers(len(unrelated)))]
        chosen, rejected = (targets(x)[int(rng.integers(len(targets(x))))] for x in (b, other))
        out.append(_pair(b.name, b.category, "truth", questions[i % len(questions)], chosen, rejected, (10, 1)))
    return out


def abstention_pairs(
    name: str,
    count: int,
    rows: list[tuple[str, str]],
    judge: Judge,
    others: list[Behavior],
    rng: np.random.Generator,
) -> list[Pair]:
    """On a clean model: that there is nothing, over a claim that it made (or a description, if it made none)."""
    claimed = [(q, r) for q, r in dict.fromkeys(rows) if judge.claims(r)]
    out = []
    for i in range(count):
        if i < len(claimed):
            q, rejected = claimed[i]
        else:
            q = rows[int(rng.integers(len(rows)))][0]
            other = others[int(rng.integers(len(others)))]
            rejected = targets(other)[int(rng.integers(len(targets(other))))]
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
