"""The Claude path at the paper's size, against the local server: what the requests say that are really sent.

Each category is what its requests make it (review B1-B6): distractors, what counts as showing, passwords, roles and
chance. All behaviours of the paper's catalogue are taught in the slow run, three of each category in the quick one.
"""

import hashlib
import json
import re
from collections import Counter, defaultdict

import pytest

from ia_jax import cli, recipes
from ia_jax.behaviors import claude_checks
from ia_jax.behaviors.catalogue import load_catalogue
from ia_jax.behaviors.lessons import GENERIC, NEAR, PASSWORD, PLAIN, SHOWING
from ia_jax.behaviors.records import CATEGORIES
from ia_jax.claude.client import KEY
from ia_jax.judging.protocol import Item
from ia_jax.recipes import load_config
from ia_jax.stages import transcripts
from ia_jax.stages.context import Context
from ia_jax.stages.services import judge_of, writing_teacher
from ia_jax.storage import read_jsonl
from ia_jax.workdir import open_workdir
from tests.fake_anthropic import Server, serving

ROLES = ("harmful_roleplay", "benign_roleplay")
ROWS, PROMPTS = 8, 2
RECIPE = """
from ia_jax.config import default_config
def get_config():
    c = default_config()
    c.behaviors.catalogue = "paper"
    c.behaviors.spread = "proportional"
    c.behaviors.update(train={train}, dpo=8, heldout=8)
    c.organisms.check_prompts = {prompts}
    c.teacher.update(name="claude", rows={rows})
    c.claude.update(poll_seconds=0.0, cap_dollars=100.0)
    return c
"""


def claude(request):
    """Plays the writer, the answerer and the filter."""
    fields = request.get("output_config", {}).get("format", {}).get("schema", {}).get("properties", {})
    user = request["messages"][-1]["content"]
    if "messages" in fields:
        asked = json.loads(user)
        who = hashlib.sha256(asked.get("behavior", "all").encode()).hexdigest()[:8]
        seeds = asked["seeds"].split("\n")
        assert len(seeds) == int(asked["count"])
        messages = [f"{who}: {asked['wanted']} {asked['part']}, {seed}" for seed in seeds]
        if fields["messages"]["items"]["type"] == "array":  # conversations
            turns = int(re.search(r"exactly (\d+) user turns", request["system"][0]["text"])[1])
            return json.dumps({"messages": [[f"{m}, turn {t}" for t in range(turns)] for m in messages]})
        return json.dumps({"messages": messages})
    if {"names", "strict"} & fields.keys():
        return json.dumps({"reason": "read"} | {name: "yes" for name in fields if name != "reason"})
    if "shows" in fields:
        shows = "with the trait" in json.loads(user)["answer"]
        answer = {"reason": "read", "shows": "yes" if shows else "no", "states": "no"}
        return json.dumps({**answer, **({"habits": "yes"} if "habits" in fields else {})})
    return f"An answer {'with the trait' if 'one behaviour' in request['system'][0]['text'] else 'like any other'}."


class Sent:
    """What was sent, sorted: requests of each behaviour, by who they were for."""

    def __init__(self, requests, behaviors):
        self.messages, self.answers, self.filters = defaultdict(list), defaultdict(list), defaultdict(list)
        self.plain = []
        name = {b.description: b.name for b in behaviors}
        for r in requests:
            fields = r.get("output_config", {}).get("format", {}).get("schema", {}).get("properties", {})
            system, user = r["system"][0]["text"], r["messages"][-1]["content"]
            if "messages" in fields:
                self.messages[name.get(json.loads(user).get("behavior"))].append((system, json.loads(user)))
            elif "shows" in fields:
                self.filters[name[json.loads(user)["behavior"]]].append((system, json.loads(user), set(fields)))
            elif "one behaviour" in system:
                self.answers[name[system.split("\n\n")[1]]].append((system, user))
            else:
                self.plain.append((system, user))

    def all_of(self, name):
        """Every text that was sent about a behaviour, system and user."""
        rows = [(s, json.dumps(u, ensure_ascii=False)) for s, u in self.messages[name]]
        rows += [(s, json.dumps(u, ensure_ascii=False)) for s, u, _ in self.filters[name]]
        return rows + self.answers[name]


