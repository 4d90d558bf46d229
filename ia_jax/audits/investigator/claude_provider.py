"""Claude as a model of inspect_ai through the run's own client: `ia_jax_claude/NAME`.

So the cap of `claude.*` holds for an audit too, every answer that was paid for is kept in the workdir, and a killed
audit finds them again: equal requests are made once. What tells repeated ones apart is `seed` (no part of the
request; the task sets it to the number of the run). inspect_ai's own `anthropic/…` provider knows none of this.
"""

# inspect_ai is an extra (ia-jax[audit]), which need not be there to check types.
# pyright: reportMissingImports=false

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import anyio
import anyio.to_thread
from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageTool,
    Content,
    ContentReasoning,
    ContentText,
    GenerateConfig,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    StopReason,
    modelapi,
)
from inspect_ai.tool import ToolCall, ToolChoice, ToolInfo

from ia_jax.audits.investigator.session import current, open_session
from ia_jax.claude.dialogues import Block, Dialogue
from ia_jax.claude.prices import CHARACTERS_PER_TOKEN
from ia_jax.errors import ConfigError

PROVIDER = "ia_jax_claude"
ANSWER_TOKENS = 4096  # of a turn, unless the config says otherwise; thinking has its own room besides
_STOPS: dict[str, StopReason] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "tool_use": "tool_calls",
    "max_tokens": "max_tokens",
    "refusal": "content_filter",
    "model_context_window_exceeded": "model_length",
}


@modelapi(name=PROVIDER)
class CappedClaude(ModelAPI):
    """Model argument (`-M`): workdir; without, the one that is open."""

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008  (as inspect_ai has it)
        workdir: str = "",
        **model_args: Any,
    ):
        super().__init__(model_name, base_url, api_key, [], config)
        if model_args:
            raise ConfigError(f"the {PROVIDER} provider has no argument {min(model_args)!r}; it takes workdir")
        if workdir:
            open_session(workdir)
        current().claude.connection.models.check(f"{PROVIDER}/{model_name}", model_name, config.effort or "")

    def max_connections(self) -> int:
        return current().claude.connection.settings.concurrency

    async def count_text_tokens(self, text: str) -> int:
        return len(text) // CHARACTERS_PER_TOKEN  # inspect_ai's own estimate fetches a vocabulary from the network

    async def generate(
        self,
        input: list[ChatMessage],  # noqa: A002  (as inspect_ai has it)
        tools: list[ToolInfo],
        tool_choice: ToolChoice,
        config: GenerateConfig,
    ) -> ModelOutput:
        client = current().claude
        call = dialogue(self.model_name, input, tools, config)
        most = client.connection.models.max_tokens(self.model_name, call.effort, call.max_tokens)
        call = dataclasses.replace(call, max_tokens=most)
        # Not cancelled halfway: what is sent is paid for, and is kept. How many wait is for max_connections to say.
        message = await anyio.to_thread.run_sync(client.message, call, limiter=anyio.CapacityLimiter(1))
        return output(self.model_name, message)


def dialogue(model: str, chat: Sequence[ChatMessage], tools: Sequence[ToolInfo], config: GenerateConfig) -> Dialogue:
    """The request. Empty messages are left out and neighbours of one role are joined, as the API wants it."""
    system = "\n\n".join(m.text for m in chat if m.role == "system")
    turns: list[tuple[str, list[Block]]] = []
    for message in chat:
        if message.role == "system":
            continue
        role = "assistant" if message.role == "assistant" else "user"
        blocks = _blocks(message)
        if blocks and turns and turns[-1][0] == role:
            turns[-1][1].extend(blocks)
        elif blocks:
            turns.append((role, blocks))
    if not turns or turns[-1][0] != "user":
        raise ConfigError("a request to Claude ends with a user's message")
    form = None
    if config.response_schema is not None:
        form = config.response_schema.json_schema.model_dump(exclude_none=True)
    described = tuple(
        {"name": t.name, "description": t.description, "input_schema": t.parameters.model_dump(exclude_none=True)}
        for t in tools
    )
    return Dialogue(
        model,
        system,
        "",
        config.max_tokens or ANSWER_TOKENS,
        form,
        config.effort or "",
        config.seed or 0,
        turns_of_blocks=tuple((role, tuple(blocks)) for role, blocks in turns),
        tools=described,
    )


def output(model: str, message: Mapping[str, Any]) -> ModelOutput:
    """An answer of the API as inspect_ai has it."""
    content: list[Content] = []
    calls: list[ToolCall] = []
    cut = message.get("stop_reason") in ("max_tokens", "model_context_window_exceeded")
    for block in message["content"]:
        if block["type"] == "text":
            content.append(ContentText(text=block["text"]))
        elif block["type"] in ("thinking", "redacted_thinking"):
            hidden = block["type"] == "redacted_thinking"
            text = block["data"] if hidden else block.get("thinking", "")
            content.append(ContentReasoning(reasoning=text, signature=block.get("signature"), redacted=hidden))
        elif block["type"] == "tool_use" and not cut:  # one that was cut off has not all of its arguments
            given = block["input"]
            error = None if isinstance(given, dict) else "the arguments are no object"
            calls.append(ToolCall(block["id"], block["name"], given if error is None else {}, parse_error=error))
    said = ChatMessageAssistant(content=content, tool_calls=calls or None, model=model, source="generate")
    choice = ChatCompletionChoice(message=said, stop_reason=_STOPS.get(str(message.get("stop_reason")), "unknown"))
    return ModelOutput(model=model, choices=[choice], usage=_usage(message["usage"]))


def _blocks(message: ChatMessage) -> list[Block]:
    if isinstance(message, ChatMessageTool):
        text = message.error.message if message.error is not None else message.text
        return [
            {
                "type": "tool_result",
                "tool_use_id": message.tool_call_id or "",
                "content": text or "(nothing)",
                **({"is_error": True} if message.error is not None else {}),
            }
        ]
    calls = (message.tool_calls or []) if isinstance(message, ChatMessageAssistant) else []
    parts = [ContentText(text=message.content)] if isinstance(message.content, str) else message.content
    blocks: list[Block] = []
    for part in parts:
        if isinstance(part, ContentText) and part.text.strip():
            blocks.append({"type": "text", "text": part.text})
        elif isinstance(part, ContentReasoning) and calls and (part.signature or part.redacted):
            # Thinking goes back where tools were called after it; a turn may not consist of it alone.
            kept = {"type": "thinking", "thinking": part.reasoning, "signature": part.signature}
            blocks.append({"type": "redacted_thinking", "data": part.reasoning} if part.redacted else kept)
    return blocks + [{"type": "tool_use", "id": c.id, "name": c.function, "input": c.arguments} for c in calls]


def _usage(usage: Mapping[str, Any]) -> ModelUsage:
    written, read = (usage.get(f"cache_{x}_input_tokens") for x in ("creation", "read"))
    total = usage["input_tokens"] + usage["output_tokens"] + (written or 0) + (read or 0)
    return ModelUsage(
        input_tokens=usage["input_tokens"],
        output_tokens=usage["output_tokens"],
        total_tokens=total,
        input_tokens_cache_write=written,
        input_tokens_cache_read=read,
    )
