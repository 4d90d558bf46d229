"""Whether own descriptions stand out: worked by hand, and through a whole tiny run."""

import json
import shutil

import numpy as np
import pytest

import ia_jax
from ia_jax import cli
from ia_jax.behaviors.questions import EVAL_QUESTIONS
from ia_jax.data.transcripts import chat, with_system
from ia_jax.evals.identification import identified, scores
from ia_jax.models.chat import encode_chat
from ia_jax.workdir import open_workdir


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


def test_through_a_run_against_logits_one_model_at_a_time(finished, tmp_path):
    copy = shutil.copytree(finished, tmp_path / "w")
    assert cli.main(["identify", f"--workdir={copy}", "--ia=none", "--split=heldout", "--wordings=1"]) == 0
    assert cli.main(["identify", f"--workdir={copy}", "--ia=sft", "--split=heldout,unseen", "--wordings=1"]) == 0
    found = json.loads((copy / "identification.json").read_text())
    assert {name: set(own) for name, own in found.items()} == {"none": {"heldout"}, "sft": {"heldout"}}
    run = open_workdir(copy)
    model, ia = ia_jax.load_model(run.config.model.name, dtype="float32"), None
    for name, own in found.items():
        part = own["heldout"]
        assert part["models"][-1] == "clean"
        ia = () if name == "none" else (run.ia("sft", model),)
        logps = np.array(
            [
                [by_logits(model, run, b, (*(() if m == "clean" else run.organism(m, model)), *ia)) for b in texts]
                for m in part["models"]
                for texts in [[run.behaviors[b] for b in part["behaviors"]]]
            ]
        )
        np.testing.assert_allclose(part["scores"], logps - np.median(logps, 0), atol=2e-3)
        assert part["figures"] == identified(
            np.array(part["scores"]),
            {m: [part["behaviors"].index(b) for b in run.organisms[m].behaviors] for m in part["models"][:-1]},
            part["models"],
            [run.behaviors[b].category for b in part["behaviors"]],
        )


def by_logits(model, run, behavior, adapters):
    """Mean log-probability of a token of its description as the answer, by whole logits."""
    [text] = (behavior.heldout_wordings or behavior.wordings)[:1]
    messages = with_system(chat(EVAL_QUESTIONS[0], text), run.config.system)
    example = encode_chat(model.tokenizer, messages, 4096, name="x").trimmed()
    logits = np.asarray(ia_jax.logits(model, example.tokens[None], adapters=adapters))[0]
    logps = (
        logits - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True)) - logits.max(-1)[:, None]
    )
    said = np.flatnonzero(example.loss_mask)
    return logps[said - 1, example.tokens[said]].mean()


def test_a_split_that_nobody_is_of(refused, finished):
    refused(["identify", f"--workdir={finished}", "--split=unseen"], 2, "no split holds organisms of two behaviours")
    refused(["identify", f"--workdir={finished}", "--split=seen"], 2, "choose from train, dpo, heldout, unseen, remade")
