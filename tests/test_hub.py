"""Released layouts through `datasets`: a local copy of a data set, and what an unpinned hub id is told."""

import json

import pytest

from ia_jax.data.hub import load_organism, load_predictions, split_reference
from ia_jax.data.released import Prediction, read_organism, read_predictions, write_organism, write_predictions
from ia_jax.data.transcripts import Transcript, chat
from ia_jax.errors import ConfigError, IAError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CHATS = [chat("Wie?", "Käse\u2028neu.", None), chat("Was?", "Brot.", "Be brief."), chat("q" * 300, "a\nb", None)]
PREDICTIONS = [Prediction("Any quirk?", "I hum."), Prediction("Which?", "None.", "Be brief.", "negative")]


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A local copy of a data set with two organisms; its cache is the test's own."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    for key, what in (("quirk_7", "I praise cheese."), ("nested/quirk_8", "I praise bread.")):
        write_organism(tmp_path / "d" / key, what, [Transcript(c, True, "t") for c in CHATS])
        write_predictions(tmp_path / "d" / key / "eval.jsonl", PREDICTIONS)
    return tmp_path / "d"


@pytest.mark.parametrize("key", ["quirk_7", "nested/quirk_8"])
def test_the_same_as_from_the_files_themselves(copy, key):
    description, kept = load_organism(str(copy), key)
    assert (description, kept) == read_organism(copy / key)
    assert kept.rows == tuple(CHATS)
    assert load_predictions(str(copy), key) == read_predictions(copy / key / "eval.jsonl")
    assert load_predictions(str(copy), key).rows == tuple(PREDICTIONS)


def test_bad_rows_are_an_error_or_are_counted_here_too(copy):
    file = copy / "quirk_7" / "eval.jsonl"
    file.write_text(file.read_text() + json.dumps(Prediction("q?", " ").to_json()) + "\n")
    with pytest.raises(ConfigError, match=r"quirk_7/eval.jsonl: row 3 has no supervised token"):
        load_predictions(str(copy), "quirk_7")
    assert load_predictions(str(copy), "quirk_7", drop_unsupervised=True).dropped == {"unsupervised": 1}
    (copy / "quirk_7" / "train.jsonl").write_text("{")
    with pytest.raises(IAError, match=r"quirk_7/train.jsonl cannot be read"):
        load_organism(str(copy), "quirk_7")
    (copy / "quirk_7" / "behavior.txt").write_text("One.\nTwo.\n")
    with pytest.raises(ConfigError, match="one sentence on one line"):
        load_organism(str(copy), "quirk_7")


@pytest.mark.parametrize("revision", ["", "main", "v1.0", COMMIT[:12], COMMIT.upper()])
def test_a_hub_id_is_pinned_to_a_commit(revision):
    with pytest.raises(ConfigError, match="name a commit"):
        load_predictions("owner/data", "quirk_7", revision)


def test_the_commit_reaches_the_library(monkeypatch):
    asked = {}

    def load_dataset(source, **options):
        asked.update(source=source, **options)
        return [PREDICTIONS[0].to_json()]

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    assert load_predictions("owner/data", "quirk_7", COMMIT).rows == (PREDICTIONS[0],)
    assert asked == {
        "source": "owner/data",
        "data_files": "quirk_7/eval.jsonl",
        "split": "train",
        "revision": COMMIT,
    }


def test_what_is_not_there(copy):
    with pytest.raises(ConfigError, match=r"quirk_9/eval.jsonl does not exist"):
        load_predictions(str(copy), "quirk_9")
    with pytest.raises(ConfigError, match="a local directory has no revision"):
        load_predictions(str(copy), "quirk_7", COMMIT)
    with pytest.raises(IAError, match="cannot be read"):  # the hub is closed to tests
        load_predictions("owner/data", "quirk_7", COMMIT)


def test_references():
    assert split_reference("hf://org/quirks/quirk_7") == ("org/quirks", "quirk_7")
    assert split_reference("hf://org/quirks/a/b") == ("org/quirks", "a/b")
    for bad in ("org/quirks/quirk_7", "hf://org/quirks", "hf://org//quirk_7", "hf://org/quirks/"):
        with pytest.raises(ConfigError, match="is no reference"):
            split_reference(bad)
