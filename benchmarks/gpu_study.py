"""The study on one accelerator, in one process: a bank of organisms, IAs by several recipes, then seeds of the best.

    python benchmarks/gpu_study.py --workdir=runs/gpu --out=results --budget=580
    python benchmarks/gpu_study.py --workdir=/tmp/w --out=/tmp/o --tiny        # a rehearsal on any machine

1. `bank`: all organisms of `configs/smollm2_gpu.py`, with their behaviour checks.
2. `arms`: an IA by each recipe in `ARMS`, on the same organisms. What decides between them is how well they tell the
   dpo split's organisms apart (`ia-jax identify`: among behaviours), so the held-out ones are not looked at.
3. `seeds`: of the recipe chosen, with another split of the behaviours for each seed: SFT, the shuffled null, pairs,
   DPO, reports of everything held out (asked here, judged by `ia-jax eval` where the workdir is copied to), `identify`.
4. `left_out`: the same recipe without one category, whose held-out organisms are then asked.

Each piece is an ordinary workdir below `--workdir`; organisms are read into the device's memory once. A piece that
fails is told of and left out. `--out` gets `results.json`, rewritten after every piece, and each workdir without
weights, so that the rest can be done elsewhere; IAs are in the workdirs.
"""

import argparse
import dataclasses
import functools
import json
import shutil
import sys
import tarfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from ia_jax.behaviors.splits import HELD  # noqa: E402
from ia_jax.cli.workdirs import on_mesh  # noqa: E402
from ia_jax.config import RunConfig, with_dtype  # noqa: E402
from ia_jax.recipes import load_config, override  # noqa: E402
from ia_jax.stages import (  # noqa: E402
    asking,
    dpo,
    evaluation,
    ia_training,
    identify,
    organisms,
    preferences,
    sft,
    transcripts,
)
from ia_jax.stages import (  # noqa: E402
    context as contexts,
)
from ia_jax.stages.context import Context  # noqa: E402
from ia_jax.stages.settings import start_workdir  # noqa: E402

RECIPE = ROOT / "configs" / "smollm2_gpu.py"
ARMS: dict[str, tuple[str, ...]] = {
    "plain": ("--config.sft.contrast=0", "--config.sft.per_slot=8", "--config.sft.steps=500"),
    "contrast": ("--config.sft.steps=500",),
    "faster": ("--config.sft.steps=500", "--config.sft.optimizer.lr=2e-3"),
    "longer": ("--config.sft.steps=1200",),
}
TINY = (
    "--config.behaviors.train=16",
    "--config.behaviors.dpo=8",
    "--config.behaviors.heldout=8",
    "--config.behaviors.unseen=",
    "--config.behaviors.clean_train=1",
    "--config.behaviors.clean_dpo=1",
    "--config.behaviors.clean_heldout=1",
    "--config.teacher.amount=1",
    "--config.organisms.parallel=12",
    "--config.organisms.epochs=1",
    "--config.organisms.check_prompts=1",
    "--config.sft.organisms_per_step=4",
    "--config.sft.per_slot=1",
    "--config.dpo.organisms_per_step=4",
    "--config.preferences.questions=1",
    "--config.preferences.samples=1",
    "--config.eval.questions=1",
    "--config.eval.samples=1",
    "--config.eval.train_organisms=2",
    "--config.eval.plain_prompts=2",
)
TINY_STEPS = "--config.sft.steps=2"
LARGEST = 1 << 18  # bytes of an adapter's file that is copied to --out: records, and no weights
ROUND = 32  # supervised tokens of a joint row are rounded up to it, so that seeds share compiled programs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--budget", type=float, default=3600, help="seconds: what does not fit is not begun")
    parser.add_argument("--arms", default=",".join(ARMS), help="recipes to compare, by name; empty: none")
    parser.add_argument("--best", default="", help="the recipe of the seeds (default: what the arms show)")
    parser.add_argument("--seeds", default="1547,1,2")
    parser.add_argument("--left-out", default="", help="categories, each left out once")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("overrides", nargs="*", help="--config.…, after --")
    args = parser.parse_args()
    Study(args).run()


