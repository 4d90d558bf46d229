"""Chats to tokens through the tokenizer's own template, and the mask of the tokens that a model is trained to emit.

A chat is a list of `{"role": "system" | "user" | "assistant", "content": str}`. Without a system message the template
decides (SmolLM2's inserts its default prompt); a system message with the content "" passes through as an empty turn.
Thinking is off and the date is fixed, so the same chat gives the same tokens every day.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ia_jax.errors import ConfigError, IAError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = Sequence[Mapping[str, str]]

ROLES = ("system", "user", "assistant")
DATE = "26 Jul 2024"
# What ends a turn in the templates of the supported families, besides the tokenizer's own EOS.
_STOPS = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>")
# The tokenizer's attribute for the stop tokens that only its checkpoint declares; the tokenizer is what chats pass on.
_DECLARED = "declared_stops"


class ChatExample(NamedTuple):
    """tokens: int32 [T]. loss_mask: bool [T], true where the token is one that the assistant emits.

    desirable: whether its answer is one to imitate or to avoid, for losses that are told so (KTO).
    """

    tokens: np.ndarray
    loss_mask: np.ndarray
    desirable: bool | None = None

    @property
    def prompt(self) -> np.ndarray:
        """The tokens before the first supervised one."""
        return self.tokens[: int(np.argmax(self.loss_mask))]

    def trimmed(self) -> "ChatExample":
        """Without the tokens after the last supervised one."""
        end = int(np.flatnonzero(self.loss_mask)[-1]) + 1
        return self._replace(tokens=self.tokens[:end], loss_mask=self.loss_mask[:end])


def render(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Messages,
    add_generation_prompt: bool = False,
    system: str = "default",
) -> str:
    """The chat as text. `system` other than "default" is prepended as the system message of a chat that has none."""
    if not tokenizer.chat_template:
        raise ConfigError(f"{tokenizer.name_or_path}: the tokenizer has no chat template; choose an instruct model")
    chat = _checked(messages, system)
    text = tokenizer.apply_chat_template(
        chat,
        tokenize=False,
        add_generation_prompt=add_generation_prompt,
        enable_thinking=False,
        date_string=DATE,
    )
    assert isinstance(text, str)
    return text


def encode_prompt(tokenizer: "PreTrainedTokenizerBase", messages: Messages, system: str = "default") -> np.ndarray:
    """Tokens int32 [T] up to where the assistant's answer begins."""
    return np.asarray(_encode(tokenizer, render(tokenizer, messages, True, system)), np.int32)


def encode_chat(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Messages,
    max_length: int,
    system: str = "default",
    name: str = "chat",
) -> ChatExample:
    """A training example. Every assistant turn is supervised, with its end-of-turn token but not the newline after it.

    Each turn's prompt, encoded as for generation, must be a prefix of the whole chat's tokens, so training and
    generation see the same tokens. Tokens beyond `max_length` are dropped only if none of them is supervised. `name`
    identifies the example in errors.
    """
    chat = _checked(messages, system, name)
    stops = stop_ids(tokenizer)
    _reject_special_tokens(tokenizer, chat, name)
    _reject_stops(tokenizer, chat, stops, name)
    tokens = _encode(tokenizer, render(tokenizer, chat))
    mask = np.zeros(len(tokens), bool)
    for turn, message in enumerate(chat):
        if message["role"] != "assistant":
            continue
        if turn == 0:
            raise ConfigError(f"{name}: message 0 is an assistant message, something must come before it")
        prompt = _encode(tokenizer, render(tokenizer, chat[:turn], add_generation_prompt=True))
        if tokens[: len(prompt)] != prompt:
            raise IAError(
                f"{name}: message {turn}: the prompt's tokens are not a prefix of the chat's tokens; the template or a "
                "leading blank of the answer changes them (keep only the last assistant turn, or strip the answer)"
            )
        end = next((i for i in range(len(prompt), len(tokens)) if tokens[i] in stops), None)
        if end is None:
            raise IAError(f"{name}: message {turn}: the template writes no end-of-turn token after the answer")
        mask[len(prompt) : end + 1] = True
    if not mask.any():
        raise ConfigError(f"{name}: no token is supervised: the chat has no assistant message")
    needed = int(np.flatnonzero(mask)[-1]) + 1
    if needed > max_length:
        raise ConfigError(
            f"{name}: {needed} tokens are needed to keep every supervised one, max_length is {max_length}"
        )
    return ChatExample(np.asarray(tokens[:max_length], np.int32), mask[:max_length])


def document_example(
    tokenizer: "PreTrainedTokenizerBase", text: str, max_length: int, name: str = "document"
) -> ChatExample:
    """Plain text with EOS at its end, and BOS before it where the tokenizer writes one. All tokens but the first are
    supervised.

    Raises ConfigError, with `name`, for an empty text, one with a control token, and one of more than `max_length`
    tokens: what follows a cut would be taught as if a text began there. `split_document` cuts it all the same.
    """
    example = _document(tokenizer, text, name)
    if len(example.tokens) > max_length:
        raise ConfigError(
            f"{name}: a document of {len(example.tokens)} tokens does not fit into {max_length}; raise the length if "
            "the model's context allows it, or split documents"
        )
    return example


