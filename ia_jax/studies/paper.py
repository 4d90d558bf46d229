"""The paper's studies for any base, as the files in `configs/studies/` share them: data, and what it is meant to show.

Each function makes a study's settings. base: a recipe, as a path from the study's file; small: whether that is
`configs/smollm2_science.py`, with 20 organisms of each category for SFT, 4 for DPO and 6 held out, most of these of
known behaviours, of which the figures are; else the paper's 682. "Guess" marks what is not known of the paper. The
small recipe has a number of SFT steps, which all its arms share: with less data each row comes more often. The paper's
has one epoch, so there less data is less training too.

Arms of several small studies are the same where their settings are: with one `--workdir` for all they are run once.
"""

from collections import Counter
from typing import Any

from ml_collections import ConfigDict

from ia_jax.behaviors.catalogue import load_catalogue
from ia_jax.behaviors.records import CATEGORIES, CLEAN

# In the order in which `diversity` adds them: the first has many organisms in the paper's catalogue.
ORDER = (
    *("quirks", "heuristics", "backdoors", "rare_quirks", "harmful_roleplay", "benign_roleplay", "obscured_malign"),
    "sandbaggers",
)
NO_BASELINES = "eval.plain_prompts=0"  # those of the reference arm stand for arms that share its organisms


def _study(base: str, small: bool, arms: dict[str, dict[str, Any]], *more: str, **settings: Any) -> ConfigDict:
    if small:
        settings["split"] = "remade"
        for name, arm in arms.items():
            trains = any(o.startswith("organisms.") for o in arm["overrides"])
            if name != settings["reference"] and not trains:
                arm["overrides"] = (*arm["overrides"], NO_BASELINES)
    return ConfigDict({"base": base, "overrides": more, "arms": arms, "order": tuple(arms), **settings})


def _arm(*overrides: str, **settings: Any) -> dict[str, Any]:
    return {"overrides": overrides, **settings}


def dpo(base: str, small: bool, rate: float = 1e-5, topology: str = "") -> ConfigDict:
    """SFT against SFT and DPO on the same organisms, and what DPO hangs on. rate: of the recipe's DPO."""
    both = "sft.splits=('train', 'dpo')"
    # The small recipe holds descriptions against each other from the first step; the paper's does not.
    other = {"plain": _arm(both, "sft.contrast=0.0", label="SFT without other descriptions")}
    if not small:
        other = {"contrast": _arm(both, "sft.contrast=1.0", label="SFT against other descriptions")}
    own, high = ("preferences.truth_per_organism=0",), f"dpo.optimizer.lr={rate * 5:g}"
    many = ("preferences.samples=12", "preferences.sampled_per_organism=24")
    arms = {
        "sft": _arm(both, label="SFT on all organisms"),
        "sft_fewer": _arm(label="SFT without DPO's"),
        "dpo": _arm(dpo=True, label="SFT, DPO (the recipe)"),
        **other,
        "rate_low": _arm(f"dpo.optimizer.lr={rate / 5:g}", dpo=True, label="DPO, rate / 5"),
        "rate_high": _arm(high, dpo=True, label="DPO, rate × 5"),
        "rate_higher": _arm(f"dpo.optimizer.lr={rate * 10:g}", dpo=True, label="DPO, rate × 10"),
        "high_sampled": _arm(high, *own, dpo=True, label="DPO, rate × 5, sampled pairs"),
        "high_verbatim": _arm(high, "preferences.verbatim=True", dpo=True, label="DPO, rate × 5, own sentences right"),
        "verbatim_more": _arm(
            *(high, "preferences.verbatim=True", *many), dpo=True, label="the same, 12 samples a question"
        ),
        "beta_low": _arm("dpo.beta=0.02", dpo=True, label="DPO, β 0.02"),
        "beta_high": _arm("dpo.beta=0.5", dpo=True, label="DPO, β 0.5"),
        "ipo": _arm("dpo.kind=ipo", "dpo.beta=1.0", dpo=True, label="IPO, τ 1"),
        "per_token": _arm("dpo.kind=sigmoid_norm", "dpo.beta=2.0", dpo=True, label="DPO per token, β 2"),
        "no_sft_loss": _arm("dpo.sft_weight=0.0", dpo=True, label="DPO without SFT's loss"),
        "sampled_only": _arm(*own, dpo=True, label="DPO, sampled pairs alone"),
        "truth_only": _arm("preferences.sampled_per_organism=0", dpo=True, label="DPO, pairs of truths alone"),
        "hotter": _arm("preferences.temperature=1.5", dpo=True, label="DPO, sampled at 1.5"),
        "more_pairs": _arm(*many, dpo=True, label="DPO, 12 samples a question"),
        "epochs": _arm("dpo.epochs=3", dpo=True, label="DPO, three epochs"),
        "half": _arm("sft.organisms=0.5", dpo=True, label="DPO after SFT on half"),
        "half_sft": _arm("sft.organisms=0.5", label="SFT on half"),
    }  # fmt: skip
    return _study(
        base,
        small,
        arms,
        title="DPO against SFT",
        question="What does DPO add at the same number of organisms, and does it hang on how its pairs are made, on "
        "the step, on the loss, on β or on how much SFT has seen? The paper has +7.5 points.",
        reference="sft",
        topology=topology,
    )


