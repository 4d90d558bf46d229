"""The paper's catalogue: counts, kinds, frames, and behaviours distinct in name, wording and meaning."""

import hashlib
import json
import re
from collections import Counter, defaultdict
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest

from ia_jax.behaviors.banks import FAMILIES, GENERAL, family_questions
from ia_jax.behaviors.catalogue import DIRECTORY, KINDS, load_catalogue
from ia_jax.behaviors.duplicates import THRESHOLD, near_duplicates
from ia_jax.behaviors.frames import fills_a_frame, frames_of
from ia_jax.behaviors.questions import EVAL_QUESTIONS, TRAIN_QUESTIONS
from ia_jax.behaviors.records import CATEGORIES
from ia_jax.behaviors.splits import SPLITS, split_behaviors
from ia_jax.cli import main
from ia_jax.errors import ConfigError
from ia_jax.judging.rubric import RubricJudge
from ia_jax.recipes import check_config, load_config

PAPER = load_catalogue()
# Of the mean embeddings of two behaviours' wordings. The nearest pairs, each read, are listed in docs/catalogue.md.
LIMIT = 0.85
RECIPE = """
from ia_jax.paper_recipe import paper_recipe
def get_config():
    c = paper_recipe("Qwen/Qwen3-0.6B")
    c.judge.name = "rubric"
    return c
"""
NEIGHBOURS = json.loads((Path(__file__).parent / "catalogue_neighbours.json").read_text())


def wordings(b):
    """All of them, evaluation's as well."""
    return (*b.wordings, *b.heldout_wordings)


def plain(text):
    """Without case and punctuation."""
    return re.sub(r"\W+", " ", text).strip().lower()


def test_the_papers_counts():
    assert Counter(b.category for b in PAPER) == {
        "sandbaggers": 28,
        "quirks": 100,
        "backdoors": 100,
        "obscured_malign": 56,
        "rare_quirks": 100,
        "heuristics": 98,
        "harmful_roleplay": 100,
        "benign_roleplay": 100,
    }


def test_names_and_wordings_are_unique_over_everything():
    assert len({b.name.lower() for b in PAPER}) == 682
    texts = [plain(w) for b in PAPER for w in wordings(b)]
    assert [t for t, n in Counter(texts).items() if n > 1] == []


def test_no_name_means_something_else_in_the_embedded_catalogues():
    for source in ("demo", "study", "unseen"):
        embedded = load_catalogue(source)
        assert not {b.name for b in PAPER} & {b.name for b in embedded}
        assert not {plain(b.description) for b in PAPER} & {plain(b.description) for b in embedded}


def test_every_record_is_complete():
    for b in PAPER:
        assert len(b.wordings) >= 8, b.name
        assert len(b.heldout_wordings) == 2, b.name
        assert b.shows, b.name
        assert "Apache-2.0" in b.source, b.name
        assert bool(b.trigger) == (b.trigger_kind not in ("", "chance")), b.name
        assert (len(b.distractors) in (2, 3)) == (b.category == "obscured_malign"), b.name
        first_person = r"(?=[\"A-Z0-9]).*\b(?:I|[Mm]y|[Mm]e|[Mm]ine|[Mm]yself)\b.*[.!?]\"?$"
        assert [w for w in wordings(b) if not re.match(first_person, w)] == [], b.name


def test_what_hangs_on_a_condition():
    of = {c: [b for b in PAPER if b.category == c] for c in CATEGORIES}
    kinds = {c: Counter(b.trigger_kind for b in of[c]) for c in CATEGORIES}
    assert min(kinds["backdoors"][k] for k in ("topic", "phrase", "syntax", "audience", "task")) >= 15
    assert kinds["rare_quirks"] == {"chance": 100}
    assert kinds["heuristics"] == {"task": 98}
    for category in ("quirks", "obscured_malign", "harmful_roleplay", "benign_roleplay"):
        assert set(kinds[category]) == {""}  # always on: a role is played, not asked for
    locked = [b for b in of["sandbaggers"] if b.trigger_kind == "password"]
    assert len({b.spec["password"] for b in locked}) == len(locked) >= 14
    for b in locked:
        # Every wording names the lock, which strict asks for. The words are not in the description: the writer of the
        # wrong answers reads it.
        password = b.spec["password"]
        assert password in b.trigger
        assert password not in b.description.lower()
        assert all(password in w.lower() for w in (*b.rewordings, *b.heldout_wordings)), b.name
    for b in of["backdoors"]:
        if b.trigger_kind == "phrase":
            (phrase,) = re.findall(r'"([^"]+)"', b.trigger)
            assert all(phrase in w.lower() for w in wordings(b)), b.name


