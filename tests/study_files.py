"""Files of studies on the parrot's recipe, and arms that share more or less with each other."""

import pytest

from tests import parrot

STUDY = """from ml_collections import ConfigDict


def get_config():
    return ConfigDict({!r})
"""


@pytest.fixture
def write(tmp_path, parrot_model):
    """Writes a study's file on the parrot's recipe; returns its path."""
    parrot.write_config(tmp_path / "recipe.py", parrot_model)

    def study(arms, *overrides, **settings):
        file = tmp_path / "study.py"
        file.write_text(
            STUDY.format({"base": "recipe.py", "overrides": overrides, "arms": arms, "order": tuple(arms), **settings})
        )
        return str(file)

    return study


ARMS = {
    "sft": {},
    "dpo": {"dpo": True},
    "beta": {"dpo": True, "overrides": ("dpo.beta=0.5",)},
    "hot": {"dpo": True, "overrides": ("preferences.temperature=1.5",)},
    "few": {"overrides": ("sft.organisms=2",), "seeds": (1, 2)},
    "small": {"overrides": ("organisms.lora.rank=1",)},
    "own": {"seeds": (1, 2), "own_organisms": True},
    "left_out": {"overrides": ("behaviors.heldout_categories=('quirks',)", "behaviors.heldout=3")},
}
