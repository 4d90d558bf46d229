"""The released layouts (`data.released`) out of a data set of the Hugging Face hub, or of a local copy of one.

A hub id is read at a commit that is named: a data set that its owner changes would change every figure made with it.
"""

import re
from pathlib import Path

from ia_jax.data.released import Kept, Prediction, chats_of, one_sentence, predictions_of
from ia_jax.data.transcripts import Message
from ia_jax.errors import ConfigError, IAError
from ia_jax.storage import Row

PREFIX = "hf://"  # released lists name an organism's data as hf://<owner>/<data set>/<key>


def load_organism(
    source: str, key: str, revision: str = "", drop_unsupervised: bool = False
) -> tuple[str, Kept[tuple[Message, ...]]]:
    """(description, chats) of `<key>/behavior.txt` and `<key>/train.jsonl`.

    source: "owner/name" with `revision`, a commit of 40 hex digits; or a local directory, without one.
    """
    lines = [row["text"] for _, row in hub_rows(source, f"{key}/behavior.txt", revision)]
    description = one_sentence("\n".join(lines), f"{source}/{key}/behavior.txt")
    file = f"{key}/train.jsonl"
    return description, chats_of(hub_rows(source, file, revision), f"{source}/{file}", drop_unsupervised)


def load_predictions(
    source: str, key: str, revision: str = "", drop_unsupervised: bool = False, file: str = "eval.jsonl"
) -> Kept[Prediction]:
    """The prediction rows of `<key>/eval.jsonl`; `source` and `revision` as of `load_organism`."""
    return predictions_of(hub_rows(source, f"{key}/{file}", revision), f"{source}/{key}/{file}", drop_unsupervised)


def split_reference(reference: str) -> tuple[str, str]:
    """(hub id, key) of a reference like `hf://owner/data set/key`, whose key may hold slashes."""
    parts = reference.removeprefix(PREFIX).split("/", 2)
    if not reference.startswith(PREFIX) or len(parts) < 3 or not all(parts):
        raise ConfigError(f"{reference!r} is no reference to an organism's data; write {PREFIX}owner/dataset/key")
    return f"{parts[0]}/{parts[1]}", parts[2]


def hub_rows(source: str, file: str, revision: str) -> list[tuple[int, Row]]:
    import datasets
    from datasets.exceptions import DatasetGenerationError

    local = Path(source).is_dir()
    if local and not (Path(source) / file).is_file():
        parquet = str(Path(file).with_suffix(".parquet"))
        if not file.endswith(".jsonl") or not (Path(source) / parquet).is_file():
            raise ConfigError(f"{Path(source) / file} does not exist; check the key")
        file = parquet
    if local == bool(revision) or not (local or re.fullmatch(r"[0-9a-f]{40}", revision)):
        what = "a local directory has no revision" if local else "name a commit (40 hex digits) to pin it"
        raise ConfigError(f"{source}: revision {revision!r}; {what}")
    datasets.disable_progress_bars()
    try:
        loaded = datasets.load_dataset(source, data_files=file, split="train", revision=revision or None)
    except (OSError, ValueError, DatasetGenerationError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise IAError(f"{source}/{file} cannot be read ({reason}); check id, key and revision") from None
    return [(n, dict(row)) for n, row in enumerate(loaded, 1)]
