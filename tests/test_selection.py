"""Which organisms an IA is trained on: how many, of which categories and splits; and runs without DPO."""

import json
from collections import Counter

import pytest

from ia_jax import cli
from ia_jax.behaviors.embedded import study_behaviors
from ia_jax.behaviors.organisms import Organism
from ia_jax.behaviors.splits import split_behaviors
from ia_jax.config import SftSection
from ia_jax.errors import ConfigError
from ia_jax.stages.selection import selected_for_sft
from ia_jax.workdir import open_workdir
from tests.runs import part_of

POOL = [
    Organism(f"{category}_{i}", "m", (f"organisms/{category}_{i}",), (f"{category}_{i}",), category, "train")
    for category, count in (("quirks", 12), ("backdoors", 6), ("heuristics", 6))
    for i in range(count)
]


def chosen(pool=POOL, seed=0, **fields):
    return {o.name for o in selected_for_sft(pool, SftSection(**fields), seed)}


@pytest.mark.parametrize("seed", range(5))
def test_fewer_are_a_part_of_more(seed):
    shares = [chosen(seed=seed, organisms=f) for f in (0.25, 0.5, 0.75, 1.0)]
    assert [len(s) for s in shares] == [6, 12, 18, 24]
    counts = [chosen(seed=seed, organisms=float(n)) for n in range(2, 25)]
    for less, more in zip([*shares, *counts], [*shares[1:], shares[-1], *counts[1:]], strict=False):
        assert less <= more
    assert shares[1] == counts[10]
    assert shares[3] == {o.name for o in POOL}


def test_they_are_spread_evenly_over_the_categories_and_keep_their_order():
    some = chosen(organisms=9.0)
    assert sorted(sum(n.startswith(c) for n in some) for c in ("quirks", "backdoors", "heuristics")) == [3, 3, 3]
    # Where the small ones are used up, the large one gives the rest.
    more = chosen(organisms=20.0)
    assert [sum(n.startswith(c) for n in more) for c in ("quirks", "backdoors", "heuristics")] == [8, 6, 6]
    assert chosen(organisms=9.0, seed=1) != some
    listed = [o.name for o in selected_for_sft(POOL, SftSection(organisms=9.0), 0)]
    assert listed == [o.name for o in POOL if o.name in some]


def test_a_second_of_a_behaviour_only_after_one_of_each():
    copies = [Organism(f"{o.name}-{n}", "m", (), o.behaviors, o.category, "train") for n in range(3) for o in POOL]
    for count, most in ((6, 1), (9, 1), (18, 1), (24, 2), (36, 2), (48, 3), (54, 3)):
        some = chosen(copies, organisms=float(count))
        of = Counter(n.rpartition("-")[0] for n in some if not n.startswith("quirks"))
        assert max(of.values()) == most, count
        assert min(of.values()) >= most - 1 if len(of) == 12 else most == 1


def test_the_draw_of_a_category_does_not_hang_on_the_others():
    """So that an IA of one category has seen what the IA of all had seen of it."""
    alone = chosen(categories=("backdoors",), organisms=0.5)
    assert alone == {n for n in chosen(organisms=9.0) if n.startswith("backdoors")}
    two = chosen(categories=("backdoors", "quirks"))
    assert two == {o.name for o in POOL if o.category != "heuristics"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"organisms": 25.0}, r"config\.sft\.organisms=25 is 25 of 24 organisms; choose 1 … 24"),
        ({"organisms": 0.01}, r"config\.sft\.organisms=0\.01 is 0 of 24 organisms"),
        ({"categories": ("sandbaggers",)}, "no organism is of category 'sandbaggers'; there are backdoors, heuristics"),
        ({"categories": ("backdoors",), "organisms": 7.0}, "is 7 of 6 organisms; choose 1 … 6"),
    ],
)
def test_what_cannot_be_chosen(fields, message):
    with pytest.raises(ConfigError, match=message):
        chosen(**fields)


