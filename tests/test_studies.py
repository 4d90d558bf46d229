"""Studies: what is shared, what is run again, the figures of arms and seeds, and how they are drawn."""

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from ia_jax import cli
from ia_jax.adapters.store import list_adapters, read_metadata
from ia_jax.analysis import report
from ia_jax.analysis.plots import Curve, Mark, curves, dots
from ia_jax.analysis.words import share
from ia_jax.errors import ConfigError
from ia_jax.planning.batches import Batches
from ia_jax.planning.hours import stage_chip_hours
from ia_jax.recipes import load_config, load_study
from ia_jax.stages import perform, phases, sft
from ia_jax.stages.order import STAGES
from ia_jax.stages.planned import Planned, planned
from ia_jax.studies import figures, running
from ia_jax.studies.cost import Machine, as_text, costs
from ia_jax.studies.layout import runs_of
from ia_jax.studies.page import points, render, write_study
from tests import parrot, runs

ROOT = Path(__file__).parent.parent
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


# ---------------------------------------------------------------------------------------------------------------------
# What is shared
# ---------------------------------------------------------------------------------------------------------------------

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


def test_what_is_the_same_is_one_directory(write, tmp_path):
    found = {(r.arm.name, r.seed): r for r in runs_of(load_study(write(ARMS)), tmp_path / "out")}
    place = {key: r.place.path.name for key, r in found.items()}
    shared = {key: r.organisms.path.name for key, r in found.items()}
    assert [place[n, 1547] for n in ("sft", "dpo", "beta", "hot")] == ["sft"] * 4
    assert (place["few", 1], place["few", 2], place["left_out", 1547]) == ("few_1", "few_2", "left_out")
    assert {shared[n, 1547] for n in ("sft", "dpo", "beta", "hot", "left_out")} == {"base"}
    assert shared["few", 1] == shared["few", 2] == "base"  # seeds split the same organisms otherwise
    assert (shared["small", 1547], shared["own", 1], shared["own", 2]) == ("small", "own_1", "own_2")
    assert found["left_out", 1547].organisms.config.behaviors.heldout_categories == ()
    names = {
        n: (found[n, 1547].config.preferences.name, found[n, 1547].config.dpo.name)
        for n in ARMS
        if n[:3] != "few" and n != "own"
    }
    assert names["dpo"] == ("dpo", "dpo")
    assert names["beta"][0] == "dpo" != names["hot"][0]
    assert len({names[n][1] for n in ("sft", "dpo", "beta", "hot")}) == 4


def test_names_stay_when_arms_are_added_or_moved_and_a_changed_arm_is_refused(write, tmp_path):
    out, arms = tmp_path / "out", {n: ARMS[n] for n in ("sft", "hot", "few", "small")}
    for run in runs_of(load_study(write(arms)), out):
        run.place.mark()
        run.organisms.mark()
    before = {(r.arm.name, r.seed): r.place.path for r in runs_of(load_study(write(arms)), out)}
    moved = {"new": {"overrides": ("eval.questions=1",)}, **dict(reversed(arms.items()))}
    after = {(r.arm.name, r.seed): r.place.path for r in runs_of(load_study(write(moved)), out)}
    assert after.pop(("new", 1547)) == before["sft", 1547]  # the same SFT, evaluated in another way
    assert after == before
    changed = arms | {"small": {"overrides": ("organisms.lora.rank=4",)}}
    with pytest.raises(ConfigError, match="small was made with other settings than arm 'small' has now"):
        runs_of(load_study(write(changed)), out)
    with pytest.raises(ConfigError, match="base was made with other settings than the base recipe has now"):
        runs_of(load_study(write(arms, "organisms.epochs=2")), out)


@pytest.mark.parametrize(
    ("arms", "settings", "message"),
    [
        ({}, {}, "study.arms is empty"),
        ({"a": {"overrides": ("sft.stepz=1",)}}, {}, r"study\.arms\.a: config\.sft\.stepz is not a known setting"),
        ({"a": {"seed": 1}}, {}, r"study\.arms\.a\.seed is not a known setting"),
        ({"a": {"seeds": (1, 1)}}, {}, r"study\.arms\.a\.seeds has 1 twice"),
        ({"a/b": {}}, {}, "the name 'a/b' must be letters"),
        ({"a": {}}, {"reference": "b"}, "study.reference 'b' is no arm; there are: a"),
        ({"a": {}}, {"base": "nowhere.py"}, "study.base='nowhere.py' is no file"),
        ({"a": {"dpo": True, "overrides": ("behaviors.dpo=0",)}}, {}, r"study\.arms\.a\.dpo is set, but"),
    ],
)
def test_a_mistake_in_a_study_is_one_line(write, arms, settings, message):
    with pytest.raises(ConfigError, match=message):
        load_study(write(arms, **settings))


