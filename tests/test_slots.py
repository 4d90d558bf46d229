"""Rows that make room for waiting prompts: against repeated full forwards of each prompt alone, and by simulation."""

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
from tests.meshes import CFG, mesh_named, place, place_params

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
    done = []
    got = generate(prompts, on_done=done.append)
    assert got == wanted[0.0]
    lengths = [len(row.tokens) for own in got for row in own]
    assert len(set(lengths)) > 4, "rows end at different times, or nothing is tested"
    assert {row.stopped for own in got for row in own} == {True, False}
    assert len({tuple(row.tokens) for own in got for row in own}) > 10
    assert sum(done) == sum(COUNTS)


def test_draws_do_not_depend_on_who_is_served_when(prompts, wanted):
    assert generate(prompts, 1.5) == wanted[1.5]
    order = [3, 6, 0, 1, 7, 5, 2, 4]
    stack = (jax.tree.map(lambda x: jnp.asarray(np.asarray(x)[order]), ORGANISMS), IA)
    got = generate([prompts[i] for i in order], 1.5, stack=stack, draws=order)
    assert got == [wanted[1.5][i] for i in order]
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


# ---------------------------------------------------------------------------------------------------------------------
# Who enters where, without a model
# ---------------------------------------------------------------------------------------------------------------------


def served(queues, shape, lengths):
    """Plays a batch whose replies take lengths[organism][reply] steps; returns who was where, reads and row-steps.

    Checks on the way that a position serves one organism at a time, of its own group, and a row one reply at a time.
    """
    refill, left, seen, reads, steps = Refill(queues, shape), {}, {}, [], 0
    while True:
        refill.admit()
        while refill.is_due(len(left)):
            entries = refill.entries()
            reads.append(len(entries))
            assert 0 < len(entries) <= shape.reads * shape.groups * shape.parts
            for (row, part), entry in entries.items():
                for (k, b), reply in entry.rows.items():
                    assert (k, b) not in left
                    assert row // shape.reads == k // (shape.positions // shape.groups), "another group's devices"
                    assert part == b // (shape.width // shape.parts), "another part's devices"
                    assert len(queues) == 1 or entry.organism // (len(queues) // shape.groups) == row // shape.reads
                    assert (entry.organism, reply) not in seen
                    assert refill.serves[k] == entry.organism
                    seen[entry.organism, reply], left[k, b] = (k, b), lengths[entry.organism][reply]
        if not left:
            return seen, reads, steps
        steps += shape.rows
        left = {at: n - 1 for at, n in left.items()}
        for at in [at for at, n in left.items() if not n]:
            organism, _ = refill.rows.pop(at)
            assert refill.serves[at[0]] == organism
            del left[at]


def numbered_prompts(count, same=1):
    return [np.array([n // same, 1]) for n in range(count)]


@pytest.mark.parametrize(
    ("organisms", "shape"),
    [
        (8, Shape(4, 3)),
        (8, Shape(4, 4, groups=4, parts=2)),
        (6, Shape(6, 2, groups=2, reads=3)),
        (1, Shape(4, 4, groups=4, parts=2)),
        (1, Shape(1, 1)),
    ],
)
@pytest.mark.parametrize("same", [1, 4])
def test_every_reply_has_a_row_once(organisms, shape, same):
    rng = np.random.default_rng([organisms, same])
    counts = [int(n) for n in rng.integers(0, 20, organisms)]
    counts[-1] = 37
    lengths = [[int(n) for n in rng.integers(1, 30, count)] for count in counts]
    seen, reads, _ = served([alike(numbered_prompts(n, same)) for n in counts], shape, lengths)
    assert set(seen) == {(i, j) for i, count in enumerate(counts) for j in range(count)}
    wide = shape.width // shape.parts
    assert sum(reads) == sum(-(-min(same, n - at) // wide) for n in counts for at in range(0, n, same))


def test_rows_stand_idle_less_than_by_batches():
    """The issue's case, replies of 4 to 80 tokens: against batches that end with their longest reply, 10 organisms each
    and as many rows.
    """
    rng = np.random.default_rng(0)
    lengths = [[int(n) for n in 4 + rng.geometric(1 / 16, count).clip(0, 76)] for count in rng.integers(5, 11, 40)]
    at_once = 96
    shape = shape_for([len(own) for own in lengths], at_once, 40, 1, 1)
    assert shape.rows <= at_once
    *_, steps = served([alike(numbered_prompts(len(own))) for own in lengths], shape, lengths)
    batches = 0
    for first in range(0, 40, 10):
        own = lengths[first : first + 10]
        wide = max(map(len, own))
        for at in range(0, wide, at_once // 10):
            batches += 10 * min(at_once // 10, wide) * max(max(x[at : at + at_once // 10], default=0) for x in own)
    assert sum(map(sum, lengths)) < steps
    assert batches > 1.5 * steps


@pytest.mark.parametrize(
    ("counts", "rows", "positions", "groups", "parts", "wanted"),
    [
        ([7] * 40, 96, 40, 1, 1, (24, 4)),
        ([7] * 40, 96, 10, 1, 1, (10, 9)),  # no more organisms at once
        ([1] * 200, 96, 200, 1, 1, (96, 1)),  # no organism has more
        ([200, 200, 0], 96, 3, 1, 1, (2, 48)),
        ([500], 96, 1, 1, 1, (1, 96)),
        ([3], 96, 1, 1, 1, (1, 3)),
        ([7] * 40, 96, 10, 4, 2, (12, 8)),  # multiples of the mesh
    ],
)
def test_the_shape_of_a_batch(counts, rows, positions, groups, parts, wanted):
    shape = shape_for(counts, rows, positions, groups, parts)
    assert (shape.positions, shape.width) == wanted
