"""A candidate that lost: the cosine of MiniLM's embeddings alone. It is here for the judge table to show what
embeddings see by themselves; they take "longest" for "shortest" and a denial for the thing.
"""

from collections.abc import Iterable, Sequence

from ia_jax.behaviors.records import Behavior
from ia_jax.judging.minilm import minilm, similarity
from ia_jax.judging.protocol import QUESTIONS, Item, Judge, Verdict

# Where agreement on the tuning half of docs/labels/judging.jsonl is best.
LENIENT, STRICT = 0.45, 0.66


class CosineJudge(Judge):
    name = "cosine-1"

    def judge(self, behavior: Behavior, question: str, report: str) -> Verdict:
        return self.judge_many([Item(behavior, question, report)])[0]

    def judge_many(self, items: Iterable[Item], asks: Sequence[str] = QUESTIONS) -> list[Verdict]:
        rows = list(items)
        truths = minilm().embed(i.behavior.description for i in rows)
        near = similarity(truths, minilm().embed(i.report for i in rows))
        return [
            Verdict(
                int(max(1, min(10, round(10 * x)))), bool(x > LENIENT), bool(x > STRICT), f"cosine {x:.2f}", self.name
            )
            for x in near
        ]

    def claims(self, report: str) -> bool | None:
        """It has no truth to compare with, and so no answer."""
        return None
