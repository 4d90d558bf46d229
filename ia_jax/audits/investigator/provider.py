"""ia_jax as a model of inspect_ai: `--model ia_jax/NAME`, a target of the open workdir, `NAME+ia` with the IA on it.

`base` is the model without any adapters. Requests that wait at the same time are decoded together, whatever adapters
and settings they have. A last message of the assistant is gone on from (prefill). `extra_body={"form": "user"}` samples
the user's next turn, `{"form": "text"}` goes on with the last message as plain text. Without a seed, samples differ.
"""

# inspect_ai is an extra (ia-jax[audit]), which need not be there to check types.
# pyright: reportMissingImports=false

import contextlib
import threading
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import anyio
import anyio.from_thread
from anyio.lowlevel import current_token
from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    GenerateConfig,
    Logprob,
    Logprobs,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    TopLogprob,
    modelapi,
)
from inspect_ai.tool import ToolChoice, ToolInfo

from ia_jax.audits.investigator.engine import TooLong
from ia_jax.audits.investigator.probes import FORMS, REPLY_TOKENS
from ia_jax.audits.investigator.requests import Completion, Request, Token, reply_tokens, text_tokens, user_tokens
from ia_jax.audits.investigator.session import current, open_session
from ia_jax.data.transcripts import Message
from ia_jax.errors import ConfigError

IA = "+ia"
AT_ONCE = 512  # requests that may wait; the engine decides how many it decodes together
# Settings that would change the reply and are not there: better an error than a figure made without them.
_MISSING = ("top_k", "best_of", "frequency_penalty", "presence_penalty", "logit_bias", "prompt_logprobs")


@modelapi(name="ia_jax")
class IaJax(ModelAPI):
    """Model arguments (`-M`): workdir, targets and ia, as of `session.open_session`; without, what is open."""

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008  (as inspect_ai has it)
        workdir: str = "",
        targets: str = "",
        ia: str | None = None,
        **model_args: Any,
    ):
        super().__init__(model_name, base_url, api_key, [], config)
        if model_args:
            raise ConfigError(f"the ia_jax provider has no argument {min(model_args)!r}; it takes workdir, targets, ia")
        if workdir:
            open_session(workdir, targets, ia)
        self.target, self.ia = model_name.removesuffix(IA), model_name.endswith(IA)

    def max_connections(self) -> int:
        return AT_ONCE

    def max_tokens(self) -> int:
        return REPLY_TOKENS

    async def tokenize(self, text: str) -> list[int]:
        return list(current().model.tokenizer.encode(text, add_special_tokens=False))

    async def count_text_tokens(self, text: str) -> int:
        return len(await self.tokenize(text))  # inspect_ai's own estimate fetches a vocabulary from the network

    async def generate(
        self,
        input: list[ChatMessage],  # noqa: A002  (as inspect_ai has it)
        tools: list[ToolInfo],
        tool_choice: ToolChoice,
        config: GenerateConfig,
    ) -> ModelOutput:
        if tools:
            raise ConfigError("the ia_jax provider calls no tools; its models are targets")
        for name in (*_MISSING, "response_schema"):
            if getattr(config, name) is not None:
                raise ConfigError(f"the ia_jax provider has no {name}; leave it out")
        service = current().service
        first = self._request(input, config)
        others = range(1, config.num_choices or 1)
        requests = [first, *(replace(first, seed=None if first.seed is None else first.seed + i) for i in others)]
        try:
            waiting = [service.submit(r) for r in requests]
        except TooLong as error:
            return ModelOutput.from_content(self.model_name, "", stop_reason="model_length", error=str(error))
        replies = [await _result(future) for future in waiting]
        new = sum(r.count for r in replies)
        usage = ModelUsage(input_tokens=len(first.tokens), output_tokens=new, total_tokens=len(first.tokens) + new)
        return ModelOutput(model=self.model_name, choices=[self._choice(r) for r in replies], usage=usage)

    def _request(self, messages: list[ChatMessage], config: GenerateConfig) -> Request:
        tokenizer = current().model.tokenizer
        form = (config.extra_body or {}).get("form", "reply")
        if form not in FORMS:
            raise ConfigError(f"extra_body form={form!r} unknown; choose from {', '.join(FORMS)}")
        chat: list[Message] = [{"role": m.role, "content": m.text} for m in messages]
        begun = form == "text" or bool(chat and chat[-1]["role"] == "assistant")
        if form == "text":
            tokens = text_tokens(tokenizer, chat[-1]["content"] if chat else "")
        else:
            # A placeholder stands where inspect_ai would have no message at all: before the first user turn.
            chat = [m for m in chat if m["content"] or m["role"] == "system"]
            tokens = (reply_tokens if form == "reply" else user_tokens)(tokenizer, chat)
        temperature = 0.0 if config.temperature is None else config.temperature
        scores = (config.top_logprobs or 0) if config.logprobs else None
        return Request(
            self.target,
            self.ia,
            tokens,
            config.max_tokens or REPLY_TOKENS,
            temperature,
            1.0 if config.top_p is None else config.top_p,
            config.seed,
            tuple(config.stop_seqs or ()),
            scores,
            begun,
        )

    def _choice(self, reply: Completion) -> ChatCompletionChoice:
        return ChatCompletionChoice(
            message=ChatMessageAssistant(content=reply.text, model=self.model_name, source="generate"),
            stop_reason="stop" if reply.stopped else "max_tokens",
            logprobs=None if reply.logprobs is None else Logprobs(content=[_logprob(t) for t in reply.logprobs]),
        )


def _logprob(token: Token) -> Logprob:
    top = [TopLogprob(token=text, logprob=p) for text, p in token.top]
    return Logprob(token=token.text, logprob=token.logprob, top_logprobs=top or None)


async def _result(future: "Future[Completion]") -> Completion:
    """Waits without holding a thread, on whichever event loop inspect_ai runs."""
    if not future.done():
        event, token, here = anyio.Event(), current_token(), threading.get_ident()

        def wake(_: Any) -> None:
            if threading.get_ident() == here:
                event.set()
                return
            with contextlib.suppress(anyio.RunFinishedError):
                anyio.from_thread.run_sync(event.set, token=token)

        future.add_done_callback(wake)
        await event.wait()
    return future.result()