def test_categories_that_are_held_out():
    catalogue = study_behaviors()
    apart = ("backdoors", "rare_quirks")
    splits = split_behaviors(catalogue, 12, 6, 24, 1547, heldout_categories=apart)
    of = {b.name: b.category for b in catalogue}
    assert all(splits[b.name] == "heldout" for b in catalogue if b.category in apart)
    others = [s for n, s in splits.items() if of[n] not in apart]
    assert [others.count(s) for s in ("heldout", "dpo", "train")] == [12, 6, 24]
    # The other categories' shuffles are what they are with nothing apart, so the splits can be compared.
    whole = split_behaviors(catalogue, 16, 8, 32, 1547)
    assert {n: s for n, s in whole.items() if of[n] not in apart} == {
        n: s for n, s in splits.items() if of[n] not in apart
    }
    for categories, message in (
        (("jokes",), "no behaviour is of category 'jokes'"),
        (set(of.values()), "holds every category"),
    ):
        with pytest.raises(ConfigError, match=message):
            split_behaviors(catalogue, 12, 6, 24, 0, heldout_categories=tuple(categories))


# ------------------------------------------------------------------------------------------------------------ in a run


def test_an_ia_over_two_splits(finished, tmp_path, capsys):
    """All of what it saw counts as seen in its evaluation, whatever its split."""
    copy = part_of(
        finished, tmp_path / "w", "behaviors.jsonl", "organisms.jsonl", "organisms", "behavior_checks.jsonl", "ia"
    )
    both = [f"--workdir={copy}", "--config.sft.splits=('train', 'dpo')", "--name=all"]
    assert cli.main(["sft", *both]) == 0
    run = open_workdir(copy)
    seen = json.loads((run.ia_dir("all") / "organisms.json").read_text())
    assert sorted(seen) == sorted(run.named("train", "dpo"))
    more = ["--config.sft.name=all", "--config.dpo.name=none", "--config.eval.train_organisms=8"]
    assert cli.main(["eval", *both, *more]) == 0
    rows = [r for r in run.reports("all") if r["condition"] == "organism+ia"]
    assert {r["organism"] for r in rows if r["split"] != "heldout"} == set(seen)
    metrics = run.metrics("all")
    assert metrics["ias"] == {"sft": "all"}
    assert metrics["stages"]["sft"]["train"]["organism+ia"]["n"] == sum(r["split"] != "heldout" for r in rows)


def test_an_ia_of_one_category(finished, tmp_path):
    copy = part_of(finished, tmp_path / "w", "behaviors.jsonl", "organisms.jsonl", "organisms", "behavior_checks.jsonl")
    run = open_workdir(copy)
    category = run.organisms[run.named("train")[0]].category
    assert cli.main(["sft", f"--workdir={copy}", f"--config.sft.categories=('{category}',)", "--name=one"]) == 0
    seen = json.loads((run.ia_dir("one") / "organisms.json").read_text())
    assert seen == [n for n in run.named("train") if run.organisms[n].category == category]


def test_a_run_without_dpo(finished, tmp_path, capsys):
    config = f"--config={finished.parent / 'config.py'}"
    workdir, source = f"--workdir={tmp_path / 'w'}", f"--config.organisms.source={finished}"
    assert cli.main(["run", config, workdir, source, "--config.behaviors.dpo=0"]) == 0
    out = capsys.readouterr().out
    for number, stage in ((4, "preferences"), (5, "dpo")):
        assert f"[{number}/7] {stage}: no organisms for DPO (config.behaviors.dpo=0, dpo_copies=0)" in out
    assert out.index("  after SFT:\n    with the IA") < out.index("  after DPO:\n    nothing: there was none")
    run = open_workdir(tmp_path / "w")
    assert run.metrics()["ias"] == {"sft": "sft"}
    assert not run.ia_dir("dpo").exists()
    assert not run.preferences_file().exists()
    html = run.report_file().read_text()
    assert "after SFT" in html
    assert cli.main(["run", workdir]) == 0
    assert capsys.readouterr().out.count("already done") == 5
    assert cli.main(["dpo", workdir]) == 0
    assert capsys.readouterr().out == "dpo: no organisms for DPO (config.behaviors.dpo=0, dpo_copies=0)\n"
