"""Data out of a workdir and into one: `ia-jax export-data` and `ia-jax import-data`.

In come the paper's released layouts (`data.released`), from a local copy or the hub; out go tables that `datasets`
loads, or the released layouts again.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ia_jax.behaviors.catalogue import is_name
from ia_jax.behaviors.organisms import organism_of
from ia_jax.behaviors.records import CATEGORIES, Behavior
from ia_jax.behaviors.splits import SPLITS
from ia_jax.data.hub import PREFIX, load_organism, load_predictions, split_reference
from ia_jax.data.released import Prediction, write_model_list, write_organism, write_predictions, write_splits
from ia_jax.data.transcripts import Transcript, read_transcripts, write_transcripts
from ia_jax.errors import ConfigError
from ia_jax.storage import Row, read_jsonl, write_jsonl, write_text
from ia_jax.workdir import Workdir

LAYOUTS = ("organisms", "predictions")
TEACHER = "imported"  # stands in the transcripts


@dataclass(frozen=True)
class Imported:
    """One key of a data set: what is true of the organism, and its demonstrations (none in prediction rows)."""

    behavior: Behavior
    transcripts: tuple[Transcript, ...]
    dropped: Mapping[str, int]


# ---------------------------------------------------------------------------------------------------------------- in


def load(
    source: str,
    keys: Sequence[str],
    category: str,
    *,
    layout: str = "organisms",
    revision: str = "",
    drop_unsupervised: bool = False,
) -> list[Imported]:
    """Reads a data set in a released layout: all of its keys (a local one's, if none is given).

    source: a directory, "owner/name" with a `revision`, or hf://owner/name/key.
    layout: "organisms" (`<key>/train.jsonl` and `<key>/behavior.txt`) or "predictions" (`<key>/eval.jsonl`, whose
    commonest answer becomes the description and whose others its rewordings); either may be Parquet.
    Raises ConfigError naming what is missing or wrong.
    """
    if category not in CATEGORIES:
        raise ConfigError(f"--category={category} unknown; choose from {', '.join(CATEGORIES)}")
    if source.startswith(PREFIX):
        source, key = split_reference(source)
        keys = (*keys, key)
    if not keys:
        keys = _keys_in(Path(source), "behavior.txt" if layout == "organisms" else "eval.*")
    out = []
    for key in keys:
        name = key.strip("/").replace("/", "_")
        if not is_name(name):
            raise ConfigError(f"{source}: the key {key!r} makes no name; it must be letters, digits, _, - and /")
        if layout == "organisms":
            description, chats = load_organism(source, key, revision, drop_unsupervised)
            transcripts = tuple(Transcript(messages, shows=True, teacher=TEACHER) for messages in chats.rows)
            out.append(Imported(Behavior(name, category, description, (), None), transcripts, chats.dropped))
        else:
            rows = load_predictions(source, key, revision, drop_unsupervised)
            description, *others = [a for a, _ in Counter(p.answer.strip() for p in rows.rows).most_common()]
            out.append(Imported(Behavior(name, category, description, tuple(others), None), (), rows.dropped))
    twice = [n for n, count in Counter(x.behavior.name for x in out).items() if count > 1]
    if twice:
        raise ConfigError(f"{source}: two keys make the name {twice[0]!r}; import them one by one")
    return out


def _keys_in(directory: Path, file: str) -> list[str]:
    if not directory.is_dir():
        raise ConfigError(f"{directory} is no directory; of a hub id, name the keys with --key and a --revision")
    keys = sorted({str(p.parent.relative_to(directory)) for p in directory.rglob(file)})
    if not keys:
        raise ConfigError(f"{directory} holds no <key>/{file}; is it of the other --layout ({', '.join(LAYOUTS)})?")
    return keys


def into_directory(imported: Sequence[Imported], directory: Path) -> str:
    """`behaviors.jsonl`, a catalogue for `config.behaviors.catalogue`, and `transcripts/`; says what was written."""
    for x in imported:
        if x.transcripts:
            write_transcripts(directory / "transcripts" / f"{x.behavior.name}.jsonl", x.transcripts)
    write_jsonl(directory / "behaviors.jsonl", (x.behavior.to_json() for x in imported))
    return f"{_summary(imported)} -> {directory}"


def into_workdir(imported: Sequence[Imported], workdir: Workdir, split: str) -> str:
    """Adds organisms with these demonstrations, which `ia-jax organisms` then trains; says what was added.

    Raises ConfigError, before anything is written, for a name that is taken or data without demonstrations.
    """
    if split not in SPLITS:
        raise ConfigError(f"--split={split} unknown; choose from {', '.join(SPLITS)}")
    taken = workdir.organisms.keys() | workdir.behaviors.keys()
    for x in imported:
        if x.behavior.name in taken:
            raise ConfigError(f"{workdir.path} has an organism or behaviour {x.behavior.name!r} already; leave it out")
        if not x.transcripts:
            raise ConfigError(
                f"{x.behavior.name}: prediction rows hold no demonstrations to train on; write them --to a directory"
            )
    base, made = workdir.config.model.name, {"teacher": TEACHER}
    organisms = [organism_of(x.behavior, base, split, made) for x in imported]
    for x in imported:
        write_transcripts(workdir.transcript(x.behavior.name), x.transcripts)
    behaviors = (*workdir.behaviors.values(), *(x.behavior for x in imported))
    write_jsonl(workdir.behaviors_file, (b.to_json() for b in behaviors))
    write_jsonl(workdir.organisms_file, (o.to_json() for o in (*workdir.organisms.values(), *organisms)))
    return f"{_summary(imported)} -> {workdir.path} ({split}); `ia-jax organisms` trains them"


def _summary(imported: Sequence[Imported]) -> str:
    dropped = sum((Counter(x.dropped) for x in imported), Counter[str]())
    left_out = "".join(f", {n} rows {why} and left out" for why, n in sorted(dropped.items()))
    rows = sum(len(x.transcripts) for x in imported)
    return f"{len(imported)} behaviours, {rows} demonstrations{left_out}"


# --------------------------------------------------------------------------------------------------------------- out


def export(workdir: Workdir, directory: Path, form: str = "parquet") -> str:
    """Writes what a workdir holds as tables, with a card, or in the released layouts; says what was written.

    form: "parquet" and "jsonl" (a file for each table, which `datasets.load_dataset(directory, table)` reads by way of
    the card), "arrow" (`datasets.load_from_disk`) or "released". Stages that have not run are left out.
    """
    if form == "released":
        return _export_released(workdir, directory)
    import datasets

    datasets.disable_progress_bars()
    written: dict[str, datasets.Dataset] = {}
    for name, rows in _tables(workdir):
        table = datasets.Dataset.from_list(rows)
        if form == "arrow":
            table.save_to_disk(directory / name)
        else:
            directory.mkdir(parents=True, exist_ok=True)
            write = table.to_parquet if form == "parquet" else table.to_json
            write(directory / f"{name}.{form}")
        written[name] = table
    if form != "arrow":
        write_text(directory / "README.md", _card(workdir, written, form))
    return f"{workdir.path} -> {directory}: " + ", ".join(f"{len(t)} {n}" for n, t in written.items())


def _tables(workdir: Workdir) -> Iterator[tuple[str, list[Row]]]:
    """(name, rows) of each table that has any. Nested records without fixed fields are JSON texts."""
    truths, organisms = workdir.behaviors, workdir.organisms
    yield "behaviors", [_texts(b.to_json(), "rubric", "spec") for b in truths.values()]
    yield "organisms", [_texts(o.to_json(), "procedure") for o in organisms.values()]
    transcripts = [
        {"organism": name, **row}
        for name in organisms
        if workdir.transcript(name).exists()
        for row in read_jsonl(workdir.transcript(name), "run `ia-jax transcripts` again")
    ]
    pairs = [
        {"preferences": file.stem, **_texts(row, "scores")}
        for file in sorted((workdir.path / "preferences").glob("*.jsonl"))
        for row in read_jsonl(file, "run `ia-jax preferences` again")
    ]
    reports = [{"eval": name, **row} for name in workdir.evaluations() for row in workdir.reports(name)]
    for name, rows in (("transcripts", transcripts), ("preferences", pairs), ("reports", reports)):
        if rows:
            yield name, rows


def _texts(row: Mapping[str, Any], *fields: str) -> Row:
    return {k: json.dumps(v, ensure_ascii=False) if k in fields else v for k, v in row.items()}


def _card(workdir: Workdir, tables: Mapping[str, Any], form: str) -> str:
    """A dataset card, whose head tells `datasets` and the hub which tables there are."""
    configs = "".join(f"- config_name: {name}\n  data_files: {name}.{form}\n" for name in tables)
    about = {
        "behaviors": "what organisms learned, in the first person; `rubric` and `spec` are JSON",
        "organisms": "the models: base, adapters, behaviours, split; `procedure` is JSON",
        "transcripts": "demonstrations that organisms were trained on, and what a filter dropped (`verdict`)",
        "preferences": "pairs of reports for DPO; `scores` is JSON",
        "reports": "reports of an evaluation under the four conditions, with the judge's verdicts",
    }
    lines = [f"| {name} | {len(table)} | {about[name]} |" for name, table in tables.items()]
    splits = Counter(o.split for o in workdir.organisms.values())
    return "\n".join(
        [
            f"---\nconfigs:\n{configs}---\n",
            "# Introspection-adapter run\n",
            f"Base model: `{workdir.config.model.name}`. Organisms: "
            + ", ".join(f"{n} {s}" for s, n in sorted(splits.items()))
            + ". Written by `ia-jax export-data`.\n",
            "| table | rows | |\n|---|---|---|",
            *lines,
            "",
        ]
    )


def _export_released(workdir: Workdir, directory: Path) -> str:
    """`<organism>/train.jsonl`, `behavior.txt` and, of what has been evaluated, `eval.jsonl`; lists of them."""
    asked: dict[str, list[str]] = {}
    for evaluation in workdir.evaluations():
        for row in workdir.reports(evaluation):
            asked.setdefault(row["organism"], []).append(row["question"])
    taught = [o for o in workdir.organisms.values() if o.behaviors and workdir.transcript(o.name).exists()]
    if not taught:
        raise ConfigError(f"{workdir.path} holds no transcripts to export; run `ia-jax transcripts` first")
    for o in taught:
        description = " ".join(b.description for b in workdir.truths(o.name))
        write_organism(directory / o.name, description, read_transcripts(workdir.transcript(o.name)))
        questions: Iterable[str] = dict.fromkeys(asked.get(o.name, ()))
        if questions:
            predictions = (Prediction(q, description, o.system or None) for q in questions)
            write_predictions(directory / o.name / "eval.jsonl", predictions)
    write_model_list(directory / "models.json", [o.name for o in taught])
    write_splits(directory / "splits.json", {o.name: o.split for o in taught}, workdir.config.seed)
    return f"{workdir.path} -> {directory}: {len(taught)} organisms in the released layouts, with their splits"
