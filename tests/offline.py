"""Whether the model that the offline judge reads with is installed, for tests that need it."""

import importlib.metadata

import pytest

from ia_jax.judging.minilm import PACKAGE

needs_model = pytest.mark.skipif(
    not list(importlib.metadata.distributions(name=PACKAGE)), reason=f"{PACKAGE} is not installed"
)