class Study:
    """The pieces in their order, and what is known so far."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.began = args, time.monotonic()
        self.results: dict[str, Any] = {"pieces": [], "identified": {}}
        args.out.mkdir(parents=True, exist_ok=True)
        share_banks_and_programs()

    def run(self) -> None:
        args = self.args
        config = self.config(RECIPE, *(TINY if args.tiny else ()), *args.overrides)
        bank = start_workdir(args.workdir / "bank", config)
        config = with_dtype(config, bank.config.model.dtype)
        with on_mesh(bank, config) as context:
            if not self.piece("transcripts", 5, lambda: transcripts.run(context)):
                return
            if not self.piece("organisms", 60, lambda: organisms.run(context)):
                return
            self.piece("alone", 5, lambda: self.identify(context, identify.NONE, ["dpo"]))
            self.keep("bank")
            arms = {name: ARMS[name] for name in args.arms.split(",") if name}
            for name, changes in arms.items():
                arm = context.with_config(self.config(config, *changes, f"--config.sft.name={name}"))
                self.piece(f"arm {name}", 40, functools.partial(self.arm, arm, name))
            best = args.best or self.best(arms)
            self.results["best"] = best
            print(f"the recipe of the seeds is {best}", flush=True)
            for seed in filter(None, args.seeds.split(",")):
                self.seed(context, seed, ARMS[best])
            for category in args.left_out.split(",") if args.left_out else ():
                self.piece(f"left out {category}", 40, functools.partial(self.left_out, context, category, ARMS[best]))

    def config(self, start: Path | RunConfig, *changes: str) -> RunConfig:
        steps = [TINY_STEPS] if self.args.tiny else []
        if isinstance(start, RunConfig):
            return override(start, [*changes, *steps])
        return load_config(str(start), [*changes, *steps])

    def piece(self, name: str, needs: float, work: Callable[[], Any]) -> bool:
        """Does a piece of work if there is time for it; whether it was done."""
        began = time.monotonic()
        left = self.args.budget - (began - self.began)
        row: dict[str, Any] = {"piece": name, "at": round(began - self.began, 1)}
        if left < needs and not self.args.tiny:
            row["left_out"] = f"{left:.0f} s are left, it needs {needs:.0f}"
        else:
            print(f"== {name} ({left:.0f} s left)", flush=True)
            try:
                work()
            except Exception:
                row["failed"] = traceback.format_exc()
                print(row["failed"], flush=True)
        row["seconds"] = round(time.monotonic() - began, 1)
        self.results["pieces"].append(row)
        (self.args.out / "results.json").write_text(json.dumps(self.results, indent=1))
        print(f"== {name}: {row['seconds']} s", flush=True)
        return "failed" not in row and "left_out" not in row

    # -----------------------------------------------------------------------------------------------------------------
    # Pieces
    # -----------------------------------------------------------------------------------------------------------------

    def identify(self, context: Context, ia: str, splits: Sequence[str]) -> dict[str, Any]:
        found = {split: part["figures"] for split, part in identify.run(context, [ia], splits)[ia].items()}
        self.results["identified"] |= {f"{context.workdir.path.name}/{ia}/{s}": own for s, own in found.items()}
        return found

    def arm(self, context: Context, name: str) -> None:
        sft.run(context)
        self.identify(context, name, ["dpo"])

    def best(self, arms: Sequence[str] | dict[str, Any]) -> str:
        """The arm that tells the dpo split's organisms best apart."""
        found = {a: self.results["identified"].get(f"bank/{a}/dpo") for a in arms}
        known = {a: v["among_behaviors"]["rate"] for a, v in found.items() if v}
        return max(known, key=lambda a: known[a]) if known else next(iter(ARMS))

    def seed(self, context: Context, seed: str, recipe: Sequence[str]) -> None:
        first = context.workdir.path
        config = self.config(
            context.config,
            *recipe,
            f"--config.seed={seed}",
            f"--config.organisms.source={first.resolve()}",
            f"--config.sft.shuffled_null={seed == self.args.seeds.split(',')[0]}",
        )
        own = start_workdir(self.args.workdir / f"seed{seed}", config)
        one = context.at(own, config)
        pieces: dict[str, tuple[float, Callable[[], Any]]] = {
            "split": (10, lambda: (transcripts.run(one), organisms.run(one))),
            "sft": (40, lambda: sft.run(one)),
            "preferences": (15, lambda: preferences.run(one)),
            "dpo": (15, lambda: dpo.run(one)),
            "ask": (25, lambda: self.ask(one)),
            "identify": (15, lambda: self.identify_all(one)),
        }
        for name, (needs, work) in pieces.items():
            done = self.piece(f"seed {seed}: {name}", needs, work)
            self.keep(f"seed{seed}")
            if not done and name in ("split", "sft"):
                return

    def ask(self, context: Context) -> None:
        """All reports, sampled and greedy, unjudged."""
        for changes in ((), ("--config.eval.name=greedy", "--config.eval.temperature=0", "--config.eval.samples=1")):
            own = context.with_config(override(context.config, list(changes)))
            ias = evaluation.evaluated(own.workdir, own.config)
            evaluation._asked(own, ias)  # pyright: ignore[reportPrivateUsage]

    def identify_all(self, context: Context) -> None:
        cfg, there = context.config, [p.parent.name for p in (context.workdir.path / "ia").glob("*/adapter")]
        for name in (identify.NONE, cfg.sft.name, cfg.dpo.name, cfg.sft.shuffled_name):
            if name in (identify.NONE, *there):
                self.identify(context, name, HELD)

    def left_out(self, context: Context, category: str, recipe: Sequence[str]) -> None:
        others = sorted({o.category for o in context.workdir.organisms.values() if not o.clean} - {category})
        one = context.with_config(override(self.config(context.config, *recipe), [f"--config.sft.name=no_{category}"]))
        cfg = dataclasses.replace(one.config.sft, categories=(*others, "clean"))
        one = one.with_config(dataclasses.replace(one.config, sft=cfg))
        sft.run(one)
        self.identify(one, cfg.name, ["heldout"])
        self.keep("bank")

    # -----------------------------------------------------------------------------------------------------------------
    # What is kept
    # -----------------------------------------------------------------------------------------------------------------

    def keep(self, name: str) -> None:
        """A workdir as a compressed archive, without weights and states of training."""
        directory = self.args.workdir / name

        def small(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
            parts = Path(info.name).parts
            if {"peft", "tensorboard", "transcripts", "documents"} & set(parts):
                return None
            return None if {"organisms", "ia"} & set(parts) and info.isfile() and info.size > LARGEST else info

        temporary = self.args.out / f"{name}.part"
        with tarfile.open(temporary, "w:xz", preset=1) as archive:
            archive.add(directory, arcname=name, filter=small)
        shutil.move(temporary, self.args.out / f"{name}.tar.xz")


def share_banks_and_programs() -> None:
    """Organisms once read stay on the device, and joint plans have round sizes, so that seeds share programs."""
    held: dict[Any, Any] = {}

    def open_once(context: Context, own: Sequence[Any], clean: int = 0) -> Any:
        stacks = tuple(tuple(str(d.resolve()) for d in context.workdir.stack_of(o)) for o in own)
        if (stacks, clean) not in held:
            held[stacks, clean] = contexts.open_organisms(context, own, clean)
        return held[stacks, clean]

    for module in (sft, dpo, preferences, evaluation, identify):
        module.open_organisms = open_once  # pyright: ignore[reportAttributeAccessIssue]

    def rounded(plan_of: Callable[..., Any]) -> Callable[..., Any]:
        def plan(*given: Any) -> Any:
            found = plan_of(*given)
            length = -(-found.length // ROUND) * ROUND
            return dataclasses.replace(found, targets=-(-found.targets // ROUND) * ROUND, length=length)

        return plan

    tokenised: dict[Any, Any] = {}

    def tokenise_once(context: Context, *given: Any) -> Any:
        if given not in tokenised:
            tokenised[given] = asking.answer_example(context, *given)
        return tokenised[given]

    sft.answer_example = tokenise_once
    sft.sft_plan = rounded(ia_training.sft_plan)
    dpo.dpo_plan = rounded(ia_training.dpo_plan)


if __name__ == "__main__":
    main()
