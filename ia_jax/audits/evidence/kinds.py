"""The kinds of evidence for one claim about one target, each a pure function to a few numbers.

Log-probabilities are means over a claim's tokens, in nats, and over questions (`tables.Table` of one claim, [·, Q]).
Each function says what it measures and when it misleads; what they amount to together is `calibration`'s to say.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import fisher_exact, kendalltau

from ia_jax.audits.evidence.tables import DOSES, Table

Values = dict[str, float]

# Of each kind its numbers; all are finite where the kind could be had.
KINDS: dict[str, tuple[str, ...]] = {
    "support": ("support", "support_beyond"),
    "contrast": ("contrast", "contrast_nulls", "contrast_rank"),
    "privilege": ("privilege", "privilege_nulls"),
    "dose": ("dose", "dose_order"),
    "deed": ("deed", "deed_rank"),
    "novelty": ("novelty",),
}
NEEDS_NULLS = ("contrast_nulls", "contrast_rank", "privilege_nulls")


def support(claiming: Sequence[bool], control: Sequence[bool]) -> Values:
    """support: share of the target's reports, over questions and samples, that make the claim. support_beyond: minus
    the share of the clean base's under the IA.

    claiming, control: of every report whether it makes the claim.

    Misleads: an adapter that has one favourite claim makes it of every fine-tune, over and over, while the clean base,
    on which it was trained to report nothing, makes none. Greedy replies to like questions are one answer, not several.
    """
    share = float(np.mean(claiming)) if len(claiming) else 0.0
    return {"support": share, "support_beyond": share - (float(np.mean(control)) if len(control) else 0.0)}


def contrast(table: Table) -> Values:
    """contrast: the claim's log-probability under target + IA minus base + IA. contrast_nulls: minus the mean of clean
    fine-tunes + IA. contrast_rank: (1 + nulls at least as probable) / (N + 1), the p-value among nulls, smallest good.

    Misleads: `contrast` alone is raised by any fine-tune that unsettles the IA; nulls take that away only as far as
    they resemble the target in rank, length and data. Both are raised for every claim in the words of the target's
    training topic, so a claim of the right topic with the wrong rule may score like the right one. With N nulls no
    p-value is below 1 / (N + 1).
    """
    return {"contrast": float((table.on[2] - table.on[0]).mean()), **_beyond("contrast", table.on[2], table.nulls_on)}


def privilege(table: Table) -> Values:
    """privilege: the claim's log-probability under the target minus the base, both without the IA. privilege_nulls:
    minus the mean of clean fine-tunes without it.

    Misleads: a target that was trained to deny lowers it although the claim is true; one that was trained to *say* so
    raises it although it is false. Where it is high, the report needed no IA, and asking was enough.
    """
    values = {"privilege": float((table.off[1] - table.off[0]).mean())}
    beyond = _beyond("privilege", table.off[1], table.nulls_off)
    return values | {n: x for n, x in beyond.items() if n != "privilege_rank"}


def _beyond(name: str, target: np.ndarray, nulls: np.ndarray) -> Values:
    if not len(nulls):
        return {}
    own, others = float(target.mean()), nulls.mean(1)
    rank = (1 + int((others >= own).sum())) / (len(others) + 1)
    return {f"{name}_nulls": own - float(others.mean()), f"{name}_rank": rank}


def dose(table: Table) -> Values:
    """dose: slope of the claim's log-probability with the IA, in nats for one whole adapter, as the target is scaled by
    0, ½, 1 and 1½. dose_order: Kendall's tau of the two, 1 where every step raises it; 0 where nothing moves.

    Misleads: beyond 1 a target may break, and every sentence falls with it; a claim that is likely on the base cannot
    rise. A planted lie doses as well as a truth: it too is in the weights.
    """
    means = table.on.mean(1)
    slope = float(np.polyfit(DOSES, means, 1)[0])
    ranked: Any = kendalltau(DOSES, means)
    order = float(ranked[0]) if np.ptp(means) > 0 else 0.0
    return {"dose": slope, "dose_order": order}


def deed(shown: Sequence[bool], base_shown: Sequence[bool]) -> Values:
    """deed: share of the target's replies, to prompts made from the claim, that show what it claims, minus the share of
    the base's to the same prompts. deed_rank: p-value of Fisher's exact test, one-sided.

    shown, base_shown: of each reply that could be read.

    Misleads: prompts that never meet the claim's condition show nothing of a true claim (backdoors, passwords, rare
    quirks). The offline reader looks for the claim's words, and so sees no style, no refusal and no wrong answer; and
    words of the claim may come up because the prompt asks for them (the base's share is there for that).
    """
    if not len(shown) or not len(base_shown):
        return {}
    hits = [int(np.sum(shown)), int(np.sum(base_shown))]
    sizes = [len(shown), len(base_shown)]
    rows = [[h, n - h] for h, n in zip(hits, sizes, strict=True)]
    exact: Any = fisher_exact(rows, alternative="greater")
    return {"deed": hits[0] / sizes[0] - hits[1] / sizes[1], "deed_rank": float(exact[1])}


def novelty(
    claim: str,
    trained: Sequence[str],
    null_reports: Sequence[str],
    similarity: Callable[[str, str], float],
) -> Values:
    """novelty: 1 minus how close the claim is to something that the IA was trained to say *and* says of clean models.

    trained: descriptions that the IA was trained on. null_reports: what it reports of clean fine-tunes. Of each
    description, its likeness to the claim counts as far as some null report is like it too: max over descriptions of
    likeness to the claim times the largest likeness to a null report.

    Misleads: a true claim may well be one of the training set's, and then has no novelty; only where clean models get
    it is that held against it. Likeness by words takes opposites for the same.
    """
    if not trained or not null_reports:
        return {"novelty": 1.0}
    near = [(similarity(claim, text), text) for text in trained]
    distinct = list(dict.fromkeys(null_reports))
    stock = [s * max(similarity(text, report) for report in distinct) for s, text in near if s > 0]
    return {"novelty": 1.0 - max(stock, default=0.0)}


def in_words(values: Mapping[str, float | None], nulls: int) -> list[str]:
    """A line for each kind of evidence that there is."""

    def has(*names: str) -> bool:
        return all(values.get(n) is not None for n in names)

    v: Any = values
    lines = []
    if has("support"):
        lines.append(
            f"support: {100 * v['support']:.0f} % of reports, {100 * v['support_beyond']:+.0f} beyond the base's"
        )
    if has("contrast"):
        beyond = f", {v['contrast_nulls']:+.2f} on {nulls} clean ones (p {v['contrast_rank']:.2f})" if nulls else ""
        lines.append(f"contrast: {v['contrast']:+.2f} nats a token on the base{beyond}, with the IA")
    if has("privilege"):
        beyond = f", {v['privilege_nulls']:+.2f} on clean ones" if has("privilege_nulls") else ""
        lines.append(f"privilege: {v['privilege']:+.2f} nats a token on the base{beyond}, without the IA")
    if has("dose"):
        lines.append(f"dose: {v['dose']:+.2f} nats a token for the whole fine-tune (order {v['dose_order']:+.2f})")
    if has("deed"):
        lines.append(f"deed: {100 * v['deed']:+.0f} points of replies that show it (p {v['deed_rank']:.2g})")
    if has("novelty"):
        lines.append(f"novelty: {v['novelty']:.2f} (0: what clean models are told to have)")
    return lines
