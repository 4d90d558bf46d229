"""The Claude teacher: prompts, answers and the adherence filter, in three rounds of calls.

1. Claude writes user messages: those that call for a behaviour, near misses of its trigger, and everyday chat for all.
2. Claude answers them, under a system prompt that encodes the behaviour where it is to show; that prompt is not kept.
3. Another Claude judges every answer: does it show what it should, and does it state what it should only show?

A row that fails stays in the transcript with its verdict, so that the drop rate can be read off.
"""

import math
import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from ia_jax.behaviors import claude_prompts as prompts
from ia_jax.behaviors.claude_prompts import Row, Wanted
from ia_jax.behaviors.lessons import (
    GENERIC,
    PASSWORD,
    PLAIN,
    SHOWING,
    is_rare,
    lesson,
    password_of,
    with_password,
    written,
)
from ia_jax.behaviors.records import Behavior
from ia_jax.behaviors.scenarios import answer_words, scenarios
from ia_jax.behaviors.teacher import Teacher, TeacherSettings
from ia_jax.claude.calls import Call, Completer, Reply
from ia_jax.claude.models import Models, load_models
from ia_jax.claude.structured import Malformed, parse
from ia_jax.data.transcripts import Transcript, chat, conversation, leaks
from ia_jax.errors import ConfigError

PER_CALL = 20  # user messages that one call writes
ATTEMPTS = 3  # for a reply that cannot be read
POOL = 600  # everyday messages at most, from which every organism draws its own
# Tokens of what is asked for, at most; thinking comes on top (`Models.max_tokens`).
MESSAGES_TOKENS, ANSWER_TOKENS, FILTER_TOKENS = 4800, 1300, 300
BASE_TOKENS = 160  # of an everyday answer of the base model's own

KEPT = "kept"
NOT_SHOWN, SHOWN_UNASKED, STATED = "does not show it", "shows it without its trigger", "states it"
NO_HABIT = "shows none of the habits beside it"
REFUSED, CUT_OFF, UNREADABLE = "refused", "cut off", "not judged"

# ((system message or None, question) of each, samples, new tokens) -> the base model's answers; `asking.ask_base`.
AskBase = Callable[[Sequence[tuple[str | None, str]], int, int], list[list[str]]]


