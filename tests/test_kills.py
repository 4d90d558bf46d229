"""Killed (-9) at twenty random instants over organisms, sft and dpo, a run ends with the bits of one that never was."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ia_jax import cli
from ia_jax.adapters.store import is_complete, list_adapters, read_metadata, verify_adapter
from ia_jax.stages.context import Context
from ia_jax.stages.order import is_done
from ia_jax.workdir import open_workdir

ROOT = Path(__file__).parents[1]
KILLS = 20
# The stage as it is, but for one thing: it fails if it trains a wave of which an organism is stored already.
CODE = """
import sys
from ia_jax import cli
from ia_jax.adapters.store import is_complete
from ia_jax.stages import organisms, phases

train, step, wave_now = organisms.train_wave, phases.train_step, []


def watched_train(context, wave, *rest):
    wave_now[:] = [context.workdir.organism_dir(name) for name in wave.members]
    return train(context, wave, *rest)


def watched_step(*args, **kwargs):
    assert not any(map(is_complete, wave_now)), "a finished organism is trained again"
    return step(*args, **kwargs)


organisms.train_wave, phases.train_step = watched_train, watched_step
sys.exit(cli.main([sys.argv[1], "--workdir=" + sys.argv[2]]))
"""
pytestmark = pytest.mark.slow


def newest(directory):
    return max((p.stat().st_mtime_ns for p in directory.rglob("*") if p.name != ".lock" and p.exists()), default=0)


def killed(stage, workdir, rng):
    """A stage in a process of its own, killed up to 3 s after it first wrote something; whether it was, or had ended
    well before.

    Files may vanish between being listed and looked at; then the clock below just starts later.
    """
    before = newest(workdir)
    with subprocess.Popen([sys.executable, "-c", CODE, stage, str(workdir)], cwd=ROOT, env=os.environ.copy()) as run:
        started = None
        wait = rng.uniform(0, 3)
        while run.poll() is None:
            time.sleep(0.02)
            try:
                started = started or (time.monotonic() if newest(workdir) != before else None)
            except FileNotFoundError:
                started = started or time.monotonic()
            if started and time.monotonic() - started > wait:
                run.kill()
    assert run.returncode in (0, -signal.SIGKILL)
    return run.returncode != 0


def trace(stage, run):
    """What a kill left on disk, for those who run this with -s."""
    stored = sum(is_complete(run.organism_dir(n)) for n in run.behaviors)
    states = [p for p in (run.path / "organisms_state", run.ia_dir(stage) / "state") if p.is_dir()]
    steps = [str(p.relative_to(run.path)) for d in states for p in d.rglob("*") if p.name.split(".")[0].isdigit()]
    print(f"{stage}: {stored} organisms stored, checkpoints {sorted(steps)}", flush=True)


def test_twenty_random_kills(finished, tmp_path):
    whole, rng, kills = open_workdir(finished), random.Random(0), 0
    while kills < KILLS:
        copy = tmp_path / f"w{kills}"
        copy.mkdir()
        for name in ("config.json", "settings", "behaviors.jsonl", "organisms.jsonl", "transcripts", "preferences"):
            source = finished / name
            (shutil.copytree if source.is_dir() else shutil.copy2)(source, copy / name)
        run, stored = open_workdir(copy), {}
        for stage in ("organisms", "sft", "dpo"):
            while not is_done(Context(run, run.config), stage):
                if kills < KILLS:
                    kills += killed(stage, copy, rng)
                    trace(stage, run)
                else:
                    assert cli.main([stage, f"--workdir={copy}"]) == 0
                now = {n: m.created for n, m in list_adapters(run.organisms_dir).items()}
                assert {n: now.get(n) for n in stored} == stored  # none is trained again
                assert all(verify_adapter(run.organism_dir(n)) == [] for n in now.keys() - stored.keys())
                stored = now
                ias = [run.ia_dir(s) / "adapter" for s in ("sft", "dpo")]
                assert all(verify_adapter(ia) == [] for ia in ias if is_complete(ia))
        for name in run.behaviors:
            assert read_metadata(run.organism_dir(name)).content_hash == (
                read_metadata(whole.organism_dir(name)).content_hash
            ), name
        for stage in ("sft", "dpo"):
            directories = [w.ia_dir(stage) / "adapter" for w in (run, whole)]
            assert all(map(is_complete, directories))
            assert len({read_metadata(d).content_hash for d in directories}) == 1, stage
