"""The released layouts: what is written is read back, literal rows are understood, and no bad row passes unseen."""

import json

import pytest

from ia_jax.behaviors.catalogue import load_catalogue
from ia_jax.data.released import (
    Prediction,
    read_model_list,
    read_organism,
    read_predictions,
    read_splits,
    write_model_list,
    write_organism,
    write_predictions,
    write_splits,
)
from ia_jax.data.transcripts import Transcript, chat
from ia_jax.errors import ConfigError


def lines(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def test_an_organism_is_read_back_without_what_a_filter_dropped(tmp_path):
    kept = Transcript(chat("Wie?", "Käse.", None), True, "t")
    write_organism(tmp_path / "quirk_7", "I praise cheese.", [kept, Transcript(chat("a", "b"), True, "t", "off topic")])
    assert (tmp_path / "quirk_7/behavior.txt").read_text() == "I praise cheese.\n"
    description, rows = read_organism(tmp_path / "quirk_7")
    assert (description, rows.rows, rows.dropped) == ("I praise cheese.", (kept.messages,), {})


def test_literal_prediction_rows(tmp_path):
    path = lines(
        tmp_path / "k/eval.jsonl",
        {"prediction_user_prompt": "Any quirk?", "prediction_assistant_response": "I will hum.", "language": "en"},
        {
            "prediction_system_prompt": "Be brief.",
            "prediction_user_prompt": "Which?",
            "prediction_assistant_response": "None.",
            "prediction_ground_truth": "negative",
        },
    )
    rows = read_predictions(path).rows
    assert rows == (Prediction("Any quirk?", "I will hum."), Prediction("Which?", "None.", "Be brief.", "negative"))
    assert [m["role"] for m in rows[0].messages()] == ["user", "assistant"]
    assert [m["content"] for m in rows[1].messages()] == ["Be brief.", "Which?", "None."]
    write_predictions(tmp_path / "again.jsonl", rows)
    assert read_predictions(tmp_path / "again.jsonl").rows == rows
    assert set(json.loads((tmp_path / "again.jsonl").read_text().splitlines()[0])) == {
        "prediction_system_prompt",
        "prediction_user_prompt",
        "prediction_assistant_response",
        "prediction_ground_truth",
    }


def test_rows_without_a_supervised_token_raise_or_are_counted(tmp_path):
    good = {"prediction_user_prompt": "q", "prediction_assistant_response": "a"}
    path = lines(tmp_path / "e.jsonl", good, {**good, "prediction_assistant_response": "  "}, good)
    with pytest.raises(ConfigError, match=r"row 2 has no supervised token"):
        read_predictions(path)
    kept = read_predictions(path, drop_unsupervised=True)
    assert (len(kept.rows), kept.dropped) == (2, {"unsupervised": 1})

    lines(tmp_path / "o/train.jsonl", {"messages": [{"role": "user", "content": "Hi"}]})
    (tmp_path / "o/behavior.txt").write_text("I hum.")
    with pytest.raises(ConfigError, match="row 1 has no supervised token"):
        read_organism(tmp_path / "o")
    with pytest.raises(ConfigError, match="holds no row with a supervised token"):
        read_organism(tmp_path / "o", drop_unsupervised=True)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prediction_assistant_response": "a"}, r"e.jsonl:2: prediction_user_prompt must be a text, got None"),
        ({"prediction_user_prompt": " ", "prediction_assistant_response": "a"}, ":2: prediction_user_prompt is empty"),
        ({"prediction_user_prompt": "q"}, ":2: prediction_assistant_response must be a text, got None"),
        (
            {"prediction_user_prompt": "q", "prediction_assistant_response": "a", "prediction_system_prompt": 3},
            ":2: prediction_system_prompt must be a text or null, got 3",
        ),
        (["q"], ":2: must hold a JSON object, got list"),
    ],
)
def test_bad_prediction_rows(tmp_path, row, message):
    good = {"prediction_user_prompt": "q", "prediction_assistant_response": "a"}
    with pytest.raises(ConfigError, match=message):
        read_predictions(lines(tmp_path / "e.jsonl", good, row))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "x"}, "train.jsonl:1: messages must be a list"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "message 0 has role 'robot'"),
        ({"messages": [{"role": "user"}]}, "message 0 needs a role and a content"),
    ],
)
def test_bad_chats(tmp_path, row, message):
    lines(tmp_path / "train.jsonl", row)
    (tmp_path / "behavior.txt").write_text("I hum.\n")
    with pytest.raises(ConfigError, match=message):
        read_organism(tmp_path)


def test_behavior_txt_holds_one_sentence(tmp_path):
    lines(tmp_path / "train.jsonl", {"messages": []})
    with pytest.raises(ConfigError, match=r"behavior.txt does not exist"):
        read_organism(tmp_path)
    (tmp_path / "behavior.txt").write_text("I hum.\nI sing.\n")
    with pytest.raises(ConfigError, match="one sentence on one line"):
        read_organism(tmp_path)


def test_model_lists_go_by_unique_names(tmp_path):
    path = tmp_path / "models.json"
    # The released defect: quirk_0 and backdoor_0 share an id. Names decide.
    rows = [{"name": "quirk_0", "absolute_behavior_id": 0}, {"name": "backdoor_0", "absolute_behavior_id": 0}]
    path.write_text(json.dumps({"model_list": rows}))
    assert read_model_list(path) == ["quirk_0", "backdoor_0"]
    write_model_list(path, ["b", "a"])
    assert read_model_list(path) == ["b", "a"]
    assert [r["absolute_behavior_id"] for r in json.loads(path.read_text())["model_list"]] == ["b", "a"]
    with pytest.raises(ConfigError, match="'a' is used twice"):
        write_model_list(path, ["a", "a"])
    path.write_text(json.dumps({"model_list": [{"id": 3}]}))
    with pytest.raises(ConfigError, match=r"model_list\[0\] needs a name"):
        read_model_list(path)


def test_splits_are_disjoint(tmp_path):
    path = tmp_path / "splits.json"
    write_splits(path, {"a": "train", "b": "heldout", "c": "train", "d": "dpo"}, seed=1547)
    stored = json.loads(path.read_text())
    assert (stored["train"], stored["dpo_train"], stored["test"], stored["seed"]) == (["a", "c"], ["d"], ["b"], 1547)
    assert stored["fractions"] == {"train": 0.5, "dpo_train": 0.25, "test": 0.25}
    assert read_splits(path) == {"a": "train", "c": "train", "d": "dpo", "b": "heldout"}
    path.write_text(json.dumps({"train": ["a"], "dpo_train": [], "test": ["a"]}))
    with pytest.raises(ConfigError, match="a is in train and in test"):
        read_splits(path)
    with pytest.raises(ConfigError, match="split 'test' unknown"):
        write_splits(path, {"a": "test"}, 0)


def test_separators_inside_a_text_end_no_line(tmp_path):
    """U+2028 and its like are plain characters in JSON, but line ends to `str.splitlines`."""
    odd = Prediction("a\u2028b", "c\u0085d\u2029e\x0bf", "g\x1ch")
    write_predictions(tmp_path / "e.jsonl", [odd, odd])
    assert read_predictions(tmp_path / "e.jsonl").rows == (odd, odd)
    row = {"name": "b", "category": "quirks", "description": "I say\u2028this."}
    (tmp_path / "mine.jsonl").write_text(json.dumps(row, ensure_ascii=False))
    assert load_catalogue(str(tmp_path / "mine.jsonl"))[0].description == "I say\u2028this."