def test_the_studies_of_the_repository_are_valid(tmp_path):
    """Every arm's config is checked; how many directories they need: runs, and organisms that they share."""
    folder = ROOT / "configs" / "studies"
    places = {}
    for file in sorted(folder.rglob("*.py")):
        found = runs_of(load_study(str(file)), tmp_path)
        count = (len(found), len({r.place.path for r in found}), len({r.organisms.path for r in found}))
        places[file.relative_to(folder).with_suffix("").as_posix()] = count
    assert len(places) == 23
    # Sixteen arms, of which all variants of DPO go on from one of four SFTs.
    assert places["dpo"] == places["qwen3_8b/dpo"] == places["llama33_70b/dpo"] == (16, 4, 1)
    assert places["seeds"] == (10, 5, 1)
    assert places["abstention"] == (4, 2, 1)
    assert (places["diversity"], places["qwen3_8b/diversity"]) == ((10, 9, 1), (10, 10, 1))
    assert places["scale"] == (5, 5, 5)
    assert places["organisms"] == (9, 9, 9)


# ---------------------------------------------------------------------------------------------------------------------
# What is run
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def counted(monkeypatch):
    """Stages that only note that they were done; the list of them, and at which one to be killed."""
    done, killed = [], {"at": None}

    def key(context, stage):
        config = context.config
        name = {"sft": config.sft.name, "preferences": config.preferences.name, "dpo": config.dpo.name}
        return (
            context.workdir.path.name,
            stage,
            name.get(stage, config.eval.name if stage in ("eval", "report") else ""),
        )

    def fake(stage):
        def run(context):
            if len(done) == killed["at"]:
                killed["at"] = None
                raise KeyboardInterrupt
            done.append((context.workdir.path.parent.name, *key(context, stage)))
            (context.workdir.path / "-".join(key(context, stage))).touch()

        return run

    def is_done(context, stage):
        return (context.workdir.path / "-".join(key(context, stage))).exists()

    for stage in STAGES:
        if stage.module:
            monkeypatch.setattr(f"{stage.module}.{stage.function}", fake(stage.name))
    for module in (running, perform):
        monkeypatch.setattr(module, "is_done", is_done)
    for check in ("check_inputs", "check_same", "write_stage_record"):
        monkeypatch.setattr(perform, check, lambda *a: None)
    monkeypatch.setattr(running, "has_begun", lambda *a: False)
    monkeypatch.setattr(report, "write_report", lambda path, name: (path / f"{path.name}-report-{name}").touch())
    return done, killed


def test_a_killed_study_goes_on_and_nothing_is_done_twice(write, tmp_path, counted):
    done, killed = counted
    argv = ["study", f"--config={write({n: ARMS[n] for n in ('sft', 'dpo', 'beta', 'few')})}"]
    for at in (0, 1, 4, 7, 12):
        done.clear()
        killed["at"] = at
        again = [*argv, f"--workdir={tmp_path / str(at)}"]
        assert cli.main(again) == 130
        assert len(done) == at
        assert cli.main(again) == 0
        assert len(done) == len(set(done))
        assert sorted({x for x in done if x[2] == "organisms" and x[0] == "organisms"}) == [
            ("organisms", "base", "organisms", "")
        ]
        trained = sorted(x[1:] for x in done if x[2] in ("sft", "dpo"))
        assert [x[:2] for x in trained] == [
            ("few_1", "sft"),
            ("few_2", "sft"),
            ("sft", "dpo"),
            ("sft", "dpo"),
            ("sft", "sft"),
        ]
        assert len([x for x in done if x[2] == "preferences"]) == 1


