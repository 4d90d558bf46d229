"""Intervals of rates over organisms: exact where they can be, and wide enough where they are estimated."""

from collections import defaultdict

import numpy as np
import pytest
from scipy.stats import binomtest

from ia_jax.evals.intervals import difference, difference_over_seeds, exact_interval, rate, rate_over_seeds


@pytest.mark.parametrize(("hits", "count"), [(0, 1), (1, 1), (3, 3), (0, 12), (5, 12), (12, 12), (31, 64)])
def test_organisms_that_answer_one_way_have_the_exact_interval(hits, count):
    found = rate({str(i): [i < hits] * 5 for i in range(count)})
    wanted = binomtest(hits, count).proportion_ci(method="exact")
    assert (found["rate"], found["n"], found["organisms"]) == (round(hits / count, 4), 5 * count, count)
    assert found["ci95"] == pytest.approx([wanted.low, wanted.high], abs=2e-4)


def test_no_interval_is_without_width():
    for by_organism in ({"a": [True]}, {"a": [True] * 90, "b": [True] * 90}, {"a": [True, False], "b": [False, True]}):
        low, high = rate(by_organism)["ci95"]
        assert high - low > 0.2
    assert rate({}) == rate({"a": []}) == {"rate": None, "ci95": [None, None], "n": 0, "organisms": 0}


def test_organisms_count_alike_however_often_they_were_asked():
    assert rate({"a": [True], "b": [False] * 9})["rate"] == 0.5


def test_more_questions_narrow_it_only_where_organisms_are_unlike_themselves():
    def width(organisms, answers):
        low, high = rate({str(i): answers(i) for i in range(organisms)})["ci95"]
        return high - low

    settled = width(8, lambda i: [i % 4 == 0] * 4)
    assert width(8, lambda i: [i % 4 == 0] * 40) == settled
    assert settled > 1.5 * width(32, lambda i: [i % 4 == 0] * 4)
    wavering = [[True, False, *[True, False][: i % 3], i % 2 == 0] for i in range(8)]
    assert width(8, lambda i: wavering[i] * 10) < settled


@pytest.mark.parametrize(("organisms", "questions", "a", "b"), [(12, 6, 2, 2), (12, 6, 0.3, 0.1), (32, 20, 1, 3)])
def test_it_covers_the_truth_as_often_as_it_says(organisms, questions, a, b):
    """Organisms whose own rates are drawn from a beta distribution; 95 % is promised."""
    rng, covered, tries = np.random.default_rng(0), 0, 400
    for _ in range(tries):
        own = rng.beta(a, b, size=organisms)
        low, high = rate({str(i): list(rng.random(questions) < p) for i, p in enumerate(own)})["ci95"]
        covered += low <= a / (a + b) <= high
    assert 0.93 <= covered / tries <= 0.995


def test_part_of_an_answer_more_lies_between_whole_ones():
    lows, highs = zip(*(exact_interval(0.5, n) for n in (4, 4.5, 5)), strict=True)
    assert sorted(lows) == list(lows)
    assert sorted(highs, reverse=True) == list(highs)


def test_a_difference_in_pairs():
    easy = {str(i): [i < 6] for i in range(8)}
    more = {str(i): [i < 7] for i in range(8)}
    found = difference(easy, more)
    low, high = found["ci95"]
    assert (found["difference"], found["organisms"]) == (0.125, 8)
    assert low < 0 < high
    turned = difference(more, easy)
    assert turned["difference"] == -0.125
    assert turned["ci95"] == pytest.approx([-high, -low])
    none = difference(easy, easy)
    assert none["difference"] == 0
    assert none["ci95"][0] == -none["ci95"][1] < -0.1  # eight alike are no proof
    assert difference({"a": [True]}, {"a": [True], "b": [False]}) is None


def test_a_difference_covers_the_truth():
    """Binary pairs with known chances of a gain and a loss."""
    rng, covered, tries, chances = np.random.default_rng(1), 0, 600, (0.3, 0.1)
    for _ in range(tries):
        kind = rng.choice(3, size=16, p=[*chances, 1 - sum(chances)])
        first, second = ({str(i): [bool(k == side or k == 2)] for i, k in enumerate(kind)} for side in (1, 0))
        low, high = difference(first, second)["ci95"]
        covered += low <= chances[0] - chances[1] <= high
    assert 0.93 <= covered / tries <= 0.995


