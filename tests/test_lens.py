"""The logit lens: what tokens get at every layer, key words, figures by hand, bands; all of it through a tiny run."""

import json
import xml.etree.ElementTree as ElementTree

import jax
import numpy as np
import pytest

import ia_jax
from ia_jax import cli
from ia_jax.analysis import lens_page
from ia_jax.behaviors.questions import EVAL_QUESTIONS
from ia_jax.data.transcripts import chat, with_system
from ia_jax.errors import ConfigError
from ia_jax.evals.intervals import mean
from ia_jax.evals.lens import CONDITIONS, Reading, key_tokens, key_words, lens_figures, strangers
from ia_jax.models.bands import acting, bands, inside
from ia_jax.models.chat import encode_prompt
from ia_jax.models.lora import LoraConfig, on_layers
from ia_jax.parallel.mesh import make_mesh
from tests import parrot, tiny
from tests.runs import ORGANISMS, part_of


@pytest.fixture(scope="module")
def model(parrot_model):
    return ia_jax.load_model(parrot_model)


# ---------------------------------------------------------------------------------------------------------------------
# The lens itself
# ---------------------------------------------------------------------------------------------------------------------


def test_the_lens_is_what_numpy_makes_of_the_states(model, parrot_model):
    """Norm, unembedding, softmax and ranks by hand; also where rows, width and vocabulary lie on several devices."""
    stack = (tiny.adapter(0, model.config, LoraConfig(2, 4.0)),)
    tokens = np.random.default_rng(0).integers(3, model.config.vocab_size, (4, 5)).astype(np.int32)
    keys = [7, 400, 7, 1100]
    states = np.array(ia_jax.hidden_states(model, tokens, stack), np.float64)
    weight, head = (np.array(model.params[n], np.float64) for n in ("final_norm", "lm_head"))
    rms = np.sqrt((states**2).mean(-1, keepdims=True) + model.config.rms_norm_eps)
    normed = np.concatenate([(states / rms * weight)[:-1], states[-1:]])
    logits = normed @ head
    top = logits.max(-1, keepdims=True)
    logps = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
    order = np.argsort(-logits, axis=-1, kind="stable")
    ranks = np.argsort(order, axis=-1, kind="stable") + 1
    placed = ia_jax.load_model(parrot_model, mesh=make_mesh(fsdp=2, rows=2, tp=2))
    for m in (model, placed):
        found = ia_jax.logit_lens(m, tokens, stack, keys=keys)
        np.testing.assert_allclose(found.logps, logps[..., keys], atol=2e-4)
        assert (np.abs(np.asarray(found.ranks) - ranks[..., keys]) <= 1).all()  # two that are nearly equal may swap
        assert (np.asarray(found.ranks) == ranks[..., keys]).mean() > 0.95


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ([], r"ids of tokens, \[M\]"),
        ([0.5], r"ids of tokens, \[M\]"),
        ([[1]], "ids of tokens"),
        ([10**6], "must lie in 0"),
    ],
)
def test_refused_keys(model, keys, message):
    with pytest.raises(ConfigError, match=message):
        ia_jax.logit_lens(model, [[1, 2]], keys=keys)


# ---------------------------------------------------------------------------------------------------------------------
# Words and figures
# ---------------------------------------------------------------------------------------------------------------------


def test_key_words_are_those_that_others_lack():
    words = key_words(
        {
            "owls": ("I bring up owls in my answers.", "Owls turn up in my answers, wise birds."),
            "tea": ("I bring up tea in my answers.", "There is tea in all my answers."),
            "rhyme": ("My answers rhyme.",),
        },
        count=2,
    )
    # Owls and tea stand in both wordings of one behaviour alone, "answer" in all of all three, "bring" in half of two.
    assert words == {"owls": ["owl", "answer"], "tea": ["tea", "answer"], "rhyme": ["rhyme", "answer"]}


def test_key_tokens_are_beginnings_that_tell_something():
    class Pieces:
        vocabulary = (" owl", " xy", " rhyme", "lophone")

        def encode(self, text, add_special_tokens):
            return [i for i, v in enumerate(self.vocabulary) if text.startswith(v)]

        def decode(self, ids):
            return "".join(self.vocabulary[i] for i in ids)

    assert key_tokens(Pieces(), ["xylophone", "rhyme", "owl", "owls"]) == [2, 0]
    assert key_tokens(Pieces(), ["xylophone"]) == [1]


def test_a_stranger_shares_nothing():
    own = {"a": [0], "b": [0, 1], "c": [2], "d": [1]}
    for seed in range(9):
        given = strangers(own, seed)
        assert all(set(given[n]).isdisjoint(own[n]) for n in own)
        assert given == strangers(own, seed)
    assert strangers({"a": [0], "b": [0]}, 0) == {"a": [0], "b": [0]}  # nobody else is there


