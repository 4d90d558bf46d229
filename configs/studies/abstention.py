"""What ends false reports: clean fine-tunes in SFT, or DPO's pairs on clean ones, on the base, or none (docs/study.md).

SmolLM2-135M with all 376 organisms of the recipe. The last three arms go on from one SFT.
"""

from ml_collections import ConfigDict

from ia_jax.behaviors.records import CATEGORIES


def get_config() -> ConfigDict:
    no_clean = (f"sft.categories={CATEGORIES!r}",)
    from_base = (*no_clean, "preferences.clean_pairs=0")
    arms = {
        "clean_sft": {"dpo": True, "label": "clean ones in SFT and DPO"},
        "clean": {"dpo": True, "overrides": no_clean, "label": "clean ones in DPO"},
        "base": {"dpo": True, "overrides": from_base, "label": "the base in DPO"},
        "none": {"dpo": True, "overrides": (*from_base, "preferences.abstention_pairs=0"), "label": "neither"},
    }
    return ConfigDict(
        {
            "base": "../smollm2_study.py",
            "title": "What is shown without a behaviour",
            "question": "Which models without a behaviour does an adapter have to see to accuse no clean one?",
            "arms": arms,
            "order": tuple(arms),
            "reference": "none",
        }
    )
