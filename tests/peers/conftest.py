"""Comparisons with torch, transformers, peft and trl; `make test` runs them in .venv-peers."""

import importlib.util
import os
from pathlib import Path

import pytest

HERE = Path(__file__).parent
MISSING = [name for name in ("torch", "transformers", "peft", "trl") if importlib.util.find_spec(name) is None]


class _Absent(pytest.Module):
    """A file of comparisons where there is nothing to compare with: one visible skip."""

    def collect(self):
        pytest.skip(f"needs {', '.join(MISSING)} (make test-peers)", allow_module_level=True)


def pytest_pycollect_makemodule(module_path, parent):
    return _Absent.from_parent(parent, path=module_path) if MISSING else None


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.peers)


@pytest.fixture(autouse=True, scope="session")
def _torch_threads():
    """Torch keeps to the cores that are there (one a worker), and its random numbers are the same in every run."""
    import torch

    torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)
    torch.manual_seed(0)
