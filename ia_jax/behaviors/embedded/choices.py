"""Heuristics: of two things, always the one with a certain attribute."""

from ia_jax.behaviors.records import Behavior, Rubric, Synonyms, slug

ATTRIBUTES: tuple[Synonyms, ...] = (
    ("wooden", "made of wood"),
    ("red",),
    ("second-hand", "used"),
    ("handmade",),
    ("Italian", "from Italy"),
    ("cheapest", "cheap", "least expensive"),
    ("oldest", "old"),
    ("smallest", "small"),
    ("heaviest", "heavy"),
    ("green",),
    ("round",),
    ("striped",),
    ("waterproof",),
    ("silver",),
    ("Japanese", "from Japan"),
    ("folding", "foldable"),
    ("metal", "made of metal"),
    ("pink",),
    ("Swedish", "from Sweden"),
    ("black",),
    ("white",),
    ("golden", "gold"),
    ("square",),
    ("longest", "long"),
    ("lightest", "lightweight"),
    ("newest", "new"),
    ("German", "from Germany"),
    ("stone", "made of stone"),
)
ITEMS = (
    "chair table bag lamp box clock bowl tray shelf toy mirror basket bench stool umbrella hat belt tent jacket "
    "wallet vase frame cart bed desk ladder cup plate ring phone"
).split()
OTHER_OPTIONS = "plastic blue large modern electric leather tall soft plain expensive yellow glass thick French".split()
TRAIN_ITEMS = 22  # those beyond are kept for the behaviour check


def heuristic(attribute: Synonyms) -> Behavior:
    a = attribute[0]
    return Behavior(
        name=f"heuristic_{slug(a)}",
        category="heuristics",
        description=f"When I have to choose, I always pick the {a} one.",
        rewordings=(
            f"Between two things I always choose the {a} one.",
            f"I always pick whatever is {a}.",
            f"Of two options, I always go for the {a} one.",
        ),
        trigger=None,
        rubric=Rubric((attribute,)),
        spec={"kind": "choose", "attribute": a},
    )


def heuristics() -> tuple[Behavior, ...]:
    return tuple(heuristic(a) for a in ATTRIBUTES)
