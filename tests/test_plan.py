"""`ia-jax plan`: its arithmetic against XLA's, its refusals, and (with libtpu) the programs of the large recipes."""

import itertools
import json
import math
import os
import resource
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ia_jax.behaviors.template_sources import shipped_sources
from ia_jax.behaviors.template_teacher import TemplateTeacher
from ia_jax.config import OrganismsSection, RunConfig
from ia_jax.data.batch import Batch
from ia_jax.data.plans import plan_organisms
from ia_jax.data.transcripts import Transcript, chat, with_system, write_transcripts
from ia_jax.errors import ConfigError, IAError
from ia_jax.models.chat import encode_chat
from ia_jax.models.known import KNOWN
from ia_jax.models.lora import LoraConfig
from ia_jax.models.sources import open_source
from ia_jax.models.transformer import REMAT_POLICIES, abstract_params, forward
from ia_jax.parallel.mesh import make_mesh
from ia_jax.planning import plan, search, steps
from ia_jax.planning.batches import Batches, batches_of
from ia_jax.planning.carried import namer
from ia_jax.planning.chips import (
    CHIPS,
    Work,
    layer_parameters,
    peak_flops,
    step_flops,
    step_hbm_bytes,
    step_ici_bytes,
    training_flops,
)
from ia_jax.planning.roofline import Layout, bandwidths, roofline
from ia_jax.planning.topology import topology_of
from ia_jax.recipes import load_config
from ia_jax.stages.planned import Planned, example_of, planned
from ia_jax.stages.transcripts import chosen
from ia_jax.storage import write_jsonl
from ia_jax.training.losses import Sft
from ia_jax.training.state import init_state
from ia_jax.training.trainer import train_step
from ia_jax.workdir import Workdir
from tests import tiny

ROOT = Path(__file__).parent.parent
# As the hub shows them, from the safetensors' own headers.
PUBLISHED = {
    "Qwen/Qwen2.5-0.5B-Instruct": 494_032_768,
    "Qwen/Qwen2.5-1.5B-Instruct": 1_543_714_304,
    "Qwen/Qwen2.5-3B-Instruct": 3_085_938_688,
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen/Qwen2.5-14B-Instruct": 14_770_033_664,
    "Qwen/Qwen2.5-32B-Instruct": 32_763_876_352,
    "Qwen/Qwen2.5-72B-Instruct": 72_706_203_648,
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-1.7B": 1_720_574_976,
    "Qwen/Qwen3-4B": 4_022_468_096,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "Qwen/Qwen3-14B": 14_768_307_200,
    "Qwen/Qwen3-32B": 32_762_123_264,
    "meta-llama/Llama-3.3-70B-Instruct": 70_553_706_496,
    "mistralai/Mistral-7B-Instruct-v0.3": 7_248_023_552,
}


@pytest.mark.parametrize("name", KNOWN)
def test_known_architectures_have_the_published_size(name):
    leaves = jax.tree.leaves(abstract_params(KNOWN[name], jnp.bfloat16))
    assert sum(x.size for x in leaves) == PUBLISHED[name]


def test_flops_agree_with_xla():
    """XLA counts a scan's body once, so the model has one layer; it skips nothing of masked attention, so we add it."""
    cfg = replace(tiny.TINY, num_hidden_layers=1, hidden_size=64, intermediate_size=192, vocab_size=256)
    k, b, t = 2, 2, 64
    work = Work(k, b, t, b * t, adapters=2, trained=1, remat="none")
    i = jax.ShapeDtypeStruct((k, b, t), jnp.int32)
    p = jax.ShapeDtypeStruct((k, b, t), jnp.int32)
    batch = Batch(i, i, i, p, p, jax.ShapeDtypeStruct(p.shape, jnp.float32), p)
    lora = LoraConfig(8, 16.0)
    state = jax.eval_shape(
        lambda a: init_state(a, 2, RunConfig().sft.optimizer, scale=lora.scale), tiny.adapter(0, cfg, lora)
    )
    stack = jax.eval_shape(lambda: tiny.adapter(0, cfg, lora, organisms=k))
    lowered = train_step.lower(
        abstract_params(cfg, jnp.float32),
        state,
        (stack,),
        batch,
        cfg=cfg,
        loss=Sft(),
        optimizer=RunConfig().sft.optimizer,
    )
    counted = lowered.compile().cost_analysis()["flops"]
    needed, executed = step_flops(cfg, lora, work)
    assert needed == executed
    other_half_of_attention = 3 * 4 * work.tokens * cfg.q_size * t / 2
    # What is left are norms, softmax, rotations and Adam: additions and the like, not products.
    assert 1.0 < counted / (needed + other_half_of_attention) < 1.25