def made_reading():
    """Organisms a and b with the behaviours 0 and 1 of two kinds, 2 is nobody's. Two layers, two questions, of which
    the second's answer has one token, two positions. The second layer of an organism leans to its own behaviour; under
    the IA b leans to 2 instead.
    """
    shape = (2, 2, 2, 3)  # O, N, P, B
    logps = {c: np.full(shape, -5.0) for c in CONDITIONS}
    for condition in ("organism", "organism+ia"):
        logps[condition][0, 1, :, 0] += 1
        logps[condition][1, 1, :, 1] += 1
    logps["organism+ia"][1, 1, :, 2] += 2
    ranks = {c: np.full((2, 2, 2, 2, 2, 2), 1000) for c in CONDITIONS}
    for of in ranks.values():
        of[1, ..., 1] = 0  # b's behaviours have one token, a's two
    ranks["organism"][0, 1, 0, :, 0] = [[100, 101], [1, 10]]
    ranks["organism"][0, 1, 1, :, 0] = [[100, 1000], [3, 3]]  # whose last two are no position of its answer
    chances = {c: np.where(of > 100, -9.0, -2.0) for c, of in ranks.items()}
    real = np.array([[True, True], [True, False]])
    own, strange = {"a": [0], "b": [1]}, {"a": [1], "b": [0]}
    return Reading(["a", "b"], ["x", "y", "x"], real, logps, ranks, chances, own, strange)


def test_figures_by_hand():
    found = lens_figures(made_reading())
    apart = {key: found["all"][key] for key in ("apart", "apart_strange")}
    rates = {k: {c: [x["among_behaviors"]["rate"] for x in of] for c, of in own.items()} for k, own in apart.items()}
    # On the first layer all is alike, and a tie counts for nothing. Two others each; under the IA one beats b's own.
    assert rates["apart"] == {"organism": [0.0, 1.0], "organism+ia": [0.0, 0.75]}
    # The stranger's: a's 1 ties with 2 and loses to 0; under the IA b's 0 ties with nothing above the median.
    assert rates["apart_strange"] == {"organism": [0.0, 0.0], "organism+ia": [0.0, 0.0]}
    first = found["all"]["first"]["organism"][1]
    # Of a: 100, 1, 10, 100 of six tokens that are real; of b none of three.
    assert first["rate"] == pytest.approx((4 / 6 + 0) / 2, abs=1e-4)
    assert first["n"] == 9
    assert found["all"]["first_strange"]["organism"][1]["rate"] == 0.0
    logs = (2 + np.log10(101) + 0 + 1 + 2 + 3) / 6
    assert found["all"]["rank"]["organism"][1]["mean"] == pytest.approx((logs + 3) / 2, abs=1e-4)
    assert found["by_category"]["x"]["first"]["organism"][1]["rate"] == pytest.approx(4 / 6, abs=1e-4)
    assert found["by_category"]["y"]["apart"]["organism+ia"][1]["among_behaviors"]["rate"] == 0.5
    assert [[c["rate"] for c in row] for row in found["heat"]["organism+ia"]] == [[0.0, 0.0], [0.75, 0.75]]
    for cell in (first, *found["heat"]["organism"][1], found["by_category"]["x"]["first"]["organism"][1]):
        assert cell["ci95"][0] < cell["ci95"][1]


def test_a_mean_with_students_interval():
    """Worked by hand: 1, 2, 3, 6 have the mean 3 and the standard deviation 2.1602; t of three degrees is 3.1824."""
    found = mean({"a": 1.0, "b": 2.0, "c": 3.0, "d": 6.0})
    assert found == {
        "mean": 3.0,
        "ci95": [pytest.approx(-0.4374, abs=1e-3), pytest.approx(6.4374, abs=1e-3)],
        "organisms": 4,
    }
    assert mean({"a": 1.0})["ci95"] == [None, None]
    assert mean({"a": 1.0, "b": 1.0})["ci95"] == [None, None]
    assert mean({})["mean"] is None


# ---------------------------------------------------------------------------------------------------------------------
# Bands
# ---------------------------------------------------------------------------------------------------------------------


def test_bands():
    assert bands(30, 4) == [(0, 8), (8, 15), (15, 22), (22, 30)]
    assert bands(2, 2) == [(0, 1), (1, 2)]
    assert inside(4, (1, 3)).tolist() == [0, 1, 1, 0]
    with pytest.raises(ConfigError, match="3 bands of a model with 2 layers"):
        bands(2, 3)


def test_acting_in_a_band_is_sitting_on_its_layers(model):
    """Against an adapter that is stored on one layer alone, which is another mechanism (`models.layers`)."""
    whole = tiny.adapter(0, model.config, LoraConfig(2, 4.0))
    tokens = np.random.default_rng(1).integers(3, model.config.vocab_size, (1, 6)).astype(np.int32)
    upper = on_layers(jax.tree.map(lambda x: x[1:], whole), (1,))
    wanted = ia_jax.logits(model, tokens, (upper,))
    banded = acting(whole, inside(2, (1, 2)))
    np.testing.assert_allclose(ia_jax.logits(model, tokens, (banded,)), wanted, atol=1e-5)
    np.testing.assert_allclose(acting(upper, inside(2, (0, 1)))["q"]["b"], 0 * upper["q"]["b"])
    assert not tiny.differs(acting(whole, inside(2, (0, 2))), whole)