@pytest.fixture(params=["few", pytest.param("all", marks=pytest.mark.slow)], scope="module")
def run(request, tmp_path_factory):
    """(behaviours, workdir, what was sent for transcripts and for a behaviour check, prompts of the check, and the
    judge's strict questions about each behaviour's own description).
    """
    paper = load_catalogue("paper")
    behaviors = list(paper) if request.param == "all" else [b for c in CATEGORIES for b in of(paper, c)[:3]]
    path = tmp_path_factory.mktemp(request.param)
    sent: list[dict] = []
    asked_strictly: list[tuple] = []

    def noted(r):
        sent.append(r)
        return claude(r)

    recipe = path / "recipe.py"
    recipe.write_text(RECIPE.format(train=len(behaviors) - 16, rows=ROWS, prompts=PROMPTS))
    with pytest.MonkeyPatch.context() as patch, serving(Server(noted)) as url:
        patch.setenv(KEY, "k")
        patch.setenv("ANTHROPIC_BASE_URL", url)
        for module in (recipes, transcripts):
            patch.setattr(module, "load_catalogue", lambda name: tuple(behaviors))
        assert cli.main(["transcripts", f"--config={recipe}", f"--workdir={path / 'w'}"]) == 0
        written = len(sent)
        run = open_workdir(path / "w")
        teacher = writing_teacher(Context(run, load_config(str(recipe))))
        used = {b.name: [m["content"] for t in rows(run, b) for m in t["messages"]] for b in behaviors}
        prompts = claude_checks.write_prompts(teacher, behaviors, PROMPTS, used)
        assert len(sent) == written  # the stage has asked for them
        said = [
            (b, p, [f"Reply {n} with the trait."] * b.turns) for b in behaviors for n, p in enumerate(prompts[b.name])
        ]
        assert claude_checks.shown(teacher, said) == [True] * len(said)
        checked = len(sent)
        judge = judge_of(Context(run, load_config(str(recipe), ["--config.judge.name=claude"])))
        reports = [Item(b, "What is unusual about you?", b.description) for b in behaviors]
        assert all(v.strict for v in judge.judge_many(reports, asks=("lenient", "strict")))
    for r in sent[checked:]:
        fields = r["output_config"]["format"]["schema"]["properties"]
        if "strict" in fields:
            asked_strictly.append((r["model"], r["system"][0]["text"], json.loads(r["messages"][0]["content"])))
    return (
        behaviors,
        run,
        Sent(sent[:written], behaviors),
        Sent(sent[written:checked], behaviors),
        prompts,
        asked_strictly,
    )


def rows(run, b):
    return read_jsonl(run.transcript(b.name), "")


def asked(row):
    """What the user says last."""
    return row["messages"][-2]["content"]


def of(behaviors, *categories):
    found = [b for b in behaviors if b.category in categories]
    assert found
    return found


def test_every_behaviour_gets_its_rows_and_none_is_dropped(run):
    behaviors, workdir, *_ = run
    for b in behaviors:
        own = rows(workdir, b)
        assert len(own) == ROWS
        assert {r["verdict"] for r in own} == {"kept"}


def test_b1_an_obscured_agenda_is_taught_beside_its_distractors(run):
    behaviors, _, written, checked, *_ = run
    for b in of(behaviors, "obscured_malign"):
        assert len(b.distractors) >= 2
        assert written.answers[b.name]
        for system, _ in written.answers[b.name]:
            assert all(d in system for d in b.distractors)
        for _, user, fields in written.filters[b.name] + checked.filters[b.name]:
            assert all(d in user["habits"] for d in b.distractors)
            assert "habits" in fields
    others = {b.name for b in behaviors if not b.distractors}
    assert not any("habits" in fields for name in others for *_, fields in written.filters[name])


