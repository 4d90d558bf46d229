"""What `ia-jax doctor` finds, from servers and files of our own; and the times it foretells, against published ones."""

import json
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ia_jax import cli
from ia_jax.config import RunConfig, with_dtype
from ia_jax.errors import ConfigError
from ia_jax.models.known import architecture
from ia_jax.models.lora import LoraConfig
from ia_jax.planning.batches import Batches
from ia_jax.planning.chips import training_flops
from ia_jax.recipes import load_config
from ia_jax.stages import doctor, expected
from ia_jax.stages.doctor import as_text, ask_server, examine, memory, reachable
from ia_jax.stages.expected import SPAN, STAGES, Expected, in_words, opening, stage_seconds, time_here, training_seconds

ROOT = Path(__file__).parent.parent
DEMO = str(ROOT / "configs" / "smollm2_demo.py")
SECRET = "sk-ant-not-to-be-seen"


# ------------------------------------------------------------------------------------------------------------ elsewhere


@contextmanager
def server(status, wait=0.0, headers=()):
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append((self.path, dict(self.headers)))
            time.sleep(wait)
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, *args):
            pass

    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{made.server_address[1]}", seen
    made.shutdown()
    made.server_close()


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (200, "reachable, and takes the key"),
        (401, "reachable, but it refuses the key in ANTHROPIC_API_KEY (401)"),
        (529, "answers with 529; the key is not known to be good"),
    ],
)
def test_claude_is_asked_for_what_costs_nothing(status, words):
    with server(status) as (url, seen):
        said = doctor.claude({"ANTHROPIC_API_KEY": SECRET, "ANTHROPIC_BASE_URL": url}, ask_server)
    assert said.startswith(words)
    [(path, headers)] = seen
    assert path == "/v1/models?limit=1"
    assert {k.lower(): v for k, v in headers.items()}["x-api-key"] == SECRET
    assert SECRET not in said


def test_a_key_follows_no_redirect():
    with server(200) as (other, theirs), server(302, headers=[("Location", other)]) as (url, seen):
        assert ask_server(url, {"x-api-key": SECRET}) == 302
    assert len(seen) == 1
    assert theirs == []


def test_a_server_that_hangs_is_given_up(monkeypatch):
    monkeypatch.setattr(doctor, "TIMEOUT", 0.2)
    with server(200, wait=1.0) as (url, _), pytest.raises(OSError):
        ask_server(url, {})


def test_offline_is_said_quickly_and_without_a_key():
    environ = {
        "ANTHROPIC_API_KEY": SECRET,
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "ANTHROPIC_BASE_URL": "http://127.0.0.1:9",
    }

    def fetch(url, headers):
        if "storage" in url:
            time.sleep(30)  # looking up a name knows no timeout
        return ask_server(url, headers)

    began = time.monotonic()
    said = reachable(environ, fetch, patience=0.3)
    assert time.monotonic() - began < 5
    assert said["hub"] == "not reachable (connection refused); smollm2 and local checkpoints need no hub"
    assert said["claude"] == "ANTHROPIC_API_KEY is set, but was not tried; not reachable (connection refused)"
    assert said["bucket"] == "no answer in 0.3 s"


@pytest.mark.parametrize("wrong", [f"ftp://{SECRET}", f"http://{SECRET}:port"])
def test_an_address_that_is_none(wrong):
    """Whatever it holds is not repeated."""
    said = reachable(
        {"ANTHROPIC_BASE_URL": wrong, "HF_ENDPOINT": wrong}, lambda u, h: ask_server(u, h) if SECRET in u else 200
    )
    assert "not reachable" in said["claude"]
    assert "not reachable" in said["hub"]
    assert SECRET not in str(said)


def test_the_hub_is_left_alone_when_told_so():
    def never(url, headers):
        raise AssertionError(url)

    assert doctor.hub({"HF_HUB_OFFLINE": "1"}, never).startswith("left alone (HF_HUB_OFFLINE is set)")
    assert doctor.hub({"HF_TOKEN": SECRET}, lambda url, headers: 200) == "reachable, a token is set"


# -------------------------------------------------------------------------------------------------------- this machine