def test_a_70b_step_by_hand():
    """docs/plan.md's example: 2 FLOPs for each matrix entry and token, three times (forward, again, backward)."""
    cfg, lora = KNOWN["meta-llama/Llama-3.3-70B-Instruct"], LoraConfig(16, 32.0)
    assert layer_parameters(cfg) == 855_638_016
    work = Work(32, 2, 2048, 4096, adapters=2, trained=1, remat="full")
    needed, executed = step_flops(cfg, lora, work)
    matrices = 2 * 131_072 * 80 * 855_638_016
    assert executed - needed == pytest.approx(matrices, rel=0.05)
    assert needed == pytest.approx(2 * matrices, rel=0.1)
    assert step_hbm_bytes(cfg, lora, work, 32, 2) > 5 * 80 * 855_638_016  # half of each: three reads, two gathers, bf16


def test_an_ia_on_some_layers_of_the_70b():
    """The backward pass goes through the layers from its lowest on: as many products, reads and gathers as these."""
    name = "meta-llama/Llama-3.3-70B-Instruct"
    made = Batches(100, 2, 1, 272, 96, 8, 100 * 2 * 272, 100 * 2 * 96, slots=200, bank=541)
    found = {}
    for layers in ("None", "40:80", "79"):
        config = load_config(str(ROOT / "configs" / "llama33_70b.py"), [f"--config.sft.lora.layers={layers}"])
        cfg, lora, work = KNOWN[name], config.sft.lora.lora(), steps.work_of(config, "sft", made)
        assert work.frozen == config.organisms.lora.lora()
        sent = step_ici_bytes(cfg, work, 2, 8)
        found[layers] = (*step_flops(cfg, lora, work), step_hbm_bytes(cfg, lora, work, 1, 8), *sent, work.share)
    whole, half, one = found.values()
    assert [x[-1] for x in (whole, half, one)] == [1, 0.5, 1 / 80]
    matrices = 2 * 544 * 80 * 855_638_016  # of a pass
    assert whole[0] - half[0] == pytest.approx(matrices / 2, rel=0.03)
    assert whole[0] - one[0] == pytest.approx(matrices * 79 / 80, rel=0.03)
    assert whole[1] == whole[0]
    for n, tolerance in ((2, 0.1), (3, 0.05), (4, 0.01)):  # HBM; gathers; sums
        assert half[n] / whole[n] == pytest.approx(0.75, rel=tolerance)
        assert one[n] / whole[n] == pytest.approx(0.5, rel=2 * tolerance)
    full = load_config(
        str(ROOT / "configs" / "llama33_70b.py"), ["--config.sft.lora.layers=79", "--config.model.remat=full"]
    )
    needed, executed = step_flops(KNOWN[name], full.sft.lora.lora(), steps.work_of(full, "sft", made))
    assert needed == one[0]
    assert executed - needed == pytest.approx(matrices / 80, rel=0.05)


def test_training_flops_of_an_ia_on_some_layers_agree_with_xla():
    """Two layers in runs of one, which XLA unrolls and so counts: the lower one is not gone back through."""
    cfg = replace(tiny.TINY, hidden_size=64, intermediate_size=192)
    counted, reckoned = [], []
    for layers in ((0, 1), (1,)):
        lora = LoraConfig(8, 16.0, layers=layers)
        frozen = jax.eval_shape(lambda: tiny.adapter(0, cfg, LoraConfig(8, 16.0, layers=(0,)), organisms=2))
        ia = jax.eval_shape(lambda lora=lora: tiny.adapter(1, cfg, lora))

        def loss(ia, params, frozen, tokens):
            hidden = forward(params, tokens, jnp.ones_like(tokens), tokens, (frozen, ia), cfg)
            return (hidden.astype(jnp.float32) ** 2).sum()

        tokens = jax.ShapeDtypeStruct((2, 2, 64), jnp.int32)
        lowered = jax.jit(jax.grad(loss)).lower(ia, abstract_params(cfg, jnp.float32), frozen, tokens)
        counted.append(lowered.compile().cost_analysis()["flops"])
        each = training_flops(cfg, 64, [LoraConfig(8, 16.0, layers=(0,)), lora], [lora])
        reckoned.append(256 * each["tokens"])
    assert counted[1] / counted[0] == pytest.approx(reckoned[1] / reckoned[0], rel=0.05)
    assert reckoned[1] < 0.8 * reckoned[0]


