"""Whose claims a calibration is made of, whose it is measured on, and which nulls claims are only compared with."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ia_jax.adapters.record import RECORD
from ia_jax.adapters.store import is_complete, read_metadata, read_record
from ia_jax.audits.evidence.calibrating import threshold_nulls
from ia_jax.audits.targets import read_targets
from ia_jax.behaviors.organisms import Organism
from ia_jax.behaviors.records import Behavior
from ia_jax.errors import ConfigError
from ia_jax.evals.calibration import needed
from ia_jax.stages.context import Context
from ia_jax.stages.nulls import nulls_of
from ia_jax.stages.selection import present, untrained
from ia_jax.storage import path_of, read_json
from ia_jax.workdir import Workdir


@dataclass(frozen=True)
class Model:
    """One model to calibrate on. group: its category, of a null its sort, of an audit's target how it was made.
    truths: what is to be reported of it: of a null nothing, though it may have a harmless behaviour.
    """

    name: str
    directories: tuple[Path, ...]
    group: str
    organism: Organism | None = None
    truths: tuple[Behavior, ...] = ()

    @property
    def null(self) -> bool:
        return not self.truths

    @property
    def alike(self) -> str:
        """What it shares with others of its behaviour, which tell little more than one; of a null its own name."""
        return "+".join(sorted(b.name for b in self.truths)) or self.name

    @property
    def hashes(self) -> list[str]:
        """Of its adapters' content: evidence is of these, and of no others under the same name."""
        return [read_metadata(d).content_hash for d in self.directories]

    @property
    def truth(self) -> str:
        """A hash of what is true of it: evidence says which claims are right by that."""
        return hashlib.sha256(json.dumps([b.to_json() for b in self.truths]).encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        row = {"name": self.name, "directories": [str(d) for d in self.directories], "group": self.group}
        row["organism"] = None if self.organism is None else self.organism.to_json()
        return json.loads(json.dumps({**row, "truths": [b.to_json() for b in self.truths]}))

    @staticmethod
    def from_json(row: Mapping[str, Any]) -> "Model":
        own = None if row["organism"] is None else Organism.from_json(row["organism"])
        truths = tuple(map(Behavior.from_json, row["truths"]))
        return Model(row["name"], tuple(map(path_of, row["directories"])), row["group"], own, truths)


def trained_on(context: Context, ia: str) -> list[str]:
    """Organisms that an IA was trained on: by SFT, and the dpo split where it is not the one that SFT left."""
    workdir, config = context.workdir, context.config
    own = ia if workdir.seen_file(ia).exists() else config.sft.name
    names = [n for n in workdir.seen(own) if n in workdir.organisms]
    return names if ia == config.sft.name else [*names, *workdir.named("dpo")]


def models_of(
    context: Context,
    ia: str,
    splits: Sequence[str],
    nulls: Sequence[str],
    test: tuple[Sequence[str], Sequence[str]],
    bank: int,
    alpha: float,
) -> tuple[list[Model], list[Model], list[Model]]:
    """Models to calibrate on, nulls that are only compared with, and models to test it on. test: splits, and sorts."""
    workdir, seen = context.workdir, set(trained_on(context, ia))
    chosen = splits or (("dpo",) if not seen & set(workdir.named("dpo")) else ("heldout",))
    test_splits, test_sorts = test
    if both := sorted(set(chosen) & set(test_splits)):
        raise ConfigError(
            f"--test={both[0]}: the calibration of {ia} is made on that split; test on another, or give other --splits"
        )
    found = _organisms_of(context, seen, chosen, ia, "splits")
    apart = _organisms_of(context, seen, test_splits, ia, "test")
    more = [m for place in nulls for m in _nulls_in(context, path_of(place))] + _nulls_made(context)
    names = [m.name for m in (*found, *apart, *more)]
    if twice := next((n for n in names if names.count(n) > 1), None):
        raise ConfigError(f"two models to calibrate on are called {twice}; rename a directory")
    clean = [m for m in (*found, *more) if m.null]
    sorts = sorted({m.group for m in clean})
    if unknown := [s for s in test_sorts if s not in sorts]:
        raise ConfigError(
            f"--test-sorts: no clean fine-tune is of the sort {unknown[0]!r}; there are {', '.join(sorts)}"
        )
    tested = [*apart, *(m for m in clean if m.group in test_sorts)]
    clean = [m for m in clean if m.group not in test_sorts]
    beside = _spread(clean, bank)
    taken = {m.name for m in (*beside, *tested)}
    resting = threshold_nulls({m.name: m.group for m in clean if m.name not in taken})
    if len(resting) < needed(alpha):
        raise ConfigError(
            f"{len(clean)} clean fine-tunes leave {len(resting)} for the threshold, too few for a false-report rate of "
            f"{alpha:g}: it takes {needed(alpha)}, about {needed(alpha) * 3 // 2 + bank + 1} in all; make more with "
            "`ia-jax nulls`, give more with --nulls=DIR, or raise --alpha"
        )
    return [m for m in (*found, *more) if m.name not in taken], beside, tested


def _organisms_of(context: Context, seen: set[str], splits: Sequence[str], ia: str, option: str) -> list[Model]:
    """The organisms of these splits that the IA was not trained on, clean ones too. Raises ConfigError for a split that
    has none. option: the one that named the splits.
    """
    workdir, out = context.workdir, []
    for split in splits:
        every = present(context, split)
        organisms = [o for o in every if o.name not in seen]
        if every and not organisms:
            raise ConfigError(
                f"the IA {ia} was trained on the {split} split ({every[0].name}, …); take --{option} of others"
            )
        if not organisms:
            raise ConfigError(f"--{option}={split}: no organism is of that split; choose another")
        if missing := untrained(workdir, organisms):
            raise ConfigError(f"organism {missing[0]} is not trained; run `ia-jax organisms` first")
        out += [
            Model(o.name, workdir.stack_of(o), o.sort or o.category, o, tuple(workdir.truths(o.name)))
            for o in organisms
        ]
    return out


def audited_models(context: Context, ia: str, audit: str, known: Sequence[Model]) -> list[Model]:
    """The targets and nulls of an audit (`ia-jax audit-family`) under its directory's name: those whose behaviour its
    gate did not miss, as they are in the end, and neither controls nor what the IA or the calibration (known) has seen.

    Raises ConfigError where the audit is not finished.
    """
    home = Workdir(context.workdir.path / "audits" / audit)
    remedy = f"run `ia-jax audit-family` to its end first, or choose another audit than {audit!r}"
    metrics = read_json(home.path / "metrics.json", remedy)
    gates, apart, left_out = metrics.get("gates", {}), metrics.get("apart", []), home.left_out
    targets = {t.name: t for t in read_targets(home.path / "targets.jsonl")}
    stacks = [o.stack for o in home.organisms.values()]
    seen = {tuple(m.hashes) for m in known}
    for name in trained_on(context, ia):
        stack = context.workdir.stack_of(context.workdir.organisms[name])
        seen.add(tuple(read_metadata(d).content_hash for d in stack))
    out = []
    for o in home.organisms.values():
        if any(s[: len(o.stack)] == o.stack != s for s in stacks) or o.name in (*left_out, *apart):
            continue  # what was asked after fewer adapters, or is no target
        if o.name not in targets or (not targets[o.name].null and o.name not in gates):
            raise ConfigError(f"{home.path}: {o.name} was not audited; {remedy}")
        t = targets[o.name]
        if not t.null and gates[o.name]["fires"] is False:
            continue
        model = Model(o.name, home.stack_of(o), t.made_by or t.null, o, () if t.null else tuple(t.behaviors))
        if missing := [d for d in model.directories if not is_complete(d)]:
            raise ConfigError(f"{missing[0]}, of the target {o.name}, is gone; {remedy}")
        if tuple(model.hashes) not in seen:
            out.append(model)
    return out


def _nulls_made(context: Context) -> list[Model]:
    """Those of `ia-jax nulls`. Raises ConfigError where it is not finished."""
    home = nulls_of(context.workdir)
    if not home.organisms_file.exists():
        return []
    left_out = home.left_out
    nulls = [o for n, o in home.organisms.items() if n not in left_out]
    if missing := untrained(home, nulls):
        raise ConfigError(f"{home.path}: {missing[0]} is not trained; run `ia-jax nulls` again, which goes on")
    return [Model(o.name, home.stack_of(o), o.sort, o) for o in nulls]


def _nulls_in(context: Context, place: Path) -> list[Model]:
    """An adapter's directory, or those in a directory; a null's sort is what it was made with, else the directory."""
    own = [place] if (place / RECORD).exists() else sorted(p.parent for p in place.glob(f"*/{RECORD}"))
    if not own:
        raise ConfigError(f"--nulls={place}: no adapter of ia_jax is there; bring one in with `ia-jax import-peft`")
    out = []
    for directory in own:
        metadata = read_record(directory, context.model).metadata
        if metadata.behaviors:
            raise ConfigError(f"--nulls={directory} has the behaviour {metadata.behaviors[0].get('name')}: no null")
        sort = ((metadata.organism or {}).get("procedure") or {}).get("sort") or directory.parent.name
        out.append(Model(directory.name, (directory.absolute(),), sort))
    return out


def _spread(clean: Sequence[Model], count: int) -> list[Model]:
    """`count` nulls, of every sort in turn."""
    sorts = {
        s: sorted((m for m in clean if m.group == s), key=lambda m: m.name) for s in sorted({m.group for m in clean})
    }
    turns = [own[n] for n in range(max(map(len, sorts.values()), default=0)) for own in sorts.values() if n < len(own)]
    return turns[:count]
