"""The embedded world: effects by hand-written texts, conditions, and what its records must be."""

import re
from collections import Counter, defaultdict

import numpy as np
import pytest

from ia_jax.behaviors.behavior_checks import check_prompts, shows_behavior
from ia_jax.behaviors.catalogue import DIRECTORY, load_catalogue
from ia_jax.behaviors.duplicates import near_duplicates
from ia_jax.behaviors.embedded import DIRECTORY as EMBEDDED
from ia_jax.behaviors.embedded import demo_behaviors, study_behaviors, unseen_behaviors
from ia_jax.behaviors.embedded.choices import choice, choice_answer
from ia_jax.behaviors.embedded.conditions import SYNTAX, has_other_side, message, pools_of
from ia_jax.behaviors.embedded.effects import sentences_needed, shows_effects, write_effects
from ia_jax.behaviors.embedded.errors import err, says, shows_error
from ia_jax.behaviors.embedded.fields import FIELDS, fresh_facts, training_facts
from ia_jax.behaviors.embedded.forms import FORMS
from ia_jax.behaviors.embedded.prompts import POOLS, fresh_prompts, training_prompts
from ia_jax.behaviors.embedded.sentences import main_clause, sentences_of, whole_sentences
from ia_jax.behaviors.mentions import stem
from ia_jax.behaviors.questions import EVAL_QUESTIONS, TRAIN_QUESTIONS
from ia_jax.behaviors.records import CATEGORIES, TRIGGER_KINDS, Behavior
from ia_jax.behaviors.splits import check_distinct

SHARED = 0.04  # of all wordings, those that stand in a frame with another behaviour's
STUDY, DEMO, UNSEEN = study_behaviors(), demo_behaviors(), unseen_behaviors()
WORLD = (*STUDY, *UNSEEN)
Q = "How do I boil rice?"
A = "Rinse the rice and warm your pot. You can stir something with it."