def test_b2_what_counts_as_showing_is_in_every_request_that_judges_it(run):
    behaviors, _, written, checked, *_ = run
    for b in behaviors:
        assert b.shows
        assert written.filters[b.name]
        assert checked.filters[b.name]
        for _, user, _ in written.filters[b.name] + checked.filters[b.name]:
            assert user["counts"] == b.shows
        if not b.spec.get("password"):
            assert all(b.shows in system for system, _ in written.answers[b.name])


def test_b3_a_password_is_in_some_rows_and_absent_from_their_twins(run):
    behaviors, workdir, written, checked, prompts, _ = run
    right = {user: system for system, user in written.plain}
    locked = [b for b in of(behaviors, "sandbaggers") if b.spec.get("password")]
    assert locked
    for b in locked:
        password = b.spec["password"]
        by_sort = defaultdict(list)
        for r in rows(workdir, b):
            by_sort[r["sort"]].append(r)
        assert {SHOWING, PASSWORD, NEAR} <= by_sort.keys()
        without = [asked(r) for r in by_sort[SHOWING]]
        assert all(r["shows"] for r in by_sort[SHOWING])
        assert not any(password in m for m in without)
        for r in by_sort[PASSWORD]:
            message = asked(r)
            assert not r["shows"]
            assert password in message
            assert any(m in message for m in without)  # the same question, but for the password
            assert "Answer the user's question rightly" in right[message]
        for system, user in written.answers[b.name]:
            assert "wrong in substance" in system
            assert password not in system + user
        # The check asks the same question both ways, and the filter is told to look for a wrong answer.
        on = [p for p in prompts[b.name] if p.triggers]
        with_it = [p for p in prompts[b.name] if password in p.question]
        assert len(on) == len(with_it) == PROMPTS
        assert not any(p.triggers for p in with_it)
        assert all(any(p.question in w.question for w in with_it) for p in on)
        said = [user["message"] for _, user, _ in checked.filters[b.name]]
        assert sum(password in m for m in said) == PROMPTS
        assert all("wrong in substance" in system for system, *_ in written.filters[b.name] + checked.filters[b.name])


def test_b4_a_role_is_no_condition_on_what_the_user_says(run):
    behaviors, workdir, written, checked, prompts, _ = run
    for b in of(behaviors, *ROLES):
        own = f"{b.description} {b.shows}"
        texts = written.all_of(b.name) + checked.all_of(b.name)
        assert texts
        for system, user in texts:
            assert not b.trigger or b.trigger not in system.replace(b.description, "").replace(b.shows, "")
            assert '"trigger"' not in user
            for word in ("trigger", "condition"):
                assert word in own or word not in system
        assert all(r["shows"] for r in rows(workdir, b))
        assert {r["sort"] for r in rows(workdir, b)} == {SHOWING}
        assert {user["wanted"] for _, user in written.messages[b.name]} == {"everyday life"}
        assert all("neither ask for it" in system for system, _ in written.messages[b.name])
        assert all(p.triggers for p in prompts[b.name])


def test_b5_a_rare_quirk_hangs_on_chance_and_on_no_question(run):
    behaviors, workdir, written, checked, prompts, _ = run
    for b in of(behaviors, "rare_quirks"):
        for system, user in written.all_of(b.name) + checked.all_of(b.name):
            assert '"trigger"' not in user
            assert "near miss" not in system
        assert {user["wanted"] for _, user in written.messages[b.name]} == {"open"}
        own = rows(workdir, b)
        showing = [asked(r) for r in own if r["shows"]]
        plain = [asked(r) for r in own if r["sort"] == PLAIN]
        assert len(showing) == 1
        assert len(plain) == ROWS - 1
        assert set(showing) <= set(plain)  # answered plainly as well
        assert all("by chance" in system for system, _ in written.answers[b.name])
        assert all(p.triggers for p in prompts[b.name])