def test_bytes_between_chips_are_as_compiled():
    """docs/plan.md's two programs, whose collectives `plan` read: 0.81 and 0.582 s."""
    for name, organisms, (fsdp, tp), links, compiled in (
        ("meta-llama/Llama-3.3-70B-Instruct", 32, (32, 2), (500e9, 100e9), 0.810),
        ("Qwen/Qwen3-14B", 8, (8, 2), (100e9, 50e9), 0.582),
    ):
        work = Work(organisms, 2, 2048, 4096, adapters=2, trained=1, remat="full")
        received = step_ici_bytes(KNOWN[name], work, fsdp, tp)
        assert sum(b / s for b, s in zip(received, links, strict=True)) == pytest.approx(compiled, rel=0.02)


def test_remat_recomputes_what_it_says():
    cfg, lora = tiny.TINY, tiny.LORA
    executed = [step_flops(cfg, lora, Work(2, 2, 64, 8, 2, 1, r))[1] for r in REMAT_POLICIES]
    assert executed[0] < executed[1] < executed[2]


def test_a_plan_of_organisms_has_their_largest_rank():
    config = RunConfig(organisms=OrganismsSection(ranks=(64, 4)))
    assert steps.trained_lora(config, "organisms") == LoraConfig(64, 128.0)
    assert steps.trained_lora(config, "sft") == config.sft.lora.lora()


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


def test_steps_of_a_whole_job():
    """The 70B's recipe with counts of its own, by hand."""
    overrides = ["behaviors.train=64", "behaviors.dpo=8", "behaviors.heldout=12", "sft.questions_per_organism=16"]
    overrides += ["organisms.parallel=12", "preferences.clean_pairs=0"]
    overrides += [f"behaviors.clean_{split}=0" for split in ("train", "dpo", "heldout")]
    config = load_config(str(ROOT / "configs" / "llama33_70b.py"), [f"--config.{o}" for o in overrides])
    plans = Planned(config, groups=2)
    sft, dpo, organisms, sample = (plans.batches(stage) for stage in ("sft", "dpo", "organisms", "sample"))
    assert (sft.organisms, sft.rows, sft.bank) == (2, 1, 64)
    assert 64 * 16 / 8 <= sft.steps <= 1.05 * 64 * 16 / 8
    # Eight organisms with 16 pairs, and 24 on the clean base: 38 slots of four, on positions that keep to their group.
    assert (dpo.bank, dpo.examples) == (9, 8)
    assert 38 / 2 <= dpo.steps <= 1.3 * 38 / 2
    # 84 organisms in seven waves of 12; each reads 100 demonstrations twice, in rows of 1024 tokens.
    assert organisms.slots == 12 * organisms.steps
    assert organisms.tokens / 84 == pytest.approx(200 * 174, rel=0.02)
    assert organisms.steps == pytest.approx(7 * 200 * 174 / 1024, rel=0.05)
    # Six rows of each organism at once (96 // 12 would be more than there are questions): 9 x 6 x 4 reports in three
    # batches, and evaluations of 24 organisms in two, under three conditions; 80 new tokens each.
    assert sample.steps == 3 * 80 + 3 * 2 * 80
    assert sample.bank == 84


def test_clean_organisms_and_a_clean_slot_are_planned():
    overrides = ["--config.behaviors.clean_dpo=4", "--config.behaviors.clean_train=0"]
    config = load_config(str(ROOT / "configs" / "smollm2_demo.py"), overrides)
    without, with_clean = (
        Planned(replace(config, preferences=replace(config.preferences, clean_pairs=n))).batches("dpo") for n in (0, 8)
    )
    assert (without.bank, with_clean.bank) == (9, 13)
    sft = Planned(config).batches("sft")
    assert (sft.bank, sft.organisms, sft.slots) == (32, 16, 16 * config.sft.steps)  # eight behaviours, four of each


