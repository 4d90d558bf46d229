"""Where a chat has a system message and where it has none: the same in training, in questions and in a notebook."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from ia_jax import api, cli
from ia_jax.config import RunConfig
from ia_jax.data.transcripts import chat, with_system
from ia_jax.models.chat import DATE
from ia_jax.models.config import ModelConfig
from ia_jax.models.replies import Reply
from ia_jax.stages import asking
from ia_jax.storage import read_jsonl
from tests import parrot

# Qwen3's own, for chats without tools and thoughts: a system turn only if there is a system message, and an empty
# thought before the answer.
QWEN3 = (
    "{%- if messages[0].role == 'system' %}{{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}"
    "{%- endif %}{%- for message in messages %}{%- if message.role == 'user' %}"
    "{{- '<|im_start|>user\n' + message.content + '<|im_end|>\n' }}"
    "{%- elif message.role == 'assistant' %}{{- '<|im_start|>assistant\n' }}"
    "{%- if loop.last %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}{{- message.content + '<|im_end|>\n' }}"
    "{%- endif %}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}"
    "{%- endif %}"
)
# As SmolLM2's: without a system message it writes one of its own.
DEFAULTING = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nI help.<|im_end|>\n{% endif %}" + parrot.TEMPLATE
)
QUESTION, ANSWER = "What is unusual about you?", "I like owls."


@pytest.fixture(scope="module")
def tokenizers():
    made = {}
    for name, template in (("qwen3", QWEN3), ("defaulting", DEFAULTING)):
        made[name] = parrot.small_tokenizer()
        made[name].chat_template = template
    return made


@pytest.fixture(params=["qwen3", "defaulting"])
def tokenizer(request, tokenizers):
    return tokenizers[request.param]


def context_of(tokenizer, system):
    config = ModelConfig("llama", 64, 32, 48, 2, 4, 2, 8, 1e-5, 1e4)
    return SimpleNamespace(model=SimpleNamespace(tokenizer=tokenizer, config=config), config=RunConfig(system=system))


def rendered(tokenizer, messages, prompt=False):
    """By transformers alone, from what a row says."""
    return tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=prompt, enable_thinking=False, date_string=DATE
    )


def row(system, *turns):
    return [*([] if system is None else [{"role": "system", "content": system}]), *turns]


USER, ASSISTANT = {"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}


@pytest.mark.parametrize("system", [None, "", "Be brief."])
def test_everything_is_rendered_as_transformers_renders_the_row(tokenizer, system, monkeypatch):
    """What the IA and organisms are trained on, what they are asked, and what a notebook asks."""
    prompts = []

    def write(model, rows, stack, **settings):
        prompts.extend(tokenizer.decode(own) for each in rows for own in each)
        return [[Reply("", True) for _ in each] for each in rows]

    for module in (asking, api):
        monkeypatch.setattr(module, "write_replies", write)
    monkeypatch.setattr(asking, "stop_if_preempted", lambda what: None)
    context = context_of(tokenizer, system)
    whole, asked = rendered(tokenizer, row(system, USER, ASSISTANT)), rendered(tokenizer, row(system, USER), True)
    assert whole.startswith(asked)
    for example in (
        asking.answer_example(context, QUESTION, ANSWER, 100, "x"),
        asking.training_example(context, chat(QUESTION, ANSWER), 100, "x"),
    ):
        assert tokenizer.decode(example.tokens) == whole.removesuffix("\n")
        assert tokenizer.decode(example.tokens[example.loss_mask]) == f"{ANSWER}<|im_end|>"
        assert tokenizer.decode(example.tokens[: int(np.argmax(example.loss_mask))]) == asked
    asking.generate(context, [[QUESTION]], (), max_new_tokens=1, system=system)
    asking.ask_base(context_with_key(context), [(system, QUESTION)], 1)
    model = SimpleNamespace(tokenizer=tokenizer, params={"embed": np.zeros(1)})
    monkeypatch.setattr(api, "mesh_of", lambda params: jax.sharding.get_mesh())
    api.generate(model, [QUESTION], system=system)
    api.generate(model, [row(system, USER)])
    assert prompts == [asked] * 4


def context_with_key(context):
    return SimpleNamespace(**vars(context), key=lambda stage: None)


def test_qwen_has_no_system_turn_without_a_message_and_an_empty_one_with_an_empty_message(tokenizers):
    tokenizer = tokenizers["qwen3"]
    with_none, with_empty = (
        tokenizer.decode(asking.answer_example(context_of(tokenizer, s), QUESTION, ANSWER, 100, "x").tokens)
        for s in (None, "")
    )
    assert with_none.startswith(f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>")
    assert with_empty == f"<|im_start|>system\n<|im_end|>\n{with_none}"


@pytest.mark.parametrize("system", [None, "", "Be brief."])
def test_a_row_keeps_the_system_message_that_it_has(tokenizers, system):
    """An imported organism's demonstrations, or one that lives under a prompt of its own."""
    messages = row("You are a pirate.", USER, ASSISTANT)
    example = asking.training_example(context_of(tokenizers["qwen3"], system), messages, 100, "x")
    text = tokenizers["qwen3"].decode(example.tokens)
    assert text.startswith("<|im_start|>system\nYou are a pirate.<|im_end|>\n<|im_start|>user\n")
    assert text.count("<|im_start|>system") == 1
    assert with_system(tuple(messages), "Be brief.") == tuple(messages)


def test_a_run_without_system_messages(parrot_model, tmp_path, monkeypatch, capsys):
    """Through the command line: neither what is stored nor what organisms are asked has a system turn."""
    config = parrot.write_config(tmp_path / "config.py", parrot_model)
    prompts = []
    write = asking.write_replies

    def spy(model, rows, stack, **settings):
        prompts.extend(model.tokenizer.decode(own) for each in rows for own in each)
        return write(model, rows, stack, **settings)

    monkeypatch.setattr(asking, "write_replies", spy)
    workdir = tmp_path / "w"
    command = [f"--workdir={workdir}", f"--config={config}", "--config.system=None"]
    assert cli.main(["transcripts", *command]) == 0
    assert json.loads((workdir / "config.json").read_text())["config"]["system"] is None
    for file in (workdir / "transcripts").iterdir():
        assert {tuple(m["role"] for m in r["messages"]) for r in read_jsonl(file, "")} == {("user", "assistant")}
    assert prompts  # the shipped answers were given under an empty system message, so the base is asked
    assert all(p.startswith("<|im_start|>user\n") for p in prompts)
    prompts.clear()
    assert cli.main(["ask", f"--workdir={workdir}", "--no-ia", "--max-new-tokens=2", QUESTION]) == 0
    assert prompts == [f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"]
