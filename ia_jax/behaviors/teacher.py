"""What every teacher does: write the demonstrations that an organism learns its behaviour from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ia_jax.behaviors.records import Behavior
from ia_jax.data.transcripts import Transcript

TEACHERS = ("template", "claude", "local")


@dataclass(frozen=True)
class TeacherSettings:
    """Who writes the demonstrations.

    name: "template" (needs nothing), "claude", or "local": a model of one's own, with the same prompts as Claude.
    model: which Claude; of "local", the model's name, directory or hub id.
    filter_model: which Claude reads the demonstrations again and drops those that do not fit.
    effort: how much Claude thinks ("" leaves it to the model).
    rows: demonstrations of an organism, of "claude" and "local".
    plain_share: of a triggered behaviour's demonstrations, the share without its trigger.
    rare_share: of a rare quirk's demonstrations, the share that show it (the paper's 8 %).
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
