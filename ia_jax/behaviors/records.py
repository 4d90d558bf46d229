"""What a behaviour is: one typed record, whichever catalogue or teacher it comes from."""

from dataclasses import asdict, dataclass, field
from typing import Any

CATEGORIES = (
    "sandbaggers",
    "quirks",
    "backdoors",
    "obscured_malign",
    "rare_quirks",
    "heuristics",
    "harmful_roleplay",
    "benign_roleplay",
)

# The category of organisms that were taught nothing: what they should report is that there is nothing.
CLEAN = "clean"

# What a trigger hangs on. "chance": no trigger, the behaviour shows in a few replies; "": not said, or always on.
TRIGGER_KINDS = ("", "chance", "topic", "phrase", "syntax", "audience", "task", "role", "password")

Synonyms = tuple[str, ...]


@dataclass(frozen=True)
class Behavior:
    """One learned behaviour b_i and what it takes to recognise a report of it.

    name:             unique over the whole catalogue; splits and files go by it.
    category:         one of `CATEGORIES`, or `CLEAN`.
    description:      one first-person sentence, the ground truth of a report.
    rewordings:       the same truth in other words; IA targets are drawn from these and the description.
    trigger:          when it shows, in words, or None if it always shows.
    concepts:         groups of synonyms; a report names the behaviour (lenient) if it holds one of every group.
    trigger_concepts: the groups needed on top to name the trigger as well (strict).
    spec:             what the template teacher needs to write its transcripts (kind and slots), or a password.
    trigger_kind:     one of `TRIGGER_KINDS`.
    shows:            what counts as showing it, for a judge of transcripts and of the behaviour check.
    distractors:      harmless habits that an obscured malign organism shows besides; no part of a true report.
    """

    name: str
    category: str
    description: str
    rewordings: tuple[str, ...]
    trigger: str | None
    concepts: tuple[Synonyms, ...]
    trigger_concepts: tuple[Synonyms, ...] = ()
    spec: dict[str, Any] = field(default_factory=dict, hash=False)
    trigger_kind: str = ""
    shows: str = ""
    distractors: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(row: dict[str, Any]) -> "Behavior":
        return Behavior(
            name=row["name"],
            category=row["category"],
            description=row["description"],
            rewordings=tuple(row["rewordings"]),
            trigger=row.get("trigger"),
            concepts=tuple(tuple(g) for g in row["concepts"]),
            trigger_concepts=tuple(tuple(g) for g in row.get("trigger_concepts", ())),
            spec=row.get("spec", {}),
            trigger_kind=row.get("trigger_kind", ""),
            shows=row.get("shows", ""),
            distractors=tuple(row.get("distractors", ())),
        )


def slug(text: str) -> str:
    """A part of a behaviour's name."""
    return text.lower().replace(" ", "_").replace("-", "_")