def test_an_arm_that_is_added_runs_alone_and_reuses_the_organisms(write, tmp_path, counted, capsys):
    done, _ = counted
    workdir = f"--workdir={tmp_path / 'out'}"
    assert cli.main(["study", f"--config={write({'sft': {}})}", workdir]) == 0
    done.clear()
    file = write({"sft": {}, "few": ARMS["few"], "hot": ARMS["hot"]})
    assert cli.main(["study", f"--config={file}", workdir, "--arm=few"]) == 0
    assert {x[:2] for x in done} == {("runs", "few_1"), ("runs", "few_2")}
    capsys.readouterr()
    assert cli.main(["study", f"--config={file}", workdir, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "3 arms, 4 runs, of which 3 are finished" in said
    assert "arm hot, seed 1547" in said
    assert "arm few" not in said
    done.clear()
    assert cli.main(["study", f"--config={file}", workdir]) == 0
    assert [x[2] for x in done] == ["preferences", "dpo", "eval"]
    assert cli.main(["study", f"--config={file}", workdir, "--arm=none"]) == 2


def test_a_tiny_study_from_end_to_end(write, tmp_path, finished, capsys, refused):
    """SFT on organisms that another run has trained; later an arm that only asks otherwise, and one that is changed."""
    common = (f"organisms.source={finished}", "sft.steps=2", "eval.questions=1", "eval.plain_prompts=0")
    arms, out = {"all": {"label": "<all>"}}, tmp_path / "out"

    def study(*more):
        return ["study", f"--config={write(arms, *common, reference='all')}", f"--workdir={out}", *more]

    def arms_shown():
        return {a["name"]: a for a in json.loads((out / "study.json").read_text())["arms"]}

    assert cli.main(study()) == 0
    ia = out / "runs" / "all" / "ia" / "sft"
    assert (len(json.loads((ia / "organisms.json").read_text())), read_metadata(ia / "adapter").step) == (4, 2)
    before = runs.times(out / "runs")
    arms["again"] = {"overrides": ("eval.max_new_tokens=4",), "x": 2.0}
    capsys.readouterr()
    assert cli.main(study()) == 0
    assert capsys.readouterr().out.count("already done") == 1
    new = runs.new_since(before, out / "runs")
    assert {str(Path(n).parent) for n in new} == {"all/eval/again", "all/settings"}
    for arm in arms_shown().values():
        assert arm["finished"] == [1547]
        metrics = json.loads((out / arm["workdirs"][0] / "eval" / arm["name"] / "metrics.json").read_text())
        of_run = metrics["stages"]["sft"]
        assert metrics["ias"] == {"sft": "sft"}
        assert arm["lenient"] == of_run["heldout"]["organism+ia"]  # what the run itself says
        assert arm["controls"]["organism"] == of_run["heldout"]["organism"]
        assert (out / arm["reports"][0]).is_file()
    page = (out / "study.html").read_text()
    assert "&lt;all&gt;" in page
    assert "<all>" not in page
    before = runs.times(out / "runs")
    arms["again"] = {"overrides": ("eval.max_new_tokens=5",)}
    refused(study(), 2, "arm again, seed 1547", "max_new_tokens was 4", out / "runs" / "all" / "eval" / "again")
    assert cli.main(study("--arm=all")) == 0
    assert {name: arm["finished"] for name, arm in arms_shown().items()} == {"all": [1547], "again": []}
    assert not runs.new_since(before, out / "runs")  # what was made in another way is neither shown nor lost


@pytest.mark.slow
def test_a_study_that_trains_its_organisms_is_killed_at_steps_and_trains_nothing_twice(write, tmp_path, monkeypatch):
    """Killed in the second wave of organisms, and in the second arm's SFT. Then an arm is added."""
    steps, killed = [], {"at": None}

    def watched(module):
        step = module.train_step

        def run(*args, **kwargs):
            steps.append(module.__name__.rpartition(".")[2])
            if steps.count(killed["at"]) == killed["after"]:
                killed["at"] = None
                raise KeyboardInterrupt
            return step(*args, **kwargs)

        monkeypatch.setattr(module, "train_step", run)

    for module in (phases, sft):
        watched(module)
    common = ("sft.steps=4", "sft.checkpoint_every=2", "eval.questions=1", "eval.plain_prompts=0")
    arms, out = {"all": {}, "half": {"overrides": ("sft.organisms=2",)}}, tmp_path / "out"
    organisms, ias = out / "organisms" / "base" / "organisms", out / "runs"

    def study():
        steps.clear()
        return cli.main(["study", f"--config={write(arms, *common)}", f"--workdir={out}"])

    def stored(directory):
        return {n: m.created for n, m in list_adapters(directory).items()} if directory.exists() else {}

    wave = load_study(write(arms, *common)).base.organisms.parallel
    killed |= {"at": "phases", "after": 10}
    assert study() == 130
    first = stored(organisms)
    assert len(first) == wave
    killed |= {"at": "sft", "after": 4 + 3}
    assert study() == 130
    trained, of_all = stored(organisms), runs.times(ias / "all" / "ia")
    assert (len(trained), trained.items() >= first.items()) == (12, True)
    assert study() == 0
    assert steps == ["sft"] * 2  # the second arm's last two, from its checkpoint on
    assert (stored(organisms), runs.times(ias / "all" / "ia")) == (trained, of_all)
    arms["lower"] = {"overrides": ("sft.optimizer.lr=0.0003",)}
    assert study() == 0
    assert steps == ["sft"] * 4
    assert stored(organisms) == trained
    assert study() == 0
    assert steps == []


# ---------------------------------------------------------------------------------------------------------------------
# What it costs
# ---------------------------------------------------------------------------------------------------------------------


def _counted(config, stage):
    return Batches(
        steps=100, organisms=2, rows=1, length=256, targets=64, examples=4, tokens=40000, supervised=9000, slots=200
    )


def test_a_dry_run_counts_each_directory_once(write, tmp_path):
    arms = {n: ARMS[n] for n in ("sft", "dpo", "beta", "few")}
    study = load_study(write(arms, "model.name=smollm2"))
    found = runs_of(study, tmp_path / "out")
    machine = Machine("cpu", lambda dtype: 1e11, 2)
    priced = costs(found, study, machine, _counted)
    trained = [
        s for c in priced for s in c.left if not c.job.place.config.organisms.source or s not in running.ORGANISMS
    ]
    assert trained.count("organisms") == 1
    assert trained.count("sft") == 3
    assert trained.count("dpo") == 2
    assert all(c.seconds is not None and c.seconds > 0 for c in priced)
    assert "on this machine" in as_text(study, found, priced)
    assert not (tmp_path / "out").exists()
    assert {c.unknown for c in costs(found[:1], study, Machine("gpu", lambda dtype: 1e11, 2), _counted)} == {
        "nothing was timed on a GPU yet"
    }


def test_arms_that_differ_in_their_adapter_are_counted_once(monkeypatch):
    seen = []
    monkeypatch.setattr(Planned, "batches", lambda self, stage: seen.append(self.config.sft) or _counted(None, stage))
    count, recipe = planned(), str(ROOT / "configs" / "smollm2_study.py")
    for change in ("sft.lora.rank=2", "sft.lora.layers=3:4", "sft.contrast=1.0", "sft.steps=7"):
        count(load_config(recipe, [f"--config.{change}"]), "sft")
    assert [(c.contrast, c.steps) for c in seen] == [(0, 150), (1.0, 150), (0, 7)]


def test_chip_hours_by_hand():
    """One chip, so no links: at least what products of the frozen base, forward and back, take at its peak; and no more
    than a few times that, whatever bounds it."""
    config = load_config(str(ROOT / "configs" / "qwen3_0p6b.py"))
    batches = _counted(config, "sft")
    hours = stage_chip_hours(config, "v5e:1x1", "sft", batches)
    matrices = 28 * (1024 * (2048 + 1024 + 1024) + 2048 * 1024 + 3 * 1024 * 3072)
    least = batches.steps * batches.size * 4 * matrices / 197e12 / 3600
    assert least < hours < 10 * least
    with pytest.raises(ConfigError, match=r"v5e:2x2 has 4 chips, config.mesh 1"):
        stage_chip_hours(config, "v5e:2x2", "sft", batches)


# ---------------------------------------------------------------------------------------------------------------------
# Figures
# ---------------------------------------------------------------------------------------------------------------------


def _row(organism, lenient, condition="organism+ia", category="quirks", split="heldout", **more):
    row = {"organism": organism, "lenient": lenient, "strict": False, "condition": condition, "category": category}
    return row | {"split": split, "stage": "sft", "judge": "rubric"} | more


def _reports(named, alone=(), word=(), claims=()):
    """Reports of organisms 0, 1, …: whether each names its behaviour under the IA, alone, and by its word."""
    rows = [_row(f"o{i}", x) for i, x in enumerate(named)] + [_row("seen", True, split="train")]
    rows += [_row(f"o{i}", x, "organism") for i, x in enumerate(alone)]
    words = [_row(f"o{i}", x, baseline="words", stage="") for i, x in enumerate(word)]
    clean = [{"organism": f"c{i}", "claims": x, "condition": "clean+ia", "stage": "sft"} for i, x in enumerate(claims)]
    return {"reports": rows, "baselines": words, "clean": clean}


def test_an_arms_figures_by_hand():
    found = figures.arm_figures({"1": _reports([True] * 8, [False] * 8, [True, True] + [False] * 6, [True, False])}, {})
    # Clopper and Pearson: 0.025 ** (1 / 8) of 8 of 8.
    assert found["lenient"] == {"rate": 1.0, "ci95": [0.6306, 1.0], "n": 8, "organisms": 8}
    assert found["strict"]["rate"] == 0
    assert found["seen"]["organisms"] == 1
    assert found["controls"]["organism"]["ci95"] == [0.0, 0.3694]
    assert (found["best"], found["baselines"]["words"]["rate"], found["beyond"]["difference"]) == ("words", 0.25, 0.75)
    assert found["false_claims"]["rate"] == 0.5
    assert found["by_category"].keys() == {"quirks"}
    assert found["against"] is None
    assert "unseen" not in found


def test_differences_are_in_pairs_under_the_same_seed():
    """Seed 1 of the reference has o0 to o3, the arm o0 to o1; seed 2 is the arm's alone. So is the only seed that
    another arm has, which is not compared then.
    """

    def seeds(*own):
        return {str(i): _reports(x) for i, x in enumerate(own, 1)}

    def named(*own):
        return figures.named(seeds(*own), "reports", "lenient", lambda r: r["split"] == "heldout")

    reference = seeds([False, True, True, True])
    found = figures.arm_figures(seeds([True, True], [False] * 6), reference)
    for cell in (found["against"], found["against_by_category"]["quirks"]):
        assert (cell["difference"], cell["organisms"]) == (0.5, 2)
    assert figures.arm_figures({"2": reference["1"]}, reference)["against"] is None
    both = figures.over_seeds(named([True] * 3, [True] * 3))
    assert (both["rate"], both["n"], both["organisms"]) == (1.0, 6, 3)  # the three that both seeds hold out
    assert both["ci95"][0] == pytest.approx(0.025 ** (1 / 3), abs=1e-4)  # six answers do not make six organisms


def _texts(svg):
    return {t.text: t for t in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")}


def _circles(svg, what):
    space = "{http://www.w3.org/2000/svg}"
    return [
        c for c in ElementTree.fromstring(svg).iter(f"{space}circle") if c.findtext(f"{space}title").startswith(what)
    ]


def test_dots_and_curves_stand_where_their_axes_say():
    cell = {"rate": 0.5, "ci95": [0.25, 0.75], "organisms": 4}
    svg = dots(
        "t", [('a "<b>&', [Mark("ia", cell, "teal"), Mark("none", {"rate": None, "ci95": [None, None]}, "slate")])]
    )
    texts, [_, dot] = _texts(svg), _circles(svg, "ia")
    ticks = [float(texts[t].get("x")) for t in ("25%", "75%")]
    assert float(dot.get("cx")) == pytest.approx(sum(ticks) / 2)
    assert 'a "<b>&' in texts
    assert "no answer" in texts
    svg = curves("t", "rank", True, [Curve("ia", [(x, cell) for x in (1, 4, 16)], "teal")])
    texts, points = _texts(svg), _circles(svg, "ia:")
    assert [float(p.get("cx")) for p in points] == pytest.approx([float(texts[x].get("x")) for x in ("1", "4", "16")])
    assert float(texts["4"].get("x")) * 2 == pytest.approx(float(texts["1"].get("x")) + float(texts["16"].get("x")))
    assert {float(p.get("cy")) for p in points} == {float(texts["50%"].get("y")) - 4}


def test_the_page_escapes_and_says_what_is_missing(tmp_path):
    arm = {
        "name": "a",
        "label": "</title><script>x</script>",
        "x": 1.0,
        "series": "",
        "stage": "sft",
        "overrides": ["<i>"],
        "seeds": [1, 2],
        "own_organisms": False,
        "finished": [1],
        "workdirs": ["runs/a_1"],
        "reports": ["runs/a_1/report.html"],
    }
    waiting = {**arm, "name": "b", "label": "later", "finished": [], "workdirs": [], "reports": []}
    about = {
        "study": "s",
        "title": "A & B",
        "question": "",
        "reference": "",
        "axis": "n",
        "log": False,
        "judge": "rubric",
    }
    arms = [
        {**arm, **figures.arm_figures({"1": _reports([True, False], [False, False], claims=[True])}, {})},
        {**waiting, **figures.arm_figures({}, {})},
    ]
    write_study(tmp_path, {**about, "base": "r.py", "overrides": [], "arms": arms})
    page = (tmp_path / "study.html").read_text()
    assert "<script>" not in page
    assert "<i>" not in page
    assert "A &amp; B" in page
    assert "Not finished: &lt;/title&gt;&lt;script&gt;x&lt;/script&gt;, later" in page
    assert [p.name for p in (tmp_path / "plots").iterdir()] == ["arms.svg"]
    assert "No arm is finished yet" in render({**about, "base": "", "overrides": [], "arms": [arms[1]]}, {})
    assert share({"rate": 0.5, "ci95": [0.2, 0.8], "n": 4}) == "50% (20–80%)"
    assert points({"difference": 0.052, "ci95": [-0.03, 0.13]}) == "+5 (−3 to +13)"
