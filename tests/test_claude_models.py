"""What is known of Claude's models before one is asked: prices, efforts, retirement; and that mistakes fail early."""

import datetime
import json
from dataclasses import replace
from decimal import Decimal

import pytest

from ia_jax import cli
from ia_jax.behaviors.catalogue import load_catalogue
from ia_jax.behaviors.claude_teacher import ClaudeTeacher
from ia_jax.behaviors.teacher import TeacherSettings
from ia_jax.claude.calls import Call
from ia_jax.claude.client import KEY, Client
from ia_jax.claude.models import EFFORTS, FILE, load_models
from ia_jax.claude.prices import at_most, cost, estimate
from ia_jax.claude.settings import ClaudeSettings
from ia_jax.config import JudgeSection, RunConfig
from ia_jax.errors import ConfigError
from ia_jax.recipes import load_config
from ia_jax.stages.context import Context
from ia_jax.stages.spending import check_ready
from ia_jax.workdir import Workdir

ALONE = "claude-haiku-4-5"  # a model without effort, which does not think
TODAY = datetime.date(2026, 11, 26)
PAPER_JUDGES = ("claude-sonnet-4-20250514", "claude-sonnet-4-5-20250929")
RECIPE = """
from ia_jax.config import default_config
def get_config():
    c = default_config()
    c.behaviors.catalogue = "paper"
    c.behaviors.update(train=8, dpo=8, heldout=8)
    c.teacher.update(name="claude", rows=4)
    return c
"""


@pytest.fixture
def recipe(tmp_path):
    file = tmp_path / "recipe.py"
    file.write_text(RECIPE)
    return str(file)


def test_the_price_list_is_dated_and_says_where_it_is_from():
    body = json.loads(FILE.read_text())
    assert datetime.date.fromisoformat(body["date"]) <= datetime.date(2030, 1, 1)
    assert len(body["sources"]) >= 3
    models = load_models()
    assert models.date == body["date"]
    for model in models.known.values():
        assert 0 < model.cache_read < model.input < model.output
        assert (model.default_effort in model.efforts) if model.efforts else model.default_effort == ""
    # Announced list prices, written down here apart from the file.
    assert {n: (str(models.find(n).input), str(models.find(n).output)) for n in PAPER_JUDGES} == dict.fromkeys(
        PAPER_JUDGES, ("3", "15")
    )


@pytest.mark.parametrize(
    ("where", "model", "effort", "message"),
    [
        ("judge.model", "claude-9", "low", "no price is known for the Claude model 'claude-9'"),
        ("judge.model", ALONE, "low", "does not take effort 'low'; it takes none; set it to \"\""),
        ("judge.model", "claude-sonnet-5-5", "ultra", "takes low, medium, high, xhigh, max"),
        ("judge.model", "claude-sonnet-4-6", "xhigh", "takes low, medium, high, max"),
        ("judge.model", "claude-sonnet-4-20250514", "", "was retired on 2026-06-15"),
    ],
)
def test_a_model_that_cannot_be_asked_is_refused_in_one_line(where, model, effort, message):
    with pytest.raises(ConfigError) as error:
        load_models().check(f"config.{where}", model, effort, TODAY)
    assert message in str(error.value)
    assert str(error.value).startswith("config.judge.model: ")
    assert "\n" not in str(error.value)


def test_the_papers_second_judge_can_be_chosen_until_it_is_retired(monkeypatch):
    name, models = "claude-sonnet-4-5-20250929", load_models()
    models.check("x", name, "", TODAY)
    with pytest.raises(ConfigError, match="was retired on 2026-11-30"):
        models.check("x", name, "", datetime.date(2026, 11, 30))
    monkeypatch.setenv("ANTHROPIC_BASE_URL", "http://other")  # another server may still have it
    models.check("x", name, "", datetime.date(2027, 1, 1))
    with pytest.raises(ConfigError, match="does not follow a JSON schema"):
        models.check("x", "claude-sonnet-4-20250514", "", TODAY)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["teacher.model=claude-9"], "config.teacher.model: no price is known"),
        (["teacher.filter_model=claude-9"], "config.teacher.filter_model: no price is known"),
        (["teacher.filter_effort=most"], "config.teacher.filter_model: claude-haiku-5-5 does not take effort 'most'"),
        (["judge.name=claude", "judge.model=claude-9"], "config.judge.model: no price is known"),
        (["judge.name=claude", "judge.effort=ultra"], "config.judge.model: claude-opus-5-5 does not take effort"),
        (["claude.batch_size=100001"], "config.claude.batch_size=100001 is more than the API takes"),
        (["claude.prices=nowhere.json"], "nowhere.json: not a price list"),
        (["teacher.generic_answers=me"], "config.teacher.generic_answers 'me' unknown"),
    ],
)
def test_a_config_that_cannot_work_fails_when_it_is_read(recipe, overrides, message):
    with pytest.raises(ConfigError) as error:
        load_config(recipe, [f"--config.{o}" for o in overrides])
    assert message in str(error.value)


def test_who_is_not_asked_is_not_checked(recipe):
    load_config(recipe, ["--config.judge.model=claude-9"])  # the rubric judges
    plain = ["--config.behaviors.catalogue=demo", "--config.teacher.name=template"]
    load_config(recipe, [*plain, "--config.teacher.model=claude-9", "--config.teacher.filter_effort=most"])
    # No rule sees the paper's behaviours, so Claude checks a local teacher's organisms no more than its own.
    with pytest.raises(ConfigError, match=r"config\.teacher\.model: no price"):
        load_config(recipe, ["--config.teacher.name=template", "--config.teacher.model=claude-9"])


