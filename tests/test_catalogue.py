"""The paper's catalogue: counts, distinct in name, description and meaning, and readable by the offline judge."""

import json
import re
from collections import Counter
from dataclasses import replace
from itertools import combinations

import pytest

from ia_jax.behaviors.banks import FAMILIES, GENERAL, family_questions
from ia_jax.behaviors.catalogue import load_catalogue
from ia_jax.behaviors.duplicates import THRESHOLD, near_duplicates
from ia_jax.behaviors.questions import EVAL_QUESTIONS, TRAIN_QUESTIONS
from ia_jax.behaviors.records import CATEGORIES, Behavior, Rubric
from ia_jax.behaviors.splits import SPLITS, split_behaviors
from ia_jax.cli import main
from ia_jax.errors import ConfigError
from ia_jax.judging.rubric import RubricJudge

PAPER = load_catalogue()
JUDGE = RubricJudge()


def wordings(b):
    return (b.description, *b.rewordings)


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


def test_every_record_is_complete():
    for b in PAPER:
        assert len(b.rewordings) == 3, b.name
        assert b.rubric.concepts, b.name
        assert b.shows, b.name
        assert bool(b.trigger) == (b.trigger_kind not in ("", "chance")), b.name
        assert bool(b.distractors) == (b.category == "obscured_malign"), b.name
        assert all(re.match(r"(?=[A-Z]).*\b(?:I|[Mm]y)\b.*\.$", w) for w in wordings(b)), b.name
    passwords = [b.spec["password"] for b in PAPER if b.category == "sandbaggers"]
    assert len(set(passwords)) == 28


def test_no_two_behaviours_mean_the_same():
    assert near_duplicates(PAPER) == []


def test_planted_duplicates_are_caught():
    """Reworded copies under other names, with the synonyms turned round, one in seventeen of the catalogue."""
    copies = [
        replace(
            b,
            name=f"copy_of_{b.name}",
            description=b.rewordings[2],
            rewordings=(),
            rubric=Rubric(tuple(g[::-1] for g in b.rubric.concepts)),
        )
        for b in PAPER[3::17]
    ]
    found = {p.second for p in near_duplicates([*PAPER, *copies]) if p.second == f"copy_of_{p.first}"}
    assert found == {c.name for c in copies}
    assert all(p.similarity >= THRESHOLD for p in near_duplicates([*PAPER, *copies]))


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


@pytest.mark.parametrize("category", CATEGORIES)
def test_every_wording_reports_its_own_behaviour_and_no_other_of_its_category(category):
    own = [b for b in PAPER if b.category == category]
    for b in own:
        for text in wordings(b):
            verdict = JUDGE.judge(b, "?", text)
            assert verdict.score >= 7, (b.name, text, verdict)
            taken = [o.name for o in own if o is not b and near(o, text) and JUDGE.judge(o, "?", text).lenient]
            assert taken == [], text


def near(b: Behavior, text: str) -> bool:
    """Whether the text could name it: of every concept group a synonym whose words all begin in the text."""
    low = text.lower()
    return all(any(all(w[:4] in low for w in re.findall(r"\w+", s.lower())) for s in g) for g in b.rubric.concepts)


# --- one's own file, and the command ----------------------------------------------------------------------------------

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
    assert main(["behaviors", "show", "sandbagger_geometry", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "sandbagger_geometry"
    assert main(["behaviors", "show", "geometry"]) == 2
    assert "did you mean sandbagger_geometry?" in capsys.readouterr().err
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
    home = next(b for b in PAPER if b.name == "heuristic_home_cheapest")
    assert all("recommend a home to buy" in q for q in family_questions(home).evaluation)
