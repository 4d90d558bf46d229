"""Launchers as tests call them: dry, or with programs of their own in place of gcloud and the like."""

import os
import shlex
import subprocess
from pathlib import Path

LAUNCH = Path(__file__).parent.parent / "launch"
POD = {
    "NAME": "pod",
    "ZONE": "us-east5-a",
    "TYPE": "v5p-128",
    "CONFIG": "configs/llama33_70b.py",
    "WORKDIR": "gs://bucket/70b",
}
XPK = {
    "CLUSTER": "tpus",
    "ZONE": "us-east5-a",
    "TYPE": "v5p-128",
    "CONFIG": "configs/llama33_70b.py",
    "WORKDIR": "gs://bucket/70b",
}
MORE = """LAST PROJECT SPOT RESERVED RESERVATION RUNTIME IMAGE OVERRIDES WORKLOAD SLICES KEY_FROM CACHE LOGS DATA_DISK
DISK_MODE RESULTS SUBCOMMAND DIRTY LIBTPU_INIT_ARGS RESTARTS EVERY TPU_WORKER_ID MEGASCALE_SLICE_ID"""
SETTINGS = {*POD, *XPK, *MORE.split()}
EVERYBODY = ["--node=all", "--worker=all"]


def run(script, *arguments, **settings):
    env = {k: v for k, v in os.environ.items() if k not in SETTINGS} | settings
    return subprocess.run(["bash", LAUNCH / script, *arguments], capture_output=True, text=True, env=env)


def printed(script, command, **settings):
    """The commands of a dry run, each as the words that a shell would see."""
    done = run(script, "--dry-run", command, **settings)
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines()]


def refused(script, command, **settings):
    """The one line that a mistake in the settings gets."""
    done = run(script, "--dry-run", command, **settings)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1), (done.stdout, done.stderr)
    return done.stderr


def tools(directory, **bodies):
    """Programs of these names that do this, and PATH with them first."""
    directory.mkdir(exist_ok=True)
    for name, body in bodies.items():
        (directory / name).write_text(f"#!/bin/sh\n{body}\n")
        (directory / name).chmod(0o755)
    return {"PATH": f"{directory}:{os.environ['PATH']}"}
