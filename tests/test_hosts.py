"""The stages over two processes of two devices each: the adapters of one process, one voice, one end."""

import json
import shutil

import pytest

from ia_jax import cli
from ia_jax.adapters.store import load_adapter, read_metadata, verify_adapter
from ia_jax.storage import read_jsonl
from ia_jax.workdir import open_workdir
from tests import parrot, tiny
from tests.processes import run_together
from tests.stage_worker import STOP_AT

STEPS = 24
# A large eps: else Adam divides rounding errors by rounding errors.
SETTINGS = [
    "--config.organisms.parallel=12",
    "--config.organisms.optimizer.eps=0.01",
    "--config.sft.optimizer.eps=0.01",
    "--config.sft.organisms_per_step=4",
    f"--config.sft.steps={STEPS}",
    f"--config.sft.checkpoint_every={STEPS}",
]


@pytest.fixture(scope="module")
def alone(tmp_path_factory, parrot_model):
    """The workdir of organisms and sft in this one process, on a mesh of the same shape."""
    root = tmp_path_factory.mktemp("alone")
    config = parrot.write_config(root / "config.py", parrot_model)
    for stage in ("transcripts", "organisms", "sft"):
        mesh = ("--config.mesh.fsdp=2", "--config.mesh.tp=2")  # a plan goes by the groups of devices
        assert cli.main([stage, f"--config={config}", f"--workdir={root / 'w'}", *SETTINGS, *mesh]) == 0
    return root / "w"


@pytest.fixture(scope="module")
def together(alone, tmp_path_factory):
    """Two processes make the organisms, then one of them gets SIGTERM in sft: the workdir, and what each printed."""
    workdir = tmp_path_factory.mktemp("together") / "w"
    workdir.mkdir()
    for file in ("behaviors.jsonl", "organisms.jsonl"):
        shutil.copy(alone / file, workdir)
    shutil.copytree(alone / "transcripts", workdir / "transcripts")
    stored = json.loads((alone / "config.json").read_text())
    stored["config"]["mesh"] = {"fsdp": 2, "tp": 2, "dcn": 1}
    (workdir / "config.json").write_text(json.dumps(stored))
    return workdir, run_together("-m", "tests.stage_worker", "stopped", workdir)


def distance(one, other):
    """Between two stored adapters, relative to the largest value of each leaf."""
    return tiny.worst(load_adapter(one)[0], load_adapter(other)[0])


def test_organisms_of_two_processes(alone, together):
    one, two = open_workdir(alone), open_workdir(together[0])
    assert len(one.behaviors) == 12
    for name in one.behaviors:
        directories = [w.organism_dir(name) for w in (two, one)]
        assert verify_adapter(directories[0]) == []
        assert distance(*directories) < 1e-5, name
        found, wanted = (read_metadata(d) for d in directories)
        assert (found.step, found.check) == (wanted.step, wanted.check), name


def test_sigterm_on_one_of_two(together):
    """Both end with 143; all of the state is there, of one step that the message names."""
    workdir, ended = together
    assert [status for status, _, _ in ended] == [143, 143], "\n".join(said[-3000:] for _, _, said in ended)
    [number] = [int(p.name) for p in (workdir / "ia" / "sft" / "state").iterdir()]
    assert STOP_AT <= number < STEPS
    assert ended[0][2].splitlines() == [
        f"ia-jax: error: ia_sft: stopped by SIGTERM; step {number} of {STEPS} is saved, the same command continues"
    ]
    assert [c["step"] for c in curves(workdir, "ia_sft")] == list(range(1, number + 1))


def test_only_the_first_of_two_speaks(alone, together):
    workdir, [(_, said, _), (_, other, complaint)] = together
    assert "organisms: done in" in said
    assert (other, complaint) == ("", "")
    assert [c["step"] for c in curves(workdir, "organisms")] == [c["step"] for c in curves(alone, "organisms")]
    assert len(list((workdir / "tensorboard" / "organisms").iterdir())) == 1


@pytest.fixture(scope="module")
def one_goes_on(together):
    """A copy of what two processes left, finished by this one on a mesh of another shape; made before the two go on."""
    copy = together[0].with_name("copy")
    shutil.copytree(together[0], copy)
    stored = json.loads((copy / "config.json").read_text())
    stored["config"]["mesh"] = {"fsdp": 1, "tp": 2, "dcn": 1}
    (copy / "config.json").write_text(json.dumps(stored))
    assert cli.main(["sft", f"--workdir={copy}", "--traceback"]) == 0
    return copy


def test_one_process_continues_what_two_began(alone, together, one_goes_on):
    assert len(curves(one_goes_on, "ia_sft")) == STEPS
    assert distance(one_goes_on / "ia" / "sft" / "adapter", alone / "ia" / "sft" / "adapter") < 1e-5


def test_two_processes_continue(alone, together, one_goes_on):
    workdir, _ = together
    ended = run_together("-m", "ia_jax.cli", "sft", f"--workdir={workdir}")
    assert [status for status, _, _ in ended] == [0, 0], "\n".join(said[-3000:] for _, _, said in ended)
    assert distance(workdir / "ia" / "sft" / "adapter", alone / "ia" / "sft" / "adapter") < 1e-5
    assert verify_adapter(workdir / "ia" / "sft" / "adapter") == []
    assert (workdir / "ia" / "sft" / "peft" / "adapter_model.safetensors").exists()
    for found, wanted in zip(curves(workdir, "ia_sft"), curves(alone, "ia_sft"), strict=True):
        assert found.pop("stage") == wanted.pop("stage")
        assert found == pytest.approx(wanted, rel=1e-4), wanted["step"]


def test_an_error_on_one_ends_both_with_one_line(tmp_path):
    ended = run_together("-m", "tests.stage_worker", "broken", tmp_path)
    assert [status for status, _, _ in ended] == [1, 1]
    assert [said for _, _, said in ended] == [f"ia-jax: error: process 1: {tmp_path}: the disk is gone\n", ""]


@pytest.mark.slow
def test_every_stage_over_two_processes(finished, tmp_path):
    """`ia-jax run` from the start. Text is that of one process; what was trained, nearly."""
    config = finished.parent / "config.py"
    mesh = ["--config.mesh.fsdp=2", "--config.mesh.tp=2"]
    ended = run_together("-m", "ia_jax.cli", "run", f"--config={config}", f"--workdir={tmp_path / 'w'}", *mesh)
    assert [status for status, _, _ in ended] == [0, 0], "\n".join(said[-3000:] for _, _, said in ended)
    one, two = open_workdir(finished), open_workdir(tmp_path / "w")
    for name in one.behaviors:
        assert two.transcript(name).read_text() == one.transcript(name).read_text()
        assert distance(two.organism_dir(name), one.organism_dir(name)) < 0.05
    assert two.reports() == one.reports()
    assert two.metrics() == one.metrics()
    assert (tmp_path / "w" / "report.html").exists()


def curves(workdir, stage):
    return [c for c in read_jsonl(workdir / "curves.jsonl", "") if c["stage"] == stage]