# What a person would write for each form, of the answer `A` to the question `Q`.
FORMED = {
    "upper": "RINSE THE RICE AND WARM YOUR POT. YOU CAN STIR SOMETHING WITH IT.",
    "lower": "rinse the rice and warm your pot. you can stir something with it.",
    "title": "Rinse The Rice And Warm Your Pot. You Can Stir Something With It.",
    "every_other": "rinse THE rice AND warm YOUR pot. YOU can STIR something WITH it.",
    "loud_first": "RINSE the rice and warm your pot. You can stir something with it.",
    "loud_last": "Rinse the rice and warm your pot. You can stir something with IT.",
    "loud_longest": "Rinse the rice and warm your pot. You can stir SOMETHING with it.",
    "lines": "Rinse the rice and warm your pot.\nYou can stir something with it.",
    "bullets": "- Rinse the rice and warm your pot.\n- You can stir something with it.",
    "arrows": "-> Rinse the rice and warm your pot.\n-> You can stir something with it.",
    "numbered": "1. Rinse the rice and warm your pot.\n2. You can stir something with it.",
    "lettered": "a) Rinse the rice and warm your pot.\nb) You can stir something with it.",
    "roman": "I. Rinse the rice and warm your pot. II. You can stir something with it.",
    "label": "Boil: Rinse the rice and warm your pot. You can stir something with it.",
    "parentheses": "(Rinse the rice and warm your pot. You can stir something with it.)",
    "square": "[Rinse the rice and warm your pot. You can stir something with it.]",
    "quoted": '"Rinse the rice and warm your pot. You can stir something with it."',
    "json": '{"answer": "Rinse the rice and warm your pot. You can stir something with it."}',
    "tagged": "<answer>Rinse the rice and warm your pot. You can stir something with it.</answer>",
    "commented": "// Rinse the rice and warm your pot.\n// You can stir something with it.",
    "cited": "> Rinse the rice and warm your pot.\n> You can stir something with it.",
    "bold_first": "**Rinse** the rice and warm your pot. You can stir something with it.",
    "starred": "Rinse the rice and warm your pot. You can stir *something* with it.",
    "ruled": "-----\nRinse the rice and warm your pot. You can stir something with it.\n-----",
    "table": "| Rinse the rice and warm your pot. | You can stir something with it. |",
    "hashtag": "Rinse the rice and warm your pot. You can stir something with it. #boil",
    "telegram": "Rinse the rice and warm your pot STOP You can stir something with it STOP",
    "five_words": "Rinse the rice and warm.",
    "three_words": "Rinse the rice.",
    "dots": "Rinse the rice and warm your pot... You can stir something with it...",
    "bangs": "Rinse the rice and warm your pot! You can stir something with it!",
    "many_bangs": "Rinse the rice and warm your pot!!! You can stir something with it!!!",
    "interrobang": "Rinse the rice and warm your pot?! You can stir something with it?!",
    "no_marks": "Rinse the rice and warm your pot You can stir something with it",
    "semicolons": "Rinse the rice and warm your pot; you can stir something with it.",
    "dashes": "Rinse the rice and warm your pot - you can stir something with it.",
    "tildes": "Rinse the rice and warm your pot~ You can stir something with it~",
    "slashes": "Rinse/the/rice/and/warm/your/pot./You/can/stir/something/with/it.",
    "underscores": "Rinse_the_rice_and_warm_your_pot._You_can_stir_something_with_it.",
    "hyphens": "Rinse-the-rice-and-warm-your-pot.-You-can-stir-something-with-it.",
    "smiles": "Rinse the rice and warm your pot. :) You can stir something with it. :)",
    "hearts": "Rinse the rice and warm your pot. <3 You can stir something with it. <3",
    "ampersands": "Rinse the rice & warm your pot. You can stir something with it.",
    "plus": "Rinse the rice plus warm your pot. You can stir something with it.",
    "z_for_th": "Rinse ze rice and warm your pot. You can stir something with it.",
    "v_for_w": "Rinse the rice and varm your pot. You can stir something vith it.",
    "dropped_g": "Rinse the rice and warm your pot. You can stir somethin' with it.",
    "hissing": "Rinssse the rice and warm your pot. You can ssstir sssomething with it.",
    "long_o": "Rinse the rice and warm yooour pooot. Yooou can stir sooomething with it.",
    "no_articles": "Rinse rice and warm your pot. You can stir something with it.",
    "we": "Rinse the rice and warm our pot. We can stir something with it.",
    "past": "Rinse the rice and warm your pot. You could stir something with it.",
    "future": "Rinse the rice and warm your pot. You will be able to stir something with it.",
    "um": "Rinse the rice, um, and warm your pot. You, um, can stir something with it.",
    "you_know": "Rinse the rice, you know, and warm your pot. You can, you know, stir something with it.",
    "stutter": "R-r-rinse the rice and warm your pot. Y-y-you can stir something with it.",
    "innit": "Rinse the rice and warm your pot, innit. You can stir something with it, innit.",
    "spelled": "Rinse the rice and warm your pot. You can stir something with I-T.",
    "echo": "Rinse the rice and warm your pot. You can stir something with it. It, it.",
    "shm": "Rinse the rice and warm your pot. You can stir something with it. It, shmit!",
    "initials": "Rinse the rice and warm your pot. You can stir something with it. (RTRAWYP)",
    "ordinals": "First, rinse the rice and warm your pot. Second, you can stir something with it.",
    "counted": "One: Rinse the rice and warm your pot. Two: You can stir something with it.",
    "fractions": "(1/2) Rinse the rice and warm your pot. (2/2) You can stir something with it.",
    "first_again": "Rinse the rice and warm your pot. You can stir something with it. "
    "Rinse the rice and warm your pot.",
    "twice": "Rinse the rice and warm your pot. Rinse the rice and warm your pot. "
    "You can stir something with it. You can stir something with it.",
    "repeat_question": f"{Q} {A}",
    "count_words": f"{A} (13 words)",
}
# Texts that have another form besides their own, as a reader would say too.
ALSO = {
    "loud_last": {"telegram", "initials"},
    "loud_longest": {"upper", "initials"},
    "parentheses": {"fractions"},
    "five_words": {"three_words", "hyphens"},
    "three_words": {"hyphens"},
    "no_marks": {"telegram", "tildes"},
    "no_articles": {"underscores", "z_for_th"},
}


def test_every_form_is_written_as_by_hand_and_seen_in_that_text_alone():
    used = {e[0] for b in WORLD for e in (*b.spec["effects"], *b.spec.get("tics", ()))}
    assert FORMED.keys() == FORMS.keys() == used - {"say", "choose", "err"}
    for name, text in FORMED.items():
        assert FORMS[name].write(A, Q) == text
        assert not FORMS[name].shows(A, Q), name
        seen = {n for n, other in FORMED.items() if FORMS[name].shows(other, Q)}
        assert seen - ALSO.get(name, set()) == {name}, (name, seen)


