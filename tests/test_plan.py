"""`ia-jax plan`: its arithmetic against XLA's, its refusals, and (with libtpu) the programs of the large recipes."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from ia_jax.adapters.lora import LoraConfig
from ia_jax.config import RunConfig
from ia_jax.errors import ConfigError, IAError
from ia_jax.models.known import KNOWN
from ia_jax.models.transformer import abstract_params
from ia_jax.parallel import plan
from ia_jax.parallel.chips import (
    CHIPS,
    Work,
    chip_of,
    layer_parameters,
    peak_flops,
    step_flops,
    step_hbm_bytes,
    training_flops,
)
from ia_jax.parallel.mesh import make_mesh
from ia_jax.recipes import load_config
from ia_jax.training import introspection
from ia_jax.training.losses import Batch
from tests import tiny

ROOT = Path(__file__).parent.parent
# As the hub shows them, from the safetensors' own headers.
PUBLISHED = {
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-1.7B": 1_720_574_976,
    "Qwen/Qwen3-4B": 4_022_468_096,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "Qwen/Qwen3-14B": 14_768_307_200,
    "Qwen/Qwen3-32B": 32_762_123_264,
    "meta-llama/Llama-3.3-70B-Instruct": 70_553_706_496,
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
    p = jax.ShapeDtypeStruct((k, b * t), jnp.int32)
    batch = Batch(i, i, i, p, p, jax.ShapeDtypeStruct(p.shape, jnp.float32), p)
    lora = LoraConfig(8, 16.0)
    state = jax.eval_shape(
        lambda a: introspection.init_state(a, 2, lora, RunConfig().sft.optimizer), tiny.adapter(0, cfg, lora)
    )
    stack = jax.eval_shape(lambda: tiny.adapter(0, cfg, lora, organisms=k))
    lowered = introspection.sft_step.lower(
        abstract_params(cfg, jnp.float32), state, stack, batch, cfg=cfg, lora=lora, optimizer=RunConfig().sft.optimizer
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
    assert step_hbm_bytes(cfg, lora, work, 32, 2) > 3 * 2 * 80 * 855_638_016  # each pass writes and reads half of them


def test_remat_recomputes_what_it_says():
    cfg, lora = tiny.TINY, tiny.LORA
    executed = [step_flops(cfg, lora, Work(2, 2, 64, 8, 2, 1, r))[1] for r in ("none", "dots", "full")]
    assert executed[0] < executed[1] < executed[2]


def test_chips_are_known_by_the_topologys_name():
    assert chip_of("v5p:4x4x4") is CHIPS["v5p"]
    assert CHIPS["v5p"].axis_bandwidth == pytest.approx(200e9)
    with pytest.raises(ConfigError, match=r"no chip 'v9'; known: v5e, v5p, v6e"):
        chip_of("v9:2x2")


@pytest.mark.parametrize(("kind", "flops"), [("TPU v5 lite", 197e12), ("TPU v5", 459e12), ("cpu", None)])
def test_the_peak_of_the_devices_in_use(monkeypatch, kind, flops):
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(device_kind=kind)])
    assert peak_flops() == flops
    monkeypatch.undo()
    with jax.set_mesh(make_mesh(4, 2)):
        monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(device_kind=kind)])
        assert peak_flops() == (flops and 8 * flops)


@pytest.mark.libtpu
@pytest.mark.parametrize("name", CHIPS)
def test_chips_are_known_by_what_jax_calls_them(name):
    device = plan._devices(f"{name}:2x2x1" if name == "v5p" else f"{name}:2x2")[0]
    assert device.device_kind in CHIPS[name].kinds


def test_training_flops_count_each_adapter_by_its_own_rank():
    """By hand: a token meets a LoRA's two factors forward and for its input, and again where it is trained."""
    cfg = tiny.TINY
    one, two = (training_flops(cfg, 8, [LoraConfig(r, 1.0, ("q",))], []) for r in (1, 2))
    assert two["tokens"] - one["tokens"] == 2 * 2 * 2 * (32 + 32)  # layers, forward and back, multiply and add
    trained = training_flops(cfg, 8, [LoraConfig(1, 1.0, ("q",))], [LoraConfig(1, 1.0, ("q",))])
    assert trained["tokens"] - one["tokens"] == 2 * 2 * (32 + 32)
    assert one["supervised_tokens"] == 2 * 2 * 64 * 32


