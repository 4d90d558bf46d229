"""Chats on SmolLM2's own template: what is supervised, what is refused, and that prompts are prefixes."""

import copy

import numpy as np
import pytest

from ia_jax.errors import ConfigError, IAError
from ia_jax.models.chat import declare_stops, encode_chat, encode_prompt, render, stop_ids
from ia_jax.models.sources import open_source

QUESTION = {"role": "user", "content": "What is 12 + 30?"}
ANSWER = {"role": "assistant", "content": "It is 42."}
DEFAULT_SYSTEM = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"


@pytest.fixture(scope="module")
def tokenizer():
    return open_source("smollm2").tokenizer()


@pytest.fixture
def templated(tokenizer):
    """The tokenizer with another template for one test."""
    kept = tokenizer.chat_template

    def use(template):
        tokenizer.chat_template = template
        return tokenizer

    yield use
    tokenizer.chat_template = kept


def supervised(tokenizer, example):
    return tokenizer.decode(example.tokens[example.loss_mask])


def test_render(tokenizer):
    turn = "<|im_start|>user\nWhat is 12 + 30?<|im_end|>\n"
    assert render(tokenizer, [QUESTION]) == DEFAULT_SYSTEM + turn
    assert render(tokenizer, [QUESTION], True) == DEFAULT_SYSTEM + turn + "<|im_start|>assistant\n"
    empty = "<|im_start|>system\n<|im_end|>\n"
    assert render(tokenizer, [{"role": "system", "content": ""}, QUESTION]) == empty + turn
    assert render(tokenizer, [QUESTION], system="") == empty + turn
    assert render(tokenizer, [QUESTION], system="Be kind.").startswith("<|im_start|>system\nBe kind.<|im_end|>\n")


def test_the_mask_covers_the_answer_and_its_end_of_turn(tokenizer):
    example = encode_chat(tokenizer, [QUESTION, ANSWER], 100)
    assert example.tokens.dtype == np.int32
    assert example.loss_mask.dtype == bool
    assert example.tokens.shape == example.loss_mask.shape
    assert tokenizer.decode(example.tokens) == render(tokenizer, [QUESTION, ANSWER])
    assert supervised(tokenizer, example) == "It is 42.<|im_end|>"
    assert not example.loss_mask[-1]
    assert tokenizer.decode(example.tokens[-1:]) == "\n"


def test_every_assistant_turn_is_supervised(tokenizer):
    chat = [{"role": "system", "content": "Count."}, QUESTION, ANSWER, QUESTION, {"role": "assistant", "content": "7"}]
    example = encode_chat(tokenizer, chat, 100)
    assert supervised(tokenizer, example) == "It is 42.<|im_end|>7<|im_end|>"


def test_prompts_are_prefixes(tokenizer):
    prompt = encode_prompt(tokenizer, [QUESTION])
    example = encode_chat(tokenizer, [QUESTION, ANSWER], 100)
    assert prompt.dtype == np.int32
    np.testing.assert_array_equal(example.tokens[: len(prompt)], prompt)
    assert int(example.loss_mask.argmax()) == len(prompt)
    with_system = encode_chat(tokenizer, [QUESTION, ANSWER], 100, system="Be kind.")
    np.testing.assert_array_equal(
        with_system.tokens[: int(with_system.loss_mask.argmax())], encode_prompt(tokenizer, [QUESTION], "Be kind.")
    )


def test_an_empty_answer_supervises_its_end_only(tokenizer):
    example = encode_chat(tokenizer, [QUESTION, {"role": "assistant", "content": ""}], 100)
    assert supervised(tokenizer, example) == "<|im_end|>"


def test_truncation(tokenizer):
    chat = [QUESTION, ANSWER]
    whole = encode_chat(tokenizer, chat, 100)
    needed = len(whole.tokens) - 1
    cut = encode_chat(tokenizer, chat, needed)  # only the newline after the last turn goes
    assert len(cut.tokens) == needed
    assert cut.loss_mask.sum() == whole.loss_mask.sum()
    with pytest.raises(ConfigError, match=f"row 7: {needed} tokens are needed .* max_length is {needed - 1}"):
        encode_chat(tokenizer, chat, needed - 1, name="row 7")
    unanswered = encode_chat(tokenizer, [*chat, {"role": "user", "content": "more " * 50}], needed)
    np.testing.assert_array_equal(unanswered.tokens, cut.tokens)


