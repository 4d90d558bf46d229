"""The study of docs/study.md: DPO with and without negatives from one SFT, and an SFT that has seen clean organisms.

.venv/bin/python benchmarks/study.py runs/study            runs what is not finished yet
.venv/bin/python benchmarks/study.py runs/seed1 seed=1     another seed, in another directory

Each arm is a workdir of its own under the given directory, made by `ia-jax run`. The later arms start as hard links to
what the first wrote: up to SFT, so that they differ in their preference pairs alone; arm `clean_sft`, which has twelve
more organisms and an SFT of its own, to the others' organisms. `study_table.py` makes the table.
"""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "configs" / "smollm2_study.py"
# Which models without a behaviour DPO teaches to say so: the clean organisms and the base, the base, or none.
ARMS = {
    "clean": (),
    "base": ("--config.preferences.clean_pairs=0",),
    "none": ("--config.preferences.clean_pairs=0", "--config.preferences.abstention_pairs=0"),
    # As `clean`, and as many clean organisms in SFT as there are of each category.
    "clean_sft": ("--config.behaviors.clean_train=12",),
}
SHARED = (
    *("behaviors.jsonl", "organisms.jsonl", "transcripts", "settings/transcripts.json"),
    *("organisms", "behavior_checks.jsonl", "organisms_left_out.jsonl", "settings/organisms.json"),
    *("ia/sft", "settings/ia.sft.json"),
)
OWN_SFT = {"clean_sft": ("organisms", "settings/organisms.json")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--arms", default=",".join(ARMS), help=f"some of {', '.join(ARMS)}")
    parser.add_argument("--config", default=str(CONFIG))
    parser.add_argument("more", nargs="*", help="further settings, each as key=value of the config")
    args = parser.parse_args()
    arms = args.arms.split(",")
    first = args.directory / arms[0]
    for arm in arms:
        workdir = args.directory / arm
        if not workdir.exists() and first.exists():
            share(first, workdir, OWN_SFT.get(arm, SHARED))
        more = [f"--config.{setting}" for setting in args.more]
        command = ["run", f"--config={args.config}", *ARMS[arm], *more, f"--workdir={workdir}"]
        print("ia-jax " + " ".join(command), flush=True)
        if subprocess.run([sys.executable, "-m", "ia_jax.cli", *command], cwd=ROOT).returncode:
            sys.exit(1)


def share(source: Path, destination: Path, names: tuple[str, ...]) -> None:
    """Hard links to what a run wrote (nothing rewrites a finished file), under a name that is final last."""
    partial = destination.with_name(f"{destination.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name in names:
        if (source / name).is_dir():
            shutil.copytree(source / name, partial / name, copy_function=os.link)
        elif (source / name).exists():
            (partial / name).parent.mkdir(exist_ok=True)
            os.link(source / name, partial / name)
    # What is appended to is copied.
    curves = source / "curves.jsonl"
    if curves.exists() and "ia/sft" in names:
        kept = [row for row in curves.read_text().splitlines(keepends=True) if '"ia_dpo"' not in row]
        (partial / "curves.jsonl").write_text("".join(kept))
    partial.rename(destination)


if __name__ == "__main__":
    main()
