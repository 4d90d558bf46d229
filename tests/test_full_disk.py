"""A disk that is really full: one line, what was stored stays good, and with room again the same command goes on.

The disk is a small tmpfs in a mount namespace of its own, so nothing has to be cleaned up; no root is needed where user
namespaces are allowed.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ia_jax.adapters.store import read_metadata

ROOT = Path(__file__).parents[1]
MEGABYTES = 64
SCRIPT = f"""
set -u
disk=$1 start=$2 out=$3 python=$4
mount -t tmpfs -o size={MEGABYTES}m none "$disk"
cp -r "$start" "$disk/w"
stage() {{ "$python" -m ia_jax.cli "$@" --workdir="$disk/w"; echo "status $?" >&2; }}
stage organisms 2> "$out/first"
head -c $(( $(df --output=avail -B1 "$disk" | tail -1) - $5 )) /dev/zero > "$disk/filler"
stage sft 2> "$out/full"
stage adapters ls > "$out/ls" 2> /dev/null
stage adapters verify > "$out/verify" 2> "$out/verified"
rm "$disk/filler"
stage sft 2> "$out/again"
cp -r "$disk/w" "$out/w"
"""
NAMESPACE = ["unshare", "--map-root-user", "--mount"]


def can_mount(directory):
    try:
        command = [*NAMESPACE, "mount", "-t", "tmpfs", "none", str(directory)]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("left", "message"),
    [
        (0, "ia/sft/groups.json: No space left"),
        (8192, "curves.jsonl: No space left"),
        (200_000, "state of step 4 could not"),
    ],
)
def test_a_full_disk(finished, tmp_path, left, message):
    """left: bytes; with none the stage's first file fails, with two blocks the first line of curves, then a state."""
    disk, start, out = (tmp_path / name for name in ("disk", "start", "out"))
    for directory in (disk, start, out):
        directory.mkdir()
    if not can_mount(disk):
        pytest.skip("mounting a tmpfs in a namespace is not allowed here")
    for name in ("config.json", "settings", "behaviors.jsonl", "organisms.jsonl", "transcripts", "organisms"):
        source = finished / name
        (shutil.copytree if source.is_dir() else shutil.copy2)(source, start / name)
    command = [*NAMESPACE, "bash", "-c", SCRIPT, "bash", *map(str, (disk, start, out, sys.executable, left))]
    subprocess.run(command, cwd=ROOT, check=True)

    def said(name):
        lines = (out / name).read_text().splitlines()
        return [line for line in lines if not line.startswith("ia_sft")], lines[-1]

    assert said("first")[1] == "status 0"
    [*told, status] = said("full")[0]
    assert status == "status 1"
    assert len(told) == 1
    assert told[0].startswith("ia-jax: error: ")
    assert message in told[0]
    [listed] = [line for line in (out / "ls").read_text().splitlines() if line.startswith("ia/sft")]
    assert "not stored" in listed
    assert said("verified")[1] == "status 0"
    assert said("again")[1] == "status 0"
    hashes = [read_metadata(w / "ia" / "sft" / "adapter").content_hash for w in (finished, out / "w")]
    assert hashes[0] == hashes[1]