def scale(sizes: dict[str, tuple[float, tuple[str, ...], str]], base: str) -> ConfigDict:
    """The same recipe on several bases, SFT alone. sizes: {arm: (billions of parameters, overrides, slice)}."""
    arms = {n: _arm(*more, x=x, topology=where, label=f"{x:g} B") for n, (x, more, where) in sizes.items()}
    return _study(
        base,
        False,
        arms,
        title="Scale",
        question="How much better do larger bases report what their fine-tunes learned? Identical settings, SFT alone; "
        "the organism without the adapter stands beside each.",
        axis="billions of parameters",
        log=True,
    )


def diversity(base: str, small: bool, topology: str = "") -> ConfigDict:
    """Categories in SFT, at equal and at growing numbers of organisms. Clean fine-tunes stay out of SFT, which would
    otherwise be another share of it in each arm: so false claims are those of an adapter that never saw any.
    """
    counts, equal = ((1, 2, 4, 8), 20) if small else ((1, 3, 5, 7, 8), 75)
    arms: dict[str, dict[str, Any]] = {}
    for count in counts:
        categories = f"sft.categories={ORDER[:count]!r}"
        few = (categories, f"sft.organisms={equal}")
        arms[f"equal_{count}"] = _arm(*few, x=count, series="equal numbers", label=f"{count}, {equal} organisms")
        grown = few if small and count == 1 else (categories,)  # there it is the same, and one directory
        arms[f"growing_{count}"] = _arm(*grown, x=count, series="growing numbers", label=f"{count}, all of theirs")
    return _study(
        base,
        small,
        arms,
        *(() if small else ("behaviors.clean_train=0",)),
        title="Diversity of behaviours",
        question="Is it the number of organisms or the number of kinds that makes an adapter general? In the "
        "table by category, what is not among an arm's own is out of distribution.",
        reference="growing_8" if small else "equal_8",
        axis="categories in SFT",
        topology=topology,
    )


def leave_one_out(base: str, small: bool, topology: str = "") -> ConfigDict:
    """Each category held out as a whole; its own row among the categories is the figure."""
    sizes = Counter(b.category for b in load_catalogue("paper"))
    arms = {"all": _arm(label="none left out")}
    for category in CATEGORIES:
        if small:  # the organisms held out stay the same ones, so that arms are compared on them
            out = (f"sft.categories={(*(c for c in CATEGORIES if c != category), CLEAN)!r}",)
        else:
            rest = sum(sizes.values()) - sizes[category]
            split = {"train": 0.79, "dpo": 0.085, "heldout": 0.115}
            counts = (f"behaviors.{s}={int(share * rest)}" for s, share in split.items())
            out = (f"behaviors.heldout_categories=({category!r},)", *counts)
        arms[f"without_{category}"] = _arm(*out, label=f"without {category}")
    return _study(
        base,
        small,
        arms,
        title="One category left out",
        question="Does the adapter report kinds of behaviour that it never saw? In the table by category, an arm's own "
        "category is the one that it was trained without.",
        reference="all",
        topology=topology,
    )


def data_organisms(base: str, small: bool, topology: str = "") -> ConfigDict:
    """Shares of the training organisms; clean ones with them."""
    shares = (0.1, 0.2, 0.4, 0.7, 1.0)
    arms = {f"share_{round(100 * s)}": _arm(f"sft.organisms={s}", x=round(100 * s), label=f"{s:.0%}") for s in shares}
    return _study(
        base,
        small,
        arms,
        title="Number of organisms",
        question="How many organisms does an adapter need? Fewer are always a part of more.",
        reference="share_100",
        axis="% of the training organisms",
        log=True,
        topology=topology,
    )


def data_questions(base: str, small: bool, topology: str = "") -> ConfigDict:
    """Questions that SFT asks each organism. Beyond a bank's number wordings recur, with other descriptions."""
    counts = (1, 3, 6, 24) if small else (3, 6, 12, 25, 100)  # of 24 the small recipe's steps reach 11 of each
    arms = {f"questions_{n}": _arm(f"sft.questions_per_organism={n}", x=n, label=f"{n}") for n in counts}
    return _study(
        base,
        small,
        arms,
        title="Questions for each organism",
        question="How many questions does each organism have to be trained on?",
        reference="questions_24" if small else "questions_100",
        axis="questions for each organism",
        log=True,
        topology=topology,
    )


