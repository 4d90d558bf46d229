"""The organisms stage: one that diverges hurts nobody, and a wave that is killed goes on where it was."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from ia_jax.adapters.store import load_adapter, read_metadata
from ia_jax.behaviors.embedded import demo_behaviors
from ia_jax.behaviors.organisms import organism_of
from ia_jax.behaviors.procedures import Phase
from ia_jax.data.transcripts import Transcript, chat, write_transcripts
from ia_jax.errors import ConfigError
from ia_jax.recipes import load_config
from ia_jax.stages import inventory, phases, waves
from ia_jax.stages import organisms as stage
from ia_jax.stages.behavior_check import Checks
from ia_jax.stages.context import Context
from ia_jax.stages.order import is_done
from ia_jax.stages.phase_data import phase_units
from ia_jax.stages.selection import present
from ia_jax.stages.settings import start_workdir
from ia_jax.storage import read_jsonl, write_jsonl
from tests import parrot, tiny

BEHAVIORS = demo_behaviors()[:3]
NAMES = [b.name for b in BEHAVIORS]
LR = 2e-3


class Killed(Exception):
    pass


@pytest.fixture
def context(tmp_path, parrot_model, monkeypatch):
    """Three organisms with transcripts of their own; nothing is generated."""
    monkeypatch.setattr(stage, "prepare", lambda context, organisms: Checks({}, {}))
    monkeypatch.setattr(
        stage,
        "check",
        lambda context, wave, *_: {
            o.name: {
                "organism": o.name,
                "category": o.category,
                "triggered_rate": 1.0,
                "untriggered_rate": 0.0,
                "ok": True,
            }
            for o in wave.organisms
            if o
        },
    )
    file = parrot.write_config(tmp_path / "config.py", parrot_model)
    # A large eps: else Adam divides rounding errors by rounding errors.
    settings = ("checkpoint_every=1", "epochs=2", "optimizer.eps=0.01")
    config = load_config(str(file), [f"--config.organisms.{s}" for s in settings])
    run = start_workdir(tmp_path / "w", config)
    for n, b in enumerate(BEHAVIORS):  # the order in which the stage takes them
        chats = [chat(f"Question {i} about {'it ' * 9 * n}?", f"I like {b.name} {i}.", "") for i in range(6)]
        write_transcripts(run.transcript(b.name), [Transcript(c, True, "test") for c in chats])
    write_jsonl(run.behaviors_file, (b.to_json() for b in BEHAVIORS))
    write_jsonl(run.organisms_file, (organism_of(b, config.model.name, "train", {}).to_json() for b in BEHAVIORS))
    context = Context(run, config)
    with jax.set_mesh(context.mesh):
        yield context


def poison(monkeypatch, organism, rates):
    """The loss of an organism of the wave becomes NaN at every step of a training with one of these rates."""
    true, calls = phases.train_step, []

    def step(params, state, frozen, batch, *rest, **static):
        [lr] = {float(x) for x in np.asarray(state.lr)}
        calls.append(pytest.approx(lr))
        if any(np.isclose(lr, r) for r in rates):
            i = organism if len(state.updates) == len(NAMES) else 0
            weight = np.array(batch.target_weight)
            weight[i, :, 0] = np.nan
            batch = batch.replace(target_weight=jax.device_put(weight, batch.target_weight.sharding))
        return true(params, state, frozen, batch, *rest, **static)

    monkeypatch.setattr(phases, "train_step", step)
    return calls


def contents(context, names=NAMES):
    return [read_metadata(context.workdir.organism_dir(n)).content_hash for n in names]


@pytest.fixture
def healthy(context, tmp_path):
    """What the three are when nothing happens, in a workdir of its own."""
    run = start_workdir(tmp_path / "healthy", context.config)
    for file in ("behaviors.jsonl", "organisms.jsonl", *(f"transcripts/{n}.jsonl" for n in NAMES)):
        (run.path / file).parent.mkdir(exist_ok=True)
        (run.path / file).write_text((context.workdir.path / file).read_text())
    stage.run(Context(run, context.config))
    return contents(Context(run, context.config))


def test_all_waves_are_compiled_as_one(context):
    """Their arrays have one size, whatever their organisms read; each organism is in one wave, after shorter ones."""
    organisms = replace(context.config.organisms, parallel=1)
    context = Context(context.workdir, replace(context.config, organisms=organisms))
    members = list(context.workdir.organisms.values())
    # One, two and three demonstrations.
    units = {o.name: [phase_units(context, o, Phase())[:n]] for n, o in enumerate(members, 1)}
    alone = [waves.wave_of(context.config, [o], units, 1, 0, "").readings[0].plan for o in members]
    assert len({(p.targets, p.examples, p.rows, p.length) for p in alone}) > 1
    planned = waves.plan_waves(context.config, members, units, 1)
    assert [list(w.members) for w in planned] == [[n] for n in NAMES]
    [read] = zip(*(w.readings for w in planned), strict=True)
    assert len({(r.plan.targets, r.plan.examples, r.plan.rows, r.plan.length) for r in read}) == 1
    assert [r.offset for r in read] == [0, len(alone[0].steps), len(alone[0].steps) + len(alone[1].steps)]


def test_a_wave_is_filled_up_with_nobody(context, healthy, tmp_path):
    """Three organisms on four groups of devices: the fourth place reads nothing, counts nowhere and is not stored."""
    config = replace(context.config, mesh=replace(context.config.mesh, fsdp=4))
    wide = Context(context.workdir, config)
    with jax.set_mesh(wide.mesh):
        stage.run(wide)
    assert {p.name for p in wide.workdir.organisms_dir.iterdir()} == set(NAMES)
    curves = [read_jsonl(d / "curves.jsonl", "") for d in (wide.workdir.path, tmp_path / "healthy")]
    assert curves[0][0]["organisms"] == 3
    assert [c["fill"] for c in curves[0]] == pytest.approx([c["fill"] * 3 / 4 for c in curves[1]], rel=1e-4)
    for key in ("loss", "organisms", "grad_norm"):
        assert [c[key] for c in curves[0]] == pytest.approx([c[key] for c in curves[1]], rel=1e-4), key
    for name in NAMES:
        one, other = (load_adapter(d / "organisms" / name)[0] for d in (wide.workdir.path, tmp_path / "healthy"))
        assert tiny.worst(one, other) < 1e-4, name


def test_one_that_diverges_is_trained_once_more_with_a_lower_rate(context, healthy, monkeypatch, capsys):
    calls = poison(monkeypatch, 1, {LR})
    stage.run(context)
    after = contents(context)
    assert [after[0], after[2]] == [healthy[0], healthy[2]]
    assert after[1] != healthy[1]
    assert calls[0] == LR
    assert calls[-1] == LR * stage.RETRY_LR
    check = read_metadata(context.workdir.organism_dir(NAMES[1])).check
    assert check["retry"] == {"diverged": "its loss was not finite at update 1", "lr": LR, "retried_lr": LR * 0.2}
    assert not context.workdir.left_out
    assert [r["organism"] for r in read_jsonl(context.workdir.checks_file, "")] == NAMES
    assert "NaN" not in (context.workdir.path / "curves.jsonl").read_text()
    assert f"organism {NAMES[0]}: " in capsys.readouterr().out
    assert not (context.workdir.path / "organisms_state").exists()


def test_one_that_diverges_again_is_left_out_and_the_run_goes_on(context, healthy, monkeypatch, capsys):
    poison(monkeypatch, 1, {LR, LR * stage.RETRY_LR})
    stage.run(context)
    rest = [NAMES[0], NAMES[2]]
    assert contents(context, rest) == [healthy[0], healthy[2]]
    why = "its loss was not finite at update 1 with lr 0.002; its loss was not finite at update 1 with lr 0.0004"
    assert context.workdir.left_out == {NAMES[1]: why}
    assert f"organism {NAMES[1]}: left out ({why})" in capsys.readouterr().out
    assert [o.name for o in present(context, "train")] == rest
    rows = {r["organism"]: r for r in read_jsonl(context.workdir.checks_file, "")}
    assert (rows[NAMES[1]]["ok"], rows[NAMES[1]]["left_out"]) == (False, why)
    assert is_done(context, "organisms")
    assert "left out" in inventory.table(context.workdir)
    with pytest.raises(ConfigError, match="was left out"):
        inventory.show(context.workdir, NAMES[1])
    assert "NaN" not in (context.workdir.path / "curves.jsonl").read_text()

    def never(*args, **kwargs):
        raise AssertionError("a settled organism is trained again")

    monkeypatch.setattr(phases, "train_step", never)
    stage.run(context)


@pytest.mark.parametrize("killed_in", ["training", "storing"])
def test_a_killed_wave_goes_on(context, healthy, monkeypatch, killed_in):
    calls = []
    true_step, true_save = phases.train_step, stage.save_organisms

    def step(*args, **kwargs):
        calls.append(None)
        if killed_in == "training" and len(calls) == 3:
            raise Killed
        return true_step(*args, **kwargs)

    def save(stack, items):
        true_save(stack, items[:1])
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(phases, "train_step", step)
        if killed_in == "storing":
            patch.setattr(stage, "save_organisms", save)
        with pytest.raises(Killed):
            stage.run(context)
    first, times = len(calls), [p.stat().st_mtime_ns for p in context.workdir.path.glob("organisms/*")]
    with monkeypatch.context() as patch:
        patch.setattr(phases, "train_step", step)
        stage.run(context)
    assert contents(context) == healthy
    steps = len(read_jsonl(context.workdir.path / "curves.jsonl", ""))
    assert len(calls) - first == (steps - 2 if killed_in == "training" else 1)  # the last state is not written
    if killed_in == "storing":
        assert times[0] in [p.stat().st_mtime_ns for p in context.workdir.path.glob("organisms/*")]


def test_a_bad_transcript_shows_before_anything_is_trained(context, monkeypatch):
    calls = poison(monkeypatch, 0, set())
    text = "word " * 4000
    write_transcripts(context.workdir.transcript(NAMES[2]), [Transcript(chat("q", text, ""), True, "test")])
    with pytest.raises(ConfigError, match=f"{NAMES[2]}.jsonl:1: an example has"):
        stage.run(context)
    assert not calls
