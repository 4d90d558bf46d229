"""Replies of many models at once: each request under its own target's adapters, with or without the IA, in one decode.

All targets lie in one bank, the IA in another; a batch picks what its requests name. Requests of one target share a
position of the batch as far as it has room, and its adapters are read once for them.
"""

import difflib
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ia_jax.adapters.bank import Bank
from ia_jax.audits.investigator.requests import BASE, Completion, Request, Token, row_tokens
from ia_jax.errors import ConfigError
from ia_jax.models.chat import stop_ids
from ia_jax.models.rows import (
    FIRST_NEW,
    FIRST_PROMPT,
    NEW_STEP,
    Row,
    TokenScores,
    continue_rows,
    rounded,
    score_rows,
)
from ia_jax.models.weights import Model

COUNT_STEP = 2  # 4 would compile half the programs, and decode 256 rows for 64 requests of 32 models
ROWS_AT_ONCE = 128  # of a batch, filled or not, on each group of devices; what is left over makes another
Who = tuple[str, bool]  # target, ia


class Layout(NamedTuple):
    """Where requests of a batch go: `rows[i]` are indices of the requests at position i, all of `who[i]`.

    width: rows that each position has room for. Positions and width are powers of two, so that few programs serve
    all batches; rows without a request are done before the first token, but computed like the others.
    """

    who: list[Who | None]
    rows: list[list[int]]
    width: int


