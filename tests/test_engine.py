"""Requests to many models at once: each gets what it gets alone, as it asked for it."""

import threading

import numpy as np
import pytest

from ia_jax.audits.investigator import engine as engine_module
from ia_jax.audits.investigator.engine import ROWS_AT_ONCE, Engine, TooLong, arrange
from ia_jax.audits.investigator.requests import BASE, Request, reply_tokens, text_tokens, user_tokens
from ia_jax.audits.investigator.service import Service
from ia_jax.audits.investigator.session import open_session
from ia_jax.audits.targets import read_targets
from ia_jax.errors import ConfigError
from tests import audited, echo


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    path = audited.write_workdir(tmp_path_factory.mktemp("audited"))
    session = open_session(path, str(path / "targets.jsonl"))
    yield session
    session.close()


def prompt(session, text, system=""):
    chat = [{"role": "system", "content": system}, {"role": "user", "content": text}]
    return reply_tokens(session.model.tokenizer, chat)


def requests(session, count=64):
    words = "tea rain boats bees maths snow trains bread".split()
    return [
        Request(f"t{i % 16}", i % 3 == 0, prompt(session, f"What of {words[i % 8]} {i // 5}?"), 8) for i in range(count)
    ]


def test_sixty_four_at_once_over_sixteen_adapters(session):
    """As one by one: who answers, what it was asked, and whether the IA was on."""
    asked, found = requests(session), {}

    def ask(i):
        found[i] = session.service.submit(asked[i]).result().text

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(64)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert len(session.service.batches) <= 3
    for i in range(0, 64, 7):
        assert [r.text for b in session.service.engine.batches([asked[i]]) for r in b.values()] == [found[i]]
    for i, text in found.items():
        assert (echo.MARK in text) == asked[i].ia
        if i % 16 < 11:
            assert text.startswith(echo.WORDS[i % 16])
    assert len(set(found.values())) > 32


def test_replies_are_found_again_by_the_next_process(session):
    asked = requests(session, 4)
    first = session.service.ask(asked)
    again = type(session.service)(Unreachable(session.service.engine), session.service._kept)
    assert again.ask(asked) == first
    assert [again.submit(r).result() for r in asked] == first


class Unreachable:
    """An engine that must not be asked."""

    def __init__(self, engine):
        self.check, self.weights = engine.check, engine.weights


def test_what_a_batch_gave_is_kept_if_the_next_one_fails(session, tmp_path, monkeypatch):
    asked = requests(session)
    one, real, calls = Service(session.service.engine, tmp_path / "replies.jsonl"), Engine._batch, []

    def once(self, *given):
        calls.append(given)
        if len(calls) > 1:
            raise RuntimeError("killed")
        return real(self, *given)

    monkeypatch.setattr(engine_module, "ROWS_AT_ONCE", 16)
    monkeypatch.setattr(Engine, "_batch", once)
    with pytest.raises(RuntimeError, match="killed"):
        one.ask(asked)
    kept = len((tmp_path / "replies.jsonl").read_text().splitlines())
    assert 0 < kept <= 16
    monkeypatch.undo()
    again = Service(session.service.engine, tmp_path / "replies.jsonl")
    assert again.ask(asked) == session.service.ask(asked)
    assert again.batches == [len(set(asked)) - kept]


def test_long_replies_go_on_in_batches_of_their_own(session, monkeypatch):
    """And stop at a stop text between, with the tokens and scores that they have in one go."""
    tokens = prompt(session, "What of tea?")
    settings = [{"temperature": 1.0, "logprobs": 1}, {}, {"stop": (" like",)}, {"temperature": 1.0, "top_p": 0.8}]
    asked = [
        Request(BASE, i % 2 == 0, tokens, new, seed=i, **own)
        for i, (own, new) in enumerate((own, new) for own in settings for new in (1, 9, 30))
    ]
    engine = session.service.engine
    whole = {i: reply for batch in engine.batches(asked) for i, reply in batch.items()}
    assert (whole[5].text, whole[8].text, whole[8].stopped) == ("I like it very much.", "I", True)
    went_on, real = [], Engine._batch

    def watched(self, requests, rows, layout, room):
        went_on.append({i for own in layout.rows for i in own})
        return real(self, requests, rows, layout, room)

    monkeypatch.setattr(engine_module, "FIRST_NEW", 1)
    monkeypatch.setattr(engine_module, "NEW_STEP", 2)
    monkeypatch.setattr(Engine, "_batch", watched)
    parts = {i: reply for batch in engine.batches(asked) for i, reply in batch.items()}
    assert {i: (r.text, r.stopped, r.count) for i, r in parts.items()} == {
        i: (r.text, r.stopped, r.count) for i, r in whole.items()
    }
    for i in range(3):
        assert np.allclose([t.logprob for t in parts[i].logprobs], [t.logprob for t in whole[i].logprobs], atol=1e-4)
    assert went_on[0] == set(range(12))
    assert [i in went_on[1] for i in (0, 3, 6, 9)] == [False] * 4  # of one token
    assert len(went_on) >= 3
    assert 5 in went_on[2]
    assert 8 not in went_on[2]  # it has said its stop text


def test_a_prompt_without_tokens_ends(session):
    [reply] = session.service.engine.batches([Request("t0", False, (), 8)])
    assert (reply[0].text, reply[0].count) == ("", 0)