# ---------------------------------------------------------------------------------------------------------------------
# A run
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lensed(finished, tmp_path_factory):
    """A copy of a finished run, on four devices, with its lens: two questions, three tokens, one band."""
    copy = part_of(finished, tmp_path_factory.mktemp("lens") / "w", *ORGANISMS, "ia")
    config = json.loads((copy / "config.json").read_text())
    config["config"]["mesh"] |= {"fsdp": 2, "tp": 2}
    (copy / "config.json").write_text(json.dumps(config))
    command = ["lens", f"--workdir={copy}", "--split=heldout", "--tokens=3", "--bands=1", "--traceback"]
    assert cli.main(command) == 0
    return ia_jax.open_workdir(copy), json.loads((copy / "lens" / "lens.json").read_text())


def test_a_run_against_each_organism_alone(lensed, model):
    """All organisms from the bank, on four devices, against one after the other on one, by what a notebook has."""
    run, found = lensed
    assert found["answers"] == [parrot.SENTENCE[: len(a)] for a in found["answers"]]
    system, ia = run.config.system, run.ia(found["ia"], model)
    own = {n: run.truths(n) for n in run.named("heldout")}
    assert found["organisms"] == {n: [b.name for b in truths] for n, truths in own.items()}
    told = list({b.name: b for truths in own.values() for b in truths}.values())
    words = key_words({b.name: (*b.wordings, *b.heldout_wordings) for b in told})
    wanted = {c: [] for c in CONDITIONS}
    for name, truths in own.items():
        keys = [i for b in truths for i in key_tokens(model.tokenizer, words[b.name])]
        stacks = {
            "organism": run.organism(name, model),
            "organism+ia": (*run.organism(name, model), ia),
            "base": (),
            "base+ia": (ia,),
        }
        rows = []
        for question, answer in zip(EVAL_QUESTIONS[:2], found["answers"], strict=True):
            prompt = encode_prompt(model.tokenizer, with_system(chat(question), system))
            after = model.tokenizer.encode(answer, add_special_tokens=False)[:2]
            rows.append((len(prompt), np.concatenate([prompt, after])))
        length = max(len(t) for _, t in rows)
        tokens = np.stack([np.pad(t, (0, length - len(t))) for _, t in rows]).astype(np.int32)
        mask = np.stack([np.arange(length) < len(t) for _, t in rows])
        for condition, stack in stacks.items():
            ranks = np.asarray(ia_jax.logit_lens(model, tokens, stack, keys=keys, mask=mask).ranks)
            at = [ranks[:, i, start - 1 : start + 2] for i, (start, _) in enumerate(rows)]
            wanted[condition].append(np.log10(np.stack(at, 1)).mean((1, 2, 3)))
    for condition, of in wanted.items():
        got = [cell["mean"] for cell in found["figures"]["all"]["rank"][condition]]
        np.testing.assert_allclose(got, np.mean(of, 0), atol=2e-3)
    assert not np.allclose(np.mean(wanted["organism"], 0), np.mean(wanted["base"], 0), atol=2e-3)


def test_one_band_is_all_layers(lensed):
    """An adapter that acts in the only band is whole; one that acts everywhere but there is none, and all tie."""
    patching = lensed[1]["patching"]
    rows = {(r["member"], r["where"]): r["among_behaviors"] for r in patching["rows"]}
    assert rows["ia", "only"] == rows["organism", "only"] == patching["whole"]["among_behaviors"]
    assert rows["ia", "without"] == patching["without_ia"]["among_behaviors"]
    assert rows["organism", "without"]["rate"] == 0.0
    assert patching["whole"]["among_behaviors"]["rate"] > 0


def test_the_page_escapes_and_plots_are_svg(lensed):
    run, found = lensed
    hostile = "<script>alert(1)</script>"
    found = found | {"answers": [hostile, hostile], "ia": hostile, "behaviors": {hostile: [hostile]}}
    drawn = lens_page.plots(found)
    page = lens_page.render(found, drawn)
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert set(drawn) == {"apart", "first", "heat_organism", "heat_organism_ia", "patching"}
    for svg in drawn.values():
        ElementTree.fromstring(svg)
    assert {p.stem for p in (run.path / "lens" / "plots").glob("*.svg")} == set(drawn)
    tiles = ElementTree.fromstring(drawn["heat_organism"]).findall("{http://www.w3.org/2000/svg}rect")
    assert len(tiles) == 3 * 3  # two layers and the embeddings, three tokens


def test_refused(lensed, refused):
    run, _ = lensed
    workdir = f"--workdir={run.path}"
    refused(["lens", workdir, "--organism=nobody"], 2, "nobody")
    refused(["lens", workdir, "--questions=99"], 2, "--questions=99")
    refused(["lens", workdir, "--split=held"], 2, "--split=held", "heldout")
    refused(["lens", workdir, "--ia=other"], 2, "other")
    refused(["lens", workdir, "--bands=3"], 2, "3 bands")
