"""What a step costs: parameters as published, FLOPs and bytes against XLA's and by hand."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from ia_jax.config import RunConfig
from ia_jax.data.batch import Batch
from ia_jax.models.known import KNOWN
from ia_jax.models.lora import LoraConfig
from ia_jax.models.remat import REMAT_POLICIES
from ia_jax.models.transformer import abstract_params, forward
from ia_jax.planning import steps
from ia_jax.planning.batches import Batches
from ia_jax.planning.chips import Work, layer_parameters, step_flops, step_hbm_bytes, step_ici_bytes, training_flops
from ia_jax.recipes import load_config
from ia_jax.training.losses import Sft
from ia_jax.training.state import init_state
from ia_jax.training.trainer import train_step
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
    """Of the 70B's SFT on v5p:2x2x4 as fsdp 2 x tp 8, whose program `plan` read (libtpu 0.0.50.1): what is gathered of
    weights, of which a chip lacks half, and 320 sums of hidden states over eight chips, in bf16.
    """
    work = Work(2, 1, 256, 80, adapters=2, trained=1, remat="none")
    gathered, summed = step_ici_bytes(KNOWN["meta-llama/Llama-3.3-70B-Instruct"], work, 2, 8)
    weights = 480 * 58_720_256 + 320 * 16_777_216 + 320 * 2_097_152 + 262_668_288
    assert gathered == pytest.approx(weights / 2, rel=1e-3)
    assert summed == pytest.approx(320 * 4_194_304 * 2 * 7 / 8, rel=1e-3)
    # Of Qwen3-0.6B's on v5e:1x2 as tp 2, layers computed again: a fifth sum of each, after o.
    work = Work(2, 1, 160, 80, adapters=2, trained=1, remat="full")
    _, summed = step_ici_bytes(KNOWN["Qwen/Qwen3-0.6B"], work, 1, 2)
    assert summed == pytest.approx(5 * 28 * 655_360 * 2 * 1 / 2, rel=1e-3)


def test_remat_recomputes_what_it_says():
    cfg, lora = tiny.TINY, tiny.LORA
    executed = [step_flops(cfg, lora, Work(2, 2, 64, 8, 2, 1, r))[1] for r in REMAT_POLICIES]
    none, products, mlp, full, offload = executed
    attention = 2 * 2 * 32 * cfg.num_hidden_layers * cfg.q_size  # of a token: scores and sums over half of a row
    assert products - none == 256 * attention
    assert products < mlp < full == offload


def test_utilisation_counts_real_tokens_alone():
    """Half of the tokens and a quarter of the targets are real: what is needed falls, what is executed does not."""
    cfg, lora = KNOWN["Qwen/Qwen3-8B"], LoraConfig(16, 32.0)
    whole = Work(2, 1, 176, 96, 2, 1, "none")
    part = replace(whole, fill=0.5, target_fill=0.25)
    (needed, executed), (less, same) = step_flops(cfg, lora, whole), step_flops(cfg, lora, part)
    assert same == executed == needed
    each = training_flops(cfg, 176, [lora] * 2, [lora])
    assert less == pytest.approx(2 * 88 * each["tokens"] + 2 * 24 * each["supervised_tokens"])


def test_training_flops_count_each_adapter_by_its_own_rank():
    """By hand: a token meets a LoRA's two factors forward and for its input, and again where it is trained."""
    cfg = tiny.TINY
    one, two = (training_flops(cfg, 8, [LoraConfig(r, 1.0, ("q",))], []) for r in (1, 2))
    assert two["tokens"] - one["tokens"] == 2 * 2 * 2 * (32 + 32)  # layers, forward and back, multiply and add
    trained = training_flops(cfg, 8, [LoraConfig(1, 1.0, ("q",))], [LoraConfig(1, 1.0, ("q",))])
    assert trained["tokens"] - one["tokens"] == 2 * 2 * (32 + 32)
    assert one["supervised_tokens"] == 2 * 2 * 64 * 32