def test_seeds_widen_it():
    organisms = [f"o{i}" for i in range(16)]
    alike = {s: {n: [i < 8] for i, n in enumerate(organisms)} for s in ("1", "2", "3")}
    apart = {s: {n: [i < share] for i, n in enumerate(organisms)} for s, share in (("1", 2), ("2", 8), ("3", 14))}
    found, wide = rate_over_seeds(alike), rate_over_seeds(apart)
    assert found["rate"] == wide["rate"] == 0.5
    assert (found["n"], found["organisms"]) == (48, 16)
    assert wide["ci95"][1] - wide["ci95"][0] > 1.3 * (found["ci95"][1] - found["ci95"][0])
    all_named = rate_over_seeds({s: {n: [True] for n in organisms} for s in "12"})
    assert all_named["ci95"] == rate({n: [True] for n in organisms})["ci95"]
    assert rate_over_seeds({}) == rate({})


def test_a_difference_over_seeds_by_hand():
    """Four seeds, ten organisms, of which five gain under the first two seeds, so half of the time.

    Organisms: Agresti and Min's middle (5 / 2) / 12, variance ((5 / 4 + 1) / 12 - middle ** 2) / 12 = 0.01201. Seeds:
    each moves the mean by (5 - 10 / 4) / 4 / 10 = 0.0625 up or down, variance 4 / 3 * 4 * 0.0625 ** 2 = 0.02083. So
    0.0328 ** 2 / (0.01201 ** 2 / 9 + 0.02083 ** 2 / 3) = 6.71 degrees of freedom, of which t is 2.386 in a table.
    """
    names = [f"o{i}" for i in range(10)]
    none, half, every = ({n: [i < k] for i, n in enumerate(names)} for k in (0, 5, 10))
    nothing, some = dict.fromkeys("1234", none), {"1": half, "2": half, "3": none, "4": none}
    found = difference_over_seeds(nothing, some)
    middle, margin = 2.5 / 12, 2.386 * (0.01201 + 0.02083) ** 0.5
    assert (found["difference"], found["organisms"]) == (0.25, 10)
    assert found["ci95"] == pytest.approx([middle - margin, middle + margin], abs=1e-3)
    alike = difference_over_seeds({"1": none, "2": none}, {"1": every, "2": every})
    assert alike == difference(none, every)  # twice the same organisms are not twenty
    assert difference_over_seeds({"1": none, "3": none}, {"1": every, "2": none}) == alike
    assert difference_over_seeds({"1": none}, {"2": every}) is None
    assert difference_over_seeds({"1": {"o1": [True]}}, {"1": {"o1": [True]}}) is None


def test_a_difference_over_seeds_covers_what_other_seeds_and_organisms_would_give():
    """Organisms with chances of their own, seeds that move them all, each seed asking half of the organisms."""
    rng = np.random.default_rng(2)

    def chances(seeds, organisms):
        easy, gain = rng.normal(-0.5, 1.2, organisms), rng.normal(0.5, 1, organisms)
        return [1 / (1 + np.exp(-(easy + g + rng.normal(0, 0.7, (seeds, 1))))) for g in (0, gain)]

    before, after = chances(1000, 2000)
    true, covered, pooled, tries = float((after - before).mean()), 0, 0, 250
    for _ in range(tries):
        sides = [{str(s): {} for s in range(4)} for _ in range(2)]
        asked = [rng.choice(32, 16, replace=False) for _ in range(4)]
        for side, chance in zip(sides, chances(4, 32), strict=True):
            for s, names in enumerate(asked):
                side[str(s)] = {str(n): list(rng.random(2) < chance[s, n]) for n in names}
        low, high = difference_over_seeds(*sides)["ci95"]
        covered += low <= true <= high
        one = [defaultdict(list) for _ in sides]
        for pool, side in zip(one, sides, strict=True):
            for n, answers in ((n, x) for own in side.values() for n, x in own.items()):
                pool[n] += answers
        low, high = difference(*one)["ci95"]
        pooled += low <= true <= high
    assert 0.92 <= covered / tries <= 0.995
    assert pooled / tries < 0.88  # as if seeds were the only ones there could be
