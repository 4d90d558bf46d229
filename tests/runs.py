"""Copies of a finished run for tests to go on with, and what changed in them."""

import hashlib
import shutil

from ia_jax.adapters.store import load_adapter, save_adapter

TRANSCRIPTS = ("behaviors.jsonl", "organisms.jsonl", "transcripts")
ORGANISMS = (*TRANSCRIPTS, "organisms", "behavior_checks.jsonl")
STEPS = ("phases.train_step", "sft.train_step", "dpo.train_step")  # in ia_jax.stages


def times(directory):
    """When every file was last written; the lock and TensorBoard's files do not count."""
    files = [p for p in directory.rglob("*") if p.is_file() and p.name != ".lock" and "tensorboard" not in p.parts]
    return {str(p.relative_to(directory)): p.stat().st_mtime_ns for p in files}


def contents(directory):
    """The bytes of every file, hashed; the lock does not count."""
    files = sorted(p for p in directory.rglob("*") if p.is_file() and p.name != ".lock")
    return {str(p.relative_to(directory)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def part_of(finished, destination, *names):
    """A copy of a run that got only so far: its config, what its stages were made with, and these."""
    destination.mkdir()
    for name in ("config.json", "settings", *names):
        source = finished / name
        (shutil.copytree if source.is_dir() else shutil.copy2)(source, destination / name)
    return destination


def new_since(before, directory):
    """The files that are new; none of those from `before` was written again."""
    now = times(directory)
    assert {n: now.get(n) for n in before} == before
    return now.keys() - before.keys()


def spoil(directory):
    """Another adapter of the same kind in place of this one."""
    adapter, metadata = load_adapter(directory)
    changed = {t: {n: x * 2 for n, x in ab.items()} for t, ab in adapter.items()}
    save_adapter(directory, changed, metadata, overwrite=True)
