"""What everything else stands on: exit statuses and the virtual devices."""

import jax
import pytest

from ia_jax import errors


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.IAError, 1),
        (errors.CheckpointError, 1),
        (errors.ConfigError, 2),
        (errors.BaseMismatchError, 2),
    ],
)
def test_exit_status(error, status):
    assert error("what, where, how to mend it").exit_status == status


def test_eight_cpu_devices():
    assert [device.platform for device in jax.devices()] == ["cpu"] * 8
