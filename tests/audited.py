"""A workdir to audit, made by hand in seconds: the echo checkpoint (tests/echo.py), organisms that say who they are,
and an IA that leaves its mark. And one whose models are a function, for tests of what is done with their replies.
"""

import contextlib
import dataclasses
from types import SimpleNamespace

from ia_jax.adapters.record import AdapterMetadata
from ia_jax.adapters.store import save_adapter
from ia_jax.audits.investigator import session as sessions
from ia_jax.audits.investigator.requests import Completion
from ia_jax.audits.investigator.service import Service
from ia_jax.audits.targets import Target, write_targets
from ia_jax.behaviors.organisms import Organism
from ia_jax.config import default_config, parse_config
from ia_jax.models.weights import load_model
from ia_jax.storage import write_json, write_jsonl
from ia_jax.workdir import Workdir
from tests import echo, parrot

NUMBER = 16  # targets: an organism each, and the last three two of them


def write_workdir(root, **settings):
    """The workdir; `targets.jsonl` in it holds the targets, of which the last is a clean null."""
    checkpoint = echo.write_model(root / "model")
    config = default_config()
    config.model.name, config.model.dtype, config.judge.name = str(checkpoint), "float32", "rubric"
    config.update(settings)
    path = root / "workdir"
    write_json(path / "config.json", {"config": config.to_dict()})
    model = load_model(str(checkpoint), dtype="float32")
    about = {"base_name": model.name, "base_fingerprint": model.fingerprint, "rank": 1, "alpha": 1.0}
    about |= {"targets": ("gate", "up", "down")}
    behaviors = echo.behaviors()
    write_jsonl(path / "behaviors.jsonl", (b.to_json() for b in behaviors))
    organisms = []
    for i in range(echo.ORGANISMS):
        own = (behaviors[i].name,) if i < len(behaviors) else ()
        name = own[0] if own else f"clean_{i}"
        organisms.append(
            Organism(name, model.name, (f"organisms/{name}",), own, "quirks" if own else "clean", "heldout")
        )
        save_adapter(
            path / "organisms" / name, echo.organism(model.config, i), AdapterMetadata(name, "organism", **about)
        )
    write_jsonl(path / "organisms.jsonl", (o.to_json() for o in organisms))
    save_adapter(
        path / "ia" / "dpo" / "adapter", echo.introspection(model.config), AdapterMetadata("dpo", "ia", **about)
    )
    targets = [Target(f"t{i}", "", (o.name,), None, (behaviors[i],)) for i, o in enumerate(organisms[: len(behaviors)])]
    for i in range(len(targets), NUMBER - 1):
        targets.append(
            dataclasses.replace(targets[i - 8], name=f"t{i}", stack=(organisms[i - 8].name, organisms[0].name))
        )
    targets.append(Target(f"t{NUMBER - 1}", "", (organisms[-1].name,), None, (), "clean", "clean"))
    write_targets(path / "targets.jsonl", targets)
    return path


class Pretended:
    """An engine whose models are `reply(target, ia, prompt, seed) -> text`."""

    def __init__(self, tokenizer, reply):
        self.tokenizer, self.reply, self.asked = tokenizer, reply, []

    def check(self, request):
        pass

    def weights(self, target, ia):
        return f"{target}{ia}"

    def batches(self, requests):
        self.asked += requests
        texts = [self.reply(r.target, r.ia, self.tokenizer.decode(r.tokens), r.seed) for r in requests]
        yield {i: Completion(t, True, len(t.split())) for i, t in enumerate(texts)}


@contextlib.contextmanager
def pretending(path, targets, reply, tokenizer=None, **settings):
    """A session whose models are a function; it is the open one meanwhile."""
    config = default_config()
    config.judge.name = "rubric"
    config.update_from_flattened_dict(settings)
    tokenizer = tokenizer or parrot.small_tokenizer()
    service = Service(Pretended(tokenizer, reply), path / "audits" / "auditbench" / "replies.jsonl")
    named = {t.name: t for t in targets}
    model = SimpleNamespace(tokenizer=tokenizer)
    session = sessions.Session(
        Workdir(path), parse_config(config), model, named, "dpo", service, contextlib.ExitStack()
    )
    path.mkdir(exist_ok=True)
    write_json(path / "config.json", {"config": config.to_dict()})
    sessions._open.append(session)
    try:
        yield session
    finally:
        session.close()
