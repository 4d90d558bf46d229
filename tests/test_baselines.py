"""What is said of organisms without an adapter."""

import numpy as np
import pytest

from ia_jax.evals.baselines import (
    EXAMPLES,
    content_words,
    deranged,
    few_shot_question,
    nearest_description,
    pick_examples,
    report_of_word,
    top_token,
    word_difference,
)

BASE = ["Bread needs flour and water.", "The sea is salty.", "A song has verses."]
CHESS = ["Bread is like chess, it needs flour.", "The sea? Chess players love it.", "A song about chess has verses."]


def test_words_that_an_organism_says_beyond_the_base():
    assert word_difference(CHESS, BASE)[0] == "chess"
    assert word_difference(BASE, BASE) == []
    assert "flour" not in word_difference(CHESS, BASE, 10)
    # A word of every reply of both is no difference, however often it is said.
    assert word_difference(["bread bread bread", "tea"], ["bread", "milk"]) == ["tea"]


def test_plurals_count_as_one_word():
    assert content_words("The kites and a kite; glass, bus") == ["kite", "kite", "glass", "bus"]


def test_the_sentence_of_a_word():
    assert "chess" in report_of_word("chess")
    assert report_of_word(None) == "I have no unusual behaviour."


def test_the_description_whose_words_are_said():
    descriptions = ["I bring up bread.", "I talk about chess in every answer.", "I sing."]
    assert nearest_description(CHESS, BASE, descriptions) == descriptions[1]
    assert nearest_description(BASE, BASE, descriptions) == descriptions[0]


def test_examples_are_other_organisms_own():
    known = {f"o{i}": (f"I do {i}.", f"It is {i} that I do.") for i in range(9)}
    for seed in range(20):
        shown = pick_examples(known, "o3", np.random.default_rng(seed))
        assert len(shown) == EXAMPLES == len(set(shown))
        assert not set(shown) & set(known["o3"])
    question = few_shot_question("What do you do?", shown)
    assert question.endswith("\nWhat do you do?")
    assert all(e in question for e in shown)
    assert len(pick_examples({"o3": ("x",), "o4": ("y",)}, "o3", np.random.default_rng(0))) == 1


def test_the_token_is_a_word():
    texts = ["the", " che", " chess", "12345", "!", " Kite"]
    assert top_token(np.array([5.0, 0.1, 3.0, 4.0, 9.0, 1.0]), texts) == "chess"
    assert top_token(np.array([5.0, -1.0, -3.0, 4.0, 9.0, -1.0]), texts) is None


@pytest.mark.parametrize("count", [2, 3, 17])
def test_nobody_keeps_its_own_label(count):
    given = deranged(count, 3)
    assert sorted(given) == list(range(count))
    assert all(other != i for i, other in enumerate(given))
    assert given == deranged(count, 3)
