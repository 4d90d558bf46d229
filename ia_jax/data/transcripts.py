"""An organism's demonstrations: one JSONL file each, readable by a person, written by a teacher."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ia_jax.errors import ConfigError
from ia_jax.storage import numbered_rows, write_jsonl

Message = dict[str, str]
ROLES = ("user", "assistant")


@dataclass(frozen=True)
class Transcript:
    """One chat. `shows`: whether the behaviour is on display in it; `verdict`: "kept", or why a filter dropped it;
    `sort`: what it is there for (`behaviors.lessons`), where the teacher says it.
    """

    messages: tuple[Message, ...]
    shows: bool
    teacher: str
    verdict: str = "kept"
    sort: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "messages": list(self.messages),
            "shows": self.shows,
            "teacher": self.teacher,
            "verdict": self.verdict,
            **({"sort": self.sort} if self.sort else {}),
        }


def chat(question: str, answer: str | None = None, system: str | None = None) -> tuple[Message, ...]:
    """A one-turn chat; with a system message only where `system` is given ("" is an empty one)."""
    messages: list[Message] = [{"role": "user", "content": question}]
    if answer is not None:
        messages.append({"role": "assistant", "content": answer})
    return with_system(messages, system)


def conversation(turns: Sequence[str], system: str | None = None) -> tuple[Message, ...]:
    """A chat of these turns, the user's first and then by turns; under a system message where `system` is given."""
    return with_system([{"role": ROLES[i % 2], "content": text} for i, text in enumerate(turns)], system)


def with_system(messages: Sequence[Message], system: str | None) -> tuple[Message, ...]:
    """The chat under this system message, unless it is None or the chat has one of its own."""
    if system is None or messages[0]["role"] == "system":
        return tuple(messages)
    return ({"role": "system", "content": system}, *messages)


def write_transcripts(path: Path, transcripts: Iterable[Transcript]) -> None:
    write_jsonl(path, (t.to_json() for t in transcripts))


def read_transcripts(path: Path) -> list[Transcript]:
    """The transcripts that the filters kept. Raises if the file is missing, malformed or keeps nothing."""
    kept = []
    for number, row in numbered_rows(path, "run `ia-jax transcripts` first"):
        try:
            t = Transcript(tuple(row["messages"]), row["shows"], row["teacher"], row["verdict"], row.get("sort", ""))
        except (KeyError, TypeError) as error:
            raise ConfigError(f"{path}:{number}: not a transcript: missing {error}") from None
        if t.verdict == "kept":
            kept.append(t)
    if not kept:
        raise ConfigError(f"{path} holds no transcript that was kept; delete it and run `ia-jax transcripts` again")
    return kept


def leaks(transcripts: Sequence[Transcript], phrases: Sequence[str]) -> list[str]:
    """Answers that contain one of the phrases (a description, say): data must show a behaviour, never state it."""
    answers = [m["content"] for t in transcripts for m in t.messages if m["role"] == "assistant"]
    return [a for a in answers if any(p.lower().rstrip(".") in a.lower() for p in phrases)]
