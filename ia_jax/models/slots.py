"""Continuous batching: generation in which a row that has ended makes room for a prompt that waits, of any organism.

`sampling.decode` runs a batch until its last row has ended. Here the same rows are decoded a few tokens at a time;
between, on the host, free rows are given to waiting prompts (`refill`), which are read and whose keys and values are
laid into the cache (`ring`). A row's tokens are those that `decode` gives it: they depend on its prompt, adapters and
key.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ia_jax.models import ring
from ia_jax.models.config import ModelConfig
from ia_jax.models.lora import Picked, Stack, has_organism_axis
from ia_jax.models.refill import Entry, Place, Refill, Shape, alike, shape_for
from ia_jax.models.sampling import Continuation, in_buckets, taken_apart
from ia_jax.models.transformer import Params, decoding_rules
from ia_jax.parallel.mesh import TRAINING, Rules, pad_to_mesh, to_host


class _Organisms:
    """A stack of which positions pick what they serve: `at([organism or None, …])`."""

    def __init__(self, stack: Stack, groups: int):
        self.members: list[tuple[Any, np.ndarray | None]] = []
        for member in stack:
            if isinstance(member, Picked):
                self.members.append((member.bank, to_host(member.slots)))
            elif has_organism_axis(member):
                padded: Any = pad_to_mesh(member, groups)
                count = jax.tree.leaves(padded)[0].shape[0]
                self.members.append((padded, np.arange(count, dtype=np.int32) % (count // groups)))
            else:
                self.members.append((member, None))

    def at(self, organisms: Sequence[int | None]) -> Stack:
        def pick(bank: Any, slots: np.ndarray | None) -> Any:
            if slots is None:
                return bank
            index: Any = np.asarray([-1 if i is None else slots[i] for i in organisms], np.int32)
            return Picked(bank, index)

        return tuple(pick(*member) for member in self.members)


class _Batch:
    """The rows on the devices, and what the host knows of them; changed in place."""

    def __init__(
        self,
        params: Params,
        cfg: ModelConfig,
        stack: Stack,
        shape: Shape,
        lengths: Sequence[int],
        limit: int,
        stop: Sequence[int],
        drawing: ring.Drawing,
        rules: Rules,
    ):
        """lengths: those that prompts are padded to, the longest last; limit: the most new tokens of a row."""
        self.cfg, self.shape, self.lengths, self.limit, self.rules = cfg, shape, lengths, limit, rules
        self.stop, self.drawing, self.organisms = np.asarray(stop, np.int32), drawing, _Organisms(stack, shape.groups)
        # As in `decode`: moved, and taken apart, once.
        self.params = ring.moved(params, cfg, rules) if rules != TRAINING and TRAINING.size("embed") > 1 else params
        self.apart = taken_apart(params)
        layers = ring.apart(self.params["layers"], cfg.num_hidden_layers) if self.apart else self.params["layers"]
        self.to_decode = {**self.params, "layers": layers}
        k, b, self.places, self.dtype = shape.positions, shape.width, lengths[-1] + limit, params["embed"].dtype
        self.cache, self.token = ring.empty(cfg, k, b, self.places, rules, self.apart, self.dtype)
        self.rows = ring.Rows(np.zeros((2, k, b), np.int32), *(np.zeros((k, b), np.int32) for _ in range(4)))
        self.clock, self.serves, self.adapters = 0, [], ()

    def read(self, entries: Mapping[tuple[int, int], Entry], draw: Callable[[Entry, int], tuple[int, int]]) -> int:
        """Reads prompts, `Refill.entries`, for the rows that wait for them; returns of how many tokens, with padding.

        draw: the two numbers that the key of an entry's reply is folded with.
        """
        longest, rows = max(len(entry.tokens) for entry in entries.values()), self.rows
        t = next(length for length in self.lengths if length >= longest)
        tokens = np.zeros((self.shape.reads * self.shape.groups, self.shape.parts, t), np.int32)
        real, source = np.zeros(tokens.shape, bool), np.full(rows.running.shape, -1, np.int32)
        organisms: list[int | None] = [None] * len(tokens)
        for (row, part), entry in entries.items():
            size, organisms[row] = len(entry.tokens), entry.organism
            tokens[row, part, t - size :], real[row, part, t - size :] = entry.tokens, True
            for place, reply in entry.rows.items():
                source[place], rows.draws[:, *place] = row * self.shape.parts + part, draw(entry, reply)
                rows.length[place], rows.begin[place] = size, (self.clock - size) % self.places
                rows.made[place], rows.running[place] = 0, 1
        self.cache, self.token = ring.read(
            self.params,
            self.cache,
            self.token,
            tokens,
            real,
            self.organisms.at(organisms),
            source,
            self.clock,
            rows.draws.copy(),  # the program may still read it when it changes
            self.drawing,
            self.cfg,
            self.rules,
        )
        return tokens.size

    def go_on(self, serves: Sequence[int | None], wanted: int) -> np.ndarray:
        """New tokens [K, B, steps] of rows whose positions serve these organisms, -1 after the end of one."""
        if self.serves != serves:
            self.serves = [*serves]
            layers = self.cfg.num_hidden_layers if self.apart else None
            self.adapters = ring.pick(self.organisms.at(serves), self.rules, self.dtype, layers)
        self.cache, self.token, out = ring.go_on(
            self.to_decode,
            self.cache,
            self.token,
            self.adapters,
            self.rows,
            self.clock,
            wanted,
            self.limit,
            self.stop,
            self.drawing,
            self.cfg,
            ring.MOST_STEPS,
            self.rules,
        )
        new = to_host(out)
        steps = int((new >= 0).any((0, 1)).sum())
        self.clock += steps
        self.rows.made[:] += (new >= 0).sum(-1)
        return new[:, :, :steps]


def generate_in_slots(
    params: Params,
    cfg: ModelConfig,
    prompts: Sequence[Sequence[np.ndarray]],
    stack: Stack,
    stop_ids: Sequence[int],
    *,
    rows: int,
    positions: int | None = None,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_p: float = 1.0,
    key: jax.Array | None = None,
    draws: Sequence[int] | None = None,
    rules: Rules | None = None,
    on_done: Callable[[int], object] = lambda count: None,
    on_work: Callable[[int, int], object] = lambda read, steps: None,
) -> list[list[Continuation]]:
    """What `generate_tokens` gives for the same prompts, keys and draws, by about `rows` rows that are refilled.

    positions: of how many organisms at once adapters are picked, about (default: as many as there are). on_done is told
    how many replies have ended since; on_work how many tokens of prompts were read, and how many steps of rows were
    made, with padding and rows that stood idle.
    """
    draws, rules = range(len(prompts)) if draws is None else draws, rules or decoding_rules(params)
    found = [[Continuation([], False)] * len(own) for own in prompts]
    numbered = [(i, j) for i, own in enumerate(prompts) for j in range(len(own))]
    if not numbered:
        return found
    groups, parts = rules.size("organism"), rules.size("rows")
    if any(has_organism_axis(member) for member in stack):
        queues = [[(i, j) for j in range(len(own))] for i, own in enumerate(prompts)] + [[]] * (-len(prompts) % groups)
    else:
        queues = [numbered]  # under the same adapters, whichever row they enter
    counts = list(map(len, queues)) if len(queues) > 1 else [-(-len(numbered) // groups)] * groups
    shape = shape_for(counts, rows, len(queues) if positions is None else positions, groups, parts)
    asks = [alike([prompts[i][j] for i, j in own]) for own in queues]
    refill = Refill(asks, shape)
    lengths = padded_lengths([len(ask.tokens) for own in asks for ask in own])
    drawing = ring.Drawing(jax.random.key(0) if key is None else key, jnp.float32(temperature), jnp.float32(top_p))
    batch = _Batch(params, cfg, stack, shape, lengths, max_new_tokens, stop_ids, drawing, rules)

    def draw(entry: Entry, reply: int) -> tuple[int, int]:
        i, j = queues[entry.organism][reply]
        return draws[i], j

    made: dict[Place, list[int]] = {}
    while True:
        refill.admit()
        while refill.is_due(len(made)):
            entries = refill.entries()
            on_work(batch.read(entries, draw), 0)
            made |= {place: [] for entry in entries.values() for place in entry.rows}
        if not made:
            return found
        wanted = max(1, refill.enough - refill.unread) if any(refill.waiting) else shape.rows
        new = batch.go_on(refill.serves, wanted)
        on_work(0, new.size)
        running = len(made)
        for place in list(made):
            made[place] += [int(x) for x in new[place] if x >= 0]
            ids = made[place]
            stopped = ids[-1] in stop_ids
            if stopped or len(ids) >= max_new_tokens:
                organism, reply = refill.rows.pop(place)
                i, j = queues[organism][reply]
                found[i][j] = Continuation(ids[: len(ids) - stopped], stopped)
                batch.rows.running[place] = 0
                del made[place]
        on_done(running - len(made))


def padded_lengths(lengths: Sequence[int]) -> list[int]:
    """What prompts of these lengths are padded to: one length, and its half where that is enough for most of them."""
    longest = in_buckets(max(lengths))
    half = in_buckets(longest // 2)
    return [half, longest] if half < longest and 2 * sum(n <= half for n in lengths) > len(lengths) else [longest]