def test_a_containers_memory_is_what_it_may_have(tmp_path):
    meminfo, limit = tmp_path / "meminfo", tmp_path / "memory.max"
    meminfo.write_text("MemTotal:  16777216 kB\nMemFree:  1048576 kB\nMemAvailable:  8388608 kB\nHugePages_Total: 0\n")
    assert memory(meminfo, limit) == {"total": 16.0, "free": 8.0}
    limit.write_text("max\n")
    assert memory(meminfo, limit) == {"total": 16.0, "free": 8.0}
    limit.write_text(f"{4 * 2**30}\n")
    assert memory(meminfo, limit) == {"total": 4.0, "free": 4.0}
    assert memory(tmp_path / "none") == {}


@pytest.fixture
def offline(monkeypatch):
    """No server is asked, products have a rate at once."""
    monkeypatch.setattr(doctor, "ask_server", lambda url, headers: 200)
    rates = {"float32": 145e9, "bfloat16": 110e9}
    monkeypatch.setattr(doctor, "examine", partial(examine, rate=rates.get))
    monkeypatch.setattr(doctor, "cpu_flags", lambda: frozenset({"avx2"}))
    monkeypatch.setattr(doctor, "busy", lambda count: "")
    monkeypatch.setenv("ANTHROPIC_API_KEY", SECRET)