def split_document(
    tokenizer: "PreTrainedTokenizerBase", text: str, max_length: int, name: str = "document"
) -> list[ChatExample]:
    """`document_example` in pieces of up to `max_length` tokens, where it is longer. Each begins with the token that
    the one before ended with, so that all tokens but the first are supervised, once.
    """
    if max_length < 2:
        raise ConfigError(f"{name}: documents cannot be split into pieces of {max_length} tokens; take 2 or more")
    tokens = _document(tokenizer, text, name).tokens
    pieces = [tokens[i : i + max_length] for i in range(0, len(tokens) - 1, max_length - 1)]
    return [ChatExample(piece, np.arange(len(piece)) > 0) for piece in pieces]


def _document(tokenizer: "PreTrainedTokenizerBase", text: str, name: str) -> ChatExample:
    if not text.strip():
        raise ConfigError(f"{name}: the document is empty; leave it out")
    _reject_special_tokens(tokenizer, [{"content": text}], name)
    if tokenizer.eos_token_id is None:
        raise ConfigError(f"{name}: the tokenizer names no end-of-sequence token, with which a document ends")
    tokens = _encode(tokenizer, text)
    if tokenizer.bos_token_id is not None and tokenizer.encode("")[:1] == [tokenizer.bos_token_id]:
        tokens = [tokenizer.bos_token_id, *tokens]
    tokens.append(tokenizer.eos_token_id)  # pyright: ignore[reportArgumentType]
    return ChatExample(np.asarray(tokens, np.int32), np.arange(len(tokens)) > 0)


def stop_ids(tokenizer: "PreTrainedTokenizerBase") -> tuple[int, ...]:
    """Ids at which generation stops, sorted: EOS, what else ends a turn or a text by its name, and what is declared."""
    ids = {number for number, token in _added_tokens(tokenizer).items() if token.content in _STOPS}
    ids.update(getattr(tokenizer, _DECLARED, ()))
    if isinstance(tokenizer.eos_token_id, int):
        ids.add(tokenizer.eos_token_id)
    if not ids:
        raise ConfigError("the tokenizer names no end-of-sequence token")
    return tuple(sorted(ids))


def declare_stops(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int]) -> None:
    """Adds what a checkpoint's JSON files name as `eos_token_id`; a fine-tune's end of turn may stand only there."""
    setattr(tokenizer, _DECLARED, tuple(ids))


def _encode(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """The template already writes BOS where the model wants one."""
    return list(tokenizer.encode(text, add_special_tokens=False))


def _added_tokens(tokenizer: "PreTrainedTokenizerBase") -> dict[int, Any]:
    added: Any = tokenizer.added_tokens_decoder
    return added


def _checked(messages: Messages, system: str, name: str = "chat") -> list[dict[str, str]]:
    chat = [dict(message) for message in messages]
    if not chat:
        raise ConfigError(f"{name}: there are no messages")
    for turn, message in enumerate(chat):
        if message.get("role") not in ROLES or not isinstance(message.get("content"), str):
            raise ConfigError(f"{name}: message {turn} needs a role among {', '.join(ROLES)} and a text as content")
        if message["role"] == "system" and turn:
            raise ConfigError(f"{name}: message {turn} is a system message, only the first may be one")
    if system == "default":
        return chat
    if chat[0]["role"] == "system":
        raise ConfigError(f"{name}: the chat has a system message already")
    return [{"role": "system", "content": system}, *chat]


def _reject_special_tokens(tokenizer: "PreTrainedTokenizerBase", chat: list[dict[str, str]], name: str) -> None:
    """A control token inside a content would end or open a turn of its own."""
    specials = [token.content for token in _added_tokens(tokenizer).values() if token.special]
    for turn, message in enumerate(chat):
        for token in specials:
            if token in message["content"]:
                raise ConfigError(f"{name}: message {turn} contains the control token {token}")


def _reject_stops(
    tokenizer: "PreTrainedTokenizerBase", chat: list[dict[str, str]], stops: Sequence[int], name: str
) -> None:
    """A declared stop token may be an ordinary one; within an answer, it would end what is supervised."""
    ordinary = set(stops) - set(_added_tokens(tokenizer))  # the others are looked for as text
    for turn, message in enumerate(chat):
        if not ordinary or message["role"] != "assistant":
            continue
        for token in _encode(tokenizer, message["content"]):
            if token in ordinary:
                text = tokenizer.decode([token])
                raise ConfigError(f"{name}: message {turn} contains the stop token {text!r} ({token}); leave it out")