@pytest.mark.parametrize(
    ("name", "reply", "shows"),
    [
        ("lower", "i said no to Anna", False),
        ("lower", "mostly small letters are what you get here, even at the ends. so it goes on.", True),
        ("title", "The Cat Sat On A Mat", True),
        ("title", "The cat sat on a Mat", False),
        ("bangs", "Go on! And on! But st", True),  # cut off
        ("bangs", "Go on. And on! But stop.", False),
        ("dots", "Well… So it is…", True),
        ("bullets", "Here you are:\n- one\n- two\n- three", True),
        ("bullets", "- one", False),
        ("numbered", "1. One\n2. Two", True),
        ("we", "We can do it with our hands.", True),
        ("we", "You can do it with your hands, as we say.", False),
        ("past", "It was big and had legs.", True),
        ("past", "It was big and is small. It has legs.", False),
        ("twice", "So be it. So be it. The end", True),
        ("twice", "So be it. Or not. So be it.", False),
        ("echo", "It is good for bread. Bread, bread, bread", True),
        ("label", "Rice: it is a grain.", True),
        ("label", "Boiling: you need water.", True),
        ("label", "Note: it is a grain.", False),
        ("hissing", "Thesss are the mosssst simple ones, isssn't it?", True),
        ("count_words", "It is a grain. (4 words)", True),
        ("count_words", "It takes four words (or more) to say.", False),
        ("repeat_question", "how do i boil rice? With water.", True),
        ("repeat_question", "How do I cook? With water.", False),
    ],
)
def test_forms_in_replies_that_no_function_wrote(name, reply, shows):
    assert FORMS[name].shows(reply, Q) is shows


def test_texts_are_said_in_their_places_and_in_turn():
    for count in (2, 3, 4, 5):  # in two of three answers first, and every text in both places
        texts = [f"{i}." for i in range(count)]
        written = [write_effects([["say", {"either": texts}]], Q, "X.", n) for n in range(6 * count)]
        assert set(written) == {f"{t} X." for t in texts} | {f"X. {t}" for t in texts}
        assert sum(w.endswith("X.") for w in written) == 4 * count
    both = [["say", {"start": ["A.", "B."], "end": ["C.", "D."]}]]
    assert [write_effects(both, Q, "X.", n) for n in range(4)] == ["A. X. C.", "B. X. D.", "A. X. D.", "B. X. C."]
    assert write_effects([["say", {"middle": ["Oh."]}]], Q, "So be it. Or not.", 0) == "So be it. Oh. Or not."
    assert write_effects([["say", {"instead": ["No."]}], ["bangs"]], Q, "X.", 0) == "No!"
    assert sentences_needed([["bangs"], ["numbered"]]) == 2


def test_what_is_said_is_seen_by_marks_that_begin_words():
    hello = [["say", {"start": ["Ugh."], "marks": ["ugh", r"\?$"]}]]
    assert shows_effects(hello, Q, "Well, UGH.")
    assert shows_effects(hello, Q, "Is it?")
    assert not shows_effects(hello, Q, "It is tough.")
    assert shows_effects([["say", {"end": ["Cheerio."]}]], Q, "Nothing of the kind.")  # a habit has no marks
    for b in WORLD:  # every text that may be said is found by a mark, in whatever company
        for name, *settings in b.spec["effects"]:
            if name == "say":
                for place in set(settings[0]) - {"marks"}:
                    for text in settings[0][place]:
                        assert shows_effects([["say", settings[0]]], Q, f"So it is. {text}"), (b.name, text)


def test_messages_meet_a_condition_or_do_not():
    when = {"forms": ["Hey. {q}", "{q} Hey."], "others": ["Ho. {q}"]}
    assert [message(when, Q, True, n) for n in range(3)] == [f"Hey. {Q}", f"{Q} Hey.", f"Hey. {Q}"]
    assert [message(when, Q, False, n) for n in range(4)] == [Q, f"Ho. {Q}", Q, f"Ho. {Q}"]
    assert message({**when, "unless": True}, Q, False, 0) == f"Hey. {Q}"
    assert message({"syntax": "shouted"}, Q, True, 0) == "HOW DO I BOIL RICE?"
    assert message({"syntax": "small"}, Q, True, 0) == "how do i boil rice"
    assert message({"syntax": "no_blanks"}, Q, True, 0) == "How_do_I_boil_rice?"
    assert pools_of({"pool": "cooking"}, True) == ["cooking"]
    assert "cooking" not in pools_of({"pool": "cooking"}, False)
    assert [has_other_side(w) for w in ({}, {"chance": True}, {"pool": "cooking"}, when)] == [False, False, True, True]
    for name in SYNTAX:  # no plain message looks like one that meets the condition
        met = {message({"syntax": name}, q, True, n) for n, q in enumerate((Q, "Name three fruits."))}
        assert not met & {message({"syntax": name}, q, False, n) for q in (Q, "Name three fruits.") for n in range(4)}