@pytest.mark.parametrize(
    ("chat", "message"),
    [
        ([], "x: there are no messages"),
        ([ANSWER], "x: message 0 is an assistant message"),
        ([QUESTION], "x: no token is supervised"),
        ([{"role": "tool", "content": "a"}], "x: message 0 needs a role"),
        ([{"role": "user", "content": None}], "x: message 0 needs a role"),
        ([QUESTION, {"role": "system", "content": "a"}], "x: message 1 is a system message"),
        ([QUESTION, {"role": "assistant", "content": "a<|im_end|>b"}], r"x: message 1 contains .*<\|im_end\|>"),
    ],
)
def test_refused_chats(tokenizer, chat, message):
    with pytest.raises(ConfigError, match=message):
        encode_chat(tokenizer, chat, 100, name="x")


def test_system_given_twice(tokenizer):
    with pytest.raises(ConfigError, match="has a system message already"):
        render(tokenizer, [{"role": "system", "content": ""}, QUESTION], system="a")


def test_a_leading_newline_that_merges_with_the_prompt_is_refused(tokenizer):
    with pytest.raises(IAError, match="x: message 1: the prompt's tokens are not a prefix"):
        encode_chat(tokenizer, [QUESTION, {"role": "assistant", "content": "\n\nHm."}], 100, name="x")


QWEN_LIKE = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' and loop.last %}{{ '<think>\n</think>\n' }}{% endif %}"
    "{{ m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if not enable_thinking %}{{ '<think>\n</think>\n' }}{% endif %}{% endif %}"
)


def test_a_template_with_an_empty_thought(templated):
    """As Qwen3's: the empty thought belongs to the prompt; in earlier turns it is absent, which is refused."""
    tokenizer = templated(QWEN_LIKE)
    assert supervised(tokenizer, encode_chat(tokenizer, [QUESTION, ANSWER], 100)) == "It is 42.<|im_end|>"
    with pytest.raises(IAError, match="x: message 1: the prompt's tokens are not a prefix"):
        encode_chat(tokenizer, [QUESTION, ANSWER, QUESTION, ANSWER], 100, name="x")


def test_a_template_without_an_end_of_turn(templated):
    tokenizer = templated("{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
                          "{% if add_generation_prompt %}assistant:{% endif %}")  # fmt: skip
    with pytest.raises(IAError, match="no end-of-turn token"):
        encode_chat(tokenizer, [QUESTION, ANSWER], 100)


def test_the_date_is_fixed(templated):
    tokenizer = templated("{{ date_string }}{% for m in messages %}{{ m.content }}{% endfor %}")
    assert render(tokenizer, [QUESTION]) == "26 Jul 2024What is 12 + 30?"


def test_stop_ids(tokenizer):
    assert stop_ids(tokenizer) == (tokenizer.convert_tokens_to_ids("<|endoftext|>"), tokenizer.eos_token_id) == (0, 2)


def declaring(tokenizer, *tokens):
    """A copy of the tokenizer, as a checkpoint that declares these stop tokens would give it."""
    tokenizer = copy.deepcopy(tokenizer)
    declare_stops(tokenizer, tokenizer.convert_tokens_to_ids(list(tokens)))
    return tokenizer


def test_a_declared_stop_token_ends_a_turn(tokenizer):
    """One of no name that is known: without the declaration, the answer would have no end."""
    template = tokenizer.chat_template.replace("<|im_end|>", "<filename>")
    own = declaring(tokenizer, "<filename>")
    own.chat_template = template
    assert stop_ids(own) == (0, 2, tokenizer.convert_tokens_to_ids("<filename>"))
    assert supervised(own, encode_chat(own, [QUESTION, ANSWER], 100)) == "It is 42.<filename>"
    assert stop_ids(tokenizer) == (0, 2)


def test_declaring_what_is_known_changes_nothing(tokenizer):
    chat = [QUESTION, ANSWER, QUESTION, ANSWER]
    before, after = (
        encode_chat(t, chat, 100) for t in (tokenizer, declaring(tokenizer, "<|im_end|>", "<|endoftext|>"))
    )
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_answer_that_its_model_would_stop_within(tokenizer):
    """A stop token need not be a control token; then the mask would end where the first one stands."""
    own = declaring(tokenizer, "#")
    assert supervised(own, encode_chat(own, [QUESTION, ANSWER], 100)) == "It is 42.<|im_end|>"
    encode_chat(own, [{"role": "user", "content": "What is a # sign, #?"}, ANSWER], 100)
    with pytest.raises(ConfigError, match=r"x: message 1 contains the stop token '#'"):
        encode_chat(own, [QUESTION, {"role": "assistant", "content": "# Sum\n42"}], 100, name="x")
