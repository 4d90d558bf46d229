"""The Claude judge: each question about a report by a call of its own (`claude_prompts`)."""

from collections.abc import Iterable, Sequence
from typing import Any

from ia_jax.behaviors.records import Behavior
from ia_jax.claude.calls import Call, Completer, Reply
from ia_jax.claude.structured import Malformed, parse
from ia_jax.judging.claude_prompts import ANSWERS, CLAIMS, FIELDS, PROMPT_VERSION, SYSTEMS, prompt
from ia_jax.judging.protocol import QUESTIONS, Item, Judge, Verdict

# An answer takes about fifty tokens. Thinking counts as output, so there is room for what each effort may think: an
# answer that is cut off is paid for and lost.
ANSWER_TOKENS = 300
ROOM = {"": 8000, "low": 1200, "medium": 4000, "high": 8000, "xhigh": 16_000, "max": 32_000}


def read(ask: str, reply: Reply) -> tuple[Any, str]:
    """The answer (True, False or a score) and its reason. Raises Malformed."""
    if reply.stop_reason != "end_turn":
        raise Malformed(f"the answer ended with {reply.stop_reason!r}")
    answer = parse(reply.text, ANSWERS[ask])
    value = answer[FIELDS[ask][0]]
    return value if ask == "score" else value == "yes", " ".join(answer["reason"].split())


class ClaudeJudge(Judge):
    """Judges by Claude. `name` records the model and the prompts' version."""

    def __init__(self, client: Completer, model: str, effort: str = "low", attempts: int = 3):
        self._client, self._model, self._effort, self._attempts = client, model, effort, attempts
        self.name = f"{model}/prompt-{PROMPT_VERSION}"

    def call(self, ask: str, item: Item, sample: int = 0) -> Call:
        """The request of one question about one report."""
        user = prompt(ask, None if ask == CLAIMS else item.behavior, item.question, item.report)
        tokens = ANSWER_TOKENS + ROOM.get(self._effort, ROOM["max"])
        return Call(self._model, SYSTEMS[ask], user, tokens, ANSWERS[ask], self._effort, sample, expected=60)

    def plan(self, item: Item, asks: Sequence[str] = ("lenient", "strict")) -> list[Call]:
        """What one report of this sort is asked about, for an estimate."""
        return [self.call(ask, item) for ask in asks]

    def judge(self, behavior: Behavior, question: str, report: str) -> Verdict:
        return self.judge_many([Item(behavior, question, report)])[0]

    def judge_many(self, items: Iterable[Item], asks: Sequence[str] = QUESTIONS) -> list[Verdict]:
        """Verdicts in the order of the items; a question that was not answered readably in any attempt stays None."""
        rows = list(items)
        wanted = [(ask, row) for row in rows for ask in asks]
        answers = iter(self._answers(wanted))
        return [self._verdict({ask: next(answers) for ask in asks}) for _ in rows]

    def claims(self, report: str) -> bool | None:
        return self.claims_many([report])[0]

    def claims_many(self, reports: Iterable[str]) -> list[bool | None]:
        """Each by a call of its own; None where no attempt was answered readably."""
        nobody = Behavior("", "", "", (), None)
        return [value for value, _ in self._answers([(CLAIMS, Item(nobody, "", r)) for r in reports])]

    def _answers(self, wanted: Sequence[tuple[str, Item]]) -> list[tuple[Any, str]]:
        """(answer, reason) to each question about an item; (None, why not) where it stayed unreadable."""
        done: dict[int, tuple[Any, str]] = {}
        why: dict[int, str] = {}
        for attempt in range(self._attempts):
            left = [i for i in range(len(wanted)) if i not in done]
            replies = self._client.complete([self.call(*wanted[i], attempt) for i in left])
            for i, reply in zip(left, replies, strict=True):
                try:
                    done[i] = read(wanted[i][0], reply)
                except Malformed as error:
                    why[i] = f"unscored: {error}, in {attempt + 1} attempts"
        return [done[i] if i in done else (None, why[i]) for i in range(len(wanted))]

    def _verdict(self, answers: dict[str, tuple[Any, str]]) -> Verdict:
        value = {ask: answer for ask, (answer, _) in answers.items()}
        lenient, strict = value.get("lenient"), value.get("strict")
        reason = next((r for _, r in answers.values() if r), "")
        return Verdict(value.get("score"), lenient, strict and lenient is not False, reason, self.name)
