"""Errors that a user can act on. The command line prints each as one line and exits with its status."""


class IAError(Exception):
    """Something failed while running (exit status 1). The message says what, where, and how to mend it."""

    exit_status = 1


class ConfigError(IAError):
    """A bad argument, configuration or input that the user gave (exit status 2)."""

    exit_status = 2


class BaseMismatchError(ConfigError):
    """An adapter was made for another base model than the one loaded."""


class CheckpointError(IAError):
    """A stored adapter or training state is missing, incomplete, corrupt or not finite."""


class Preempted(IAError):
    """SIGTERM came while training and the state was saved; launchers restart on 143 (128 + SIGTERM)."""

    exit_status = 143
