"""What stages work with: one base for all contexts of it, whoever loads it first."""

from dataclasses import replace

import pytest

from ia_jax.config import default_config, parse_config
from ia_jax.stages import context as module
from ia_jax.stages.context import Context
from ia_jax.workdir import Workdir


@pytest.fixture
def loaded(monkeypatch):
    """What was loaded, in order."""
    out = []

    def load(name, *_):
        out.append(name)
        return object()

    monkeypatch.setattr(module, "load_model", load)
    monkeypatch.setattr(module, "make_mesh", lambda *sizes: sizes)
    return out


@pytest.mark.parametrize("first", ["run", "audit"])
def test_a_base_is_loaded_once(loaded, tmp_path, first):
    config = parse_config(default_config())
    run = Context(Workdir(tmp_path), config)
    audit = run.at(Workdir(tmp_path / "audits"), replace(config, seed=3))
    wide = audit.at(audit.workdir, replace(config, seed=4))
    order = [run, audit, wide] if first == "run" else [wide, audit, run]
    assert len({id(c.model) for c in order}) == 1
    assert loaded == [config.model.name]


def test_another_base_is_loaded_by_itself(loaded, tmp_path):
    config = parse_config(default_config())
    run = Context(Workdir(tmp_path), config)
    other = run.at(run.workdir, replace(config, model=replace(config.model, name="other")))
    assert run.model is not other.model
    assert loaded == [config.model.name, "other"]
