"""Two processes over a workdir in a bucket, killed (-9) at ten random writes, end with the bits of a local run."""

import random
import subprocess
import sys
import time

import pytest

from ia_jax.adapters.store import is_complete, list_adapters, read_metadata, verify_adapter
from ia_jax.workdir import open_workdir
from tests import parrot
from tests.bucket_server import bucket_service  # noqa: F401
from tests.processes import ROOT, run_together, start_together

KILLS = 10
MESH = ["--config.mesh.fsdp=2", "--config.mesh.tp=2"]
pytestmark = pytest.mark.slow


class Executioner:
    """Kills both processes at a write to the bucket, by its number: before it is done, or before it is answered."""

    def __init__(self, service, workers, number, done):
        self.workers, self.number, self.answer, self.writes = workers, number, "lost" if done else "cut", []
        service.faults = self.fault

    def fault(self, method, name):
        if method not in ("POST", "PUT", "DELETE") or (name or "").endswith("/.lock"):
            return None
        self.writes.append(name)
        if len(self.writes) < self.number:
            return None
        for worker in self.workers:
            worker.kill()
        return self.answer


def is_refused(home):
    """Whether another run is, in one line, while one is on its way."""
    asked = [sys.executable, "-m", "ia_jax.cli", "sft", f"--workdir={home}"]
    other = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, timeout=120)
    [line] = other.stderr.splitlines()
    return other.returncode != 0 and "another ia-jax (process " in line


def nothing_is_half(run):
    for name in list_adapters(run.organisms_dir):
        assert verify_adapter(run.organism_dir(name)) == []
    ias = [run.ia_dir(stage) / "adapter" for stage in ("sft", "dpo")]
    assert all(verify_adapter(ia) == [] for ia in ias if is_complete(ia))


def same_run(one, other):
    assert one.behaviors == other.behaviors
    for name in one.behaviors:
        assert one.transcript(name).read_text() == other.transcript(name).read_text()
    for where in (*(f"organisms/{n}" for n in one.behaviors), "ia/sft/adapter", "ia/dpo/adapter"):
        hashes = {read_metadata(w.path / where).content_hash for w in (one, other)}
        assert len(hashes) == 1, where
    assert one.reports() == other.reports()
    assert one.metrics() == other.metrics()


def test_ten_random_kills(bucket_service, parrot_model, tmp_path):  # noqa: F811
    config = parrot.write_config(tmp_path / "config.py", parrot_model)
    command = ["-m", "ia_jax.cli", "run", f"--config={config}", *MESH]
    ended = run_together(*command, f"--workdir={tmp_path / 'w'}")
    assert [status for status, _, _ in ended] == [0, 0], "\n".join(said[-3000:] for _, _, said in ended)
    local, rng, kills, refused, whole = open_workdir(tmp_path / "w"), random.Random(0), 0, False, 0
    while kills < KILLS or not (refused and whole):
        home = f"gs://bucket/w{whole}"
        with (tmp_path / "said.txt").open("w+") as said:
            workers = start_together(*command, f"--workdir={home}", said=said)
            try:
                number, done = (rng.randint(1, 120), rng.random() < 0.5) if kills < KILLS else (10**6, True)
                executioner = Executioner(bucket_service, workers, number, done)
                if kills == KILLS and not refused:
                    while not executioner.writes and workers[0].poll() is None:
                        time.sleep(0.1)
                    assert is_refused(home)
                    refused = True
                statuses = [worker.wait(timeout=900) for worker in workers]
            finally:
                for worker in workers:
                    worker.kill()
            said.seek(0)
            text = said.read()[-3000:]
        bucket_service.faults = lambda method, name: None
        assert set(statuses) <= {0, -9}, text
        kills += -9 in statuses
        print(
            f"{home}: {kills} kills, {len(executioner.writes)} writes, the last {executioner.writes[-1:]}", flush=True
        )
        if bucket_service.names(f"w{whole}/config.json"):
            nothing_is_half(open_workdir(home))
        if statuses == [0, 0]:
            same_run(local, open_workdir(home))
            whole += 1
