"""One process of several (tests/test_hosts.py): `python -m tests.stage_worker WHAT WORKDIR`."""

import os
import signal
import sys
import time

from ia_jax import cli, progress
from ia_jax.errors import IAError
from ia_jax.parallel import distributed

STOP_AT = 3


def stopped(workdir):
    """Organisms, then sft, in which process 1 gets SIGTERM. Steps are slow from then on, so that word gets around."""
    from ia_jax.stages import sft

    true, calls = sft.train_step, []

    def step(*args, **kwargs):
        calls.append(None)
        if len(calls) == STOP_AT and os.environ["IA_JAX_PROCESS"] == "1":
            os.kill(os.getpid(), signal.SIGTERM)
        if len(calls) >= STOP_AT:
            time.sleep(0.5)
        return true(*args, **kwargs)

    sft.train_step = step
    return cli.main(["organisms", f"--workdir={workdir}"]) or cli.main(["sft", f"--workdir={workdir}"])


def broken(workdir):
    """Process 1 fails by itself, while process 0 waits for it."""
    from jax.experimental import multihost_utils

    distributed.start()
    with distributed.end_together(lambda error: (str(error), error.exit_status)):
        assert distributed.on_main_process(os.getpid) == distributed.on_main_process(os.getpid)
        if not distributed.is_main_process():
            raise IAError(f"{workdir}: the disk is gone")
        multihost_utils.sync_global_devices("the one that never comes")


if __name__ == "__main__":
    progress._PACE = progress.Pace(lambda: 0.0)  # what is said does not depend on how slow the machine is
    sys.exit({f.__name__: f for f in (stopped, broken)}[sys.argv[1]](sys.argv[2]))
