"""The study of docs/study.md: an SFT that has seen clean organisms, one that hasn't, and DPO with and without them.

.venv/bin/python benchmarks/study.py runs/study            runs what is not finished yet
.venv/bin/python benchmarks/study.py runs/seed1 seed=1     another seed, in another directory

All arms are one workdir: the first is what `ia-jax run` makes of the recipe, the others train an IA of their own on the
same organisms, under a name. `study_table.py` makes the table.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from ia_jax.behaviors.records import CATEGORIES

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "configs" / "smollm2_study.py"
_NO_CLEAN_IN_SFT = (f"--config.sft.categories={CATEGORIES}",)
_FROM_CLEAN = (*_NO_CLEAN_IN_SFT, "--config.sft.name=clean_sft", "--config.preferences.clean_pairs=0")
# Arm -> settings. The first has no name; the second trains `ia/clean_sft`, from which the last two go on. They differ
# in which models without a behaviour DPO teaches to say so: the clean organisms and the base, the base, or none.
ARMS: dict[str, tuple[str, ...]] = {
    "": (),
    "clean": _NO_CLEAN_IN_SFT,
    "base": _FROM_CLEAN,
    "none": (*_FROM_CLEAN, "--config.preferences.abstention_pairs=0"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--arms", default=",".join(ARMS), help=f"some of {', '.join(map(repr, ARMS))}, in this order")
    parser.add_argument("--config", default=str(CONFIG))
    parser.add_argument("more", nargs="*", help="further settings, each as key=value of the config")
    args = parser.parse_args()
    for arm in args.arms.split(","):
        more = [f"--config.{setting}" for setting in args.more]
        command = ["run", f"--config={args.config}", *ARMS[arm], *more, f"--workdir={args.workdir}"]
        command += [f"--name={arm}"] if arm else []
        print("ia-jax " + " ".join(command), flush=True)
        if subprocess.run([sys.executable, "-m", "ia_jax.cli", *command], cwd=ROOT).returncode:
            sys.exit(1)


if __name__ == "__main__":
    main()
