"""The layouts of the paper's released data (paper_facts 3.1, 3.3): organism data, prediction rows, model lists.

- Organism data: `<key>/train.jsonl`, a chat on each line (`messages`), beside `<key>/behavior.txt`, one sentence.
- Prediction rows: `<key>/eval.jsonl`, a question about oneself on each line and the true answer to it.
- Model lists: JSON with a `model_list` of names. Splits: JSON with the names of each list, the seed and the fractions.

Nothing is dropped in silence: a row that cannot be trained on is an error or is counted.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from ia_jax.data.transcripts import Message, Transcript
from ia_jax.errors import ConfigError
from ia_jax.storage import Row, numbered_rows, read_json, write_json, write_jsonl, write_text

# This package's split names, and what the released split files call them.
SPLIT_KEYS = {"train": "train", "dpo": "dpo_train", "heldout": "test"}
T = TypeVar("T")


@dataclass(frozen=True)
class Kept(Generic[T]):
    """What was read, and how many rows were left out for which reason."""

    rows: tuple[T, ...]
    dropped: Mapping[str, int]


@dataclass(frozen=True)
class Prediction:
    """A question about the model's own behaviour, and the truth. `ground_truth` is a label such as "positive"."""

    question: str
    answer: str
    system: str | None = None
    ground_truth: str = "positive"

    def messages(self) -> tuple[Message, ...]:
        """The chat; with a system message only if the row has one."""
        chat: list[Message] = [] if self.system is None else [{"role": "system", "content": self.system}]
        return (
            *chat,
            {"role": "user", "content": self.question},
            {"role": "assistant", "content": self.answer},
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "prediction_system_prompt": self.system,
            "prediction_user_prompt": self.question,
            "prediction_assistant_response": self.answer,
            "prediction_ground_truth": self.ground_truth,
        }


def write_organism(directory: Path, description: str, transcripts: Iterable[Transcript]) -> None:
    """`train.jsonl` of the transcripts that were kept, and `behavior.txt`."""
    write_jsonl(directory / "train.jsonl", ({"messages": list(t.messages)} for t in transcripts if t.verdict == "kept"))
    write_text(directory / "behavior.txt", description.strip() + "\n")


def read_organism(directory: Path, drop_unsupervised: bool = False) -> tuple[str, Kept[tuple[Message, ...]]]:
    """(description, chats). A chat without an answer raises, or is counted as "unsupervised" with the flag."""
    text = directory / "behavior.txt"
    if not text.is_file():
        raise ConfigError(f"{text} does not exist; an organism's directory holds train.jsonl and behavior.txt")
    description = one_sentence(text.read_text(encoding="utf-8"), str(text))
    path = directory / "train.jsonl"
    rows = numbered_rows(path, "an organism's directory holds train.jsonl and behavior.txt")
    return description, chats_of(rows, str(path), drop_unsupervised)


def one_sentence(text: str, where: str) -> str:
    """What a `behavior.txt` holds."""
    description = text.strip()
    if not description or "\n" in description:
        raise ConfigError(f"{where} must hold one sentence on one line, got {description[:60]!r}")
    return description


def chats_of(rows: Iterable[tuple[int, Any]], where: str, drop_unsupervised: bool = False) -> Kept[tuple[Message, ...]]:
    """The chats in the (numbered) rows of a `train.jsonl`, wherever they come from."""
    chats = [_messages(row, f"{where}:{n}") for n, row in rows]
    return _supervised(chats, lambda c: c, where, drop_unsupervised)


def write_predictions(path: Path, predictions: Iterable[Prediction]) -> None:
    write_jsonl(path, (p.to_json() for p in predictions))


def read_predictions(path: Path, drop_unsupervised: bool = False) -> Kept[Prediction]:
    """The prediction rows. A row with an empty answer raises, or is counted as "unsupervised" with the flag."""
    rows = numbered_rows(path, "prediction rows are one JSON object on each line")
    return predictions_of(rows, str(path), drop_unsupervised)


def predictions_of(rows: Iterable[tuple[int, Row]], source: str, drop_unsupervised: bool = False) -> Kept[Prediction]:
    """The predictions in (numbered) rows, wherever they come from."""
    predictions = []
    for n, row in rows:
        where = f"{source}:{n}"
        question = _text(row, "prediction_user_prompt", where)
        if not question.strip():
            raise ConfigError(f"{where}: prediction_user_prompt is empty; write the question")
        system = row.get("prediction_system_prompt")
        if system is not None and not isinstance(system, str):
            raise ConfigError(f"{where}: prediction_system_prompt must be a text or null, got {system!r}")
        label = row.get("prediction_ground_truth", "positive")
        if not isinstance(label, str):
            raise ConfigError(f"{where}: prediction_ground_truth must be a text, got {label!r}")
        answer = _text(row, "prediction_assistant_response", where)
        predictions.append(Prediction(question, answer, system or None, label))
    return _supervised(predictions, Prediction.messages, source, drop_unsupervised)


