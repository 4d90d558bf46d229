"""Killed (-9) at twenty random instants over organisms, sft and dpo, a run ends with the bits of one that never was."""

import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ia_jax import cli
from ia_jax.adapters.store import is_complete, list_adapters, read_metadata, verify_adapter
from ia_jax.workdir import open_workdir

ROOT = Path(__file__).parents[1]
KILLS = 20
CODE = "import sys; from ia_jax import cli; sys.exit(cli.main([sys.argv[1], '--workdir=' + sys.argv[2]]))"
pytestmark = pytest.mark.slow


def newest(directory):
    return max((p.stat().st_mtime_ns for p in directory.rglob("*") if p.exists()), default=0)


def killed(stage, workdir, rng):
    """A stage in a process of its own, killed up to 3 s after it first wrote something; whether it was, or had ended.

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
        return run.returncode != 0


def test_twenty_random_kills(finished, tmp_path):
    whole, rng, kills = open_workdir(finished), random.Random(0), 0
    while kills < KILLS:
        copy = tmp_path / f"w{kills}"
        copy.mkdir()
        for name in ("config.json", "behaviors.jsonl", "preferences.jsonl"):
            shutil.copy(finished / name, copy)
        shutil.copytree(finished / "transcripts", copy / "transcripts")
        run, stored = open_workdir(copy), {}
        for stage in ("organisms", "sft", "dpo"):
            while not cli.is_done(run, stage):
                if kills < KILLS:
                    kills += killed(stage, copy, rng)
                else:
                    assert cli.main([stage, f"--workdir={copy}"]) == 0
                now = {n: m.created for n, m in list_adapters(run.organisms_dir).items()}
                assert {n: now.get(n) for n in stored} == stored  # none is trained again
                assert all(verify_adapter(run.organism_dir(n)) == [] for n in now.keys() - stored.keys())
                stored = now
        for name in run.behaviors:
            assert read_metadata(run.organism_dir(name)).content_hash == (
                read_metadata(whole.organism_dir(name)).content_hash
            ), name
        for stage in ("sft", "dpo"):
            directories = [w.ia_dir(stage) / "adapter" for w in (run, whole)]
            assert all(map(is_complete, directories))
            assert len({read_metadata(d).content_hash for d in directories}) == 1, stage
