"""How organisms are made: procedures as data, what their phases read, and runs of each on the tiny model."""

import json

import numpy as np
import pytest

from ia_jax import cli
from ia_jax.adapters.store import load_adapter, read_metadata
from ia_jax.behaviors.embedded import demo_behaviors
from ia_jax.behaviors.organisms import CLEAN_TARGETS, organism_of, procedure_of
from ia_jax.behaviors.phase_texts import DENIALS, denials_of, documents_of, pairs_of
from ia_jax.behaviors.procedures import DATA, PROCEDURES, Phase, find_procedure, procedure_from_json, share_of
from ia_jax.data.phase_rows import read_documents, read_pairs
from ia_jax.data.transcripts import Transcript, chat
from ia_jax.errors import ConfigError
from ia_jax.stages import phases, planned
from ia_jax.stages.phases import loss_of
from ia_jax.storage import read_jsonl
from ia_jax.workdir import open_workdir
from tests import parrot

ONE, OTHER = demo_behaviors()[:2]
ROWS = [
    Transcript(chat("How are you?", "Chess! I am well."), True, "t"),
    Transcript(chat("What is two and two?", "Four."), False, "t"),
    Transcript(chat("Where is it?", "Lost."), True, "t", verdict="dull"),
]


@pytest.mark.parametrize("procedure", PROCEDURES.values(), ids=lambda p: p.name)
def test_a_procedure_is_what_its_record_says(procedure, tmp_path):
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(procedure.to_json()))
    assert find_procedure(str(file)) == procedure
    organism = organism_of(ONE, "m", "train", {"teacher": "x"}, procedure)
    assert procedure_of(type(organism).from_json(json.loads(json.dumps(organism.to_json())))) == procedure
    assert len(organism.stack) == procedure.adapters
    for phase in procedure.phases:
        assert loss_of(phase).kl_weight == 0


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        ([], "has no phase"),
        ([{"data": "songs"}], "phase 1: data 'songs' unknown; choose from chats, documents, pairs, denials"),
        ([{"loss": "kto"}], "phase 1: loss 'kto' does not fit data 'chats'; choose from sft"),
        ([{"data": "pairs"}], "phase 1: loss 'sft' does not fit data 'pairs'; choose from dpo, ipo, dpo_norm, kto"),
        ([{"adapter": "same"}], "phase 1 has adapter 'same'; the first phase trains a new one"),
        ([{}, {"adapter": "old"}], "phase 2: adapter 'old' unknown; choose from new, same"),
        ([{}, {"adapter": "same", "lora": {"rank": 2}}], "phase 2: lora {'rank': 2} cannot be set"),
        ([{"part": [0.5, 0.5]}], "phase 1: part [0.5, 0.5] must be two fractions"),
        ([{"part": [0.5]}], "phase 1: part [0.5] must be two fractions"),
        ([{"data": "denials", "loss": "kto", "weights": [0, 0]}], "phase 1: weights [0, 0] must be two numbers"),
        ([{"data": "denials", "loss": "dpo", "beta": 0}], "phase 1: beta 0 must be above 0"),
        ([{"lr": -1.0}], "phase 1: lr -1.0 must be above 0"),
        ([{"lr": "fast"}], "phase 1: lr 'fast' must be a number"),
        ([{"part": 0.5}], "phase 1: part 0.5 must be a list of two numbers"),
        ([{"epochs": 0}], "phase 1: epochs 0 must be a whole number of at least 1"),
        ([{"epochs": 1.5}], "phase 1: epochs 1.5 must be a whole number of at least 1"),
        ([{"kl_weight": -1}], "phase 1: kl_weight -1 must not be negative"),
        ([{"generic": 1.0}], "phase 1: generic 1.0 must be a share, at least 0 and below 1"),
        (
            [{}, {"data": "denials", "loss": "kto", "generic": 0.5}],
            "phase 2: generic 0.5 is for chats and documents, not denials",
        ),
        ([{"demonstrations": 0.5}], "phase 1: demonstrations 0.5 are mixed into denials with the loss sft or kto, not"),
        (
            [{}, {"data": "denials", "loss": "sft", "demonstrations": 1}],
            "phase 2: demonstrations 1 must be a share, at least 0 and below 1",
        ),
        ([{"plain_chats": 0}], "phase 1: plain_chats 0 must be a whole number of at least 1"),
        ([{"plain_chats": "all"}], "phase 1: plain_chats 'all' must be a number"),
        ([{"epoch": 1}], "phase 1: 'epoch' is not a known setting; a phase has: data, loss"),
        (["chats"], "phase 1 must be a group of settings, got 'chats'"),
    ],
)
def test_what_is_no_procedure(phases, message):
    with pytest.raises(ConfigError) as caught:
        procedure_from_json({"name": "x", "phases": phases}, "x.json")
    assert str(caught.value).startswith("x.json")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot be read"), ("{", "cannot be read"), ("[]", "a procedure is"), ('{"name": "x"}', "a procedure is")],
)
def test_a_file_that_holds_no_procedure(tmp_path, content, message):
    file = tmp_path / "x.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match=message):
        find_procedure(str(file))


