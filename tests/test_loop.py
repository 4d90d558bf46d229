"""The training loop: killed and resumed is the same as never interrupted, and a bad state is never kept."""

import json
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from ia_jax.data.batch import build_batch
from ia_jax.data.plans import dataset, plan_joint
from ia_jax.errors import CheckpointError, IAError, Preempted
from ia_jax.training import recorder as recorder_module
from ia_jax.training.checkpoints import Keeper
from ia_jax.training.loop import fit
from ia_jax.training.losses import Sft
from ia_jax.training.optimizer import AdamW
from ia_jax.training.recorder import Recorder, spread
from ia_jax.training.state import init_state
from ia_jax.training.trainer import train_step
from tests import tiny

TOTAL = 9


class Killed(Exception):
    pass


def numbers():
    return grain.MapDataset.range(TOTAL).shuffle(seed=3).map(np.float32).to_iter_dataset()


def add(state, x):
    """A step whose result depends on what it read and in which order."""
    w = state["w"] * 1.5 + x
    return {"w": w, "n": state["n"] + 1}, {"loss": w.sum(), "vector": w}


def start():
    return {"w": jnp.zeros(3), "n": jnp.int32(0)}


def until(count, step=add):
    """A step that is killed after `count` updates of this process."""
    done = []

    def run(state, x):
        if len(done) == count:
            raise Killed
        done.append(x)
        return step(state, x)

    run.done = done
    return run


def run(workdir, step=add, every=2, state="state", **options):
    workdir.mkdir(exist_ok=True)
    return fit("toy", start(), step, numbers(), TOTAL, workdir, checkpoints=workdir / state, every=every, **options)


def curves(workdir):
    return (workdir / "curves.jsonl").read_text()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    return run(workdir), curves(workdir)


@pytest.mark.parametrize("killed_after", [1, 4, 7])
def test_resumed_equals_uninterrupted(tmp_path, uninterrupted, killed_after):
    state, lines = uninterrupted
    with pytest.raises(Killed):
        run(tmp_path, until(killed_after))
    rest = until(99)
    again = run(tmp_path, rest)
    assert not tiny.differs(again, state)
    assert curves(tmp_path) == lines
    assert len(rest.done) == TOTAL - killed_after // 2 * 2  # nothing behind the checkpoint is redone


def test_killed_twice_and_while_a_line_was_written(tmp_path, uninterrupted):
    state, lines = uninterrupted
    for count in (3, 4):
        with pytest.raises(Killed):
            run(tmp_path, until(count))
        with (tmp_path / "curves.jsonl").open("a") as file:
            file.write('{"stage": "toy", "st')
    assert not tiny.differs(run(tmp_path), state)
    assert curves(tmp_path) == lines


@pytest.mark.parametrize(("every", "kept"), [(2, 8), (3, 6), (100, 0)])
def test_the_last_state_is_not_written_and_a_kill_before_it_is_stored_loses_nothing(
    tmp_path, uninterrupted, monkeypatch, every, kept
):
    """What a stage is left with when it is killed after its last step, before its adapters are stored."""
    written, true = [], Keeper.save
    monkeypatch.setattr(Keeper, "save", lambda self, number, *rest: written.append(number) or true(self, number, *rest))
    assert not tiny.differs(run(tmp_path, every=every), uninterrupted[0])
    assert written == list(range(every, TOTAL, every))
    step = until(99)
    assert not tiny.differs(run(tmp_path, step, every=every), uninterrupted[0])
    assert len(step.done) == TOTAL - kept
    assert curves(tmp_path) == uninterrupted[1]


def test_a_bad_last_state_is_refused_though_it_is_not_written(tmp_path):
    with pytest.raises(IAError, match=f"not finite after step {TOTAL}"):
        run(tmp_path, nan_from(TOTAL, "state"), every=100)


