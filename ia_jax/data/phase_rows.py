"""What phases other than chats read: plain documents, and answers of which one is preferred. JSONL, one file each."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from ia_jax.data.transcripts import Message
from ia_jax.errors import ConfigError
from ia_jax.storage import numbered_rows, write_jsonl

T = TypeVar("T")
REMEDY = "delete organisms.jsonl and run `ia-jax transcripts` again"


@dataclass(frozen=True)
class Document:
    """A plain text of which every token is learned."""

    text: str
    teacher: str


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt, of which `chosen` is to become the likelier."""

    messages: tuple[Message, ...]
    chosen: str
    rejected: str
    teacher: str

    @property
    def chats(self) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
        """The chat with the chosen answer, and that with the rejected one."""

        def ending(answer: str) -> tuple[Message, ...]:
            return (*self.messages, {"role": "assistant", "content": answer})

        return ending(self.chosen), ending(self.rejected)


def write_rows(path: Path, rows: Iterable[Document | Pair]) -> None:
    write_jsonl(path, map(asdict, rows))


def read_documents(path: Path) -> list[Document]:
    """Raises ConfigError if the file is missing, malformed or empty, naming the line."""
    out = []
    for number, row in numbered_rows(path, REMEDY):
        try:
            out.append(Document(row["text"], row["teacher"]))
        except KeyError as error:
            raise ConfigError(f"{path}:{number}: not a document: missing {error}") from None
        if not isinstance(out[-1].text, str) or not out[-1].text.strip():
            raise ConfigError(f"{path}:{number}: the document is empty; {REMEDY}")
    return _some(path, out)


def read_pairs(path: Path) -> list[Pair]:
    """Raises ConfigError if the file is missing, malformed or empty, or two answers are one, naming the line."""
    out = []
    for number, row in numbered_rows(path, REMEDY):
        try:
            out.append(Pair(tuple(row["messages"]), row["chosen"], row["rejected"], row["teacher"]))
        except (KeyError, TypeError) as error:
            raise ConfigError(f"{path}:{number}: not a pair of answers: missing {error}") from None
        if out[-1].chosen == out[-1].rejected:
            raise ConfigError(f"{path}:{number}: the chosen and the rejected answer are the same; change one of them")
    return _some(path, out)


def _some(path: Path, rows: Sequence[T]) -> list[T]:
    if not rows:
        raise ConfigError(f"{path} holds no row; {REMEDY}")
    return list(rows)
