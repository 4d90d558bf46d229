"""What every teacher does: write the demonstrations that an organism learns its behaviour from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ia_jax.behaviors.records import Behavior
from ia_jax.data.transcripts import Transcript

TEACHERS = ("template", "claude", "local")


@dataclass(frozen=True)
class TeacherSettings:
    """Who writes the demonstrations: "template" (needs nothing), "claude", or "local": the model whose name, directory
    or hub id stands in `model`, with the same prompts as Claude.

    Of a rare quirk all rows but `rare_share` are ordinary (the paper's 8 %). The rest is the Claude teacher's: `rows`
    for every organism, `plain_share` of a triggered behaviour's without its trigger; `effort`, how much the
    model thinks ("" leaves it to the model).
    """

    name: str = "template"
    model: str = "claude-sonnet-5-5"
    filter_model: str = "claude-sonnet-5-5"
    effort: str = "low"
    rows: int = 100
    plain_share: float = 0.5
    rare_share: float = 0.08


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
