"""What a study runs: nothing twice, killed or not; an arm that is added alone; and a tiny one from end to end."""

import json
from pathlib import Path

import pytest

from ia_jax import cli
from ia_jax.adapters.store import list_adapters, read_metadata
from ia_jax.analysis import report
from ia_jax.recipes import load_study
from ia_jax.stages import perform, phases, sft
from ia_jax.stages.order import STAGES
from ia_jax.storage import read_jsonl
from ia_jax.studies import running
from tests import runs, study_files
from tests.study_files import ARMS

write = study_files.write  # a fixture


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


def _alone(out, arm):
    rows = read_jsonl(out / "runs" / "all" / "eval" / arm / "reports.jsonl", "")
    return [r for r in rows if r["condition"] == "organism"]


def test_a_tiny_study_from_end_to_end(write, tmp_path, finished, capsys, refused, monkeypatch):
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
    assert len(list((out / "shared").glob("said_alone_*.jsonl"))) == 2  # of four tokens and of all
    with monkeypatch.context() as patch:
        patch.setattr("ia_jax.stages.alone.ask_organisms", lambda *a, **k: pytest.fail("asked again"))
        for name, more in (("third", "eval.train_organisms=1"), ("other_ia", "sft.steps=3")):  # another workdir too
            arms[name] = {"overrides": ("eval.max_new_tokens=4", more)}
            assert cli.main(study(f"--arm={name}")) == 0
    rows = {n: {(r["organism"], r["question"]): r["report"] for r in _alone(out, n)} for n in ("again", "third")}
    assert rows["third"].items() <= rows["again"].items()
    arms["longer"] = {"overrides": ("eval.max_new_tokens=6",)}
    with monkeypatch.context() as patch:
        patch.setattr("ia_jax.stages.alone.ask_organisms", lambda *a, **k: pytest.fail("asked again"))
        with pytest.raises(pytest.fail.Exception):
            cli.main(study("--arm=longer"))
    for name in ("third", "other_ia", "longer"):
        del arms[name]
    assert cli.main(study()) == 0
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
