"""A workdir opened for an audit: its base, the targets and the IA on the devices, and who answers for what.

Task, providers and the scripted investigator of one process share it.
"""

import contextlib
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax

from ia_jax.adapters.bank import open_bank
from ia_jax.adapters.store import is_complete
from ia_jax.audits.investigator.engine import Engine
from ia_jax.audits.investigator.requests import BASE
from ia_jax.audits.investigator.service import Service
from ia_jax.audits.targets import Target, organism_target, read_targets, stored_stack
from ia_jax.claude.client import Client
from ia_jax.config import RunConfig
from ia_jax.errors import ConfigError
from ia_jax.judging.claude_judge import ClaudeJudge
from ia_jax.judging.offline import OfflineJudge
from ia_jax.judging.protocol import Judge
from ia_jax.judging.rubric import RubricJudge
from ia_jax.judging.verbatim import Verbatim
from ia_jax.models.weights import DTYPES, Model, load_model
from ia_jax.parallel.distributed import is_multi_process
from ia_jax.parallel.mesh import TRAINING, make_mesh
from ia_jax.storage import locked, path_of
from ia_jax.workdir import Workdir, open_workdir

FAMILY = "auditbench"


@dataclass
class Session:
    """What is open. ia: the IA's name, "" for none.

    The workdir stays locked until `close`, since answers that were paid for are written to it. home: where results
    lie, if not where `investigate` puts them.
    """

    workdir: Workdir
    config: RunConfig
    model: Model
    targets: dict[str, Target]
    ia: str
    service: Service
    lock: contextlib.ExitStack
    home: Path | None = None

    @cached_property
    def claude(self) -> Client:
        """Claude under the cap of the run; as in the stages, what was paid for is kept in the workdir."""
        cache = self.config.claude.cache
        return Client(self.config.claude, path_of(cache) if cache else self.workdir.path / "claude")

    @cached_property
    def judge(self) -> Judge:
        """The judge that the workdir's config names; the offline ones take the catalogue's sentences as read."""
        j = self.config.judge
        if j.name == "claude":
            return ClaudeJudge(self.claude, j.model, j.effort, j.attempts)
        return Verbatim(OfflineJudge() if j.name == "offline" else RubricJudge())

    @property
    def directory(self) -> Path:
        """Where results lie."""
        return self.home or results_directory(self.workdir)

    def system(self, target: str) -> str | None:
        """The system message that a target lives under."""
        own = None if target == BASE else self.targets[target].system
        return self.config.system if own is None else own

    def close(self) -> None:
        if self.service is not None:
            self.service.close()
        self.lock.close()
        if _open and _open[-1] is self:
            _open.clear()


def results_directory(workdir: Workdir) -> Path:
    return workdir.path / "audits" / FAMILY


_open: list[Session] = []  # the one session of this process: the base and a bank are not held twice


def current() -> Session:
    """The session that is open. Raises ConfigError if there is none."""
    if not _open:
        raise ConfigError(
            "no workdir is open; give one to the task (-T workdir=runs/demo) or to the model (-M workdir=runs/demo)"
        )
    return _open[-1]


def open_session(
    directory: str | Path,
    targets: str | Sequence[Target] = "",
    ia: str | None = None,
    lock: bool = True,
) -> Session:
    """Opens a workdir, or gives the session that has it open with these targets.

    targets: a JSONL file of targets (`audits.targets`); names of organisms of the workdir, or its splits, separated by
    commas ("": "heldout"); or targets themselves.
    ia: an IA's name, "" for none; None for the one after DPO, else after SFT, if there is one.
    lock: whether to lock the workdir, where the caller has not.
    """
    if is_multi_process():
        raise ConfigError("an audit by an investigator runs in one process; start it on one host")
    workdir = open_workdir(directory)
    if _open:
        there = _open[-1]
        if there.workdir.path.resolve() != workdir.path.resolve():
            raise ConfigError(f"{there.workdir.path} is open in this process; audit {directory} in another")
        found = chosen(workdir, targets) if targets else list(there.targets.values())
        if not {t.name for t in found} <= there.targets.keys() or ia not in (None, there.ia):
            raise ConfigError("other targets, or another IA, are open in this process; audit these in another")
        return there
    with contextlib.ExitStack() as stack:
        if lock:
            stack.enter_context(locked(workdir.path))
        session = _loaded(workdir, {t.name: t for t in chosen(workdir, targets)}, ia, stack.pop_all())
    _open.append(session)
    return session


