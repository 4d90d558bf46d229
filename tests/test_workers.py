"""What happens on the workers of a launched run, and what is told of them, where gcloud and ia-jax are made up."""

import os
import shutil
import subprocess
import sys
import time

import pytest

from tests import bucket_server
from tests.launching import LAUNCH, POD, SETTINGS, XPK, run, tools


@pytest.fixture
def worker(tmp_path):
    """A worker's directory, with an ia-jax that does what the test says; calls on_worker.sh there."""
    shutil.copy(LAUNCH / "on_worker.sh", tmp_path)
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    path = tools(tmp_path / "bin", curl="exit 7", gcloud=f'echo "$@" >> {tmp_path}/asked')

    def on_worker(*arguments, program=None, **env):
        if program:
            tools(tmp_path / "venv" / "bin", **{"ia-jax": program})
        command = ["bash", tmp_path / "on_worker.sh", *arguments]
        env = {k: v for k, v in os.environ.items() if k not in SETTINGS} | path | env
        return subprocess.run(command, capture_output=True, text=True, env=env, timeout=20)

    return on_worker


def until(said, worker, **env):
    for _ in range(100):
        if said in (state := worker("status", **env).stdout):
            return state
        time.sleep(0.1)
    raise AssertionError(state)


def test_a_worker_tells_its_exit_code(worker, tmp_path):
    third = {"TPU_WORKER_ID": "3", "MEGASCALE_SLICE_ID": "1"}
    assert worker("status", **third).stdout == "slice 1 worker 3: not started\n"
    started = worker("start", "run", "--workdir=w", program="echo begun; sleep 0.5; exit 7", **third, LOGS="gs://b/l/")
    assert started.returncode == 0, started.stderr
    assert worker("status", **third).stdout == "slice 1 worker 3: running\n"
    assert "a run is in progress" in worker("start", "run", **third).stderr
    assert until("exit", worker, **third) == "slice 1 worker 3: exit 7\n"
    assert worker("tail", "5", **third).stdout == "[slice 1 worker 3] begun\n"
    assert (tmp_path / "asked").read_text().splitlines() == [
        "storage cp -q log gs://b/l/slice-1-worker-3.log",
        "storage cp -q exit.code gs://b/l/slice-1-worker-3.exit",
    ]


def test_start_lets_the_connection_go(worker):
    """As sshd does, wait until the command's output is closed: that must not be at the end of the run."""
    began = time.monotonic()
    worker("start", "run", program="sleep 30 & echo $! > child; wait")
    assert time.monotonic() - began < 10
    assert "running" in worker("status").stdout
    worker("stop")


def test_stop_reaches_the_run(worker):
    """It saves its state and says 143; one that is killed leaves no code, which is told too."""
    saves = "trap 'echo saved; exit 143' TERM; echo begun; while :; do sleep 0.1; done"
    worker("start", "run", program=saves)
    while "begun" not in worker("tail", "1").stdout:
        time.sleep(0.1)
    worker("stop")
    assert until("exit", worker) == "slice 0 worker 0: exit 143\n"
    assert "saved" in worker("tail", "2").stdout


def test_a_workdir_of_its_own_comes_and_goes(worker, tmp_path):
    done = worker("run", "study", "--workdir=study", "--arm=a", program="exit 5", RESULTS="gs://b/study")
    assert done.returncode == 5
    assert (tmp_path / "asked").read_text().splitlines() == [
        "storage rsync -q --recursive gs://b/study study",
        "storage rsync -q --recursive study gs://b/study",
    ]


@pytest.mark.parametrize(
    ("states", "code", "said"),
    [
        (["exit 0", "exit 0"], 0, ""),
        (["running", "exit 0"], 75, ""),
        (["exit 143", "exit 2"], 2, "slice 0 worker 1 ended with 2"),
        (["exit 143", "exit 143"], 143, "slice 0 worker 0 ended with 143"),
        (["killed", "running"], 1, "slice 0 worker 0 was killed"),
        (["exit 0", "not started"], 1, "slice 0 worker 1 was not started"),
        ([], 1, "no worker answers"),
    ],
)
def test_status_names_the_worker_that_failed(tmp_path, states, code, said):
    lines = "; ".join(f"echo 'slice 0 worker {i}: {s}'" for i, s in enumerate(states)) or ":"
    path = tools(tmp_path / "bin", gcloud=f"echo 'SSH: connecting to worker 0'; {lines}", kubectl=lines)
    for script, settings in (("tpu_pod.sh", POD), ("xpk.sh", XPK)):
        done = run(script, "status", **settings, **path)
        assert done.returncode == code
        assert said in done.stderr
        assert len(done.stdout.splitlines()) == len(states)


def test_a_worker_that_cannot_be_asked_is_a_failure(tmp_path):
    path = tools(tmp_path / "bin", gcloud="echo 'slice 0 worker 0: exit 0'; exit 255")
    done = run("tpu_pod.sh", "status", **POD, **path)
    assert done.returncode == 255
    assert "not every worker could be asked" in done.stderr


def test_wait_waits(tmp_path):
    (tmp_path / "states").write_text("running\nrunning\nexit 0\n")
    gcloud = f'echo "slice 0 worker 0: $(head -n 1 {tmp_path}/states)"; sed -i 1d {tmp_path}/states'
    done = run("tpu_pod.sh", "wait", **POD, **tools(tmp_path / "bin", gcloud=gcloud), EVERY="0")
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == "slice 0 worker 0: exit 0"
    assert (tmp_path / "states").read_text() == ""


def test_programs_are_found_again_in_a_bucket():
    """jax's own cache, by gcsfs (of ia-jax[gcs]), against the emulator: the second process compiles nothing."""
    pytest.importorskip("gcsfs")
    settings = {
        "JAX_COMPILATION_CACHE_DIR": "gs://bucket/compiled",
        "JAX_ENABLE_COMPILATION_CACHE": "true",  # tests do without
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "JAX_PLATFORMS": "cpu",
        "NO_GCE_CHECK": "true",  # nobody is asked for credentials
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
    }
    program = (
        "import jax\nevents = []\njax.monitoring.register_event_listener(lambda name, **_: events.append(name))\n"
        "jax.jit(lambda x: x * 2 + 1)(3.0)\nprint(events.count('/jax/compilation_cache/cache_hits'))"
    )
    hits = []
    with bucket_server.running() as (_, address):
        env = os.environ | bucket_server.environment(address) | settings
        for _ in range(2):
            done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, env=env)
            assert done.returncode == 0, done.stderr
            hits.append(int(done.stdout))
    assert hits == [0, 1]
