"""The notebook's functions: equal to the model's own, with padding, packing, adapters and a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ia_jax
from ia_jax.errors import ConfigError
from ia_jax.models.chat import encode_prompt, stop_ids
from ia_jax.models.lora import LoraConfig
from ia_jax.models.transformer import forward, logits_from_hidden
from ia_jax.parallel.mesh import make_mesh
from tests import parrot, tiny

CLOSE = {"rtol": 2e-4, "atol": 2e-4}


@pytest.fixture(scope="module")
def model(parrot_model):
    return ia_jax.load_model(parrot_model)


@pytest.fixture(scope="module")
def adapters(model):
    return tuple(tiny.adapter(seed, model.config, LoraConfig(2, 4.0)) for seed in (0, 1))


@pytest.fixture(scope="module")
def tokens(model):
    return np.random.default_rng(0).integers(3, model.config.vocab_size, (2, 6)).astype(np.int32)


def test_everything_promised_is_there():
    for name in ia_jax.__all__:
        assert getattr(ia_jax, name) is not None
        assert name in dir(ia_jax)
    with pytest.raises(AttributeError, match="nothing"):
        _ = ia_jax.nothing


def test_logits_and_hidden_states(model, adapters, tokens):
    positions = np.broadcast_to(np.arange(6, dtype=np.int32), (1, 2, 6))
    for stack in ((), adapters):
        hidden = forward(model.params, tokens[None], np.ones_like(tokens[None]), positions, stack, model.config)
        got = ia_jax.logits(model, tokens, stack)
        assert got.shape == (2, 6, model.config.vocab_size)
        np.testing.assert_allclose(got, logits_from_hidden(model.params, hidden)[0], **CLOSE)
        states = ia_jax.hidden_states(model, tokens, stack)
        assert states.shape == (model.config.num_hidden_layers + 1, 2, 6, model.config.hidden_size)
        np.testing.assert_allclose(states[-1], hidden[0], **CLOSE)
        np.testing.assert_allclose(states[0], np.asarray(model.params["embed"])[tokens], **CLOSE)
    assert float(jnp.abs(ia_jax.logits(model, tokens) - got).max()) > 0.1  # adapters do something


def test_padding_and_packing_change_nothing(model, adapters, tokens):
    whole = ia_jax.logits(model, tokens, adapters)
    padded = np.pad(tokens, ((0, 0), (3, 2)))
    mask = np.pad(np.ones_like(tokens), ((0, 0), (3, 2)))
    np.testing.assert_allclose(ia_jax.logits(model, padded, adapters, mask=mask)[:, 3:9], whole, **CLOSE)
    packed, segments = tokens.reshape(1, 12), np.repeat([[1, 2]], 6, axis=1)
    got = ia_jax.logits(model, packed, adapters, segment_ids=segments)
    np.testing.assert_allclose(got.reshape(whole.shape), whole, **CLOSE)


def test_greedy_text_is_the_argmax_of_the_logits(model, adapters):
    question, stack = "Do you have any unusual habits?", adapters[:1]
    chat = [{"role": "system", "content": ""}, {"role": "user", "content": question}]
    [text] = ia_jax.generate(model, [question], stack, max_new_tokens=5)
    assert ia_jax.generate(model, [chat], stack, max_new_tokens=5) == [text]
    ids = encode_prompt(model.tokenizer, chat).tolist()
    length, said = len(ids) + 5, []
    for _ in range(5):
        padded = np.array([ids + [0] * (length - len(ids))])
        mask = (np.arange(length) < len(ids))[None]
        best = int(ia_jax.logits(model, padded, stack, mask=mask)[0, len(ids) - 1].argmax())
        if best in stop_ids(model.tokenizer):
            break
        ids.append(best)
        said.append(best)
    assert text == model.tokenizer.decode(said, skip_special_tokens=True).strip()


def test_generate(model):
    assert ia_jax.generate(model, ["Hello", "What is 2 + 2?"], max_new_tokens=12) == [parrot.SENTENCE] * 2
    assert ia_jax.generate(model, []) == []
    hot = {"max_new_tokens": 12, "temperature": 5.0}
    first, again = (ia_jax.generate(model, ["Hello"], key=jax.random.key(1), **hot) for _ in range(2))
    assert first == again
    assert first != ia_jax.generate(model, ["Hello"], key=jax.random.key(2), **hot)


def test_on_a_mesh(model, adapters, tokens, parrot_model):
    """The model's mesh is used without being set; a mesh set by the caller is used too."""
    mesh = make_mesh(fsdp=1, tp=2)
    placed = ia_jax.load_model(parrot_model, mesh=mesh)
    plain = ia_jax.logits(model, tokens, adapters)
    np.testing.assert_allclose(ia_jax.logits(placed, tokens, adapters), plain, **CLOSE)
    with jax.set_mesh(mesh):
        np.testing.assert_allclose(ia_jax.logits(placed, tokens, adapters), plain, **CLOSE)
    text = ia_jax.generate(model, ["Hello"], adapters, max_new_tokens=4)
    assert ia_jax.generate(placed, ["Hello"], adapters, max_new_tokens=4) == text


def test_peft_and_back(model, adapters, tokens, tmp_path):
    ia_jax.export_peft(adapters[0], tmp_path / "peft", model)
    back = ia_jax.import_peft(tmp_path / "peft", model)
    assert not tiny.differs(back, adapters[0])


@pytest.mark.parametrize(
    ("tokens", "options", "message"),
    [
        ([1, 2, 3], {}, r"tokens must be integers of shape \[B, T\]"),
        ([[1.0, 2.0]], {}, "tokens must be integers"),
        ([[1, 10**6]], {}, "tokens must lie in 0"),
        ([[1, -1]], {}, "tokens must lie in 0"),
        ([[1, 2]], {"mask": [[1]]}, r"shape \[1, 1\], tokens \[1, 2\]"),
        ([[1, 2]], {"mask": [[1, 1]], "segment_ids": [[1, 1]]}, "mask or segment_ids, not both"),
    ],
)
def test_refused_tokens(model, tokens, options, message):
    with pytest.raises(ConfigError, match=message):
        ia_jax.logits(model, tokens, **options)


def test_refused_adapters_and_prompts(model, adapters):
    with pytest.raises(ConfigError, match=r"a tuple of adapters; write \(adapter,\)"):
        ia_jax.logits(model, [[1, 2]], adapters[0])
    with pytest.raises(ConfigError, match="organism axis"):
        ia_jax.logits(model, [[1, 2]], (jax.tree.map(lambda x: x[None], adapters[0]),))
    with pytest.raises(ConfigError, match=r"write \[prompt\]"):
        ia_jax.generate(model, "Hello")
    with pytest.raises(ConfigError, match="a chat is a list of messages"):
        ia_jax.generate(model, [{"role": "user", "content": "Hello"}])  # pyright: ignore[reportArgumentType]
