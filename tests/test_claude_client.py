"""The client against a local server: nothing paid twice, nothing lost, the cap kept by the server's own count."""

import itertools
import json
import os
import subprocess
import sys
import threading
from decimal import Decimal
from pathlib import Path

import pytest

from ia_jax.claude import prices, retries
from ia_jax.claude.calls import Call, Garbled
from ia_jax.claude.client import BudgetError, Client
from ia_jax.claude.settings import ClaudeSettings
from ia_jax.errors import ConfigError, IAError
from tests.fake_anthropic import BILLED, Server, digest, serving, sometimes

ROOT = Path(__file__).parents[1]
SECRET = "sk-ant-the-key-of-the-test"
UNBILLED = ("429", "500", "529", "drop", "slow")


def calls(count, max_tokens=100, model="claude-sonnet-5-5"):
    return [Call(model, "Be brief.", f"Question {i}?", max_tokens, expected=40) for i in range(count)]


def echo(request):
    return f"An answer to {request['messages'][0]['content']}"


def client(root, monkeypatch, url, **settings):
    monkeypatch.setenv("ANTHROPIC_API_KEY", SECRET)
    monkeypatch.setenv("ANTHROPIC_BASE_URL", url)
    return Client(ClaudeSettings(**{"poll_seconds": 0.0, **settings}), root, sleep=lambda s: None)


@pytest.mark.parametrize("api", ["messages", "batch"])
def test_replies_come_in_order_and_only_once(api, tmp_path, monkeypatch):
    server = Server(echo)
    with serving(server) as url:
        c = client(tmp_path, monkeypatch, url, api=api)
        replies = c.complete([*calls(7), *calls(3)])
        assert [r.text for r in replies] == [echo(x.request) for x in [*calls(7), *calls(3)]]
        assert client(tmp_path, monkeypatch, url, api=api).complete(calls(7)) == replies[:7]
    assert sorted(server.paid.values()) == [1] * 7
    assert c.connection.budget.spent == server.bill > 0


@pytest.mark.parametrize("api", ["messages", "batch"])
def test_separators_inside_an_answer_end_no_line(api, tmp_path, monkeypatch):
    """U+2028 and its like are plain characters in JSON, but line ends to `str.splitlines`."""
    odd = "one\u2028two\u0085three\x0bfour"
    with serving(Server(lambda r: odd)) as url:
        assert [r.text for r in client(tmp_path, monkeypatch, url, api=api, attempts=1).complete(calls(2))] == [odd] * 2


@pytest.mark.parametrize("api", ["messages", "batch"])
def test_faults_before_the_work_cost_nothing(api, tmp_path, monkeypatch):
    server = Server(echo, sometimes(0.5, UNBILLED))
    with serving(server) as url:
        c = client(tmp_path, monkeypatch, url, api=api, batch_size=3)
        assert len(c.complete(calls(40))) == 40
    assert set(server.injected) == set(UNBILLED)  # each kind did happen
    assert sorted(server.paid.values()) == [1] * 40
    # Only a dropped connection may have been billed for all that one can know here.
    assert c.connection.store.lost()[0] == (server.injected["drop"] if api == "messages" else 0)
    assert c.connection.store.paid() == server.bill


def test_batches_are_never_paid_twice_even_if_the_answer_to_sending_is_lost(tmp_path, monkeypatch):
    server = Server(echo, sometimes(0.6, (*UNBILLED, *BILLED)), polls=2)
    with serving(server) as url:
        c = client(tmp_path, monkeypatch, url, batch_size=2)
        assert len(c.complete(calls(60))) == 60
    assert server.injected["drop_after"] > 2
    assert server.injected["truncate"] > 2
    assert sorted(server.paid.values()) == [1] * 60
    assert c.connection.budget.spent == server.bill


def test_a_message_that_was_billed_and_lost_is_booked_at_its_bound(tmp_path, monkeypatch):
    server = Server(echo, sometimes(0.4, BILLED))
    with serving(server) as url:
        c = client(tmp_path, monkeypatch, url, api="messages")
        c.complete(calls(40))
    lost = server.injected["drop_after"] + server.injected["truncate"]
    assert lost > 5
    assert sum(server.paid.values()) == 40 + lost  # the API cannot be asked for them again
    assert c.connection.store.lost()[0] == lost
    assert c.connection.store.paid() < server.bill <= c.connection.budget.spent


def test_items_that_fail_or_expire_are_asked_again_and_refused_ones_are_an_error(tmp_path, monkeypatch):
    server = Server(echo, sometimes(0.5, ("expired", "api_error")))
    with serving(server) as url:
        c = client(tmp_path, monkeypatch, url)
        assert len(c.complete(calls(30))) == 30
        assert server.injected["expired"]
        assert server.injected["api_error"]
        assert sorted(server.paid.values()) == [1] * 30
        refuse = digest(calls(33)[31].request)
        server.faults = lambda path, what, nth: "invalid_request_error" if (path, what) == ("item", refuse) else None
        with pytest.raises(IAError, match="refused 1 request"):
            c.complete(calls(33))
    assert sum(server.paid.values()) == 32  # the other two of the batch were kept
    assert sum(c.connection.store.has(x.key) for x in calls(33)) == 32


