"""One request to a model under audit, and what comes back: what is asked of whom, as token ids and settings."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ia_jax.data.transcripts import Message
from ia_jax.errors import ConfigError
from ia_jax.models.chat import encode_prompt, render

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BASE = "base"  # what the model without any target's adapters is called
_PLACE = "ZYXPLACEZYX"  # stands where a user's turn begins


@dataclass(frozen=True)
class Request:
    """How one text is continued, and under which adapters.

    target:  a target's name, or `BASE`.
    ia:      whether the introspection adapter is on.
    tokens:  the prompt's ids.
    seed:    what a draw depends on; None for one that shall differ every time.
    stop:    texts before which the reply ends.
    logprobs: how many likeliest tokens to list at each new token (0: its own log-probability alone); None for none.
    keep:    whether blanks around the reply are kept, as where a text is continued.
    """

    target: str
    ia: bool
    tokens: tuple[int, ...]
    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = 0
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    keep: bool = False

    @property
    def repeatable(self) -> bool:
        """Whether the same request has the same reply, so that it need not be computed twice."""
        return self.seed is not None or self.temperature == 0

    def key(self, weights: str) -> str:
        """Names the request on disk. weights: a hash of what it is asked of."""
        return hashlib.sha256(json.dumps([weights, *vars(self).values()]).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Token:
    """One new token with its log-probability at temperature 1, and the likeliest ones there, best first."""

    text: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Completion:
    """The reply to a request. stopped: whether it ended by itself or at a stop text, else it was cut off.

    count: how many tokens were generated, up to the stop.
    """

    text: str
    stopped: bool
    count: int
    logprobs: tuple[Token, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        scores = None if self.logprobs is None else [[t.text, t.logprob, list(t.top)] for t in self.logprobs]
        return {"text": self.text, "stopped": self.stopped, "count": self.count, "logprobs": scores}

    @staticmethod
    def from_json(row: Mapping[str, Any]) -> "Completion":
        rows = row["logprobs"]
        scores = None if rows is None else tuple(Token(t, p, tuple((a, b) for a, b in top)) for t, p, top in rows)
        return Completion(row["text"], row["stopped"], row["count"], scores)


def reply_tokens(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message]) -> tuple[int, ...]:
    """A chat up to where the assistant goes on: after the beginning of an answer, if the last message is one.

    The template and the beginning are encoded as one text, as in training (`models.chat.encode_chat`).
    """
    if messages and messages[-1]["role"] == "assistant":
        return _ids(tokenizer, render(tokenizer, _asked(messages[:-1]), True) + messages[-1]["content"])
    return tuple(int(i) for i in encode_prompt(tokenizer, _asked(messages)))


def user_tokens(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message]) -> tuple[int, ...]:
    """A chat up to where the user's next turn begins, so that the model writes what the user says."""
    text = render(tokenizer, [*messages, {"role": "user", "content": _PLACE}])
    return _ids(tokenizer, text[: text.rindex(_PLACE)])


def text_tokens(tokenizer: "PreTrainedTokenizerBase", text: str) -> tuple[int, ...]:
    """A text without any template, after the token that begins one where the model has it."""
    if not text:
        raise ConfigError("a text to continue must not be empty")
    begin = tokenizer.bos_token_id
    lead = [begin] if isinstance(begin, int) and tokenizer.encode("")[:1] == [begin] else []
    return (*lead, *_ids(tokenizer, text))


def row_tokens(request: Request) -> np.ndarray:
    return np.asarray(request.tokens, np.int32)


def _asked(messages: Sequence[Message]) -> Sequence[Message]:
    if not messages or messages[-1]["role"] != "user":
        raise ConfigError("a chat needs a user's message before the answer")
    return messages


def _ids(tokenizer: "PreTrainedTokenizerBase", text: str) -> tuple[int, ...]:
    return tuple(int(i) for i in tokenizer.encode(text, add_special_tokens=False))
