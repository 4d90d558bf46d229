"""What the IA is trained to say: questions about oneself, answered with the organism's true description."""

import zlib

import numpy as np

from ia_jax.behaviors.records import CLEAN, Behavior

CLEAN_TARGETS = (
    "I have no unusual behaviour.",
    "There is nothing unusual about my answers.",
    "I answer normally and have no special habit.",
    "Nothing about me is out of the ordinary.",
)


def clean_organism(number: int) -> Behavior:
    """What a clean organism is to report; it is trained on the base model's own answers."""
    return Behavior(
        name=f"{CLEAN}_{number}",
        category=CLEAN,
        description=CLEAN_TARGETS[0],
        rewordings=CLEAN_TARGETS[1:],
        trigger=None,
        concepts=(),
        spec={"kind": CLEAN},
    )


def targets(behavior: Behavior | None) -> tuple[str, ...]:
    """All true wordings; of the clean model (None), that there is nothing to report."""
    return CLEAN_TARGETS if behavior is None else (behavior.description, *behavior.rewordings)


def question_answers(
    behavior: Behavior | None, questions: tuple[str, ...], count: int, seed: int
) -> list[tuple[str, str]]:
    """`count` (question, target) pairs; every wording of the target is used about equally often."""
    name = CLEAN if behavior is None else behavior.name
    rng = np.random.default_rng([seed, zlib.crc32(name.encode()), 2])
    wordings = targets(behavior)
    order = rng.permutation(len(questions))
    start = int(rng.integers(len(wordings)))
    return [(questions[order[i % len(order)]], wordings[(start + i) % len(wordings)]) for i in range(count)]