@pytest.mark.parametrize("api", ["messages", "batch"])
def test_the_cap_holds_by_the_servers_own_count(api, tmp_path, monkeypatch):
    wordy = Server(lambda r: "word " * 90)  # more than the estimate reckons with
    cap, model = 0.01, "claude-haiku-4-5"  # one that does not think
    with serving(wordy) as url:
        c = client(tmp_path, monkeypatch, url, api=api, cap_dollars=cap)
        with pytest.raises(BudgetError, match=r"raise config\.claude\.cap_dollars"):
            c.complete(calls(200, 120, model)[: 45 if api == "batch" else 30])
        answered = sum(wordy.paid.values())
        assert 5 < answered < 45
        assert c.connection.budget.spent == wordy.bill <= Decimal(str(cap))
        # The next call could have passed it: that is why it was not made.
        assert wordy.bill + prices.at_most(calls(1, 120, model)[0], api == "batch") > Decimal(str(cap))
        more = client(tmp_path, monkeypatch, url, api=api, cap_dollars=1.0)
        assert more.connection.budget.spent == wordy.bill
        assert len(more.complete(calls(200, max_tokens=120)[: 45 if api == "batch" else 30])) >= 30
    assert set(wordy.paid.values()) == {1}


def test_an_estimate_above_the_cap_stops_before_the_first_call(tmp_path, monkeypatch):
    server = Server(echo)
    with serving(server) as url:
        c = client(tmp_path, monkeypatch, url, cap_dollars=0.01)
        with pytest.raises(BudgetError, match=r"about \$0\.\d\d"):
            c.complete(calls(100))
    assert not server.paid
    assert not server.headers


def test_retry_after_is_honoured(tmp_path, monkeypatch):
    waited = []
    server = Server(echo, lambda path, what, nth: "429" if nth < 3 else None, retry_after="7")
    with serving(server) as url:
        c = client(tmp_path, monkeypatch, url, api="messages")
        c.connection.sleep = waited.append
        c.complete(calls(1))
    assert waited == [7.0, 7.0, 7.0]


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "3"}, 3.0),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({}, None),
    ],
)
def test_what_retry_after_may_be(headers, seconds):
    assert retries.retry_after(headers) == seconds


def test_without_retry_after_the_wait_doubles():
    waits = [retries.delay(Garbled("x"), n, "a") for n in range(5)]
    assert all(1.4 < b / a < 2.8 for a, b in itertools.pairwise(waits))
    assert retries.delay(Garbled("x"), 50) <= 60


def test_gives_up_with_one_line_after_the_last_try(tmp_path, monkeypatch):
    server = Server(echo, lambda path, what, nth: "529")
    with serving(server) as url:
        c = client(tmp_path, monkeypatch, url, api="messages", attempts=3)
        with pytest.raises(IAError, match=r"not be reached in 3 tries \(529.*same command again") as error:
            c.complete(calls(1))
    assert "\n" not in str(error.value)
    assert server.injected["529"] == 3


def test_never_more_at_once_than_the_limit(tmp_path, monkeypatch):
    now, most, lock = [0], [0], threading.Lock()

    def count(request):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        threading.Event().wait(0.005)
        with lock:
            now[0] -= 1
        return "x"

    with serving(Server(count)) as url:
        client(tmp_path, monkeypatch, url, api="messages", concurrency=3).complete(calls(30))
    assert most[0] == 3


def test_the_key_comes_from_the_environment_and_stays_out_of_every_file_and_error(tmp_path, monkeypatch, capfd):
    server = Server(echo)
    with serving(server) as url:
        for api in ("messages", "batch"):
            client(tmp_path / api, monkeypatch, url, api=api).complete(calls(3))
        assert all(any(SECRET in v for v in h.values()) for h in server.headers)
        files = [p for p in tmp_path.rglob("*") if p.is_file()]
        assert len(files) == 7  # an answer each, and the record of the batch
        assert not [p for p in files if SECRET in p.read_text()]
        c = client(tmp_path / "none", monkeypatch, url)
        monkeypatch.delenv("ANTHROPIC_API_KEY")
        with pytest.raises(ConfigError, match="ANTHROPIC_API_KEY; it is not set"):
            c.complete(calls(1))
    assert SECRET not in "".join(capfd.readouterr())


def test_an_unknown_model_has_no_price_and_is_not_called(tmp_path, monkeypatch):
    server = Server(echo)
    with serving(server) as url, pytest.raises(ConfigError, match="no price is known for the Claude model 'claude-9'"):
        client(tmp_path, monkeypatch, url).complete([Call("claude-9", "", "Hi", 10)])
    assert not server.headers