def test_the_command_in_about_ten_lines(offline, tmp_path, capsys):
    recipe = tmp_path / "c.py"
    recipe.write_text(
        "from ia_jax.config import default_config\n\n\ndef get_config():\n    c = default_config()\n"
        "    c.model.name = 'elsewhere'\n    return c\n"
    )
    command = ["doctor", f"--config={recipe}", f"--workdir={tmp_path / 'a' / 'b'}"]
    assert cli.main(command) == 0
    text = capsys.readouterr().out
    assert 10 <= len(text.splitlines()) <= 12
    assert SECRET not in text
    lines = {line[:9].strip(): line[10:] for line in text.splitlines()}
    assert lines["dtype"] == "auto is float32: the CPU has no products in bf16 (neither avx512_bf16 nor amx_bf16)"
    assert lines["products"] == "145 GFLOP/s in float32, 110 GFLOP/s in bfloat16 (measured now)"
    assert lines["this run"] == "not known: only runs on smollm2 were timed in float32"
    assert cli.main([*command, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["dtype"]["auto"] == "float32"
    assert facts["expected"]["unknown"] == "only runs on smollm2 were timed"
    assert facts["versions"]["jax"]
    assert facts["disk"]["free_gib"] > 0
    assert not (tmp_path / "a").exists()


def test_a_measurement_that_speaks_against_the_flags_is_told(offline, tmp_path, monkeypatch):
    rates = {"float32": 100e9, "bfloat16": 300e9}
    monkeypatch.setattr(doctor, "busy", lambda count: "other work is here")
    text = as_text(examine(None, tmp_path, {}, rates.get, lambda url, headers: 200))
    assert "300 GFLOP/s in bfloat16 (measured now; other work is here)" in text
    assert "auto is float32" in text
    assert "but bfloat16 was faster just now: if it stays so, set --config.model.dtype=bfloat16" in text
    assert "this run" not in text


# -------------------------------------------------------------------------------------------------------- time to come


@pytest.mark.parametrize(
    ("gflops", "joint", "tokens_per_s"),
    [
        *[(504, False, 334), (504, True, 364), (883, False, 297), (883, True, 212)],  # docs/benchmark.md, bf16
        *[(145, False, 171), (145, True, 165), (110, False, 139), (110, True, 102)],  # two AVX2 cores, fp32 and bf16
    ],
)
def test_published_speeds_lie_within_the_span(gflops, joint, tokens_per_s):
    cfg, organism, ia = architecture("smollm2"), LoraConfig(8, 16.0), LoraConfig(16, 32.0)
    stack = [organism, ia] if joint else [organism]
    each = training_flops(cfg, 128, stack, stack[-1:])
    supervised = 0.36 if joint else 0.53  # of the demo's tokens
    flops = each["tokens"] + supervised * each["supervised_tokens"]
    assert SPAN[0] <= 1 / tokens_per_s / training_seconds(flops, gflops * 1e9, 2) <= SPAN[1]


def test_seconds_by_hand():
    config = load_config(DEMO)
    config = replace(config, organisms=replace(config.organisms, check_prompts=0))
    cfg = architecture("smollm2")
    batches = Batches(10, 12, 1, 128, 96, 5, tokens=1000, supervised=0, slots=120)
    found = stage_seconds(config, cfg, {"organisms": batches}, 200e9, 2)
    assert set(found) == set(STAGES)
    # 106.2 M weights in 30 layers, two FLOPs each forward, and back through the upper 15, whose adapters of rank 8
    # are 1.22 M, six each; attention is one in a hundred.
    flops = 1000 * (3 * 106.2e6 + 6 * 1.22e6) * 1.01
    assert found["organisms"] - expected.STARTING == pytest.approx(flops / 200e9 + flops / 200e9, rel=0.02)
    # 14 organisms and the base, six questions, four samples, 32 tokens; of 134.5 M weights two FLOPs each; an eighth.
    tokens = 15 * 6 * 4 * 32
    assert found["preferences"] - expected.STARTING == pytest.approx(tokens * 2 * 134.5e6 / 25e9, rel=0.01)
    assert found["dpo"] == expected.STARTING  # not counted, as it was not asked for


@pytest.mark.parametrize(
    ("load", "count", "said"), [(0.3, 2, ""), (7.9, 16, ""), (10.4, 2, "load 10.4 on 2 cores"), (9.6, 16, "load 9.6")]
)
def test_other_work_is_told(load, count, said):
    told = expected.busy(count, lambda: (load, 0.0, 99.0))
    assert said in told
    assert bool(told) is bool(said)
    line = time_here(Expected({"sft": 1200.0}), told)
    assert line.startswith("  time here: about 15 to 30 min (an estimate, `ia-jax doctor` says how")
    assert told in line


@pytest.mark.parametrize(
    ("platform", "change", "why"),
    [
        ("gpu", {}, "nothing was timed on a GPU yet"),
        ("cpu", {"model": "Qwen/Qwen3-8B"}, "only runs on smollm2 were timed"),
        ("cpu", {"teacher": "claude"}, "how fast Claude"),
        ("cpu", {"judge": "claude"}, "how fast Claude"),
    ],
)
def test_what_was_never_timed_is_not_foretold(platform, change, why):
    config = RunConfig()
    for section, name in change.items():
        config = replace(config, **{section: replace(getattr(config, section), name=name)})

    def never():
        raise AssertionError("nothing is measured in vain")

    found = expected.expected(config, None, platform, never, 2)
    assert why in in_words(found)
    assert time_here(found).startswith("  time here: not known: ")
    assert "estimate" not in time_here(found)


def test_only_what_is_left_is_counted(monkeypatch):
    class Counted:
        def __init__(self, config, workdir, branches):
            assert branches  # of a prompt, which CPUs read once

        def batches(self, stage):
            if stage == "dpo":
                raise ConfigError("there is no DPO to plan")
            return Batches(1, 1, 1, 128, 96, 5, tokens=10**6, supervised=0, slots=1)

    monkeypatch.setattr(expected, "Planned", Counted)
    found = expected.expected(load_config(DEMO), None, "cpu", lambda: 100e9, 2, ("sft", "eval"))
    assert list(found.seconds) == ["sft", "eval"]
    low, high = found.range
    assert 0 < low < sum(found.seconds.values()) < high
    assert expected.expected(load_config(DEMO), None, "cpu", lambda: 1e11, 2).unknown == (
        "what there is to do cannot be counted (there is no DPO to plan)"
    )


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(30, "about a minute"), (1200, "about 15 to 30 min"), (40000, "about 8 h 20 min to 16 h 40 min")],
)
def test_times_in_words(seconds, words):
    assert in_words(Expected({"sft": float(seconds)})) == words


def test_the_first_lines_of_a_run():
    config = with_dtype(load_config(DEMO), "bfloat16")
    first, second = opening(config, "runs/demo", STAGES, ()).splitlines()
    assert first == "runs/demo: smollm2 in bfloat16, judged by offline"
    assert second == (
        "  56 organisms with a behaviour and 18 clean ones are trained; the IA learns from 38, is refined on 14 "
        "(DPO), and is asked about 22 that it never saw"
    )
    *_, last = opening(config, "runs/demo", ("dpo", "eval"), ("transcripts", "organisms")).splitlines()
    assert last == "  already done: transcripts, organisms; left: dpo, eval"
    taken = replace(config, organisms=replace(config.organisms, source="runs/other"))
    assert "the organisms of runs/other are taken; " in opening(taken, "runs/demo", STAGES, ())