def test_without_a_key_a_run_fails_before_anything_is_made(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv(KEY, raising=False)
    path = tmp_path / "w"
    judged = ["--config.teacher.name=template", "--config.behaviors.catalogue=demo", "--config.judge.name=claude"]
    for more, stages in (([], "transcripts, organisms"), (judged, "preferences, eval")):
        assert cli.main(["run", f"--config={recipe}", f"--workdir={path}", *more]) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert line.startswith(f"ia-jax: error: {stages}: Claude is asked (")
        assert f"{KEY} is not set" in line
        assert {p.name for p in path.iterdir()} <= {"config.json", ".lock"}


@pytest.mark.parametrize(("stages", "asked"), [(["preferences"], True), (["eval"], True), (["sft", "dpo"], False)])
def test_a_single_stage_needs_a_key_for_what_it_asks(stages, asked, tmp_path, monkeypatch):
    """Before it begins, not when its reports are there to be judged. With a cache, all may be on disk."""
    monkeypatch.delenv(KEY, raising=False)
    config = RunConfig(judge=JudgeSection(name="claude"))
    context = Context(Workdir(tmp_path), config)
    if asked:
        with pytest.raises(ConfigError, match=f"{stages[0]}: Claude is asked .* {KEY} is not set"):
            check_ready(context, stages)
    else:
        check_ready(context, stages)
    cached = replace(config, claude=ClaudeSettings(cache=str(tmp_path / "cache")))
    check_ready(Context(Workdir(tmp_path), cached), stages)


def test_a_price_list_of_ones_own(tmp_path, recipe):
    body = json.loads(FILE.read_text())
    body["models"] = {"claude-6": body["models"]["claude-sonnet-5-5"] | {"input": "7"}}
    file = tmp_path / "prices.json"
    file.write_text(json.dumps(body))
    own = [f"--config.teacher.{k}=claude-6" for k in ("model", "filter_model")]
    config = load_config(recipe, [f"--config.claude.prices={file}", *own])
    client = Client(config.claude, tmp_path / "claude")
    usage = {"input_tokens": 1_000_000, "output_tokens": 0}
    assert cost("claude-6", usage, False, client.connection.models) == 7
    assert client.connection.store.save(
        "k" * 64, 0, {"model": "claude-6"}, {"usage": usage, "content": []}, True
    ) == Decimal("3.5")
    for damage in ({"output": "much"}, {"efforts": ["most"]}, {"retires": "soon"}, {"input": "-1"}, {"colour": "red"}):
        body["models"]["claude-6"] |= damage
        other = tmp_path / f"{next(iter(damage))}.json"
        other.write_text(json.dumps(body))
        with pytest.raises(ConfigError, match="claude-6"):
            load_models(str(other))
        body["models"]["claude-6"] = json.loads(file.read_text())["models"]["claude-6"]


# ------------------------------------------------------------------------------------------------- effort and its room


def test_room_to_think_follows_effort():
    models = load_models()
    room = [models.max_tokens("claude-sonnet-5-5", e, 300) for e in EFFORTS]
    assert room == sorted(set(room))
    assert room[0] >= 1000  # low effort still thinks
    assert models.max_tokens("claude-sonnet-5-5", "", 300) == models.max_tokens("claude-sonnet-5-5", "high", 300)
    assert models.max_tokens("claude-haiku-5-5", "", 300) == models.max_tokens("claude-haiku-5-5", "medium", 300)
    assert models.max_tokens(ALONE, "", 300) == 300
    spent = [models.thinking("claude-sonnet-5-5", e) for e in EFFORTS]
    assert spent == sorted(set(spent))
    assert all(mean < most for mean, most in zip(spent, room, strict=True))


@pytest.mark.parametrize("effort", EFFORTS)
def test_every_call_of_the_teacher_has_that_room(effort):
    behaviors = [next(b for b in load_catalogue("paper") if b.category == c) for c in ("quirks", "backdoors")]
    config = TeacherSettings(effort=effort, filter_effort=effort, filter_model="claude-opus-5-5")
    models = load_models()
    for call, _ in ClaudeTeacher(Client(ClaudeSettings(), FILE.parent / "none"), config).plan(behaviors):
        assert call.effort == effort
        assert call.max_tokens > models.max_tokens(call.model, effort, 0)
        assert estimate([call], False) < at_most(call, False)


def test_more_effort_is_estimated_dearer():
    calls = [Call("claude-sonnet-5-5", "s", "u", 40_000, effort=e) for e in EFFORTS]
    costs = [estimate([c], True) for c in calls]
    assert costs == sorted(set(costs))
    assert estimate(calls[:1], True) * 2 == estimate(calls[:1], False)


# ------------------------------------------------------------------------------------------------------ prompt caching


def test_the_teachers_prompts_are_below_the_caches_floor():
    """As docs/claude.md says: the mark for the cache does nothing there (a token of English has 3 to 4 characters)."""
    behaviors = load_catalogue("paper")
    teacher = ClaudeTeacher(Client(ClaudeSettings(), FILE.parent / "none"), TeacherSettings(rows=8))
    models = load_models()
    floor = min(m.cache_floor for m in models.known.values() if m.cache_floor)
    calls = [c for c, _ in teacher.plan(behaviors)]
    assert {c.model for c in calls} == {"claude-sonnet-5-5", "claude-haiku-5-5"}
    assert max(len(c.system) for c in calls) / 3 < floor == 512
    assert all(c.request["system"][0]["cache_control"] == {"type": "ephemeral"} for c in calls)
    # And where a prompt is cached, the bound holds what writing it costs.
    call = Call("claude-sonnet-5-5", "s" * 9000, "u", 100)
    usage = {"input_tokens": 10, "cache_creation_input_tokens": 9000, "output_tokens": 100}
    assert cost(call.model, usage, False) <= at_most(call, False)
