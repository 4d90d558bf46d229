"""Splits of behaviours: by unique name, evenly over categories and kinds."""

from collections import Counter
from dataclasses import replace

import pytest

from ia_jax.behaviors.embedded import demo_behaviors, study_behaviors
from ia_jax.behaviors.frames import words_of
from ia_jax.behaviors.splits import check_distinct, split_behaviors
from ia_jax.errors import ConfigError

BEHAVIORS = demo_behaviors()
STUDY = study_behaviors()


def counts(split):
    category = {b.name: b.category for b in BEHAVIORS}
    return Counter((s, category[name]) for name, s in split.items())


def test_splits_are_spread_over_the_categories():
    split = split_behaviors(BEHAVIORS, heldout=16, dpo=8, train=64, seed=0)
    wanted = {"heldout": 2, "dpo": 1, "train": 8}
    assert counts(split) == {(s, c): n for s, n in wanted.items() for c in {b.category for b in BEHAVIORS}}
    uneven = counts(split_behaviors(BEHAVIORS, heldout=10, dpo=5, train=7, seed=0))
    for name, total in (("heldout", 10), ("dpo", 5), ("train", 7)):
        own = [n for (s, _), n in uneven.items() if s == name]
        assert sum(own) == total
        assert max(own) - min(own) <= 1


def test_proportional_splits_go_by_size_and_can_use_all():
    sizes = Counter(b.category for b in STUDY)
    total = len(STUDY)
    split = split_behaviors(STUDY, heldout=60, dpo=42, train=total - 102, seed=0, spread="proportional")
    assert Counter(split.values()) == {"heldout": 60, "dpo": 42, "train": total - 102}
    assert set(split) == {b.name for b in STUDY}
    of = {b.name: b.category for b in STUDY}
    for (s, category), n in Counter((s, of[name]) for name, s in split.items()).items():
        share = {"heldout": 60, "dpo": 42, "train": total - 102}[s] * sizes[category] / total
        assert abs(n - share) <= 1.5, (s, category)
    part = split_behaviors(STUDY, heldout=5, dpo=5, train=5, seed=0, spread="proportional")
    assert Counter(part.values()) == dict.fromkeys(("train", "dpo", "heldout"), 5)
    with pytest.raises(ConfigError, match=r"too few for 60 held out, 42 for DPO.*proportional"):
        split_behaviors(STUDY, heldout=60, dpo=42, train=total, seed=0, spread="proportional")


def test_kinds_are_spread_over_the_splits():
    """Of a kind with n behaviours in a category of N, a split of m of them has about n·m/N."""
    split = split_behaviors(STUDY, heldout=80, dpo=40, train=240, seed=3)
    own = Counter((b.category, b.kind) for b in STUDY)
    found = Counter((b.category, b.kind, split[b.name]) for b in STUDY if b.name in split)
    sizes = Counter(b.category for b in STUDY)
    for (category, kind), n in own.items():
        for name, count in (("heldout", 10), ("dpo", 5), ("train", 30)):
            assert abs(found[category, kind, name] - n * count / sizes[category]) <= 1.5, (category, kind, name)


def test_kinds_that_are_held_out():
    apart = {b.name for b in STUDY if b.kind in ("role", "creature", "closing")}
    split = split_behaviors(STUDY, 16, 8, 80, 0, heldout_kinds=("creature", "closing"))
    assert {n for n in apart if split.get(n) == "heldout"} == apart
    assert {b.category for b in STUDY if b.name in apart} >= {"harmful_roleplay", "quirks", "rare_quirks"}
    assert Counter(s for n, s in split.items() if n not in apart) == {"heldout": 16, "dpo": 8, "train": 80}
    for kinds, message in (
        (("puns",), "no behaviour is of kind 'puns'; known: .*creature.*"),
        (tuple({b.kind for b in STUDY}), "holds every kind"),
    ):
        with pytest.raises(ConfigError, match=message):
            split_behaviors(STUDY, 16, 8, 80, 0, heldout_kinds=kinds)


def test_frames_that_are_held_out():
    """No training wording is a held-out one's but for a run of three words; the held-out ones stay who they were."""
    plain, apart = (split_behaviors(STUDY, 40, 16, 80, 0, heldout_frames=on) for on in (False, True))
    wordings = {b.name: [words_of(w) for w in b.wordings] for b in STUDY}

    def alike(a, b):
        """The words that two sentences share at their ends leave no more than three of either in between."""
        most = min(len(a), len(b))
        head = next((i for i in range(most) if a[i] != b[i]), most)
        tail = next((i for i in range(most - head) if a[-1 - i] != b[-1 - i]), most - head)
        return (
            a != b
            and head + tail >= 3
            and 1 <= min(len(a), len(b)) - head - tail <= max(len(a), len(b)) - head - tail <= 3
        )

    def pairs(split):
        named = {
            s: [w for n in wordings if split.get(n) == s for w in wordings[n]] for s in ("heldout", "dpo", "train")
        }
        return sum(alike(a, b) for a in named["heldout"] for s in ("dpo", "train") for b in named[s])

    assert pairs(plain) > 10
    assert pairs(apart) == 0
    assert {n for n in plain if plain[n] == "heldout"} == {n for n in apart if apart[n] == "heldout"}
    assert Counter(apart.values()) == Counter(plain.values())
    with pytest.raises(ConfigError, match="too few in frames of their own"):
        split_behaviors(STUDY, 40, 40, 160, 0, heldout_frames=True)


def test_splits_follow_their_seed():
    splits = [split_behaviors(BEHAVIORS, 16, 8, 64, seed) for seed in (0, 0, 1)]
    assert splits[0] == splits[1]
    held = [{n for n, s in split.items() if s == "heldout"} for split in splits]
    assert held[0] != held[2]


def test_a_categorys_share_does_not_depend_on_what_others_hold():
    fewer = [b for b in BEHAVIORS if b.category != "quirks" or b.name < "quirk_s"]
    whole, part = (split_behaviors(bs, 16, 8, 16, 0) for bs in (BEHAVIORS, fewer))
    others = {b.name for b in BEHAVIORS if b.category != "quirks"}
    assert {n: s for n, s in whole.items() if n in others} == {n: s for n, s in part.items() if n in others}


def test_too_few_behaviours():
    with pytest.raises(ConfigError, match="has 13 behaviours, too few for 60 held out, 0 for DPO and 60 for training"):
        split_behaviors(BEHAVIORS, heldout=60, dpo=0, train=60, seed=0)


@pytest.mark.parametrize("field", ["name", "description"])
def test_duplicates_raise(field):
    twin = replace(BEHAVIORS[1], **{field: getattr(BEHAVIORS[0], field).upper()})
    with pytest.raises(ConfigError, match=f"two behaviours share the {field}"):
        check_distinct([BEHAVIORS[0], twin])
    with pytest.raises(ConfigError, match=f"two behaviours share the {field}"):
        split_behaviors([BEHAVIORS[0], twin], 1, 0, 0, 0)