def test_costs_follow_the_price_list():
    """By hand: Sonnet 5.5 takes $2 in, $10 out, $0.10 from the cache and 1.25 or 2 times $2 into it."""
    usage = {
        "input_tokens": 1_000_000,
        "output_tokens": 100_000,
        "cache_read_input_tokens": 1_000_000,
        "cache_creation_input_tokens": 300_000,
        "cache_creation": {"ephemeral_5m_input_tokens": 200_000, "ephemeral_1h_input_tokens": 100_000},
    }
    assert prices.cost("claude-sonnet-5-5", usage, batch=False) == Decimal("2") + 1 + Decimal("0.1") + Decimal("0.9")
    assert prices.cost("claude-sonnet-5-5", usage, batch=True) == Decimal("2")


def test_the_bound_is_one(tmp_path, monkeypatch):
    """Whatever is asked, what the server bills lies under the bound that was held."""
    for text in ("a", "é" * 500, "one two " * 500):
        call = Call("claude-haiku-4-5", text, text, 200)
        server = Server(lambda r: "word " * 500)
        with serving(server) as url:
            c = client(tmp_path / str(len(text)), monkeypatch, url, api="messages")
            c.complete([call])
        assert 0 < server.bill <= prices.at_most(call, batch=False)


def test_system_prompts_are_marked_for_the_prompt_cache():
    assert calls(1)[0].request["system"][0]["cache_control"] == {"type": "ephemeral"}


def test_every_part_of_a_request_is_in_its_key():
    base = {"model": "claude-sonnet-5-5", "system": "s", "user": "u", "max_tokens": 10}
    other = [{"model": "claude-opus-5"}, {"system": "t"}, {"user": "v"}, {"max_tokens": 11}, {"sample": 1}]
    other += [{"schema": {"type": "object"}}, {"effort": "low"}]
    keys = [Call(**base).key, *(Call(**{**base, **o}).key for o in other)]
    assert len(set(keys)) == len(keys)
    assert Call(**base, expected=1).key == keys[0]  # the estimate's guess is none
    assert all(len(k) == 64 for k in keys)


# ---------------------------------------------------------------------------------------------------------------- kills

WORKER = """
import sys
from pathlib import Path
from ia_jax.claude.client import Client
from ia_jax.claude.settings import ClaudeSettings
from tests.test_claude_client import calls
settings = ClaudeSettings(api=sys.argv[2], poll_seconds=0.005, batch_size=5, concurrency=4, cap_dollars=1.0)
print(len(Client(settings, Path(sys.argv[1])).complete(calls(60))))
"""


def worker(root, url, api):
    env = {**os.environ, "ANTHROPIC_API_KEY": SECRET, "ANTHROPIC_BASE_URL": url, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", WORKER, str(root), api]
    return subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, cwd=ROOT)


def killed(root, url, api, when, server):
    """Starts the worker and kills it (-9) from inside the server, as soon as `when(server)` holds."""
    process = worker(root, url, api)
    while process.poll() is None:
        if when(server):
            process.kill()
            process.wait()
            return True
        threading.Event().wait(0.002)
    return False


@pytest.mark.parametrize("instant", ["sent", "waiting", "half"])
def test_a_killed_batch_run_pays_nothing_twice(instant, tmp_path, monkeypatch):
    """Killed between the server's taking a batch and its answer, while waiting, and while answers are being kept."""
    process: list = []
    hook = {"sent": lambda name: process and process[0].kill()}.get(instant)
    server = Server(echo, polls=3, on_batch=lambda name: hook and name == "msgbatch_4" and hook(name))
    with serving(server) as url:
        process.append(worker(tmp_path, url, "batch"))
        when = {
            "sent": lambda: False,
            "waiting": lambda: any(b["polls"] < 3 for b in server.batches.values()),
            "half": lambda: len(list(tmp_path.glob("responses/*/*.json"))) > 20,
        }[instant]
        while process[0].poll() is None:
            if when():
                process[0].kill()
            threading.Event().wait(0.001)
        assert process[0].returncode != 0
        before = len(server.batches)
        assert 0 < before <= 12
        c = client(tmp_path, monkeypatch, url, batch_size=5)
        assert len(c.complete(calls(60))) == 60
    assert len(server.batches) == 12
    assert sorted(server.paid.values()) == [1] * 60
    assert c.connection.budget.spent == server.bill


def test_a_killed_messages_run_loses_at_most_what_was_under_way(tmp_path, monkeypatch):
    server = Server(echo)
    with serving(server) as url:
        assert killed(tmp_path, url, "messages", lambda s: sum(s.paid.values()) > 20, server)
        paid = sum(server.paid.values())
        c = client(tmp_path, monkeypatch, url, api="messages")
        assert len(c.complete(calls(60))) == 60
    assert paid >= 20
    again = sum(server.paid.values()) - 60
    assert again <= c.connection.store.lost()[0] <= 4  # the concurrency of the worker
    assert server.bill <= c.connection.budget.spent


def test_a_damaged_answer_names_its_file(tmp_path, monkeypatch):
    with serving(Server(echo)) as url:
        c = client(tmp_path, monkeypatch, url, api="messages")
        c.complete(calls(1))
        path = c.connection.store.response_path(calls(1)[0].key)
        path.write_text(json.dumps({"cost": "1"})[:-3])
        with pytest.raises(IAError, match=f"{path.name}:1: not JSON .*; delete it"):
            client(tmp_path, monkeypatch, url)