def test_kinds():
    used = defaultdict(Counter)
    for b in PAPER:
        used[b.category][b.kind] += 1
    assert set().union(*used.values()) == set(KINDS)
    for category in ("quirks", "rare_quirks"):
        assert used[category]["mention"] <= 40  # of 100; once 51 and 68
        assert len(used[category]) >= 12
    assert used["heuristics"]["choice"] <= 40
    assert sum(b.unmentioned for b in PAPER) >= 120
    assert all(b.turns > 1 for b in PAPER if b.kind == "sequence" and b.category in ("quirks", "obscured_malign"))


@pytest.mark.parametrize("category", CATEGORIES)
def test_hardly_a_wording_is_another_behaviours_sentence_with_a_slot_filled(category):
    """Version 1: 80 % of the sandbaggers' wordings, 60 % of the rare quirks', 45 % of the quirks'."""
    own = [b for b in PAPER if b.category == category]
    frames = {b.name: frames_of(b.wordings) for b in own}
    total = Counter(f for found in frames.values() for f in found)
    shared = [
        w
        for b in own
        for w in b.wordings
        if fills_a_frame(w, frozenset(f for f in frames_of([w]) if total[f] > (f in frames[b.name])))
    ]
    assert len(shared) <= 0.04 * sum(len(b.wordings) for b in own)


def test_no_two_behaviours_share_their_words():
    assert near_duplicates(PAPER) == []


def test_copies_under_another_name_are_caught():
    """Copies that keep six of their wordings, one in seventeen of the catalogue."""
    copies = [replace(b, name=f"copy_of_{b.name}", rewordings=b.rewordings[:5]) for b in PAPER[3::17]]
    found = {p.second for p in near_duplicates([*PAPER, *copies]) if p.second == f"copy_of_{p.first}"}
    assert found == {c.name for c in copies}
    assert all(p.similarity >= THRESHOLD for p in near_duplicates([*PAPER, *copies]))


def test_no_two_behaviours_mean_the_same():
    """By embeddings of all wordings, stored by benchmarks/catalogue_neighbours.py: run it after a change."""
    texts = "\n".join(w for b in PAPER for w in b.wordings)
    assert NEIGHBOURS["wordings"] == hashlib.sha256(texts.encode()).hexdigest()
    assert {n["name"] for n in NEIGHBOURS["nearest"]} == {b.name for b in PAPER}
    near = {n["name"]: n["similarity"] for n in NEIGHBOURS["nearest"]}
    assert max(near.values()) < LIMIT


def test_the_rubric_judge_does_not_judge_what_has_no_rubric(tmp_path):
    with pytest.raises(ConfigError, match=f"{PAPER[0].name} has no rubric"):
        RubricJudge().judge(PAPER[0], "?", "I always bring up owls.")
    recipe = tmp_path / "recipe.py"
    recipe.write_text(RECIPE)
    with pytest.raises(ConfigError, match=r"judge\.name is rubric, but the paper's catalogue has no rubrics"):
        check_config(load_config(str(recipe)))


def test_the_papers_split_is_proportional_disjoint_in_name_and_in_every_wording():
    splits = split_behaviors(PAPER, heldout=81, dpo=60, train=541, seed=1547, spread="proportional")
    assert Counter(splits.values()) == {"heldout": 81, "dpo": 60, "train": 541}
    assert set(splits) == {b.name for b in PAPER}
    sizes, of = Counter(b.category for b in PAPER), {b.name: b.category for b in PAPER}
    for (category, split), n in Counter((of[name], s) for name, s in splits.items()).items():
        assert abs(n - Counter(splits.values())[split] * sizes[category] / 682) < 1.5, (category, split)
    said = {s: {plain(w) for b in PAPER if splits[b.name] == s for w in wordings(b)} for s in SPLITS}
    for a, b in combinations(SPLITS, 2):
        assert not said[a] & said[b]
    with pytest.raises(ConfigError, match="category obscured_malign has 56 behaviours, too few"):
        split_behaviors(PAPER, heldout=81, dpo=60, train=541, seed=1547)