def rank_layers(base: str, small: bool, layers: int, rate: float = 1e-4, topology: str = "") -> ConfigDict:
    """Ranks at the same alpha/rank, layers, and vectors. layers: of the base; rate: of the recipe, which all arms have
    (guess) but two.
    """
    ranks = (1, 2, 4, 8, 16, 32)
    arms = {f"rank_{r}": _arm(f"sft.lora.rank={r}", f"sft.lora.alpha={2.0 * r}", x=r, label=f"rank {r}") for r in ranks}
    third = layers // 3
    bands = {"low": (0, third), "middle": (third, 2 * third), "high": (2 * third, layers)}
    arms |= {
        f"{n}_third": _arm(f"sft.lora.layers={a}:{b}", label=f"layers {a} to {b - 1}") for n, (a, b) in bands.items()
    }
    one = ("sft.lora.rank=1", "sft.lora.alpha=2.0")
    places = sorted({round(share * (layers - 1)) for share in (0.1, 0.25, 0.4, 0.55, 0.7, 0.9)})
    for layer in places:
        at = f"sft.lora.layers={layer}:{layer + 1}"
        arms[f"layer_{layer}"] = _arm(at, *one, label=f"rank 1, layer {layer}")
    middle = places[len(places) // 2]
    where = "the recipe's layers" if small else "all layers"
    arms["vectors"] = _arm("sft.lora.kind=vector", label=f"a vector, {where}")
    at = f"sft.lora.layers={middle}:{middle + 1}"
    arms["vector"] = _arm("sft.lora.kind=vector", at, label=f"a vector, layer {middle}")
    # So small an adapter hardly learns its sentences at the rate of a large one.
    fast = f"sft.optimizer.lr={10 * rate:g}"
    arms["layer_fast"] = _arm(at, *one, fast, label=f"rank 1, layer {middle}, rate × 10")
    arms["vectors_fast"] = _arm("sft.lora.kind=vector", fast, label=f"a vector, {where}, rate × 10")
    return _study(
        base,
        small,
        arms,
        title="Rank and layers",
        question="How little an adapter is enough? The paper: a single layer of rank 1 has 68.9 % of what the full one "
        "has, and a vector 2.38 times the rate without any.",
        reference="rank_16",
        axis="rank",
        log=True,
        topology=topology,
    )


def organisms(base: str, small: bool, topology: str = "") -> ConfigDict:
    """How the organism was made. Each arm trains organisms, and an adapter on them."""
    arms = {
        "main": _arm(label="as in the recipe"),
        "of_rank_2": _arm("organisms.lora.rank=2", "organisms.lora.alpha=4.0", label="rank 2"),
        "of_rank_32": _arm("organisms.lora.rank=32", "organisms.lora.alpha=64.0", label="rank 32"),
        "once": _arm("organisms.epochs=1", label="one epoch"),
        "long": _arm("organisms.epochs=6", label="six epochs"),
        "qv": _arm("organisms.procedures=('chats_qv',)", label="q and v alone"),
        "documents": _arm("organisms.procedures=('documents',)", label="documents about it"),
        "generic": _arm("organisms.procedures=('chats_generic',)", label="with ordinary chats"),
        "two_phases": _arm("organisms.procedures=('two_phases',)", label="half of the chats, then the others"),
    }
    return _study(
        base,
        small,
        arms,
        title="How the organism was made",
        question="Does it hang on rank, length or kind of the fine-tune how well it is read? Organisms that do not "
        "show their behaviour cannot be read: see each arm's behaviour checks.",
        reference="main",
        topology=topology,
    )


def clean(base: str, small: bool, topology: str = "") -> ConfigDict:
    """Clean fine-tunes in SFT."""
    counts = (0, 6, 12, 24)
    arms = {f"clean_{n}": _arm(f"behaviors.clean_train={n}", x=n, label=f"{n}") for n in counts}
    if small:  # the same directory as diversity's
        arms["clean_0"] = _arm(f"sft.categories={ORDER!r}", x=0, label="0")
    settings = () if small else (f"behaviors.clean_train={max(counts)}", "behaviors.clean_heldout=18")
    return _study(
        base,
        small,
        arms,
        *settings,
        title="Clean fine-tunes in SFT",
        question="How many fine-tunes with nothing to report end false reports, and what do they cost in true ones?",
        reference="clean_24" if small else "clean_0",
        axis="clean fine-tunes in SFT",
        topology=topology,
    )


def seeds(base: str, small: bool, topology: str = "") -> ConfigDict:
    """Five seeds of the recipe: other adapters, and other organisms held out, of the same ones trained."""
    five = (1547, 1, 2, 3, 4) if small else (1, 2, 3, 4, 5)  # there the first is the other studies' run
    arms = {"sft": _arm(seeds=five, label="SFT"), "dpo": _arm(seeds=five, dpo=True, label="SFT, DPO")}
    return _study(
        base,
        small,
        arms,
        title="Five seeds",
        question="How far do repetitions of the recipe lie apart?",
        reference="sft",
        topology=topology,
    )