def test_sft_resumed_equals_sft_uninterrupted(tmp_path):
    """The true step with its donated state, packed batches and optimizer: every bit of the state."""
    params, organisms, units = tiny.params(), tiny.adapter(1, lora=tiny.FEW, organisms=4), tiny.units(4, 5)
    plan = plan_joint(units, organisms_per_step=2, per_slot=2, seed=0, length=24, steps=7)
    optimizer = AdamW(lr=1e-2)

    def make(slots):
        index = np.array([s.organism for s in slots])
        return jax.tree.map(lambda x: np.asarray(x)[index], organisms), build_batch(slots, plan, units)

    def step(state, x):
        return train_step(params, state, x[:1], x[1], cfg=tiny.TINY, loss=Sft(), optimizer=optimizer)

    def train(workdir, step):
        workdir.mkdir(exist_ok=True)
        state = tiny.placed(init_state(tiny.adapter(2, lora=tiny.FEW), 7, optimizer, scale=tiny.FEW.scale), False)
        return fit("ia", state, step, dataset(plan, make), 7, workdir, checkpoints=workdir / "state", every=3)

    whole = train(tmp_path / "whole", step)
    with pytest.raises(Killed):
        train(tmp_path / "parts", until(5, step))
    assert not tiny.differs(train(tmp_path / "parts", step), whole)
    assert curves(tmp_path / "parts") == curves(tmp_path / "whole")
    assert int(whole.updates) == 7


def nan_from(step_number, where):
    """Steps that go wrong: in the loss, or (a gradient that overflows) in the state alone."""

    def step(state, x):
        bad = jnp.where(state["n"] + 1 >= step_number, jnp.nan, 0.0)
        after, metrics = add(state, x)
        if where == "loss":
            return after, metrics | {"loss": metrics["loss"] + bad}
        return after | {"w": after["w"] + bad}, metrics

    return step


def test_a_nan_loss_raises_and_keeps_the_last_good_checkpoint(tmp_path, uninterrupted):
    with pytest.raises(IAError, match="toy: the loss is nan at step 6; the last checkpoint is good"):
        run(tmp_path, nan_from(6, "loss"))
    rest = until(99)
    assert not tiny.differs(run(tmp_path, rest), uninterrupted[0])
    assert len(rest.done) == TOTAL - 4
    assert curves(tmp_path) == uninterrupted[1]


def test_a_nan_state_is_not_saved_though_its_loss_was_finite(tmp_path, uninterrupted):
    with pytest.raises(IAError, match="not finite after step 6"):
        run(tmp_path, nan_from(6, "state"))
    rest = until(99)
    assert not tiny.differs(run(tmp_path, rest), uninterrupted[0])
    assert len(rest.done) == TOTAL - 4


def newest(workdir):
    return max((p for p in (workdir / "state").iterdir() if p.is_dir()), key=lambda p: p.name)


def garble(directory):
    for file in directory.rglob("*"):
        if file.is_file() and file.stat().st_size:
            file.write_bytes(b"x" * min(64, file.stat().st_size))


def lose_data(directory):
    for file in directory.rglob("d/*"):
        file.unlink()


def lose_state(directory):
    shutil.rmtree(directory / "state")


def cut(directory):
    for file in directory.rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize("damage", [garble, lose_data, lose_state, cut])
def test_a_corrupt_training_state(tmp_path, damage):
    with pytest.raises(Killed):
        run(tmp_path, until(5))
    damage(newest(tmp_path))
    with pytest.raises(
        CheckpointError, match=r"the training state cannot be read \(.*delete .*state to start"
    ) as error:
        run(tmp_path)
    assert "\n" not in str(error.value)


def test_a_state_of_another_shape(tmp_path):
    with pytest.raises(Killed):
        run(tmp_path, until(5))
    other = {"w": jnp.zeros(4), "n": jnp.int32(0)}
    with pytest.raises(CheckpointError, match="the training state cannot be read"):
        fit("toy", other, add, numbers(), TOTAL, tmp_path, checkpoints=tmp_path / "state", every=2)


def test_a_state_made_from_something_else(tmp_path, uninterrupted):
    with pytest.raises(Killed):
        run(tmp_path, until(5), identity="these organisms")
    with pytest.raises(CheckpointError, match=r"state/4: this training state was made from other organisms.*delete"):
        run(tmp_path, identity="those organisms")
    assert not tiny.differs(run(tmp_path, identity="these organisms"), uninterrupted[0])


def test_a_resume_never_holds_two_states(tmp_path):
    with pytest.raises(Killed):
        run(tmp_path, until(5))
    given = start()
    fit("toy", given, add, numbers(), TOTAL, tmp_path, checkpoints=tmp_path / "state", every=2)
    assert all(x.is_deleted() for x in jax.tree.leaves(given))


