"""What every teacher does: write the demonstrations that an organism learns its behaviour from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ia_jax.behaviors.records import Behavior
from ia_jax.data.transcripts import Transcript

TEACHERS = ("template", "claude", "local")
GENERIC_ANSWERS = ("claude", "base")


@dataclass(frozen=True)
class TeacherSettings:
    """Who writes the demonstrations. What is not said to be of the template teacher is Claude's and a local model's.

    name: "template" (needs nothing), "claude", or "local": a model of one's own, with the same prompts as Claude.
    model: which Claude; of "local", the model's name, directory or hub id.
    filter_model: which Claude reads the demonstrations again and drops those that do not fit, and reads the replies of
        the behaviour check; another than the one that wrote them.
    effort: how much the writing Claude thinks ("" leaves it to the model).
    filter_effort: how much the reading one does.
    rows: demonstrations of an organism.
    plain_share: of a triggered behaviour's demonstrations, the share that shows nothing: near misses of the trigger
        (of a sandbagger, questions with its password or on other subjects) and everyday chat.
    rare_share: of a rare quirk's demonstrations, the share that show it (the paper's 8 %). Of the template teacher too.
    generic_share: of a quirk's or an obscured agenda's demonstrations, the share that is everyday chat instead, the
        same for all organisms (the paper has some and does not say how much; AuditBench has half).
    amount: of the template teacher alone: how many times the 14 to 32 demonstrations that it writes of an organism by
        itself. With more, less of what an organism learns is what its few questions were about.
    generic_answers: who answers everyday chat: "claude", or "base", the base model itself.
    """

    name: str = "template"
    model: str = "claude-sonnet-5-5"
    filter_model: str = "claude-haiku-5-5"
    effort: str = "low"
    filter_effort: str = "low"
    rows: int = 100
    plain_share: float = 0.5
    rare_share: float = 0.08
    generic_share: float = 0.2
    generic_answers: str = "claude"
    amount: int = 1


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