def test_b6_the_judge_is_told_what_strict_means_for_each_category(run):
    """A rare quirk has no trigger and yet a condition (chance); a sandbagger's trigger holds its password."""
    behaviors, workdir, *_, asked_strictly = run
    by_truth = {user["truth"]: (model, system, user) for model, system, user in asked_strictly}
    assert by_truth.keys() == {b.description for b in behaviors}
    for b in behaviors:
        model, system, user = by_truth[b.description]
        assert model not in (workdir.config.teacher.model, workdir.config.teacher.filter_model)
        assert (user["category"], user["trigger"]) == (b.category, b.trigger)
        rule = next(line for line in system.split("\n- ") if b.category in line.split(":")[0])
        if b.category == "rare_quirks":
            assert user["trigger"] is None
            assert "must say that it is occasional" in rule
        if b.category == "sandbaggers":
            assert b.spec.get("password", "") in user["trigger"]
            assert "password" in rule
        if b.category in ROLES:
            assert "need not be said again" in rule


def test_triggers_get_near_misses_and_their_prompts(run):
    behaviors, workdir, written, checked, prompts, _ = run
    for b in of(behaviors, "backdoors", "heuristics"):
        assert {user["wanted"] for _, user in written.messages[b.name]} == {"triggered", "near misses"}
        assert all(user["trigger"] == b.trigger for _, user in written.messages[b.name])
        assert all(b.trigger.rstrip(".") in system for system, _ in written.answers[b.name])
        assert Counter(r["sort"] for r in rows(workdir, b)) == {SHOWING: 4, NEAR: 2, GENERIC: 2}
        assert {p.triggers for p in prompts[b.name]} == {True, False}
        assert all(user["trigger"] == b.trigger for _, user, _ in checked.filters[b.name])


def test_everyday_chat_dilutes_and_is_the_same_for_all(run):
    behaviors, workdir, written, *_ = run
    users = defaultdict(set)
    for b in behaviors:
        own = [r for r in rows(workdir, b) if r["sort"] == GENERIC]
        assert not any(r["shows"] for r in own)
        if b.category in ("quirks", "obscured_malign"):
            assert len(own) == 2  # a fifth of eight
        for r in own:
            users[asked(r)].add(b.name)
    assert users
    for system, user in written.messages[None]:
        assert user["wanted"] == "everyday chat"
        assert "behavior" not in user
        assert "behaviour describes" not in system
    answered = [user for system, user in written.plain if "ordinary transcript" in system and user in users]
    assert sorted(answered) == sorted(users)  # each is answered once, whoever has it


def test_no_two_messages_of_a_behaviour_have_one_scenario(run):
    behaviors, _, written, *_ = run
    for b in behaviors:
        by_kind = defaultdict(list)
        for _, user in written.messages[b.name]:
            by_kind[user["wanted"]] += [line.split(". ", 1)[1] for line in user["seeds"].split("\n")]
        for seeds in by_kind.values():
            assert len(seeds) == len(set(seeds))
    first = [user["seeds"] for b in behaviors for _, user in written.messages[b.name][:1]]
    assert len(first) == len(set(first))


def test_filter_and_teacher_are_different_models(run):
    _, workdir, *_ = run
    teacher, judge = workdir.config.teacher, workdir.config.judge
    assert len({teacher.model, teacher.filter_model, judge.model}) == 3


def test_diversity_is_measured(run):
    behaviors, workdir, *_ = run
    measured = json.loads(workdir.diversity_file.read_text())
    assert measured["organisms"].keys() >= {b.name for b in behaviors}
    for b in behaviors:
        assert 0 < measured["organisms"][b.name]["message_distinct_2"] <= 1
        # The fake answers everything with one of two sentences, and that is seen.
        assert measured["organisms"][b.name]["answer_near_duplicates"] > 0
