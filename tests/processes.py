"""Starts a command as several processes of one run, on this machine, each with two virtual devices."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def start_together(*arguments, processes=2, said=None):
    """`python *arguments` that many times, as one run. said: a file for all that they print (default: pipes)."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    given = {"IA_JAX_COORDINATOR": f"127.0.0.1:{port}", "IA_JAX_PROCESSES": str(processes), "PYTHONPATH": str(ROOT)}
    given |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    return [
        subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            env={**os.environ, **given, "IA_JAX_PROCESS": str(i)},
            cwd=ROOT,
            stdout=said or subprocess.PIPE,
            stderr=said or subprocess.PIPE,
            text=True,
        )
        for i in range(processes)
    ]


def run_together(*arguments, processes=2, timeout=600):
    """As `start_together`, to the end: a list of (exit status, stdout, stderr), by process."""
    workers = start_together(*arguments, processes=processes)
    try:
        printed = [w.communicate(timeout=timeout) for w in workers]
    finally:
        for w in workers:
            w.kill()
    return [(w.returncode, *p) for w, p in zip(workers, printed, strict=True)]