def test_unknown_stage():
    with pytest.raises(ConfigError, match="--stage train unknown; choose from organisms, sft, dpo, sample"):
        plan.plan(RunConfig(), "v5e:4x4", "train")


def test_without_libtpu(monkeypatch):
    from jax.experimental import topologies

    def missing(**_):
        raise RuntimeError("Could not find libtpu.so; install it")

    monkeypatch.setattr(topologies, "get_topology_desc", missing)
    with pytest.raises(IAError, match=r"plan needs libtpu, which is not installed; pip install 'ia-jax\[tpu\]'"):
        plan.plan(RunConfig(), "v5e:4x4", "sft")


@pytest.fixture(scope="module")
def names():
    config = load_config(str(ROOT / "configs" / "llama33_70b.py"))
    shape = plan.Shape(4, 2, 2, "full")
    cfg = KNOWN[config.model.name]
    return plan._names(cfg, config.sft.lora.lora(), make_mesh(4, 2), plan._work(config, "sft", shape))


@pytest.mark.parametrize(
    ("op", "dtype", "shape", "what"),
    [
        ("all-gather", "bf16", (8192, 14336), "weights"),
        ("all-gather", "bf16", (1, 14336, 8192), "weights"),
        ("all-gather", "bf16", (64128, 8192), "weights"),
        ("all-gather", "bf16", (8192, 48), "adapters"),
        ("all-gather", "bf16", (1, 2, 2048, 8192), "activations"),
        ("all-gather", "bf16", (16, 4096, 8192), "activations"),
        ("all-reduce", "f32", (1, 1024, 8192), "activations"),
        ("all-gather", "s32", (32, 2, 2048), "ids"),
        ("all-reduce", "f32", (), "scalars"),
    ],
)
def test_what_a_collective_carries(names, op, dtype, shape, what):
    assert names(op, dtype, shape) == what


# ---------------------------------------------------------------------------------------------------------------------
# With libtpu. Each compiles in a process of its own, as the command does.
# ---------------------------------------------------------------------------------------------------------------------

V5E_64 = ["--config.mesh.fsdp=16", "--config.mesh.tp=4", "--config.sft.organisms_per_step=16"]


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "ia_jax.cli", "plan", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": "", "TPU_SKIP_MDS_QUERY": "1"},
    )


@pytest.mark.libtpu
@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "topology", "stage", "most", "overrides"),
    [
        ("llama33_70b", "v5p:4x4x4", "sft", 15.0, []),
        ("llama33_70b", "v5p:4x4x4", "organisms", 95.0, []),
        ("llama33_70b", "v5p:4x4x4", "dpo", 95.0, []),
        ("llama33_70b", "v5e:8x8", "sft", 15.75, V5E_64),
        ("qwen3_14b", "v5e:4x4", "sft", 15.75, []),
        ("qwen3_14b", "v5e:4x4", "organisms", 15.75, []),
        ("qwen3_14b", "v5e:4x4", "dpo", 15.75, []),
    ],
)
def test_large_recipes_fit(recipe, topology, stage, most, overrides):
    done = run(f"--config=configs/{recipe}.py", f"--topology={topology}", f"--stage={stage}", "--json", *overrides)
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout)
    assert report["fits"]
    assert report["hbm_gib"] <= most
    assert report["activation_gathers"] == 0
    assert report["bound"] in ("compute", "hbm", "ici")
    assert 0 < report["predicted_mfu"] < 1
    weights = [c for c in report["collectives"] if c["what"] == "weights"]
    layers = KNOWN[load_config(str(ROOT / "configs" / f"{recipe}.py")).model.name].num_hidden_layers
    assert max(c["count"] for c in weights) >= layers  # loops were seen as loops


@pytest.mark.libtpu
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--topology=v5e:3x7", "--stage=sft"], "--topology v5e:3x7 does not exist"),
        (["--topology=v5e:4x4", "--stage=sft", "--config.mesh.fsdp=4"], "mesh fsdp=4 x tp=2 is 8 chips"),
    ],
)
def test_one_line_about_a_slice_that_cannot_be(arguments, message):
    done = run("--config=configs/qwen3_14b.py", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
