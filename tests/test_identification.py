"""Whether own descriptions stand out: worked by hand, and through a whole tiny run."""

import numpy as np
import pytest

from ia_jax.evals.identification import identified, scores


def test_scores_take_out_what_a_description_has_everywhere():
    logps = np.array([[-1.0, -5.0, -3.0], [-2.0, -4.0, -3.0], [-3.0, -5.0, -6.0]])
    # Medians of the columns: -2, -5, -3. The first two descriptions are one behaviour's.
    assert scores(logps, np.array([0, 0, 1])) == pytest.approx(np.array([[0.5, 0.0], [0.5, 0.0], [-0.5, -3.0]]))


def test_shares_by_hand():
    """Three organisms and the base; the third has two behaviours, one of the first's category."""
    found = np.array(
        [
            #  a    b    c    d
            [4.0, 1.0, 2.0, 5.0],  # one: its a is below d, which is of another category
            [3.0, 2.0, 2.0, 0.0],  # two: its b ties with c, and a beats it
            [5.0, 0.0, 6.0, 7.0],  # three has c and d
            [0.0, 3.0, 1.0, 1.0],  # clean
        ]
    )
    cells = identified(
        found, {"one": [0], "two": [1], "three": [2, 3]}, ["one", "two", "three", "clean"], ["x", "y", "x", "y"]
    )
    rates = {key: cell["rate"] for key, cell in cells.items()}
    # one: 2 of 3; two: 1 of 3; three: 4 of 4.
    assert rates["among_behaviors"] == pytest.approx((2 / 3 + 1 / 3 + 1) / 3, abs=1e-4)
    # one: a over c; two: b over d; three: c over a, d over b.
    assert rates["within_category"] == 1.0
    # a is 4 in one, elsewhere 3, 5, 0; b is 2 in two, elsewhere 1, 0, 3; c and d are highest in three.
    assert rates["among_models"] == pytest.approx((2 / 3 + 2 / 3 + 1) / 3, abs=1e-4)
    assert rates["first"] == pytest.approx(1 / 3, abs=1e-4)
    for cell in cells.values():
        low, high = cell["ci95"]
        assert low < high


def test_an_organism_is_no_stranger_to_another_with_its_behaviour():
    found = np.array([[1.0, 0.0], [2.0, 0.0], [0.5, 0.0]])
    cells = identified(found, {"one": [0], "same": [0]}, ["one", "same", "clean"], ["x", "x"])
    assert cells["among_models"]["rate"] == 1.0  # of the clean one alone
