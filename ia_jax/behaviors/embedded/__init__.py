"""Mild behaviours small enough for a 135M model, one file for each kind.

Each behaviour has content of its own (a topic, an attribute, a field, an agenda's object, a role), so that splitting by
name also splits by behaviour: what a held-out organism does appears nowhere in training. Only the backdoors' trigger
domains and the obscured malign organisms' tics recur, in other pairings.
"""

from ia_jax.behaviors.embedded.agendas import obscured_malign
from ia_jax.behaviors.embedded.choices import heuristics
from ia_jax.behaviors.embedded.fields import sandbaggers
from ia_jax.behaviors.embedded.roles import benign_roleplay, harmful_roleplay
from ia_jax.behaviors.embedded.topics import backdoors, quirks, rare_quirks
from ia_jax.behaviors.records import Behavior


def demo_behaviors() -> tuple[Behavior, ...]:
    """The demo's four categories. A field must be known to the base model, so there are fewer sandbaggers."""
    return (*quirks(), *backdoors(), *heuristics(), *sandbaggers())


def study_behaviors() -> tuple[Behavior, ...]:
    """All eight of the paper's categories, those of the demo first."""
    return (*demo_behaviors(), *rare_quirks(), *obscured_malign(), *harmful_roleplay(), *benign_roleplay())