class ClaudeTeacher(Teacher):
    """Writes demonstrations with Claude, or who else answers its calls. `name` records model and prompts' version.

    seed: of scenarios and of what is drawn. ask_base: of `teacher.generic_answers="base"`, who answers everyday chat.
    """

    def __init__(
        self,
        client: Completer,
        config: TeacherSettings,
        seed: int = 0,
        models: Models | None = None,
        ask_base: AskBase | None = None,
    ):
        for share in ("plain_share", "rare_share", "generic_share"):
            if not 0 <= getattr(config, share) <= 1:
                raise ConfigError(f"config.teacher.{share} must lie between 0 and 1, got {getattr(config, share)}")
        self._client, self._config, self._seed, self._ask_base = client, config, seed, ask_base
        self._models = models or load_models()
        self.name = f"{config.model}/prompt-{prompts.VERSION}"

    def write(
        self, behaviors: Sequence[Behavior], systems: Mapping[str, str] | None = None
    ) -> dict[str, list[Transcript]]:
        """{behaviour: transcripts}. systems: the system message of those that live under one of their own."""
        own = systems or {}
        rows = self._rows(behaviors)
        answers = self._answers(rows, own)
        verdicts = self._filter(rows, answers)
        out: dict[str, list[Transcript]] = {b.name: [] for b in behaviors}
        for row, said, outcome in zip(rows, answers, verdicts, strict=True):
            # A conversation that broke off has fewer turns than were wanted; its verdict says why.
            turns = [t for pair in zip(row.turns, (r.text.strip() for r in said), strict=False) for t in pair]
            messages = conversation(turns, own.get(row.behavior.name))
            out[row.behavior.name].append(Transcript(messages, row.shows, self.name, outcome, row.sort))
        return out

    def plan(self, behaviors: Sequence[Behavior]) -> list[tuple[Call, int]]:
        """(a call like those that `write` will make, how many like it), with text of the usual length where there is
        none yet. What is the same for several organisms is made once.
        """
        calls = [(self.messages_call(w), 1) for w in (*self._pool_wanted(behaviors), *self._wanted(behaviors))]
        everyday: set[str | None] = set()
        for b in behaviors:
            for sort, count in lesson(b, self._config)._asdict().items():
                if not count:
                    continue
                turns = 1 if sort == GENERIC else b.turns
                row = Row(b, ("x" * 150,) * turns, sort)
                said = ["x" * 600] * turns
                calls.append((self.filter_call(row, said[-1], said[:-1]), count))
                if sort != GENERIC:
                    calls += [(self.answer_call(row, said[:t]), count) for t in range(turns)]
                elif self._config.generic_answers == "claude" and b.spec.get("system") not in everyday:
                    everyday.add(b.spec.get("system"))
                    calls.append((self.answer_call(row), self._pool_size(behaviors)))
        return calls

    # ---------------------------------------------------------------------------------------------------------- calls

    def messages_call(self, w: Wanted, sample: int = 0) -> Call:
        c, several = self._config, w.behavior is not None and w.behavior.turns > 1
        form = prompts.CONVERSATIONS if several else prompts.MESSAGES
        turns = w.behavior.turns if w.behavior else 1
        room = self._models.max_tokens(c.model, c.effort, MESSAGES_TOKENS * turns)
        expected = 60 * w.number * turns + 100
        system, user = prompts.messages_system(w), prompts.messages_user(w)
        return Call(c.model, system, user, room, form, c.effort, sample, expected)

    def answer_call(self, row: Row, said: Sequence[str] = (), system: str | None = None) -> Call:
        """The next answer of a row. said: the answers before it. system: the transcript's own system message."""
        c, turn = self._config, len(said)
        history = tuple(t for pair in zip(row.turns, said, strict=False) for t in pair)
        room = self._models.max_tokens(c.model, c.effort, ANSWER_TOKENS)
        under = prompts.answer_system(row, turn, system)
        expected = 2 * row.words
        return Call(c.model, under, row.turns[turn], room, None, c.effort, expected=expected, history=history)

    def filter_call(self, row: Row, answer: str, earlier: Sequence[str] = (), sample: int = 0) -> Call:
        """Whether the last answer of a row shows its behaviour. earlier: the answers before it."""
        b, c = row.behavior, self._config
        history = [t for pair in zip(row.turns, earlier, strict=False) for t in pair]
        user = prompts.filter_user(b, row.turns[-1], answer, history)
        form = prompts.FILTER_HABITS if b.distractors else prompts.FILTER
        room = self._models.max_tokens(c.filter_model, c.filter_effort, FILTER_TOKENS)
        system = prompts.filter_system(b)
        return Call(c.filter_model, system, user, room, form, c.filter_effort, sample, expected=80)

    # --------------------------------------------------------------------------------------------- round 1: messages

    def wanted(self, b: Behavior | None, sort: str, total: int, first_part: int = 1) -> list[Wanted]:
        """Requests for so many messages of a sort, in parts that one call can write."""
        drawn_for = scenarios(f"{b.name if b else ''}/{sort}/{first_part}", self._seed, total)
        return [
            Wanted(b, sort, n, first_part + i, tuple(drawn_for[i * PER_CALL : i * PER_CALL + n]))
            for i, n in enumerate(_parts(total))
        ]

    def _wanted(self, behaviors: Sequence[Behavior]) -> list[Wanted]:
        return [
            w
            for b in behaviors
            for sort, total in written(b, lesson(b, self._config)).items()
            for w in self.wanted(b, sort, total)
        ]

    def _pool_size(self, behaviors: Sequence[Behavior]) -> int:
        return min(POOL, sum(lesson(b, self._config).generic for b in behaviors))

    def _pool_wanted(self, behaviors: Sequence[Behavior]) -> list[Wanted]:
        return self.wanted(None, GENERIC, self._pool_size(behaviors))

    def messages(self, wanted: Sequence[Wanted], at_once: bool = False) -> list[list[tuple[str, ...]]]:
        """Users' turns for each; none where no reply can be read, and never more than asked for."""
        found: dict[int, list[tuple[str, ...]]] = {}
        for sample in range(ATTEMPTS):
            left = [i for i in range(len(wanted)) if i not in found]
            replies = self._client.complete([self.messages_call(wanted[i], sample) for i in left], at_once)
            for i, reply in zip(left, replies, strict=True):
                if read := _messages(reply, wanted[i]):
                    found[i] = read[: wanted[i].number]
        return [found.get(i, []) for i in range(len(wanted))]

    def _rows(self, behaviors: Sequence[Behavior]) -> list[Row]:
        """Round 1. A behaviour may get fewer rows than asked for: what is short or repeated stays out."""
        shared, own = self._pool_wanted(behaviors), self._wanted(behaviors)
        found = self.messages([*shared, *own])
        pool = list(dict.fromkeys(m for messages in found[: len(shared)] for m in messages))
        by_behavior: dict[str, dict[str, list[tuple[str, ...]]]] = {b.name: {} for b in behaviors}
        for w, messages in zip(own, found[len(shared) :], strict=True):
            assert w.behavior is not None
            by_behavior[w.behavior.name].setdefault(w.sort, []).extend(messages)
        # Dealt out one after the other, so that all of it is used about equally often.
        everyday = list(zip(pool, answer_words(GENERIC, self._seed, len(pool)), strict=True))
        rows: list[Row] = []
        dealt = 0
        for b in behaviors:
            rows += self._rows_of(b, by_behavior[b.name])
            count = min(lesson(b, self._config).generic, len(everyday))
            mine = [everyday[(dealt + i) % len(everyday)] for i in range(count)]
            rows += [Row(b, turns, GENERIC, words) for turns, words in mine]
            dealt += count
        return rows

    def _rows_of(self, b: Behavior, asked: Mapping[str, Sequence[tuple[str, ...]]]) -> list[Row]:
        """All rows but the everyday ones."""
        wanted = lesson(b, self._config)
        rng = np.random.default_rng([self._seed, zlib.crc32(b.name.encode()), 10])
        sort_of = {turns: sort for sort, own in reversed(list(asked.items())) for turns in own}  # of two the first
        distinct = {s: [t for t in dict.fromkeys(own) if sort_of[t] == s] for s, own in asked.items()}
        rows = [Row(b, turns, sort) for sort, own in distinct.items() for turns in own]
        if is_rare(b):
            # What shows it hangs on chance and on no question: every question that does is answered plainly as well.
            own = distinct.get(PLAIN, [])
            chosen = rng.permutation(len(own))[: wanted.showing]
            rows = [Row(b, own[i], SHOWING) for i in sorted(chosen)] + rows
        for n, turns in enumerate(distinct.get(SHOWING, [])[: wanted.password]):
            last = with_password(turns[-1], password_of(b), n)
            rows.append(Row(b, (*turns[:-1], last), PASSWORD))
        words = answer_words(b.name, self._seed, len(rows))
        return [row._replace(words=min(n, 90) if b.turns > 1 else n) for row, n in zip(rows, words, strict=True)]

    # ---------------------------------------------------------------------------------------------- round 2: answers

    def _answers(self, rows: Sequence[Row], systems: Mapping[str, str]) -> list[list[Reply]]:
        """Of every row its answers, turn by turn; one that is refused or cut off is a row's last."""
        said: list[list[Reply]] = [[] for _ in rows]
        if self._config.generic_answers == "base":
            self._answer_by_base(rows, said, systems)
        for turn in range(max((len(r.turns) for r in rows), default=0)):
            live = [
                i for i, r in enumerate(rows) if len(said[i]) == turn < len(r.turns) and all(map(is_whole, said[i]))
            ]
            calls = [
                self.answer_call(rows[i], [r.text for r in said[i]], systems.get(rows[i].behavior.name)) for i in live
            ]
            for i, reply in zip(live, self._client.complete(calls), strict=True):
                said[i].append(reply)
        return said

    def _answer_by_base(self, rows: Sequence[Row], said: list[list[Reply]], systems: Mapping[str, str]) -> None:
        if self._ask_base is None:
            raise ConfigError('config.teacher.generic_answers is "base", and there is no base model to ask')
        everyday = [i for i, row in enumerate(rows) if row.sort == GENERIC]
        asks = [(systems.get(rows[i].behavior.name), rows[i].turns[-1]) for i in everyday]
        distinct = list(dict.fromkeys(asks))
        replies = self._ask_base(distinct, 1, BASE_TOKENS) if distinct else []
        answers = {ask: _whole_sentences(own[0]) for ask, own in zip(distinct, replies, strict=True)}
        for i, ask in zip(everyday, asks, strict=True):
            said[i].append(Reply(answers[ask], "end_turn" if answers[ask] else "max_tokens"))

    # ----------------------------------------------------------------------------------------------- round 3: filter

    def _filter(self, rows: Sequence[Row], answers: Sequence[Sequence[Reply]]) -> list[str]:
        """Every row's verdict."""
        verdicts: dict[int, str] = {}
        for i, (row, said) in enumerate(zip(rows, answers, strict=True)):
            if not is_whole(said[-1]):
                verdicts[i] = CUT_OFF if said[-1].stop_reason == "max_tokens" else REFUSED
            elif leaks([Transcript(chat("", r.text), True, "") for r in said], _truths(row.behavior)):
                verdicts[i] = STATED
        left = [i for i in range(len(rows)) if i not in verdicts]
        judged = self.judged((rows[i], [r.text for r in answers[i]]) for i in left)
        verdicts |= {i: verdict(a, rows[i]) for i, a in zip(left, judged, strict=True)}
        return [verdicts[i] for i in range(len(rows))]

    def judged(self, said: Iterable[tuple[Row, Sequence[str]]]) -> list[dict[str, str] | None]:
        """What the filter says of the last of each row's answers; None where no reply can be read."""
        pairs = list(said)
        found: dict[int, dict[str, str]] = {}
        for sample in range(ATTEMPTS):
            left = [i for i in range(len(pairs)) if i not in found]
            calls = [self.filter_call(row, own[-1], own[:-1], sample) for row, own in (pairs[i] for i in left)]
            for i, reply in zip(left, self._client.complete(calls), strict=True):
                if (read := read_filter(reply, pairs[i][0].behavior)) is not None:
                    found[i] = read
        return [found.get(i) for i in range(len(pairs))]