def open_for_judging(directory: str | Path) -> Session:
    """The open session; without one, a workdir without its models, which is enough for judges."""
    if not _open:
        workdir = open_workdir(directory)
        with contextlib.ExitStack() as stack:
            stack.enter_context(locked(workdir.path))
            nobody: Any = None
            _open.append(Session(workdir, workdir.config, nobody, {}, "", nobody, stack.pop_all()))
    return current()


def chosen(workdir: Workdir, targets: str | Sequence[Target]) -> list[Target]:
    """The targets that are meant. Raises ConfigError for what is neither a file, nor a split, nor an organism."""
    if not isinstance(targets, str):
        return list(targets)
    if os.path.isfile(targets):  # pathlib's raises for many names, too long for a file's
        return read_targets(Path(targets))
    names: list[str] = []
    for part in (targets or "heldout").split(","):
        split = workdir.named(part.strip())
        if not split and part.strip() not in workdir.organisms:
            raise ConfigError(f"targets {part.strip()!r}: neither a file, nor an organism or a split of {workdir.path}")
        names += [n for n in split or [part.strip()] if n not in workdir.left_out]
    return [organism_target(workdir, name) for name in dict.fromkeys(names)]


def _loaded(workdir: Workdir, targets: dict[str, Target], ia: str | None, lock: contextlib.ExitStack) -> Session:
    config = workdir.config
    if ia is None:
        there = (n for n in (config.dpo.name, config.sft.name) if is_complete(workdir.ia_dir(n) / "adapter"))
        ia = next(there, "")
    if ia and not is_complete(workdir.ia_dir(ia) / "adapter"):
        raise ConfigError(f"{workdir.path} holds no IA {ia!r}; train it, or choose another (ia=…)")
    m, s = config.model, config.mesh
    mesh = make_mesh(s.fsdp, s.tp, s.dcn, s.rows)
    with jax.set_mesh(mesh):
        model = load_model(m.name, m.dtype, mesh, m.revision or None, m.quantization, m.cache)
        return session_on(workdir, config, model, mesh, targets, ia, lock)


def session_on(
    workdir: Workdir,
    config: RunConfig,
    model: Model,
    mesh: jax.sharding.Mesh,
    targets: dict[str, Target],
    ia: str,
    lock: contextlib.ExitStack,
    home: Path | None = None,
) -> Session:
    """A session over a base that is loaded, on its mesh, which is the one that is set; nobody else finds it open."""
    dtype = DTYPES[config.model.dtype]
    cache = workdir.path / "audits" / "adapters"
    stored = [stored_stack(t, model, workdir, cache) for t in targets.values()]
    # A target without adapters is the base under its own system message.
    names = [name for name, own in zip(targets, stored, strict=True) if own]
    lora = config.organisms.lora.lora()
    bank = open_bank([own for own in stored if own], model, mesh, dtype=dtype, lora=lora)
    groups = TRAINING.size("organism", mesh)
    ia_bank = open_bank([workdir.ia_dir(ia) / "adapter"] * groups, model, mesh, dtype=dtype) if ia else None
    engine = Engine(model, mesh, names, bank, ia_bank, [n for n in targets if n not in names])
    kept = (home or results_directory(workdir)) / "replies.jsonl"
    return Session(workdir, config, model, targets, ia, Service(engine, kept), lock, home)


def seed_of(*parts: object) -> int:
    """A seed that depends on these alone: 32 bits."""
    return int.from_bytes(hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()[:4], "big")
