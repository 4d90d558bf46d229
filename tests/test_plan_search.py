"""The slices that `ia-jax plan` searches: what chips are known by, what their links bring, what is tried, Ctrl-C."""

import itertools
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from ia_jax.errors import ConfigError
from ia_jax.parallel.mesh import make_mesh
from ia_jax.planning import plan, search
from ia_jax.planning.batches import Batches
from ia_jax.planning.chips import CHIPS, peak_flops
from ia_jax.planning.roofline import bandwidths
from ia_jax.planning.topology import topology_of
from ia_jax.recipes import load_config

ROOT = Path(__file__).parent.parent


def test_chips_are_known_by_the_topologys_name():
    assert topology_of("v5p:4x4x4").chip is CHIPS["v5p"]
    with pytest.raises(ConfigError, match=r"no chip 'v9'; known: v5e, v5p, v6e"):
        topology_of("v9:2x2")
    for topology, hint in (
        ("v5e:2x2x4", "2 axes; write it like v5e:4x4"),
        ("v5p:4x4", "3 axes; write it like v5p:4x4x4"),
    ):
        with pytest.raises(ConfigError, match=hint):
            topology_of(topology)


def torus(*lengths, shape):
    """Devices of a slice whose axes have these lengths, as a mesh of that shape."""
    coords = list(itertools.product(*(range(n) for n in lengths)))
    grid = np.empty(len(coords), object)
    grid[:] = [SimpleNamespace(coords=c) for c in coords]
    return grid.reshape(shape)


@pytest.mark.parametrize(
    ("chip", "lengths", "shape", "wanted"),
    [
        # A whole 4x4x4 torus: all six links. Two neighbours share one; 32 of them fill two rings and half of the third.
        ("v5p", (4, 4, 4), (32, 2), {1: 1, 2: 1, 32: 2 + 2 + 1, 64: 6}),
        ("v5p", (4, 4, 4), (16, 4), {1: 1, 4: 2, 16: 4, 64: 6}),
        # Less than 16 chips long, an axis of v5e is a line, and a corner has one link on each.
        ("v5e", (4, 4), (4, 4), {1: 1, 4: 1, 16: 2}),
        ("v5e", (16, 16), (16, 16), {1: 1, 16: 2, 256: 4}),
        ("v5e", (1, 1), (1, 1), {1: 1}),
    ],
)
def test_what_a_chip_receives_from_its_group(chip, lengths, shape, wanted):
    found = bandwidths(torus(*lengths, shape=shape), CHIPS[chip])
    assert found == {group: links * CHIPS[chip].link for group, links in wanted.items()}


@pytest.mark.parametrize(("kind", "flops"), [("TPU v5 lite", 197e12), ("TPU v5", 459e12), ("cpu", None)])
def test_the_peak_of_the_devices_in_use(monkeypatch, kind, flops):
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(device_kind=kind)])
    assert peak_flops() == flops
    monkeypatch.undo()
    with jax.set_mesh(make_mesh(4, 2)):
        monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(device_kind=kind)])
        assert peak_flops() == (flops and 8 * flops)


@pytest.mark.libtpu
@pytest.mark.parametrize("name", [n for n, chip in CHIPS.items() if chip.libtpu])
def test_chips_are_known_by_what_jax_calls_them(name):
    chip = CHIPS[name]
    devices = plan.devices_of(f"{name}:2x2x1" if chip.axes == 3 else f"{name}:2x2")
    assert devices[0].device_kind in chip.kinds
    assert len(devices) == 4 * chip.cores