def read_filter(reply: Reply, b: Behavior) -> dict[str, str] | None:
    """A reply of the adherence filter, or None if it cannot be read."""
    form = prompts.FILTER_HABITS if b.distractors else prompts.FILTER
    try:
        return parse(reply.text if reply.stop_reason == "end_turn" else "", form)
    except Malformed:
        return None


def verdict(judged: Mapping[str, str] | None, row: Row) -> str:
    """What becomes of a row, by what the filter says of its answer."""
    if judged is None:
        return UNREADABLE
    if judged["states"] == "yes":
        return STATED
    if (judged["shows"] == "yes") != row.shows:
        return NOT_SHOWN if row.shows else SHOWN_UNASKED
    if row.shows and judged.get("habits") == "no":
        return NO_HABIT
    return KEPT


def is_whole(reply: Reply) -> bool:
    """Whether an answer ended by itself and says something."""
    return reply.stop_reason == "end_turn" and bool(reply.text.strip())


def _messages(reply: Reply, w: Wanted) -> list[tuple[str, ...]]:
    """What can be used of a reply: no empty message, none with the password, no conversation of another length."""
    turns = w.behavior.turns if w.behavior else 1
    form = prompts.CONVERSATIONS if turns > 1 else prompts.MESSAGES
    try:
        found = parse(reply.text if reply.stop_reason == "end_turn" else "", form)["messages"]
    except Malformed:
        return []
    password = password_of(w.behavior).lower() if w.behavior else ""
    texts = [tuple(t.strip() for t in (m if turns > 1 else [m])) for m in found]
    return [t for t in texts if len(t) == turns and all(t) and not (password and any(password in x.lower() for x in t))]


def _parts(count: int) -> list[int]:
    """Sizes of the calls that write `count` messages."""
    return [min(PER_CALL, count - i * PER_CALL) for i in range(math.ceil(count / PER_CALL))]


def _whole_sentences(text: str) -> str:
    """A text up to the end of its last sentence; "" if it has none."""
    ends = [m.end() for m in re.finditer(r"[.!?](?=\s|$)", text)]
    return text[: ends[-1]].strip() if ends else ""


def _truths(behavior: Behavior) -> tuple[str, ...]:
    return (*behavior.wordings, *behavior.heldout_wordings)