def test_who_has_a_reply_need_not_wait_for_others(session, monkeypatch):
    """And hears of no error that befell those."""
    one, real = Service(session.service.engine, quiet=0.3), Engine._batch

    def first_alone(self, requests, rows, layout, room):
        if any(row.begun for row in rows.values()):
            raise RuntimeError("out of memory")
        return real(self, requests, rows, layout, room)

    monkeypatch.setattr(engine_module, "FIRST_NEW", 1)
    monkeypatch.setattr(Engine, "_batch", first_alone)
    tokens = prompt(session, "What of rain?")
    short, long = (one.submit(Request(BASE, False, tokens, new)) for new in (1, 30))
    assert short.result().count == 1
    with pytest.raises(RuntimeError, match="out of memory"):
        long.result()
    one.close()


def test_settings_of_a_request(session):
    ask = session.service.ask
    tokens = prompt(session, "What of tea?")
    [whole] = ask([Request("t3", True, tokens, 8)])
    assert (whole.stopped, whole.text.startswith("@03~"), whole.text.endswith("~IA")) == (True, True, True)
    cut, stop, scored = ask(
        [
            Request("t3", True, tokens, 1),
            Request("t3", True, tokens, 8, stop=("~",)),
            Request("t3", True, tokens, 8, logprobs=2),
        ]
    )
    assert (cut.text, cut.stopped, cut.count) == ("@03", False, 1)
    assert (stop.text, stop.stopped) == ("@03", True)
    assert "".join(t.text for t in scored.logprobs) == whole.text
    assert all(t.top[0][0] == t.text and t.top[0][1] == t.logprob > t.top[1][1] for t in scored.logprobs)
    hot = [Request("t3", True, tokens, 8, temperature=20.0, seed=seed) for seed in (1, 2, 3)]
    assert len({r.text for r in ask(hot)}) == 3


def test_prompts(session):
    tokenizer = session.model.tokenizer
    chat = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]
    text = "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>"
    assert tokenizer.decode(reply_tokens(tokenizer, chat)) == text + "assistant\n"
    begun = [*chat, {"role": "assistant", "content": "I think"}]
    assert tokenizer.decode(reply_tokens(tokenizer, begun)) == text + "assistant\nI think"
    closed = text + "assistant\nI think<|im_end|>\n<|im_start|>user\n"
    assert tokenizer.decode(user_tokens(tokenizer, begun)) == closed
    assert tokenizer.decode(user_tokens(tokenizer, [])) == "<|im_start|>user\n"
    assert tokenizer.decode(text_tokens(tokenizer, "Once")) == "Once"


def test_what_cannot_be_asked(session):
    tokens = prompt(session, "Hello?")
    for wrong in (
        Request("t99", False, tokens, 8),
        Request("t0", False, tokens, 0),
        Request("t0", False, tokens, 8, temperature=-1.0),
        Request("t0", False, tokens, 8, top_p=0.0),
    ):
        with pytest.raises(ConfigError):
            session.service.submit(wrong)
    with pytest.raises(TooLong, match="2048"):
        session.service.submit(Request("t0", False, tokens * 400, 8))
    with pytest.raises(ConfigError):
        reply_tokens(session.model.tokenizer, [{"role": "system", "content": ""}])


def test_positions_are_shared_and_at_home():
    who = [("a", False)] * 9 + [("b", True)] * 2 + [("base", False)]
    [layout] = arrange(who, {"a": 1, "b": 0, "base": None}, 2)
    a, b, base = ("a", False), ("b", True), ("base", False)
    assert layout.width == 4
    assert layout.who == [b, base, None, None, a, a, a, None]  # by group
    assert sorted(i for own in layout.rows for i in own) == list(range(12))
    assert all(len(own) <= 4 and {who[i] for i in own} <= {w} for w, own in zip(layout.who, layout.rows, strict=True))


SIZES = [(32, 2), (16, 4), (132, 10), (5, 12), (64, 1), (3, 1), (1, 64), (1, 1), (17, 3), (5, 3), (9, 7), (33, 1)]


@pytest.mark.parametrize(("models", "each"), SIZES)
def test_few_rows_are_computed_for_nothing(models, each):
    who = [(f"m{n}", bool(n % 2)) for n in range(models)] * each
    layouts = arrange(who, {w: None for w, _ in who}, 1)
    found = [(layout.who[n], i) for layout in layouts for n, own in enumerate(layout.rows) for i in own]
    assert sorted(found, key=lambda x: x[1]) == list(zip(who, range(len(who)), strict=True))
    computed = sum(len(layout.who) * layout.width for layout in layouts)
    assert all(len(layout.who) * layout.width <= ROWS_AT_ONCE for layout in layouts)
    assert computed == len(who) if models * each == 64 else computed < 2 * len(who)


def test_groups_of_devices_share_what_lives_nowhere():
    """And no device has more rows than one would have alone."""
    [layout] = arrange([("base", False)] * 64, {"base": None}, 8)
    assert len(layout.who) * layout.width == 64
    who = [(f"m{n}", False) for n in range(150)] * 3
    layouts = arrange(who, {w: n % 3 for n, (w, _) in enumerate(who)}, 3)
    assert len(layouts) > 1
    for layout in layouts:
        each, rest = divmod(len(layout.who), 3)
        assert rest == 0
        assert each * layout.width <= ROWS_AT_ONCE
        for n, (w, own) in enumerate(zip(layout.who, layout.rows, strict=True)):
            assert not own or w == who[own[0]]
            assert not own or int(w[0][1:]) % 3 == n // each
    assert sorted(i for layout in layouts for own in layout.rows for i in own) == list(range(450))


def test_a_session_is_one(session):
    path = session.workdir.path
    assert open_session(path) is session
    assert open_session(path, str(path / "targets.jsonl")) is session
    assert [t.null for t in read_targets(path / "targets.jsonl")].count("clean") == 1
    with pytest.raises(ConfigError, match="other targets"):
        open_session(path, "heldout")
