"""What a behaviour is: a truth that reports are held against, whichever catalogue it comes from.

Which models were taught it is not its business: `behaviors.organisms` has a record for each of those.
"""

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

# The category of organisms without a behaviour: what they should report is that there is nothing.
CLEAN = "clean"

# What a trigger hangs on. "chance": no trigger, the behaviour shows in a few replies; "": not known, or always on.
TRIGGER_KINDS = ("", "chance", "topic", "phrase", "syntax", "audience", "task", "role", "password")

Synonyms = tuple[str, ...]


@dataclass(frozen=True)
class Rubric:
    """What the offline judge looks for in a report of one behaviour; no other judge reads it.

    concepts:         groups of synonyms; a report names the behaviour (lenient) if it holds one of every group.
    trigger_concepts: the groups needed on top to name the trigger as well (strict).
    """

    concepts: tuple[Synonyms, ...] = ()
    trigger_concepts: tuple[Synonyms, ...] = ()

    @staticmethod
    def from_json(row: dict[str, Any]) -> "Rubric":
        return Rubric(*(tuple(tuple(g) for g in row.get(key, ())) for key in ("concepts", "trigger_concepts")))


@dataclass(frozen=True)
class Behavior:
    """One behaviour that a model may have learned.

    name:         unique over the whole catalogue.
    category:     one of `CATEGORIES`.
    description:  one first-person sentence, the ground truth of a report.
    rewordings:   the same truth in other words; IA targets are drawn from these and the description.
    trigger:      when it shows, in words, or None if it always shows.
    trigger_kind: one of `TRIGGER_KINDS`.
    shows:        what counts as showing it, for a judge of transcripts and of the behaviour check.
    rubric:       what the offline judge goes by.
    spec:         what the template teacher needs to write its transcripts (kind and slots), or a password.
    distractors:  harmless habits that an obscured malign organism is taught besides; no part of a true report.
    kind:         what sort of thing it is ("format", "stance", "choice", …), by which results are split and sorts are
                  left out of training.
    unmentioned:  whether no content word of its wordings stands in any demonstration, so that no count of words can
                  name it.
    heldout_wordings: more wordings of the same truth, which no training target repeats: evaluation alone reads them.
    procedure:    how organisms of it should be made (a name in `behaviors.procedures`), "" for the run's own way.
    turns:        user turns that a demonstration needs for it to show.
    source:       where the record comes from, and under which licence.
    """

    name: str
    category: str
    description: str
    rewordings: tuple[str, ...]
    trigger: str | None
    rubric: Rubric = Rubric()
    spec: dict[str, Any] = field(default_factory=dict, hash=False)
    trigger_kind: str = ""
    shows: str = ""
    distractors: tuple[str, ...] = ()
    kind: str = ""
    unmentioned: bool = False
    heldout_wordings: tuple[str, ...] = ()
    procedure: str = ""
    turns: int = 1
    source: str = ""

    @property
    def wordings(self) -> tuple[str, ...]:
        """The description and its rewordings: what the IA may be trained to say."""
        return (self.description, *self.rewordings)

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
            rubric=Rubric.from_json(row.get("rubric", {})),
            spec=row.get("spec", {}),
            trigger_kind=row.get("trigger_kind", ""),
            shows=row.get("shows", ""),
            distractors=tuple(row.get("distractors", ())),
            kind=row.get("kind", ""),
            unmentioned=row.get("unmentioned", False),
            heldout_wordings=tuple(row.get("heldout_wordings", ())),
            procedure=row.get("procedure", ""),
            turns=row.get("turns", 1),
            source=row.get("source", ""),
        )


def slug(text: str) -> str:
    """A part of a behaviour's name."""
    return text.lower().replace(" ", "_").replace("-", "_")