def test_a_relative_workdir_resumes(tmp_path, uninterrupted, monkeypatch):
    """As in `--workdir=runs/demo`: Orbax itself refuses relative paths."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Killed):
        run(Path("here"), until(5))
    assert not tiny.differs(run(Path("here")), uninterrupted[0])


def test_without_checkpoints(tmp_path, uninterrupted):
    assert not tiny.differs(fit("toy", start(), add, numbers(), TOTAL, tmp_path), uninterrupted[0])
    assert curves(tmp_path) == uninterrupted[1]


def test_curves_hold_the_scalars_of_every_step(tmp_path):
    run(tmp_path, offset=100)
    rows = [json.loads(line) for line in curves(tmp_path).splitlines()]
    assert [r["step"] for r in rows] == list(range(101, 101 + TOTAL))
    assert all(r.keys() == {"stage", "step", "loss"} and r["stage"] == "toy" for r in rows)
    assert any((tmp_path / "tensorboard" / "toy").iterdir())


def test_a_recorder_keeps_other_stages_and_earlier_steps(tmp_path):
    for stage, count in (("one", 3), ("two", 3)):
        with Recorder(tmp_path, stage) as recorder:
            for n in range(1, count + 1):
                recorder.write(n, {"loss": n})
    with Recorder(tmp_path, "one", step=2) as recorder:
        recorder.write(3, {"loss": 9.0})
    rows = [json.loads(line) for line in curves(tmp_path).splitlines()]
    assert [(r["stage"], r["step"], r["loss"]) for r in rows] == [
        ("one", 1, 1),
        ("one", 2, 2),
        ("two", 1, 1),
        ("two", 2, 2),
        ("two", 3, 3),
        ("one", 3, 9),
    ]


def test_retraining_an_early_wave_keeps_the_curves_of_later_ones(tmp_path):
    """As after `ia-jax adapters rm`, with another stage recorded since; TensorBoard is not told to drop them either."""
    waves = {"early": 0, "late": TOTAL}
    for state, offset in waves.items():
        run(tmp_path, state=state, offset=offset)
    with Recorder(tmp_path, "other") as recorder:
        recorder.write(1, {"loss": 1})
    before, boards = curves(tmp_path), set((tmp_path / "tensorboard" / "toy").iterdir())
    shutil.rmtree(tmp_path / "early")
    with pytest.raises(Killed):
        run(tmp_path, until(4), state="early")
    steps = [r["step"] for r in map(json.loads, curves(tmp_path).splitlines()) if r["stage"] == "toy"]
    assert sorted(steps) == [1, 2, 3, 4, *range(TOTAL + 1, 2 * TOTAL + 1)]
    run(tmp_path, state="early")
    assert curves(tmp_path) == before
    purges = b":\x02\x08\x01"  # session_log: START, on which TensorBoard drops all later steps
    assert all(purges in b.read_bytes() for b in boards)
    again = set((tmp_path / "tensorboard" / "toy").iterdir()) - boards
    assert again
    assert not any(purges in b.read_bytes() for b in again)


def test_two_recorders_in_one_second_keep_their_files(tmp_path, monkeypatch):
    monkeypatch.setattr("ia_jax.training.recorder.time.time", lambda: 1234567890.5)
    for step in (1, 2):
        with Recorder(tmp_path, "toy", step - 1) as recorder:
            recorder.write(step, {"loss": step})
    files = sorted((tmp_path / "tensorboard" / "toy").iterdir())
    assert len(files) == 2
    assert all(b"loss" in file.read_bytes() for file in files)


def test_sigterm_saves_at_once_and_leaves_with_a_status_that_launchers_restart_on(tmp_path, uninterrupted):
    def told(state, x):
        if int(state["n"]) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return add(state, x)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Preempted, match="toy: stopped by SIGTERM; step 5 of 9 is saved") as error:
        run(tmp_path, told, every=100)
    assert error.value.exit_status == 143
    assert signal.getsignal(signal.SIGTERM) is before
    rest = until(99)
    assert not tiny.differs(run(tmp_path, rest), uninterrupted[0])
    assert len(rest.done) == TOTAL - 5
    assert curves(tmp_path) == uninterrupted[1]


def test_a_failed_write_is_reported_while_training_goes_on(tmp_path, monkeypatch, uninterrupted):
    class Full:
        def result(self, timeout=None):
            raise OSError(28, "No space left on device\nand pages more")

    true = ocp.training.Checkpointer.save_checkpointables_async

    def full_at_4(self, number, *args, **kwargs):
        return Full() if number == 4 else true(self, number, *args, **kwargs)

    step = until(99)
    with monkeypatch.context() as patch:
        patch.setattr(ocp.training.Checkpointer, "save_checkpointables_async", full_at_4)
        with pytest.raises(CheckpointError, match=r"state of step 4 could not .*No space left on device\).*untouched"):
            run(tmp_path, step)
    assert len(step.done) <= 6  # at the latest before the next save
    rest = until(99)
    assert not tiny.differs(run(tmp_path, rest), uninterrupted[0])
    assert len(rest.done) == TOTAL - 2
    assert curves(tmp_path) == uninterrupted[1]


def test_rates_and_memory_go_to_tensorboard_alone(tmp_path, capfd):
    def counting(state, x):
        state, metrics = add(state, x)
        return state, metrics | {"tokens": jnp.full(2, 50), "supervised_tokens": jnp.float32(7)}

    run(tmp_path, counting)
    board = b"".join(p.read_bytes() for p in (tmp_path / "tensorboard" / "toy").iterdir())
    for tag in (b"loss", b"speed/tokens_per_s", b"speed/supervised_tokens_per_s", b"memory/host_peak_gib"):
        assert tag in board
    assert {k for line in curves(tmp_path).splitlines() for k in json.loads(line)} == {"stage", "step", "loss"}
    assert capfd.readouterr().err == ""  # no progress bar where nobody sees it


@pytest.mark.parametrize("peak", [None, 1e6])
def test_utilisation_is_told_where_the_peak_is_known(tmp_path, monkeypatch, peak):
    told = {}
    monkeypatch.setattr(recorder_module, "time", SimpleNamespace(monotonic=iter([10.0, 14.0]).__next__))
    monkeypatch.setattr(Recorder, "board", SimpleNamespace(write=lambda step, scalars: told.update(scalars)))
    with Recorder(tmp_path, "toy", flops={"tokens": 1000.0, "supervised_tokens": 500.0}, peak=peak) as recorder:
        recorder.write(1, {}, {"tokens": 2000.0, "supervised_tokens": 800.0})
    assert (told["speed/tokens_per_s"], told["speed/supervised_tokens_per_s"]) == (500.0, 200.0)
    assert told.get("speed/mfu") == (0.6 if peak else None)  # (2000 * 1000 + 800 * 500) / 4 s / 1e6


def test_a_spread_leaves_out_who_read_nothing():
    assert spread(np.array([np.nan, 1.0, 3.0])) == pytest.approx({"loss_p10": 1.2, "loss_p50": 2.0, "loss_p90": 2.8})
    assert spread(np.array([np.nan])) == {}


def calls_in(directory):
    """How often the step was called while the traces below were made."""
    files = list(directory.rglob("*.xplane.pb"))
    events = [
        e for f in files for p in jax.profiler.ProfileData.from_file(str(f)).planes for x in p.lines for e in x.events
    ]
    return sum(e.name == "traced add" for e in events)


@pytest.mark.parametrize(("steps", "traced"), [(3, 3), (TOTAL, TOTAL - 2)], ids=["some", "more-than-there-are"])
def test_a_profile_holds_the_steps_after_the_first_two_and_changes_nothing(
    tmp_path, uninterrupted, capfd, steps, traced
):
    def annotated(state, x):
        with jax.profiler.TraceAnnotation("traced add"):
            return add(state, x)

    assert not tiny.differs(run(tmp_path, annotated, profile=steps), uninterrupted[0])
    assert calls_in(tmp_path / "profile" / "toy") == traced
    assert f"profile: {traced} steps in {tmp_path / 'profile' / 'toy'}" in capfd.readouterr().out
    run(tmp_path, annotated, state="again", profile=1)  # one that is there stays
    assert calls_in(tmp_path / "profile" / "toy") == traced