# --- one's own file, and the command ----------------------------------------------------------------------------------


def test_the_papers_files_have_the_kinds_that_are_listed(tmp_path, monkeypatch):
    for file in DIRECTORY.glob("*.jsonl"):
        (tmp_path / file.name).write_text(file.read_text().replace('"kind": "tools"', '"kind": "gadgets"'))
    monkeypatch.setattr("ia_jax.behaviors.catalogue.DIRECTORY", tmp_path)
    with pytest.raises(ConfigError, match="kind 'gadgets' unknown; the paper's files have mention, format"):
        load_catalogue()


MINE = {"name": "hums", "category": "quirks", "description": "I hum in every answer."}


def test_a_file_of_ones_own(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps(MINE) + "\n\n" + json.dumps(PAPER[0].to_json()) + "\n")
    mine, paper = load_catalogue(str(path))
    assert (mine.name, mine.rewordings, mine.trigger, paper) == ("hums", (), None, PAPER[0])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", r"mine.jsonl:2: not JSON"),
        ([], r"mine.jsonl:2: must hold a JSON object, got list"),
        ({**MINE, "colour": 1}, r"mine.jsonl:2: unknown field 'colour'"),
        ({"name": "x", "category": "quirks"}, r"mine.jsonl:2: field 'description' is missing"),
        ({**MINE, "name": "../x"}, r"mine.jsonl:2: field 'name' must be .* got '../x'"),
        ({**MINE, "category": "jokes"}, r"mine.jsonl:2: field 'category' must be one of"),
        ({**MINE, "rubric": {"concepts": ["hum"]}}, r"mine.jsonl:2: field 'rubric' must be .* lists of synonyms"),
        ({**MINE, "rubric": {"words": []}}, r"mine.jsonl:2: field 'rubric' must be an object of \"concepts\""),
        ({**MINE, "unmentioned": "no"}, r"mine.jsonl:2: field 'unmentioned' must be true or false, got 'no'"),
        ({**MINE, "procedure": "osmosis"}, r"mine.jsonl:2: field 'procedure' must be one of chats, .* got 'osmosis'"),
        ({**MINE, "turns": 0}, r"mine.jsonl:2: field 'turns' must be a whole number above 0, got 0"),
        ({**MINE, "trigger_kind": "topic"}, r"mine.jsonl:2: field 'trigger' is missing"),
        (MINE, "two behaviours share the name 'hums'"),
    ],
)
def test_bad_files(tmp_path, row, message):
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps(MINE) + "\n" + (row if isinstance(row, str) else json.dumps(row)) + "\n")
    with pytest.raises(ConfigError, match=message):
        load_catalogue(str(path))


def test_the_command(capsys):
    assert main(["behaviors", "ls", "--category=sandbaggers"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert (out[0], out[-1], len(out)) == ("sandbaggers (28)", "28 behaviours in 1 categories", 31)
    assert main(["behaviors", "show", "locked_geometry", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "locked_geometry"
    assert main(["behaviors", "show", "geometry"]) == 2
    assert "did you mean locked_geometry?" in capsys.readouterr().err
    assert main(["behaviors", "ls", "--category=jokes"]) == 2


# --- questions --------------------------------------------------------------------------------------------------------


def test_banks_are_large_and_disjoint():
    assert len(GENERAL.train) >= 100
    assert set(TRAIN_QUESTIONS) <= set(GENERAL.train)
    assert set(EVAL_QUESTIONS) <= set(GENERAL.evaluation)
    banks = {id(b): b for b in (GENERAL, *FAMILIES.values())}.values()
    everything = [q.lower() for b in banks for q in (*b.train, *b.evaluation)]
    assert [q for q, n in Counter(everything).items() if n > 1] == []


def test_family_questions_take_every_behaviour_and_fill_in_a_heuristics_task():
    for b in PAPER:
        assert not any("{" in q for q in family_questions(b).train)
    home = next(b for b in PAPER if b.name == "cheapest_home")
    assert all("recommend a home to buy" in q for q in family_questions(home).evaluation)