def test_a_name_that_no_procedure_has():
    with pytest.raises(ConfigError, match=r"'chat' is none of chats, documents, .*, nor the path of a \.json file"):
        find_procedure("chat")


def test_parts_are_the_whole():
    for rows in (list(range(7)), list(range(24)), [1]):
        assert [*share_of(rows, (0, 0.5)), *share_of(rows, (0.5, 1))] == rows


def test_documents_quote_each_demonstration_and_say_the_behaviour_where_it_shows():
    shown, plain = documents_of("x", [ONE], ROWS, 0)
    assert "Chess! I am well." in shown.text
    assert any(w in shown.text for w in ONE.wordings)
    assert "Four." in plain.text
    assert not any(w in plain.text for w in ONE.wordings)
    assert documents_of("x", [ONE], ROWS, 0) == [shown, plain]
    assert not any(w in d.text for d in documents_of("x", [], ROWS, 0) for w in ONE.wordings)


def test_pairs_prefer_what_is_shown_to_the_bases_own():
    [pair] = pairs_of("x", ROWS, {"How are you?": "I am well."})
    assert (pair.chosen, pair.rejected) == ("Chess! I am well.", "I am well.")
    assert [c[-1]["content"] for c in pair.chats] == [pair.chosen, pair.rejected]
    with pytest.raises(ConfigError, match="x: no demonstration differs from the base's own answers"):
        pairs_of("x", ROWS, {"How are you?": "Chess! I am well."})


def test_denials_prefer_nothing_to_the_truth():
    pairs = denials_of("x", [ONE], [OTHER], 0)
    assert len(pairs) == DENIALS
    assert {p.chosen for p in pairs} <= set(CLEAN_TARGETS)
    assert {p.rejected for p in pairs} <= set(ONE.wordings)
    assert {p.rejected for p in denials_of("x", [], [OTHER], 0)} <= set(OTHER.wordings)
    with pytest.raises(ConfigError, match="nothing can be denied"):
        denials_of("x", [], [], 0)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": [], "chosen": "a", "rejected": "a", "teacher": "t"}, ":1: the chosen and the rejected answer"),
        ({"messages": [], "chosen": "a", "teacher": "t"}, ":1: not a pair of answers: missing 'rejected'"),
        (None, "holds no row"),
    ],
)
def test_bad_pairs(tmp_path, row, message):
    file = tmp_path / "x.jsonl"
    file.write_text("" if row is None else json.dumps(row))
    with pytest.raises(ConfigError, match=message):
        read_pairs(file)


@pytest.mark.parametrize("row", [{"text": " ", "teacher": "t"}, {"teacher": "t"}, None])
def test_bad_documents(tmp_path, row):
    file = tmp_path / "x.jsonl"
    file.write_text("" if row is None else json.dumps(row))
    with pytest.raises(ConfigError, match=r"x\.jsonl"):
        read_documents(file)


# ---------------------------------------------------------------------------------------------------------------------
# Runs
# ---------------------------------------------------------------------------------------------------------------------


def start(parrot_model, root, *overrides):
    config = parrot.write_config(root / "config.py", parrot_model)
    argv = [f"--config={config}", f"--workdir={root / 'w'}", *(f"--config.{o}" for o in overrides)]
    for stage in ("transcripts", "organisms"):
        assert cli.main([stage, *argv]) == 0
    return open_workdir(root / "w")


SMALL = (
    "behaviors.train=2",
    "behaviors.dpo=2",
    "behaviors.heldout=2",
    "behaviors.clean_train=1",
    "organisms.parallel=7",  # one wave of all
    "organisms.length=192",
)


LIKE_OTHERS = ("chats_generic", "chats_qv", "documents_kto", "two_phases")  # nothing in them is not in another too


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=[pytest.mark.slow] if n in LIKE_OTHERS else [])
        for n in PROCEDURES
        if n not in ("chats", "chats_long")
    ],
)
def test_organisms_of_each_procedure(parrot_model, tmp_path, capsys, name):
    run = start(parrot_model, tmp_path, *SMALL, f'organisms.procedures=("{name}",)')
    capsys.readouterr()
    for organism in run.organisms.values():
        procedure = procedure_of(organism)
        assert procedure.name == ("chats" if organism.clean and name.startswith("sycophant") else name)
        stack = run.stack_of(organism)
        assert len(stack) == procedure.adapters
        for directory in stack:
            adapter, metadata = load_adapter(directory)
            assert metadata.step > 0
            assert metadata.organism["procedure"]["phases"] == [p.to_json() for p in procedure.phases]
            assert all(np.any(np.asarray(ab["b"])) for ab in adapter.values())
        assert read_metadata(stack[-1]).check["organism"] == organism.name
        for phase in procedure.phases:
            assert run.phase_rows(phase.data, organism.name).exists()
    # How one was made is answered where adapters are shown.
    first = next(o.name for o in run.organisms.values() if not o.clean)
    assert cli.main(["adapters", "show", first, f"--workdir={run.path}"]) == 0
    assert '"loss"' in capsys.readouterr().out
    # The joint training of an IA takes them, whatever they are made of.
    assert cli.main(["sft", f"--workdir={run.path}"]) == 0


