"""`ia-jax plan`: the steps of a whole job by hand, refusals, and (with libtpu) the programs of the large recipes."""

import json
import math
import os
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from ia_jax.behaviors.template_sources import shipped_sources
from ia_jax.behaviors.template_teacher import TemplateTeacher
from ia_jax.config import OrganismsSection, RunConfig
from ia_jax.data.plans import plan_organisms
from ia_jax.data.transcripts import Transcript, chat, with_system, write_transcripts
from ia_jax.errors import ConfigError, IAError
from ia_jax.models.chat import encode_chat
from ia_jax.models.known import KNOWN
from ia_jax.models.lora import LoraConfig
from ia_jax.models.sources import open_source
from ia_jax.models.transformer import abstract_params
from ia_jax.parallel.mesh import DECODING, TRAINING, make_mesh
from ia_jax.planning import plan, steps
from ia_jax.planning.batches import Batches, batches_of
from ia_jax.planning.carried import namer
from ia_jax.planning.chips import CHIPS, Work
from ia_jax.planning.hlo import collectives
from ia_jax.planning.roofline import Layout, roofline
from ia_jax.recipes import load_config, override
from ia_jax.stages.planned import Planned, example_of, planned
from ia_jax.stages.transcripts import chosen
from ia_jax.storage import write_jsonl
from ia_jax.workdir import Workdir
from tests.meshes import CFG

ROOT = Path(__file__).parent.parent


def test_a_plan_of_organisms_has_their_largest_rank():
    config = RunConfig(organisms=OrganismsSection(ranks=(64, 4)))
    assert steps.trained_lora(config, "organisms") == LoraConfig(64, 128.0)
    assert steps.trained_lora(config, "sft") == config.sft.lora.lora()


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
    # 9 x 6 x 4 reports for pairs, and six of each of 24 organisms under three conditions; 80 new tokens each, by rows
    # that are refilled: four for each organism (96 // 24), where memory is known six, and no more than are asked for.
    replies = 9 * 6 * 4 + 3 * 24 * 6
    assert (sample.organisms, sample.rows, sample.steps) == (24, 4, replies * 80 // 96)
    assert sample.bank == 84
    known, wished = (Planned(config, groups=2, **more).sample() for more in ({"memory": 2**40}, {"rows": 48}))
    assert (known.organisms, known.rows, known.steps) == (24, 6, replies * 80 // 144)
    assert (wished.organisms, wished.rows, wished.steps) == (12, 4, replies * 80 // 48)


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


def test_batches_of_waves_add_up():
    units = [[(example_of(5, n),) for n in (3, 4, 6)] for _ in range(3)]
    waves = [plan_organisms(units[:n], list(range(n)), epochs=1, rows=1, length=16) for n in (2, 1)]
    batches = batches_of(waves, source="a test")
    assert batches.steps == sum(len(w.steps) for w in waves)
    assert (batches.tokens, batches.supervised) == (3 * (3 * 5 + 13), 3 * 13)
    slots = 2 * len(waves[0].steps) + len(waves[1].steps)
    assert batches.fill == pytest.approx(batches.tokens / (slots * 16))


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


def test_sampling_is_planned_as_it_runs():
    """What the program that goes on with all rows is given, by hand: on four devices, the base whole on every two.

    A device has two of the four organisms' rows; half of each head's keys and values; half of the bank.
    """
    cfg, config = CFG, override(RunConfig(), ["--config.model.dtype=bfloat16", "--config.organisms.lora.rank=4"])
    batches = Batches(10, 4, 2, 16, 1, 2, 10 * 8 * 12, 0, slots=40, bank=6)
    mesh = make_mesh(2, 2)
    with jax.set_mesh(mesh):
        program = steps.lower(config, cfg, "sample", mesh, batches, True).compile()
        cut = steps.lower(config, cfg, "sample", mesh, batches, True, TRAINING).compile()
    assert config.eval.max_new_tokens == config.preferences.max_new_tokens == 32
    places = 16 + 32
    cache = 2 * 2 * cfg.num_hidden_layers * 2 * 2 * (cfg.num_key_value_heads // 2) * places * cfg.head_dim
    stays = steps.argument_gib(config, cfg, "sample", mesh, batches) * 2**30
    loaded, moved = (
        steps._bytes_here(abstract_params(cfg, jnp.bfloat16, mesh, rules)) for rules in (TRAINING, DECODING)
    )
    assert moved > 1.8 * loaded
    each = Work(4, 2, 1, 2, adapters=2, trained=0, remat="none", backward=False)
    sent = collectives(program.as_text(), namer(cfg, config.sft.lora.lora(), mesh, each))
    with_logits = [(c.op, c.group, c.shape) for c in sent if f",{cfg.vocab_size}]" in c.shape]
    assert with_logits == [("all-gather", 2, f"f32[2,2,{cfg.vocab_size}]")]  # of a group's own rows, along tp
    small = 512  # what the host says of the rows
    assert stays + cache <= cut.memory_analysis().argument_size_in_bytes <= stays + cache + small
    found = program.memory_analysis().argument_size_in_bytes
    assert stays - loaded + moved + cache <= found <= stays - loaded + moved + cache + small
    free = 2 * moved + 1
    assert [steps.sampling_rules(config, cfg, mesh, n) for n in (free, free - 2)] == [DECODING, TRAINING]


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


def test_logits_of_new_tokens(names):
    """Of four groups of devices each has two of eight organisms' rows: 16 in all, of 128,256 words."""
    config = load_config(str(ROOT / "configs" / "llama33_70b.py"))
    work = Work(8, 8, 1, 8, adapters=2, trained=0, remat="none", backward=False)
    named = namer(KNOWN[config.model.name], config.sft.lora.lora(), make_mesh(4, 2), work)
    assert named("all-gather", "f32", (16, 8, 16032), 2) == "logits"
    assert named("all-gather", "f32", (64, 128256), 8) == "activations"  # everybody's
    assert names("all-gather", "f32", (16, 128256), 2) == "activations"  # not in a training step


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
