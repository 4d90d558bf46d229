"""What a stage's steps hold, in numbers: what `ia-jax plan` needs to know of the data."""

from collections.abc import Sequence
from dataclasses import dataclass

from ia_jax.data.plans import Plan


@dataclass(frozen=True)
class Batches:
    """All steps of a stage: each has [organisms, rows, length] tokens, of which up to `targets` a row are supervised.

    tokens, supervised: real ones, of all steps together. examples: the most that a slot holds. bank: how many frozen
    organisms the stage draws from. slots: of all steps (a stage's last wave may have fewer). source: where the numbers
    of tokens come from, for a person.

    Of sampling, a step is one new token of each of organisms x rows prompts of `length` tokens.
    """

    steps: int
    organisms: int
    rows: int
    length: int
    targets: int
    examples: int
    tokens: int
    supervised: int
    slots: int
    bank: int = 0
    source: str = ""

    @property
    def size(self) -> int:
        """Tokens of a step's arrays, real or not."""
        return self.organisms * self.rows * self.length

    @property
    def fill(self) -> float:
        """Share of the arrays' tokens that are real."""
        return self.tokens / (self.slots * self.rows * self.length)


def batches_of(plans: Sequence[Plan], bank: int = 0, source: str = "") -> Batches:
    """Of plans whose arrays have one size: those of a stage's waves, or the only one of a joint stage."""
    widest = max(len(p.steps[0]) for p in plans)
    return Batches(
        steps=sum(len(p.steps) for p in plans),
        organisms=widest,
        rows=plans[0].rows,
        length=plans[0].length,
        targets=plans[0].targets,
        examples=plans[0].examples,
        tokens=sum(p.tokens for p in plans),
        supervised=sum(p.supervised for p in plans),
        slots=sum(len(p.steps) * len(p.steps[0]) for p in plans),
        bank=bank,
        source=source,
    )
