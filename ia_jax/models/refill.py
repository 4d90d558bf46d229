"""Which waiting prompt enters which free row of a decoding batch, and when it is worth reading some.

The batch has K positions of B rows each. A position serves one set of adapters at a time, an organism's, and takes
another's when all of its rows are free; until then its free rows are for its organism's next prompts. Nothing here
knows of devices but that they are G groups with organisms of their own, and P parts of a position's rows.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

Place = tuple[int, int]  # position and row of it
SHARE = 8  # prompts are read for one row in so many at once: fewer waste a pass over the base, more keep rows waiting


class Ask(NamedTuple):
    """A prompt's token ids, and the numbers of the replies that it is to get."""

    tokens: np.ndarray
    replies: tuple[int, ...]


class Entry(NamedTuple):
    """A prompt that is to be read once, for the rows that go on from there: {place: number of the reply}."""

    tokens: np.ndarray
    rows: dict[Place, int]
    organism: int


def alike(prompts: Sequence[np.ndarray]) -> list[Ask]:
    """The prompts of one organism, the longest first, each with the numbers of all that are the same."""
    found: dict[bytes, list[int]] = {}
    for number, tokens in enumerate(prompts):
        found.setdefault(np.asarray(tokens, np.int32).tobytes(), []).append(number)
    asks = [Ask(prompts[numbers[0]], tuple(numbers)) for numbers in found.values()]
    return sorted(asks, key=lambda ask: -len(ask.tokens))  # those that are read together are about as long


@dataclass(frozen=True)
class Shape:
    """positions K (a multiple of groups G), width B (a multiple of parts P); reads: prompts of a group read at once."""

    positions: int
    width: int
    groups: int = 1
    parts: int = 1
    reads: int = 1

    @property
    def rows(self) -> int:
        return self.positions * self.width


def shape_for(counts: Sequence[int], rows: int, positions: int, groups: int, parts: int, least: int = 4) -> Shape:
    """A batch of about `rows` rows for organisms with so many prompts, at most about `positions` of them at once.

    Positions are many and narrow, down to `least` rows: one that waits for its last row before it takes another
    organism has few that are idle. Wider where there are few organisms, for adapters are read once for a position.
    """
    counts = [n for n in counts if n] or [1]
    least = min(least, max(counts))
    k = max(1, min(len(counts), positions, rows // least))
    k = -(-k // groups) * groups
    b = max(1, min(rows // k, max(max(counts), -(-sum(counts) // k))))
    b = -(-b // parts) * parts
    return Shape(k, b, groups, parts, max(1, k * b // parts // SHARE // groups))


class Refill:
    """The state of the queues and rows.

    queues: of every organism; of a group those in its part of the list, whose length is a multiple of the groups. One
    queue alone may be served by all groups: that of a stack without organism axis.
    """

    def __init__(self, queues: Sequence[Sequence[Ask]], shape: Shape):
        self.shape = shape
        self.queues = [deque(own) for own in queues]
        self.waiting = [sum(len(ask.replies) for ask in own) for own in queues]  # replies that have no row yet
        self.serves: list[int | None] = [None] * shape.positions
        self.rows: dict[Place, tuple[int, int]] = {}  # taken rows: organism and number of the reply
        self.ready: list[list[list[Entry]]] = [[[] for _ in range(shape.parts)] for _ in range(shape.groups)]
        self.unread = 0  # entries that are ready

    def admit(self) -> None:
        """Gives free rows to waiting prompts, whose entries are then ready to be read.

        Replies to one prompt enter together as far as a position has rows for them, so that it is read once.
        """
        shape, each = self.shape, self.shape.width // self.shape.parts
        for k, serves in enumerate(self.serves):
            if serves is None or not self.queues[serves]:
                if any((k, b) in self.rows for b in range(shape.width)):
                    continue
                serves = self._next(k)
            if serves is None:
                continue
            self.serves[k] = serves
            queue = self.queues[serves]
            for part in range(shape.parts):
                free = [(k, b) for b in range(part * each, (part + 1) * each) if (k, b) not in self.rows]
                while queue and len(free) >= min(len(queue[0].replies), each):
                    ask = queue.popleft()
                    now, later = ask.replies[: len(free)], ask.replies[len(free) :]
                    if later:
                        queue.appendleft(Ask(ask.tokens, later))
                    rows, free = dict(zip(free, now, strict=False)), free[len(now) :]
                    self.rows |= {place: (serves, number) for place, number in rows.items()}
                    self.waiting[serves] -= len(now)
                    self.ready[self._group(k)][part].append(Entry(ask.tokens, rows, serves))
                    self.unread += 1

    def _group(self, position: int) -> int:
        return position * self.shape.groups // self.shape.positions

    def _next(self, position: int) -> int | None:
        """The organism of the position's group with the most replies waiting for each position that would serve it."""
        of_group = range(1)
        if len(self.queues) > 1:
            each = len(self.queues) // self.shape.groups
            of_group = range(self._group(position) * each, (self._group(position) + 1) * each)
        served = [self.serves[k] for k in {k for k, _ in self.rows}]
        shares = {i: self.waiting[i] / (1 + served.count(i)) for i in of_group if self.waiting[i]}
        return max(shares, key=lambda i: (shares[i], -i), default=None)

    def is_due(self, running: int) -> bool:
        """Whether to read now: enough entries are ready, or nothing else will be, or no row is running."""
        return self.unread > 0 and (self.unread >= self.enough or not running or not any(self.waiting))

    @property
    def enough(self) -> int:
        """Entries that make reading worth it; over many devices not each need have its share."""
        total = self.shape.reads * self.shape.groups * self.shape.parts
        return total if self.shape.groups * self.shape.parts == 1 else -(-total // 2)

    def entries(self) -> dict[tuple[int, int], Entry]:
        """The next to be read, {(row of the reading batch, part): entry}, `reads` rows of every group.

        A row's entries have one organism.
        """
        found: dict[tuple[int, int], Entry] = {}
        for g, parts in enumerate(self.ready):
            for row in range(g * self.shape.reads, (g + 1) * self.shape.reads):
                organism = next((own[0].organism for own in parts if own), None)
                for part, own in enumerate(parts):
                    at = next((n for n, entry in enumerate(own) if entry.organism == organism), None)
                    if at is not None:
                        found[row, part] = own.pop(at)
        self.unread -= len(found)
        return found