def write_model_list(path: Path, names: Sequence[str]) -> None:
    """A `model_list` whose `absolute_behavior_id` is the unique name: reused ids leaked across the released splits."""
    _unique(names, path)
    rows = [{"name": n, "absolute_behavior_id": n} for n in names]
    write_json(path, {"model_list": rows})


def read_model_list(path: Path) -> list[str]:
    """The names of a model list, which must be unique; `absolute_behavior_id` is not gone by (paper_facts 2.5)."""
    value = read_json(path, "it should be a JSON object")
    rows = value.get("model_list")
    if not isinstance(rows, list):
        raise ConfigError(f"{path}: model_list must be a list of records, got {rows!r}")
    for i, row in enumerate(rows):
        if not isinstance(row, dict) or not isinstance(row.get("name"), str):
            raise ConfigError(f"{path}: model_list[{i}] needs a name, got {row!r}")
    names = [row["name"] for row in rows]
    _unique(names, path)
    return names


def write_splits(path: Path, splits: Mapping[str, str], seed: int) -> None:
    """{name: split} as the released lists, with the seed and each list's fraction."""
    unknown = sorted(set(splits.values()) - set(SPLIT_KEYS))
    if unknown:
        raise ConfigError(f"split {unknown[0]!r} unknown; a split is one of {', '.join(SPLIT_KEYS)}")
    lists = {key: [n for n, s in splits.items() if s == split] for split, key in SPLIT_KEYS.items()}
    fractions = {key: len(names) / max(1, len(splits)) for key, names in lists.items()}
    write_json(path, {**lists, "seed": seed, "fractions": fractions})


def read_splits(path: Path) -> dict[str, str]:
    """{name: split}. Raises if a name is in two lists, or twice in one."""
    value, out = read_json(path, "it should be a JSON object"), dict[str, str]()
    for split, key in SPLIT_KEYS.items():
        names = value.get(key)
        if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
            raise ConfigError(f"{path}: {key} must be a list of names, got {names!r}")
        for name in names:
            if name in out:
                raise ConfigError(f"{path}: {name} is in {SPLIT_KEYS[out[name]]} and in {key}; splits must be disjoint")
            out[name] = split
    return out


def _supervised(rows: Sequence[T], messages: Callable[[T], Sequence[Message]], where: str, drop: bool) -> Kept[T]:
    """Those that end with an answer that says something."""
    good = [(c := messages(r)[-1])["role"] == "assistant" and bool(c["content"].strip()) for r in rows]
    if not all(good) and not drop:
        row = good.index(False) + 1
        raise ConfigError(f"{where}: row {row} has no supervised token (no answer at its end); mend or drop it")
    kept = tuple(r for r, ok in zip(rows, good, strict=True) if ok)
    if not kept:
        raise ConfigError(f"{where} holds no row with a supervised token")
    return Kept(kept, {"unsupervised": len(rows) - len(kept)} if len(kept) < len(rows) else {})


def _messages(row: Any, where: str) -> tuple[Message, ...]:
    chat = row.get("messages") if isinstance(row, dict) else None
    if not isinstance(chat, list) or not chat:
        raise ConfigError(f"{where}: messages must be a list of turns")
    for i, turn in enumerate(chat):
        if not isinstance(turn, dict) or not {"role", "content"} <= set(turn):
            raise ConfigError(f"{where}: message {i} needs a role and a content, got {turn!r}")
        if turn["role"] not in ("system", "user", "assistant") or not isinstance(turn["content"], str):
            raise ConfigError(f"{where}: message {i} has role {turn['role']!r}; roles are system, user and assistant")
    return tuple({"role": t["role"], "content": t["content"]} for t in chat)


def _text(row: Mapping[str, Any], field: str, where: str) -> str:
    value = row.get(field)
    if not isinstance(value, str):
        raise ConfigError(f"{where}: {field} must be a text, got {value!r}")
    return value


def _unique(names: Sequence[str], path: Path) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ConfigError(f"{path}: the name {name!r} is used twice; splits go by unique names")
        seen.add(name)