class Search:
    """`plan.plan` with made-up outcomes: what it was asked for, in order."""

    def __init__(self, monkeypatch, fits, seconds, interrupt_at=None):
        self.asked, self.said = [], []
        self.fits, self.seconds, self.interrupt_at = fits, seconds, interrupt_at
        monkeypatch.setattr(search, "plan", self.plan)
        monkeypatch.setattr(search, "devices_of", lambda topology: torus(4, 4, shape=16))
        monkeypatch.setattr(
            search, "make_mesh", lambda *shape, devices: SimpleNamespace(devices=devices.reshape(shape))
        )

    def plan(self, config, topology, stage, data):
        if len(self.asked) == self.interrupt_at:
            raise KeyboardInterrupt
        self.asked.append(config)
        fits = self.fits(config)
        report = {"topology": topology, "config": config, "fits": fits, "capacity_gib": 15.75, "hbm_gib": 9.0}
        report["remat"] = config.model.remat
        return report | ({"bound": "ici", "predicted_step_s": self.seconds} if fits else {})

    @staticmethod
    def data(config, stage):
        """An organism's row of 1024 tokens, all real."""
        k = config.organisms.parallel
        return Batches(10, k, 1, 1024, 512, 8, 10 * k * 1024, 10 * k * 512, slots=10 * k)

    def run(self):
        config = load_config(str(ROOT / "configs" / "qwen3_14b.py"))
        return search.search(config, "v5e:4x4", "organisms", self.data, self.said.append)


def test_search_compiles_no_shape_that_holds_more_than_one_that_did_not_fit(monkeypatch):
    s = Search(monkeypatch, lambda c: c.model.remat in ("full", "offload") and c.mesh.tp > 2, 100.0)
    found = s.run()
    assert all(r["fits"] for r in found[: sum(r["fits"] for r in found)])
    assert found[0]["config"].organisms.parallel == 4 * 8  # the slow made-up step is the same for all: most tokens win
    assert "--config.organisms.parallel=32" in found[0]["overrides"]
    assert found[0]["remat"] == "full"  # as fast as the one that sends its layers' inputs away, which nobody timed
    failed = [r["config"] for r in found if not r["fits"]]
    for i, c in enumerate(s.asked):
        before = [x for x in s.asked[:i] if x in failed and x.mesh == c.mesh and x.model.remat == c.model.remat]
        assert not any(c.organisms.parallel >= x.organisms.parallel for x in before)
    assert len(s.said) >= 2 * len(s.asked)


def test_search_stops_when_nothing_left_can_be_faster(monkeypatch):
    s = Search(monkeypatch, lambda c: True, 1e-9)
    assert len(s.run()) == len(s.asked) == 1
    assert "cannot be faster" in s.said[-1]


def test_search_shows_what_it_has_when_interrupted(monkeypatch):
    s = Search(monkeypatch, lambda c: True, 100.0, interrupt_at=2)
    assert len(s.run()) == 2
    assert s.said[-1].startswith("stopped")
    with pytest.raises(KeyboardInterrupt):
        Search(monkeypatch, lambda c: True, 100.0, interrupt_at=0).run()


def test_work_can_be_interrupted_and_its_errors_arrive():
    assert search.interruptible(lambda: 7) == 7
    with pytest.raises(ConfigError, match="no"):
        search.interruptible(lambda: (_ for _ in ()).throw(ConfigError("no")))


@pytest.fixture
def sigint():
    """Ctrl-C as a terminal gives it: a shell that starts a command in the background lets it ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("sigint")
def test_ctrl_c_is_heard_while_the_compiler_runs():
    finish, finished = threading.Event(), threading.Event()

    def compiling():
        signal.raise_signal(signal.SIGINT)  # Python hears it in its main thread, whichever raised it
        finish.wait(60)
        finished.set()

    with pytest.raises(KeyboardInterrupt):
        search.interruptible(compiling)
    assert not finished.is_set()
    finish.set()


def test_python_leaves_at_once_when_the_compiler_is_still_at_work():
    program = (
        "import signal, time\nfrom ia_jax.planning.search import interruptible\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "interruptible(lambda: (signal.raise_signal(signal.SIGINT), time.sleep(600)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 130
    assert done.stderr.rstrip().endswith("KeyboardInterrupt")