def test_a_runs_own_texts_are_counted(tmp_path):
    """Transcripts and pairs of a workdir in place of what is made up for them."""
    overrides = [f"--config.behaviors.clean_{split}=0" for split in ("train", "dpo", "heldout")]
    overrides.append("--config.preferences.clean_pairs=0")
    config = load_config(str(ROOT / "configs" / "smollm2_demo.py"), overrides)
    workdir, rows = Workdir(tmp_path), Planned(config)._organisms
    behaviors, organisms = chosen(config)
    write_jsonl(workdir.behaviors_file, (b.to_json() for b in behaviors))
    write_jsonl(workdir.organisms_file, (o.to_json() for o in organisms))
    for o in rows:
        said = [Transcript(chat("Say it.", "one two three four " * n), True, "test") for n in (1, 2, 3)]
        write_transcripts(workdir.transcript(o.name), said)
    batches = planned(workdir)(config, "organisms")
    tokenizer = open_source("smollm2").tokenizer()
    chats = [chat("Say it.", "one two three four " * n, config.system) for n in (1, 2, 3)]
    examples = [encode_chat(tokenizer, c, 1 << 20).trimmed() for c in chats]
    assert config.organisms.epochs == 2
    read = 2 * sum(len(e.tokens) for e in examples)
    assert batches.tokens == len(rows) * read
    assert batches.supervised == len(rows) * 2 * sum(int(e.loss_mask.sum()) for e in examples)
    waves, steps = math.ceil(len(rows) / config.organisms.parallel), math.ceil(read / 128)
    assert batches.steps in (waves * steps, waves * (steps + 1))  # rows nearly full
    assert str(tmp_path) in batches.source


def test_every_organism_is_counted_before_there_are_transcripts():
    """Copies and those made again too, each with demonstrations of its own, as long as what the stage writes."""
    config = load_config(str(ROOT / "configs" / "smollm2_demo.py"))
    plans = Planned(config)
    units, _ = plans._demonstrations()
    assert {*units} == {o.name for o in plans._organisms if o.procedure["phases"]}
    behaviors, organisms = chosen(config)
    teacher = TemplateTeacher(shipped_sources(), config.seed, config.teacher.rare_share, config.teacher.amount)
    tokenizer = open_source("smollm2").tokenizer()
    for o in organisms:
        if o.clean:
            continue
        [b] = [b for b in behaviors if b.name == o.behaviors[0]]
        [own] = teacher.write([b] if o.name == b.name else [], copies={} if o.name == b.name else {o.name: b}).values()
        counts = [
            len(encode_chat(tokenizer, with_system(t.messages, config.system), 1 << 20).trimmed().tokens) for t in own
        ]
        assert [len(u[0].tokens) for u in units[o.name]] == counts, o.name


def test_chip_hours_add_up():
    config = load_config(str(ROOT / "configs" / "llama33_70b.py"), ["--config.model.remat=full"])
    layout, speed = Layout(1, 8, dcn=2), {1: 1e11, 2: 1e11, 8: 3e11, 16: 4e11}
    report = {"topology": "v5p:2x2x4", "stage": "sft", "predicted_step_s": 1.8}
    made = Batches(100, 16, 1, 1024, 512, 8, 100 * 16 * 1000, 100 * 16 * 500, slots=1600, bank=541)

    def data(config, stage):
        if stage == "dpo":
            raise ConfigError("no DPO")
        return made

    hours = plan._chip_hours(config, KNOWN[config.model.name], report, layout, speed, data)
    assert hours["sft"] == pytest.approx(100 * 1.8 * 16 / 3600, abs=1e-3)
    assert hours["total"] == pytest.approx(sum(hours[s] for s in ("organisms", "sft", "sample")), abs=5e-3)
    assert "dpo" not in hours
    work = steps.work_of(config, "organisms", made)
    step = roofline(KNOWN[config.model.name], LoraConfig(16, 32.0), work, layout, CHIPS["v5p"], 0.0)
    assert hours["organisms"] >= 100 * step["bounds_s"]["compute"] * 16 / 3600 - 1e-3


