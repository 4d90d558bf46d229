"""Rows that make room for waiting prompts: against repeated full forwards of each prompt alone, and by simulation."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ia_jax.models import sampling
from ia_jax.models.lora import take_organisms
from ia_jax.models.refill import Refill, Shape, alike, shape_for
from ia_jax.models.sampling import Continuation, pick_tokens
from ia_jax.models.slots import generate_in_slots
from ia_jax.models.transformer import logits_from_hidden
from ia_jax.parallel.mesh import replicate
from tests import tiny
from tests.test_mesh import CFG, mesh_named, place, place_params

pytestmark = pytest.mark.usefixtures("quick_compilation")

NEW, STOP, LENGTH, K = 9, (5, 9, 11), 40, 8
COUNTS = (7, 3, 0, 9, 1, 0, 2, 5)
KEY = jax.random.key(3)
PARAMS, ORGANISMS, IA = tiny.params(CFG), tiny.adapter(1, CFG, tiny.FEW, organisms=K), tiny.adapter(2, CFG, tiny.FEW)


@pytest.fixture(scope="module")
def prompts():
    """Of mixed lengths, for organisms that have many or none; some prompts are the same."""
    rng = np.random.default_rng(0)
    own = [[rng.integers(1, 64, int(n)).astype(np.int32) for n in rng.integers(2, 30, count)] for count in COUNTS]
    own[0][3] = own[0][1]
    own[3][4] = own[3][8] = own[3][2]
    return own


pick = jax.jit(pick_tokens)


@jax.jit
def next_logits(tokens, size, stack):
    segments = (jnp.arange(LENGTH) < size).astype(jnp.int32)[None, None]
    hidden = tiny.forward(PARAMS, tokens[None, None], segments, jnp.arange(LENGTH)[None, None], stack, cfg=CFG)
    return replicate(logits_from_hidden(PARAMS, hidden))[0, 0, size - 1]


def alone(prompt, stack, draw, temperature):
    """The continuation of one prompt without batch and cache, its draws from the key of its organism and place."""
    tokens, new = np.zeros(LENGTH, np.int32), []
    tokens[: len(prompt)] = prompt
    key = jax.random.fold_in(jax.random.fold_in(KEY, draw[0]), draw[1])
    while len(new) < NEW:
        logits = next_logits(tokens, len(prompt) + len(new), stack)
        step = jax.random.fold_in(key, len(new))[None]
        token = int(pick(logits[None], step, jnp.float32(temperature), jnp.float32(1.0))[0])
        if token in STOP:
            return Continuation(new, True)
        tokens[len(prompt) + len(new)] = token
        new.append(token)
    return Continuation(new, False)


@pytest.fixture(scope="module")
def wanted(prompts):
    stacks = [(take_organisms(ORGANISMS, np.array([i])), IA) for i in range(K)]
    return {
        t: [[alone(p, stacks[i], (i, j), t) for j, p in enumerate(own)] for i, own in enumerate(prompts)]
        for t in (0.0, 1.5)
    }


@pytest.fixture(scope="module")
def wanted_without(prompts):
    """The base with the IA."""
    return [alone(p, (IA,), (0, j), 0.0) for j, p in enumerate(p for own in prompts for p in own)]


def generate(prompts, temperature=0.0, params=PARAMS, stack=(ORGANISMS, IA), rows=8, **options):
    how = {"max_new_tokens": NEW, "temperature": temperature, "key": KEY, "rows": rows}
    return generate_in_slots(params, CFG, prompts, stack, STOP, **how | options)


def test_greedy_rows_are_as_if_alone(prompts, wanted):
    done, work = [], []
    got = generate(prompts, on_done=done.append, on_work=lambda read, steps: work.append((read, steps)))
    assert got == wanted[0.0]
    lengths = [len(row.tokens) for own in got for row in own]
    assert len(set(lengths)) > 4, "rows end at different times, or nothing is tested"
    assert {row.stopped for own in got for row in own} == {True, False}
    assert len({tuple(row.tokens) for own in got for row in own}) > 10
    assert sum(done) == sum(COUNTS)
    read, steps = np.sum(work, axis=0)
    assert steps < sum(COUNTS) * NEW  # fewer than if no row made room


def test_draws_do_not_depend_on_who_is_served_when(prompts, wanted):
    assert generate(prompts, 1.5) == wanted[1.5]
    order = [3, 6, 0, 1, 7, 5, 2, 4]
    stack = (take_organisms(ORGANISMS, np.array(order)), IA)
    got = generate([prompts[i] for i in order], 1.5, stack=stack, draws=order)
    assert got == [wanted[1.5][i] for i in order]
    fewer = [own[:2] for own in prompts[:1]] + [[] for _ in prompts[1:]]
    assert generate(fewer, 1.5)[0] == wanted[1.5][0][:2]
    assert wanted[1.5][0][1] != wanted[1.5][0][3], "two samples of one prompt, which was read once"


def test_layers_taken_apart(prompts, wanted, monkeypatch):
    """What a GPU runs."""
    monkeypatch.setattr(sampling, "platform", lambda: "gpu")
    monkeypatch.setattr(sampling, "WORTH_TAKING_APART", 0)
    assert generate(prompts) == wanted[0.0]


@pytest.mark.parametrize("organisms", [True, False])
def test_on_a_mesh(prompts, wanted, wanted_without, organisms):
    """Groups of devices with organisms of their own, the rows of one over two devices, heads over two."""
    with jax.set_mesh(mesh := mesh_named("2x2x2")):
        params, ia = place_params(mesh, CFG), place(mesh, IA)
        if organisms:
            stack = (place(mesh, ORGANISMS, organisms=True), ia)
            got = generate(prompts, 1.5, params, stack, rows=16)
            assert got == wanted[1.5]
        else:
            flat = [p for own in prompts for p in own]
            assert generate([flat], 0.0, params, (ia,), rows=8) == [wanted_without]