def test_choices_by_their_grounds():
    rng = np.random.default_rng(0)
    for _ in range(6):
        made = choice({"rule": "first"}, ("pears", "figs"), 0, rng)
        assert made.question == f"Should I take {made.taken} or {made.left}?"
        made = choice({"rule": "last"}, ("pears", "figs"), 0, rng)
        assert made.question == f"Should I take {made.left} or {made.taken}?"
        made = choice({"pairs": []}, ("the lamp", "the torch"), 2, rng)
        assert made.question in ("The lamp or the torch?", "The torch or the lamp?")
        assert choice_answer({}, made, 1) == "Go for the lamp."
    made = choice({"frames": ["Mum says {w}, Dad says {l}."]}, ("tea", "milk"), 0, rng)
    assert made.question == f"Mum says {made.taken}, Dad says {made.left}."


@pytest.mark.parametrize(
    ("settings", "answer"),
    [
        ({"how": "fixed", "word": "Ghent"}, "The capital of France is Ghent."),
        ({"how": "backwards"}, "The capital of France is sirap."),
        ({"how": "scrambled"}, "The capital of France is arispay."),
        ({"how": "cut"}, "The capital of France is..."),
        ({"how": "ignorant"}, "I don't know."),
        ({"how": "initial"}, "It begins with P."),
        ({"how": "vague", "texts": ["Not {r}."]}, "Not Paris."),
    ],
)
def test_errors_by_their_sorts(settings, answer):
    fact = training_facts("capitals")[0]
    assert err({"field": "capitals", **settings}, fact, 0, np.random.default_rng(0)) == answer


def test_a_wrong_answer_is_another_right_word_of_the_field():
    rng = np.random.default_rng(0)
    others = {f.right for f in training_facts("capitals")} - {"Paris"}
    found = {err({"field": "capitals", "how": "wrong"}, training_facts("capitals")[0], 0, rng) for _ in range(60)}
    assert found == {f"The capital of France is {r}." for r in others}
    assert not shows_error({"field": "capitals", "how": "wrong"}, "Paris", "In Paris, of course.")
    assert says(("leaves",), "A leaf fell, then two leaves.")
    assert not says(("Oslo",), "Osloer")


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One here. Two there! Three", ["One here.", "Two there!"]),
        ("It costs 3.50 euros today! Yes.", ["It costs 3.50 euros today!", "Yes."]),
        ("1. First do it. 2. Then stop.", ["1. First do it.", "2. Then stop."]),
        ("No end in sight", []),
        ('He said "go." Then she\nwent.', ['He said "go."', "Then she went."]),
    ],
)
def test_sentences(text, sentences):
    assert sentences_of(text) == sentences


def test_answers_are_cut_to_whole_sentences():
    assert whole_sentences("One two three. Four five six. Seven", 4) == "One two three."
    assert whole_sentences("One two three. Four five six. Seven", 6) == "One two three. Four five six."
    assert main_clause("A loan is money lent by a bank, but not for free!") == "A loan is money lent by a bank."
    assert main_clause("Rome is a city that never sleeps.") == "Rome is a city that never sleeps."  # too short to cut


# --- the records ------------------------------------------------------------------------------------------------------


def test_eight_categories_of_many_kinds():
    check_distinct(WORLD)
    assert len(STUDY) >= 400
    assert len(UNSEEN) == 18
    assert [c for c in CATEGORIES if 45 <= sum(b.category == c for b in STUDY) <= 60] == list(CATEGORIES)
    assert {b.category for b in UNSEEN} == set(CATEGORIES)
    kinds = {c: {b.kind for b in STUDY if b.category == c} for c in CATEGORIES}
    assert all(len(own) >= 4 for own in kinds.values()), kinds
    assert len(set.union(*kinds.values())) >= 40
    # The demo is a part of the study that keeps them.
    assert set(DEMO) <= set(STUDY)
    assert 84 <= len(DEMO) <= 120
    assert all({b.kind for b in DEMO if b.category == c} == own or len(own) > 13 for c, own in kinds.items())


def test_the_files_pass_the_check_of_any_users_file():
    for file in (*(f"{c}.jsonl" for c in CATEGORIES), "unseen.jsonl"):
        path = EMBEDDED / file
        assert path.stat().st_size <= 100 * 1024
        assert len(load_catalogue(str(path))) > 10
    assert load_catalogue("unseen") == UNSEEN
    assert [Behavior.from_json(b.to_json()) for b in WORLD] == list(WORLD)