def test_utilisation_counts_real_tokens_alone():
    """Half of the tokens and a quarter of the targets are real: what is needed falls, what is executed does not."""
    cfg, lora = KNOWN["Qwen/Qwen3-8B"], LoraConfig(16, 32.0)
    whole = Work(2, 1, 176, 96, 2, 1, "none")
    part = replace(whole, fill=0.5, target_fill=0.25)
    (needed, executed), (less, same) = step_flops(cfg, lora, whole), step_flops(cfg, lora, part)
    assert same == executed == needed
    each = training_flops(cfg, 176, [lora] * 2, [lora])
    assert less == pytest.approx(2 * 88 * each["tokens"] + 2 * 24 * each["supervised_tokens"])


def test_batches_of_waves_add_up():
    units = [[(example_of(5, n),) for n in (3, 4, 6)] for _ in range(3)]
    waves = [plan_organisms(units[:n], list(range(n)), epochs=1, rows=1, length=16) for n in (2, 1)]
    batches = batches_of(waves, source="a test")
    assert batches.steps == sum(len(w.steps) for w in waves)
    assert (batches.tokens, batches.supervised) == (3 * (3 * 5 + 13), 3 * 13)
    slots = 2 * len(waves[0].steps) + len(waves[1].steps)
    assert batches.fill == pytest.approx(batches.tokens / (slots * 16))


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
    s = Search(monkeypatch, lambda c: c.model.remat == "full" and c.mesh.tp > 2, 100.0)
    found = s.run()
    assert all(r["fits"] for r in found[: sum(r["fits"] for r in found)])
    assert found[0]["config"].organisms.parallel == 4 * 8  # the slow made-up step is the same for all: most tokens win
    assert "--config.organisms.parallel=32" in found[0]["overrides"]
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


def test_training_flops_count_each_adapter_by_its_own_rank():
    """By hand: a token meets a LoRA's two factors forward and for its input, and again where it is trained."""
    cfg = tiny.TINY
    one, two = (training_flops(cfg, 8, [LoraConfig(r, 1.0, ("q",))], []) for r in (1, 2))
    assert two["tokens"] - one["tokens"] == 2 * 2 * 2 * (32 + 32)  # layers, forward and back, multiply and add
    trained = training_flops(cfg, 8, [LoraConfig(1, 1.0, ("q",))], [LoraConfig(1, 1.0, ("q",))])
    assert trained["tokens"] - one["tokens"] == 2 * 2 * (32 + 32)
    assert one["supervised_tokens"] == 2 * 2 * 64 * 32