def arrange(who: Sequence[Who], home: Mapping[str, int | None], groups: int) -> list[Layout]:
    """Batches for requests of these models, each once. A model with more requests than the width has several positions.

    home: the group of devices where a target lives; None for any.
    """
    own: dict[Who, list[int]] = defaultdict(list)
    for i, w in enumerate(who):
        own[w].append(i)
    counts: list[list[int]] = [[] for _ in range(groups)]
    for (name, _), found in own.items():
        at = home[name]
        for g in range(groups) if at is None else (at,):
            counts[g].append(len(found) if at is not None else -(-len(found) // groups))
    width = _width(counts)
    parts = [(w, found[n : n + width]) for w, found in own.items() for n in range(0, len(found), width)]
    by_group: list[list[tuple[Who, list[int]]]] = [[] for _ in range(groups)]
    for part in sorted(parts, key=lambda p: home[p[0][0]] is None):  # those that are at home anywhere fill up
        group = home[part[0][0]]
        by_group[min(range(groups), key=lambda g: len(by_group[g])) if group is None else group].append(part)
    layouts = []
    for start, each in _slices(max(map(len, by_group)), width):
        slices = [group[start : start + each] for group in by_group]
        filled = [own[n] if n < len(own) else (None, []) for own in slices for n in range(each)]
        layouts.append(Layout([w for w, _ in filled], [rows for _, rows in filled], width))
    return layouts


def _slices(positions: int, width: int) -> list[tuple[int, int]]:
    """(the first, how many) of each batch's positions of a group, a power of two; the last has room to spare."""
    most = ROWS_AT_ONCE // width
    return [(start, min(most, rounded(positions - start, 1, COUNT_STEP))) for start in range(0, positions, most)]


def _width(counts: Sequence[Sequence[int]]) -> int:
    """The rows that each position should have room for, where models of each group have so many requests.

    A position costs its rows, filled or not, and the reading of its adapters, which is counted as one row more.
    """

    def cost(width: int) -> int:
        positions = max(sum(-(-n // width) for n in own) for own in counts)
        return sum(each for _, each in _slices(positions, width)) * (width + 1)

    widths = [COUNT_STEP**n for n in range(ROWS_AT_ONCE.bit_length()) if COUNT_STEP**n <= ROWS_AT_ONCE]
    return min(widths, key=lambda w: (cost(w), -w))


class Engine:
    """Answers requests to the targets of one base, one batch after the other; threads may share one.

    targets:  a bank of all targets, in the order of `names`.
    ia:       a bank that holds the IA once for every group of devices; None without one.
    bare:     names of targets without adapters.
    """

    def __init__(
        self,
        model: Model,
        mesh: jax.sharding.Mesh,
        names: Sequence[str],
        targets: Bank,
        ia: Bank | None,
        bare: Sequence[str] = (),
    ):
        self.model, self.mesh, self._targets, self._ia = model, mesh, targets, ia
        self._at: dict[str, int | None] = {BASE: None} | dict.fromkeys(bare) | {n: i for i, n in enumerate(names)}
        self._stop, self._lock = stop_ids(model.tokenizer), threading.Lock()

    def check(self, request: Request) -> None:
        """Raises ConfigError for a model that is not here, and for settings or a length that it cannot have."""
        if request.target not in self._at:
            near = difflib.get_close_matches(request.target, self._at, 4, 0.3) or list(self._at)[:4]
            raise ConfigError(f"no target is called {request.target!r}; near it: {', '.join(near)}")
        if request.ia and self._ia is None:
            raise ConfigError("no introspection adapter was loaded; name one that the workdir has (ia=…)")
        if request.max_new_tokens < 1 or request.temperature < 0 or not 0 < request.top_p <= 1:
            raise ConfigError(
                f"max_tokens={request.max_new_tokens} must be positive, temperature={request.temperature} not "
                f"negative, and top_p={request.top_p} lie in (0, 1]"
            )
        limit = self.model.config.max_position_embeddings
        if len(request.tokens) + request.max_new_tokens > limit:
            raise TooLong(
                f"a prompt of {len(request.tokens)} tokens and {request.max_new_tokens} new ones exceed the model's "
                f"{limit}; shorten the conversation"
            )

    def weights(self, target: str, ia: bool) -> str:
        """A hash of the adapters that a request is asked of, and their base."""
        at = self._at[target]
        own = "" if at is None else self._targets.hashes[at]
        return f"{self.model.fingerprint}/{own}/{self._ia.hashes[0] if ia and self._ia else ''}"

    def batches(self, requests: Sequence[Request]) -> Iterator[dict[int, Completion]]:
        """The replies by index, batch after batch. Requests of about the same length are decoded together.

        Most replies are short, and a batch lasts as long as its longest: so all get their first `FIRST_NEW` tokens, and
        those that have not ended go on in batches of their own, of a few times as many, from where they were.
        """
        for request in requests:
            self.check(request)
        home = {name: self._targets.home(i) for name, i in self._at.items()}
        rows, room = {i: _row(request) for i, request in enumerate(requests)}, FIRST_NEW
        while rows:
            by_length: dict[int, list[int]] = defaultdict(list)
            for i, row in rows.items():
                by_length[rounded(len(row.tokens), FIRST_PROMPT)].append(i)
            for _, found in sorted(by_length.items()):
                who = [(requests[i].target, requests[i].ia) for i in found]
                for layout in arrange(who, home, self._targets.groups):
                    placed = layout._replace(rows=[[found[n] for n in own] for own in layout.rows])
                    ended, going_on = self._batch(requests, rows, placed, room)
                    rows |= going_on
                    for i in ended:
                        del rows[i]
                    yield ended
            room *= NEW_STEP

    def _batch(
        self, requests: Sequence[Request], rows: Mapping[int, Row], layout: Layout, room: int
    ) -> tuple[dict[int, Completion], dict[int, Row]]:
        """Up to `room` more tokens of each reply: those that have ended, and the rows of the others, which go on."""
        each = len(layout.who) // self._targets.groups
        asked = [self._at[w[0]] if w else None for w in layout.who]
        begun = [
            [(r := rows[i])._replace(max_new_tokens=min(room, r.max_new_tokens - r.begun)) for i in own]
            for own in layout.rows
        ]
        with self._lock, jax.set_mesh(self.mesh):
            stack: tuple[Any, ...] = (self._targets.take(asked),)
            if self._ia is not None:
                stack += (self._ia.take([n // each if w and w[1] else None for n, w in enumerate(layout.who)]),)
            params, config = self.model.params, self.model.config
            found = continue_rows(params, config, begun, stack, self._stop, layout.width)
            replies = {
                i: ([*_said(rows[i]), *reply.tokens], reply.stopped)
                for own, new in zip(layout.rows, found, strict=True)
                for i, reply in zip(own, new, strict=True)
            }
            going_on = {
                i: rows[i]._replace(tokens=np.array([*_prompt(rows[i]), *tokens], np.int32), begun=len(tokens))
                for i, (tokens, stopped) in replies.items()
                if not stopped
                and rows[i].begun < len(tokens) < rows[i].max_new_tokens
                and (not requests[i].stop or _stop_at(requests[i], self._text(tokens)) is None)
            }
            own = [[i for i in own if i not in going_on] for own in layout.rows]
            wanted = [n for i in replies if i not in going_on and (n := requests[i].logprobs) is not None]
            scores: dict[int, TokenScores] = {}
            if wanted and any(replies[i][0] for at in own for i in at):
                read = [[rows[i]._replace(tokens=_prompt(rows[i])) for i in at] for at in own]
                new = [[replies[i][0] for i in at] for at in own]
                scored = score_rows(params, config, read, new, stack, layout.width, max(wanted))
                scores = {i: x for at, known in zip(own, scored, strict=True) for i, x in zip(at, known, strict=True)}
        ended = {i: self._completion(requests[i], *replies[i], scores.get(i)) for i in replies if i not in going_on}
        return ended, going_on

    def _completion(self, request: Request, tokens: list[int], stopped: bool, scores: TokenScores | None) -> Completion:
        text = self._text(tokens)
        end = _stop_at(request, text)
        if end is not None:
            stopped, text = True, text[:end]
            # Up to the token with which the text is complete: the rest was generated for nothing.
            tokens = tokens[: next((n for n in range(len(tokens)) if len(self._text(tokens[:n])) >= len(text)), None)]
        listed = None
        if request.logprobs is not None:
            listed = () if scores is None else self._listed(tokens, scores, request.logprobs)
        return Completion(text if request.keep else text.strip(), stopped, len(tokens), listed)

    def _listed(self, tokens: list[int], scores: TokenScores, top: int) -> tuple[Token, ...]:
        decode = self.model.tokenizer.decode
        return tuple(
            Token(
                str(decode([token])),
                round(float(scores.own[n]), 5),
                tuple((str(decode([int(i)])), round(float(p), 5)) for i, p in zip(ids[:top], ps[:top], strict=True)),
            )
            for n, (token, ids, ps) in enumerate(zip(tokens, scores.best, scores.best_scores, strict=False))
        )

    def _text(self, tokens: Sequence[int]) -> str:
        return str(self.model.tokenizer.decode(tokens, skip_special_tokens=True))


class TooLong(ConfigError):
    """A prompt and what shall follow it do not fit into the model's context."""


def _prompt(row: Row) -> np.ndarray:
    return row.tokens[: len(row.tokens) - row.begun]


def _said(row: Row) -> list[int]:
    return [int(x) for x in row.tokens[len(row.tokens) - row.begun :]]


def _stop_at(request: Request, text: str) -> int | None:
    """Where the first of the request's stop texts begins; None if it says none."""
    return min((at for stop in request.stop if stop and (at := text.find(stop)) >= 0), default=None)


def _row(request: Request) -> Row:
    seed = np.random.SeedSequence().entropy % 2**32 if request.seed is None else request.seed  # pyright: ignore
    return Row(row_tokens(request), request.max_new_tokens, request.temperature, request.top_p, seed)
