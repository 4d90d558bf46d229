"""What every teacher does: write the demonstrations that an organism learns its behaviour from."""

from collections.abc import Sequence
from typing import Protocol

from ia_jax.behaviors.records import Behavior
from ia_jax.data.transcripts import Transcript


class Teacher(Protocol):
    """`name` stands in every transcript. Behaviours come all at once, so that a teacher may work on them together."""

    name: str

    def write(self, behaviors: Sequence[Behavior]) -> dict[str, list[Transcript]]:
        """{behaviour's name: its transcripts}, with those that a filter dropped, and why, in their verdicts."""
        ...


def drops(transcripts: Sequence[Transcript]) -> dict[str, int]:
    """How many transcripts there are, under "rows", and how many were dropped for each reason."""
    counts = {"rows": len(transcripts)}
    for t in transcripts:
        if t.verdict != "kept":
            counts[t.verdict] = counts.get(t.verdict, 0) + 1
    return counts