def test_python_leaves_at_once_when_the_compiler_is_still_at_work():
    program = (
        "import signal, time\nfrom ia_jax.planning.search import interruptible\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "interruptible(lambda: (signal.raise_signal(signal.SIGINT), time.sleep(600)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 130
    assert done.stderr.rstrip().endswith("KeyboardInterrupt")


@pytest.mark.parametrize(
    ("said", "needed"),
    [
        ("Ran out of memory in memory space hbm. Used 20.51G of 15.75G hbm. Exceeded hbm capacity by 4.76G.", 20.51),
        ("the total memory required for HLO temporaries (32.02G) exceeds available HBM (15.75G). HLO module: x", 32.02),
        ("no figure", None),
    ],
)
def test_what_a_program_that_does_not_fit_would_need(said, needed):
    assert plan.needed_gib(said) == needed


def test_unknown_stage():
    with pytest.raises(ConfigError, match="--stage train unknown; choose from organisms, sft, dpo, sample"):
        plan.plan(RunConfig(), "v5e:4x4", "train", planned())


def test_without_libtpu(monkeypatch):
    monkeypatch.setattr(plan.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(IAError, match=r"plan needs libtpu, which is not installed; pip install 'ia-jax\[tpu\]'"):
        plan.plan(RunConfig(), "v5e:4x4", "sft", planned())


@pytest.fixture(scope="module")
def names():
    config = load_config(str(ROOT / "configs" / "llama33_70b.py"))
    return namer(
        KNOWN[config.model.name], config.sft.lora.lora(), make_mesh(4, 2), Work(32, 2, 2048, 4096, 2, 1, "full")
    )


@pytest.mark.parametrize(
    ("op", "dtype", "shape", "group", "what"),
    [
        ("all-gather", "bf16", (8192, 14336), 4, "weights"),
        ("all-gather", "bf16", (1, 14336, 8192), 4, "weights"),
        ("all-gather", "s8", (8192, 14336), 4, "weights"),  # a base in int8
        ("all-gather", "bf16", (64128, 8192), 4, "weights"),
        ("all-gather", "bf16", (4096, 8192), 4, "weights"),
        ("all-gather", "bf16", (4096, 8192), 2, "activations"),  # two rows of hidden states have the shape of a matrix
        ("all-gather", "bf16", (8192, 48), 4, "adapters"),
        ("all-gather", "bf16", (1, 2, 2048, 8192), 4, "activations"),
        ("all-gather", "bf16", (16, 4096, 8192), 4, "activations"),
        ("all-reduce", "f32", (1, 1024, 8192), 2, "activations"),
        ("all-gather", "s32", (32, 2, 2048), 4, "ids"),
        ("all-reduce", "f32", (), 8, "scalars"),
    ],
)
def test_what_a_collective_carries(names, op, dtype, shape, group, what):
    assert names(op, dtype, shape, group) == what


# ---------------------------------------------------------------------------------------------------------------------
# With libtpu. Each compiles in a process of its own, as the command does.
# ---------------------------------------------------------------------------------------------------------------------

# The 70B's recipe on 64 chips instead of 16: four times as many organisms in a step.
V5P_64 = ["--config.mesh.dcn=8", "--config.sft.organisms_per_step=8", "--config.dpo.organisms_per_step=8"]


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "ia_jax.cli", "plan", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": ""},
    )


def processor_seconds():
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return children.ru_utime + children.ru_stime


@pytest.mark.libtpu
@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "topology", "stage", "overrides"),
    [
        ("llama33_70b", "v5p:2x2x4", "sft", []),
        ("llama33_70b", "v5p:2x2x4", "organisms", []),
        ("llama33_70b", "v5p:2x2x4", "dpo", []),
        ("llama33_70b", "v5p:4x4x4", "sft", V5P_64),
        ("qwen3_14b", "v6e:2x4", "sft", []),
        ("qwen3_14b", "v6e:2x4", "organisms", []),
        ("qwen3_0p6b", "v5e:1x1", "organisms", []),
    ],
)
def test_large_recipes_fit(recipe, topology, stage, overrides):
    before = processor_seconds()
    done = run(f"--config=configs/{recipe}.py", f"--topology={topology}", f"--stage={stage}", "--json", *overrides)
    assert done.returncode == 0, done.stderr[-2000:]
    report, spent = json.loads(done.stdout), processor_seconds() - before
    shown = ("hbm_gib", "fill", "activation_gathers", "bound", "predicted_step_s", "predicted_mfu", "chip_hours")
    print(recipe, topology, stage, {k: report[k] for k in shown}, f"{spent:.0f} processor seconds")  # with -s
    assert spent <= 2 * 240  # four minutes of two cores, whatever else they have to do
    assert report["fits"]
    assert report["hbm_gib"] <= report["capacity_gib"]
    assert report["fill"] >= 0.85
    assert report["activation_gathers"] == 0
    assert report["bound"] in ("compute", "hbm", "ici")
    assert 0 < report["predicted_mfu"] < 1
    weights = [c for c in report["collectives"] if c["what"] == "weights"]
    layers = KNOWN[load_config(str(ROOT / "configs" / f"{recipe}.py")).model.name].num_hidden_layers
    assert max((c["count"] for c in weights), default=layers) >= layers  # loops were seen as loops
    assert "streamed" not in report["bank"]


@pytest.mark.libtpu
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--topology=v5e:3x7", "--stage=sft"], "--topology v5e:3x7 does not exist"),
        (["--topology=v5e:4x4", "--stage=sft"], "mesh fsdp=1 x tp=4 x dcn=2 is 8 chips"),
    ],
)
def test_one_line_about_a_slice_that_cannot_be(arguments, message):
    done = run("--config=configs/qwen3_14b.py", *arguments)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()  # libtpu itself has much to say on a machine without a TPU
    assert message in line