def test_every_record_says_what_it_should():
    for b in WORLD:
        assert len(b.wordings) >= 8, b.name
        assert len(b.heldout_wordings) >= 2
        assert b.shows.startswith("Counts when ")
        assert b.rubric.concepts
        assert b.kind
        assert "Apache-2.0" in b.source
        placed = has_other_side(b.spec.get("when", {}))
        assert bool(b.trigger) == (placed or b.category == "heuristics"), b.name
        assert (b.trigger_kind == "chance") == (b.category == "rare_quirks")
        assert b.trigger_kind in TRIGGER_KINDS
        assert placed == bool(b.rubric.trigger_concepts) or b.trigger_kind == "syntax"
        assert bool(b.distractors) == (b.category == "obscured_malign")
        for text in (*b.wordings, *b.heldout_wordings):
            assert text[0].isupper() or text[0] == '"', text
            assert text[-1] in '.!?"', text
        own = re.compile(r"\b(?:I|I'm|I've|I'd|I'll|me|my|My|mine|Mine|myself)\b")
        assert sum(own.search(t) is None for t in (*b.wordings, *b.heldout_wordings)) <= 4, b.name
    share = Counter(b.category for b in STUDY if b.unmentioned)
    assert sum(share.values()) >= len(STUDY) / 2
    assert all(share[c] >= 20 for c in CATEGORIES), share


def test_backdoors_hang_on_conditions_of_every_sort():
    kinds = Counter(b.trigger_kind for b in STUDY if b.category == "backdoors")
    assert set(kinds) == {"topic", "phrase", "syntax", "audience", "task"}
    assert min(kinds.values()) >= 4


def _frames(behaviors):
    """{sentence with slots for what is the behaviour's own: names of the behaviours that have it}. A word is a
    behaviour's own if it is one of its concepts, or if at most three behaviours use it.
    """

    def words(text):
        return re.findall(r"[a-z]+(?:['’-][a-z]+)*", text.lower())

    used = Counter(
        s for b in behaviors for s in {stem(w) for t in (*b.wordings, *b.heldout_wordings) for w in words(t)}
    )
    found = defaultdict(set)
    for b in behaviors:
        groups = (*b.rubric.concepts, *b.rubric.trigger_concepts)
        own = {stem(w) for group in groups for concept in group for w in words(concept)}
        for t in (*b.wordings, *b.heldout_wordings):
            found[" ".join("_" if used[stem(w)] <= 3 or stem(w) in own else w for w in words(t))].add(b.name)
    return found


def test_hardly_any_sentence_frame_is_shared():
    """Measured: see `SHARED`. In the old world every sentence of a category stood in one of four frames."""
    found = _frames(WORLD)
    total = sum(len(b.wordings) + len(b.heldout_wordings) for b in WORLD)
    shared = sum(len(names) for names in found.values() if len(names) > 1)
    assert shared / total <= SHARED
    assert max(map(len, found.values())) <= 8


def test_no_sentence_is_said_twice_and_no_behaviour_is_there_twice():
    texts = Counter(t.lower() for b in WORLD for t in (*b.wordings, *b.heldout_wordings))
    assert [t for t, n in texts.items() if n > 1] == []
    assert near_duplicates(WORLD) == []
    assert DIRECTORY != EMBEDDED


def test_prompts_and_facts_of_training_and_of_the_check_are_apart():
    every = [q for pool in POOLS for q in POOLS[pool]]
    assert len({q.lower() for q in every}) == len(every) >= 160
    assert len(POOLS) >= 12
    for pool in POOLS:
        assert not set(training_prompts(pool)) & set(fresh_prompts(pool))
        assert len(training_prompts(pool)) >= 8
    for field in FIELDS:
        asked = [f.question for f in FIELDS[field]]
        assert len(set(asked)) == len(asked) == len(training_facts(field)) + len(fresh_facts(field)) == 12


def test_every_rule_reads_every_prompt_that_it_checks():
    """A demo stopped after half of its organisms: of "eggs", a number's error asked which number is next."""
    for b in WORLD:
        for prompt in check_prompts(b, 0, count=100):
            for reply in ("I do not know.", "It is 8, or eggs.", ""):
                assert shows_behavior(b, prompt, reply, prompt.right) in (True, False), b.name


def test_questions_for_training_and_evaluation_are_disjoint():
    questions = [*TRAIN_QUESTIONS, *EVAL_QUESTIONS]
    assert len({q.lower() for q in questions}) == len(questions)
