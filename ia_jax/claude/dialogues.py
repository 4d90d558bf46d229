"""A request to Claude in a dialogue with tools: turns of several blocks, and the tools that it may call."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from ia_jax.claude.calls import Call

Block = Mapping[str, Any]


@dataclass(frozen=True)
class Dialogue(Call):
    """A `Call` whose turns are blocks of the Messages API (text, tool_use, tool_result, thinking); `user` and `history`
    are "" and ().

    turns_of_blocks: (role, blocks), the user first and last. What was said up to the last block is marked for the
    prompt cache, since the next request begins with it.
    tools: as the API takes them; () for none.
    """

    turns_of_blocks: tuple[tuple[str, tuple[Block, ...]], ...] = ()
    tools: tuple[Block, ...] = ()
    # Long audits come near: the whole dialogue is read at every turn. A model's own limit still holds.
    longest_prompt: ClassVar[int] = 1_000_000

    @cached_property
    def request(self) -> dict[str, Any]:
        messages = [{"role": role, "content": [dict(b) for b in blocks]} for role, blocks in self.turns_of_blocks]
        if messages:
            messages[-1]["content"][-1]["cache_control"] = {"type": "ephemeral"}
        body = {k: v for k, v in super().request.items() if k != "messages"}
        if not self.system:
            del body["system"]
        return {**body, "messages": messages, **({"tools": [dict(t) for t in self.tools]} if self.tools else {})}

    @property
    def text(self) -> str:
        """All that is billed. As JSON it is a little longer than what is read, so that a bound made of it holds."""
        return json.dumps([self.system, self.turns_of_blocks, self.tools, str(self.schema or "")], ensure_ascii=False)