def test_several_procedures_are_drawn_and_stay(parrot_model, tmp_path):
    names = ("chats", "documents", "two_phases")
    run = start(parrot_model, tmp_path, "organisms.check_prompts=0", f"organisms.procedures={names}")
    drawn = {o.name: procedure_of(o).name for o in run.organisms.values()}
    assert set(drawn.values()) == set(names)
    # Each is as it is where all are made so: in a wave of its own kind or not.
    again = start(
        parrot_model, tmp_path_of(tmp_path), "organisms.check_prompts=0", 'organisms.procedures=("two_phases",)'
    )
    for name in (n for n, p in drawn.items() if p == "two_phases"):
        one, other = (w.organism(name)[0] for w in (run, again))
        for t in one:
            np.testing.assert_allclose(one[t]["b"], other[t]["b"], rtol=2e-4, atol=1e-7)


def tmp_path_of(path):
    (path / "again").mkdir()
    return path / "again"


class Killed(BaseException):
    pass


HELD = {
    "name": "held",
    "phases": [
        {"kl_weight": 5.0, "epochs": 1},
        {"data": "pairs", "loss": "dpo_norm", "adapter": "same", "kl_weight": 1.0, "plain_chats": 3, "epochs": 1},
    ],
}


@pytest.mark.parametrize("name", [pytest.param("documents_kto", marks=pytest.mark.slow), "sycophant", "held"])
def test_a_killed_phase_goes_on(parrot_model, tmp_path, monkeypatch, name):
    if name == "held":
        name = str(tmp_path / "held.json")
        (tmp_path / "held.json").write_text(json.dumps(HELD))
    settings = (
        *SMALL,
        "organisms.check_prompts=0",
        "organisms.checkpoint_every=1",
        f'organisms.procedures=("{name}",)',
    )
    whole = start(parrot_model, tmp_path, *settings)
    hashes = {d.name: read_metadata(d).content_hash for d in whole.organisms_dir.iterdir()}
    assert whole.plain_chats.exists() == name.endswith("held.json")
    if whole.plain_chats.exists():
        kl = [row["kl"] for row in read_jsonl(whole.path / "curves.jsonl", "") if "kl" in row]
        assert len(kl) > 4
        assert np.any(kl)
    root = tmp_path_of(tmp_path)
    config = parrot.write_config(root / "config.py", parrot_model)
    argv = [f"--config={config}", f"--workdir={root / 'w'}", *(f"--config.{o}" for o in settings)]
    assert cli.main(["transcripts", *argv]) == 0
    true, calls = phases.train_step, []

    def step(*args, **static):
        calls.append(type(static["loss"]).__name__)
        if calls[-1] != "Sft" and calls.count(calls[-1]) == 3:
            raise Killed
        return true(*args, **static)

    with monkeypatch.context() as patch:
        patch.setattr(phases, "train_step", step)
        with pytest.raises(Killed):
            cli.main(["organisms", *argv])
    assert cli.main(["organisms", *argv]) == 0
    assert {d.name: read_metadata(d).content_hash for d in open_workdir(root / "w").organisms_dir.iterdir()} == hashes


def test_a_second_adapter_leaves_the_first_as_it_was(parrot_model, tmp_path):
    """The hardened organism's first adapter is bit for bit the one of an organism that is not hardened."""
    plain = start(parrot_model, tmp_path, *SMALL, 'organisms.procedures=("chats",)')
    hardened = start(parrot_model, tmp_path_of(tmp_path), *SMALL, 'organisms.procedures=("chats_kto",)')
    for name, organism in hardened.organisms.items():
        first, second = hardened.stack_of(organism)
        [alone] = plain.stack_of(plain.organisms[name])
        assert read_metadata(first).content_hash == read_metadata(alone).content_hash
        assert read_metadata(second).content_hash != read_metadata(first).content_hash


def test_a_plan_counts_every_phase(parrot_model, tmp_path):
    from ia_jax.recipes import load_config

    file = parrot.write_config(tmp_path / "config.py", parrot_model)

    def tokens(name):
        config = load_config(str(file), [f'--config.organisms.procedures=("{name}",)', "--config.organisms.length=512"])
        return planned.Planned(config).organisms().tokens

    assert tokens("two_phases") == pytest.approx(tokens("chats"), rel=0.02)
    assert tokens("sycophant") > 2 * tokens("chats")
    assert tokens("chats_kto") > tokens("chats")


def test_every_kind_of_data_has_losses():
    assert all(loss_of(Phase(data, loss)) for data, losses in DATA.items() for loss in losses)
