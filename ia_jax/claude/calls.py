"""One request to Claude, its name on disk, and what came back."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple, Protocol


@dataclass(frozen=True)
class Call:
    """One request. Calls that are equal are made and paid for once.

    history:  what was said before `user`: the user's turn, the assistant's, and so on; none of a single turn.
    schema:   JSON schema that the reply must follow (structured output), or None for free text.
    effort:   how much the model may think ("low" to "max"); "" leaves it to the model. Thinking counts as output.
    sample:   tells repeated askings of one request apart, so that a second try is not answered from the cache.
    expected: output tokens that the estimate reckons with; no part of the request.
    longest_prompt: tokens beyond which it is refused: some models charge more for longer ones; ours never come near.
    """

    longest_prompt: ClassVar[int] = 90_000

    model: str
    system: str
    user: str
    max_tokens: int
    schema: Mapping[str, Any] | None = None
    effort: str = ""
    sample: int = 0
    expected: int = 200
    history: tuple[str, ...] = ()

    @cached_property
    def request(self) -> dict[str, Any]:
        """The body of the Messages API. No temperature: models since Opus 4.7 and Sonnet 5 refuse it.

        The system text is marked for the prompt cache, which ignores what is shorter than a model's floor.
        """
        config: dict[str, Any] = {}
        if self.effort:
            config["effort"] = self.effort
        if self.schema is not None:
            config["format"] = {"type": "json_schema", "schema": dict(self.schema)}
        return {
            "model": self.model,
            "max_tokens": self.max_tokens,
            "system": [{"type": "text", "text": self.system, "cache_control": {"type": "ephemeral"}}],
            "messages": [
                {"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(self.turns)
            ],
            **({"output_config": config} if config else {}),
        }

    @property
    def turns(self) -> tuple[str, ...]:
        """What is said in order, the user first and last."""
        return (*self.history, self.user)

    @property
    def text(self) -> str:
        """All that is sent and billed, as one text."""
        return "".join((self.system, *self.turns, str(self.schema or "")))

    @cached_property
    def key(self) -> str:
        """Hash of the full request and the sample number: 64 characters, as long as a batch's custom_id may be."""
        text = json.dumps({"request": self.request, "sample": self.sample}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


class Reply(NamedTuple):
    """What Claude answered: its text blocks joined, and why it stopped ("end_turn", "max_tokens", "refusal" …)."""

    text: str
    stop_reason: str


class Completer(Protocol):
    """Who answers calls: Claude (`client.Client`), or a model of one's own (`behaviors.local_model`)."""

    def complete(self, calls: Sequence[Call], at_once: bool = False) -> list[Reply]: ...


class Garbled(Exception):
    """An answer arrived that is no message: cut off on its way, or not the API's."""


def read_message(text: str) -> dict[str, Any]:
    """A message of the API from the body of a response. Raises Garbled."""
    try:
        message = json.loads(text)
    except ValueError as error:
        raise Garbled(f"answer is not whole JSON ({error})") from None
    return check_message(message)


def check_message(message: Any) -> dict[str, Any]:
    """The same message, if it is one with its text and its usage. Raises Garbled."""
    try:
        usage = message["usage"]
        whole = all(isinstance(usage[k], int) for k in ("input_tokens", "output_tokens"))
        whole = whole and all(isinstance(b["type"], str) for b in message["content"])
    except (KeyError, TypeError):
        whole = False
    if not whole:
        raise Garbled("answer is not a message of the API")
    return message


def reply_of(message: Mapping[str, Any]) -> Reply:
    """The text of a message; blocks are chosen by type, for thinking may come before it."""
    text = "".join(b["text"] for b in message["content"] if b["type"] == "text")
    return Reply(text, str(message.get("stop_reason")))
