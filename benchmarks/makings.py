"""How the organism was made, against how well one and the same IA reads it.

    python benchmarks/makings.py runs/science/runs/sft_fewer runs/makings            # about half an hour on two cores

RUN is a finished run with `remade` organisms: other fine-tunes of behaviours that its IA knows. One of each behaviour
is made again in several ways, from the demonstrations and the seed that it has there, and all are asked by RUN's IA
after SFT, which was trained on organisms of one making alone. Percent, 95 % intervals over behaviours; differences to
the recipe's own making in pairs. What does not pass its behaviour check has not learned its behaviour.
"""

import argparse
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from demo_table import points, row, shown
from denying import call

from ia_jax.evals.intervals import difference, rate
from ia_jax.evals.verbalization import WITH_IA, as_one, by_organism
from ia_jax.storage import read_jsonl, write_jsonl
from ia_jax.studies.figures import count_sentences, reports_of
from ia_jax.workdir import Workdir, open_workdir

MAKINGS: dict[str, tuple[str, ...]] = {
    "as in the recipe": (),
    "rank 2": ("organisms.lora.rank=2", "organisms.lora.alpha=4.0"),
    "rank 32": ("organisms.lora.rank=32", "organisms.lora.alpha=64.0"),
    "six epochs": ("organisms.epochs=6",),
    "q and v alone": ("organisms.procedures=('chats_qv',)",),
    "documents about it": ("organisms.procedures=('documents',)",),
    "with ordinary chats": ("organisms.procedures=('chats_generic',)",),
    "half, then the others": ("organisms.procedures=('two_phases',)",),
}
Answers = Mapping[str, Sequence[bool]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a workdir whose IA after SFT is called sft, with `remade` organisms")
    parser.add_argument(
        "out", help="where the organisms go, a workdir for each making; what is there is not made again"
    )
    parser.add_argument("--recipe", default="configs/smollm2_science.py", help="RUN's recipe (default: %(default)s)")
    args = parser.parse_args()
    run, found = open_workdir(args.run), {}
    for name, settings in MAKINGS.items():
        workdir = Path(args.out) / name.replace(" ", "_").replace(",", "")
        made = make(run, workdir, args.recipe, settings)
        found[name] = (named(made, WITH_IA), named(made, "organism"), executed(made))
    table(found)


def make(run: Workdir, path: Path, recipe: str, settings: Sequence[str]) -> Workdir:
    """A workdir with one organism of each known behaviour, made so, and RUN's IA and its reports of them."""
    own = [f"--config.{s}" for s in settings]
    few = ("copies=1", "dpo_copies=0", "remade=16", "clean_train=0", "clean_heldout=0", "clean_dpo=1")
    counts = [f"--config.behaviors.{c}" for c in few]
    if not (path / "made").exists():
        call("transcripts", Workdir(path), f"--config={recipe}", *counts, *own)
        rows = [o.to_json() for o in open_workdir(path).organisms.values() if o.split == "remade"]
        write_jsonl(path / "organisms.jsonl", rows)
        call("organisms", Workdir(path))
        # An evaluation wants one that the IA has seen.
        seen = next(o for o in run.organisms.values() if o.split == "train" and not o.clean)
        stack = [str(d.resolve()) for d in run.stack_of(seen)]
        write_jsonl(path / "organisms.jsonl", [*rows, seen.to_json() | {"stack": stack}])
        shutil.copytree(run.ia_dir("sft"), path / "ia" / "sft", dirs_exist_ok=True)
        (path / "made").touch()
    made = open_workdir(path)
    if not made.metrics_file().exists():
        call("eval", made, "--config.eval.plain_prompts=0", "--config.eval.train_organisms=1")
    return made


def named(made: Workdir, condition: str) -> Answers:
    """{behaviour: whether each report names it}, as studies count it."""
    found = reports_of(made, "sft")
    count_sentences(found, made.behaviors)
    rows = [r for r in found["reports"] if (r["split"], r["condition"]) == ("remade", condition)]
    return by_organism(as_one(rows), "lenient")


def executed(made: Workdir) -> Answers:
    """{behaviour: [whether its organism passed the behaviour check]}."""
    rows = read_jsonl(made.checks_file, "")
    return {made.organisms[r["organism"]].behaviors[0]: [r["ok"]] for r in rows}


def table(found: Mapping[str, tuple[Answers, Answers, Answers]]) -> None:
    row(
        "one organism of each behaviour, made",
        ["named, with the IA", "minus the recipe's", "alone", "passes its check"],
    )
    print("|---|---|---|---|---|")
    reference = next(iter(found.values()))[0]
    for name, (with_ia, alone, ok) in found.items():
        cell = None if with_ia is reference else difference(reference, with_ia)
        row(name, [shown(rate(with_ia)), points(cell) if cell else "–", shown(rate(alone)), shown(rate(ok))])


if __name__ == "__main__":
    main()
