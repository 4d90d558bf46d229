"""A model that ia_jax loads in Claude's place: it answers a teacher's calls, and its answers are kept on disk."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from ia_jax.claude.calls import Call, Reply
from ia_jax.parallel.distributed import on_main_process
from ia_jax.storage import append_jsonl, read_appended

TEMPERATURE = 0.8
AT_ONCE = 96  # calls answered before they are kept: a killed run loses no more

# (system, user, …, user) of each, new tokens, temperature, seed -> replies
Generate = Callable[[Sequence[tuple[str, ...]], int, float, int], list[Reply]]


class LocalModel:
    """Answers calls by `generate`, with the same prompts as Claude's; structured replies are asked for in words.

    Judgements are greedy at the first try, all else is sampled. file: JSONL of {key, text, stop_reason}; a call that is
    in it is not made again.
    """

    def __init__(self, generate: Generate, file: Path):
        self._generate, self._file = generate, file
        rows = on_main_process(lambda: read_appended(file, "delete it, and what it held is asked again"))
        self._kept = {row["key"]: Reply(row["text"], row["stop_reason"]) for row in rows}

    def complete(self, calls: Sequence[Call], at_once: bool = False) -> list[Reply]:
        """The replies, in order; equal calls are made once. A reply to a schema is cut down to its JSON object."""
        groups: dict[tuple[int, float], list[Call]] = {}
        for call in {c.key: c for c in calls if c.key not in self._kept}.values():
            greedy = call.schema is not None and "messages" not in call.schema["properties"] and call.sample == 0
            groups.setdefault((2 * call.expected + 100, 0.0 if greedy else TEMPERATURE), []).append(call)
        for (tokens, temperature), own in groups.items():
            for start in range(0, len(own), AT_ONCE):
                part = own[start : start + AT_ONCE]
                asks, seed = [(c.system, *c.history, _user(c)) for c in part], int(part[0].key[:7], 16)
                replies = self._generate(asks, tokens, temperature, seed)
                self._keep({c.key: reply for c, reply in zip(part, replies, strict=True)})
        return [_cut(self._kept[c.key]) if c.schema else self._kept[c.key] for c in calls]

    def _keep(self, replies: dict[str, Reply]) -> None:
        rows = [{"key": key, **reply._asdict()} for key, reply in replies.items()]
        on_main_process(lambda: append_jsonl(self._file, rows))
        self._kept |= replies


def _user(call: Call) -> str:
    if call.schema is None:
        return call.user
    return f"{call.user}\n\nAnswer with one JSON object and nothing else. Its schema: {json.dumps(call.schema)}"


def _cut(reply: Reply) -> Reply:
    """What lies between the first brace and the last: models like to put a fence or a sentence around an object."""
    start, end = reply.text.find("{"), reply.text.rfind("}")
    return reply._replace(text=reply.text[start : end + 1]) if 0 <= start < end else reply
