"""Published peaks of TPU chips, and the arithmetic of a step: FLOPs, bytes, and the roofline that they give.

docs/plan.md does the same sums by hand.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax

from ia_jax.models.config import ModelConfig
from ia_jax.models.lora import LoraConfig, layers_on, projection_sizes
from ia_jax.models.remat import KEPT


@dataclass(frozen=True)
class Chip:
    """Peaks of one device: bf16 FLOP/s, bytes/s of HBM, and bytes/s of one ICI link in one direction.

    A device is what JAX shows: a chip, or one of its `cores` where JAX shows them singly (v7x: two, which share the
    chip's links and are joined by `die` bytes/s). `kinds`: what JAX calls it (`Device.device_kind`). `axes` of the
    torus, each of which closes into a ring where its length is a multiple of `ring`; otherwise its ends have one
    neighbour on it. Of GPUs, an axis is a node behind switches: every group of it has the whole `link`, and `ring` is
    how many there are. `capacity`: bytes of HBM that the TPU compiler allows a program (a little less than what is
    advertised). `dcn`: bytes/s of a device's share of the network between slices. `libtpu`: what libtpu calls it; ""
    where there is no compiler to plan with.
    """

    name: str
    kinds: tuple[str, ...]
    flops: float
    hbm: float
    link: float
    axes: int
    ring: int
    capacity: float
    source: str
    dcn: float
    libtpu: str = ""
    cores: int = 1
    die: float = 0.0


_DOCS = "docs.cloud.google.com/tpu/docs"
GIB = 2**30
# FLOP/s, HBM and capacity as those pages give them. They give ICI as "bidirectional bandwidth per chip" (400, 1200, 800
# and 1200 GB/s): all links of a chip (4, 6, 4 and 6) and both directions together, so one link in one direction carries
# 50, 100, 100 and 100 GB/s. That, and which axes are rings, agrees with jax-ml.github.io/scaling-book/tpus, whose
# present edition puts a link a tenth lower (45 and 90 GB/s). The network between slices: "DCN bandwidth per chip" of
# v5p (50 Gb/s), that of a pod over its 256 chips for v5e (25 Gb/s); v6e's and v7x's 100 Gb/s are from memory. libtpu
# says neither what a program may use of v7x's 96 GiB; a sixty-fourth is left out, as it does on v5e.
# GPUs: NVIDIA's data sheets, dense bf16. NVLink has 900 GB/s both ways; the network is that of Google's a3-highgpu-8g
# and a3-ultragpu-8g (100 and 400 Gb/s a GPU, from memory).
CHIPS = {
    "v5e": Chip(
        "v5e", ("TPU v5 lite", "TPU v5e"), 197e12, 819e9, 50e9, 2, 16, 15.75 * GIB, f"{_DOCS}/v5e", 3.125e9, "v5e"
    ),
    "v5p": Chip("v5p", ("TPU v5", "TPU v5p"), 459e12, 2765e9, 100e9, 3, 4, 95 * GIB, f"{_DOCS}/v5p", 6.25e9, "v5p"),
    "v6e": Chip(
        "v6e", ("TPU v6 lite", "TPU v6e"), 918e12, 1600e9, 100e9, 2, 16, 31.25 * GIB, f"{_DOCS}/v6e", 12.5e9, "v6e"
    ),
    "v7x": Chip(
        "v7x",
        ("TPU7x",),
        2307e12 / 2,
        7380e9 / 2,
        100e9 / 2,
        3,
        4,
        96 * GIB * 63 / 64,
        f"{_DOCS}/tpu7x",
        12.5e9 / 2,
        "tpu7x",
        cores=2,
        die=600e9,
    ),
    "h100": Chip(
        "h100",
        ("NVIDIA H100 80GB HBM3",),
        989e12,
        3350e9,
        450e9,
        1,
        8,
        80e9,
        "nvidia.com/en-us/data-center/h100",
        12.5e9,
    ),
    "h200": Chip(
        "h200", ("NVIDIA H200",), 989e12, 4800e9, 450e9, 1, 8, 141e9, "nvidia.com/en-us/data-center/h200", 50e9
    ),
}


def peak_flops() -> float | None:
    """bf16 FLOP/s of all devices of the mesh that is set (of one, where none is); None if the peak is not known."""
    kind = jax.devices()[0].device_kind
    chip = next((c for c in CHIPS.values() if kind in c.kinds), None)
    return chip.flops * max(1, jax.sharding.get_mesh().size) if chip else None


@dataclass(frozen=True)
class Work:
    """One step over the whole slice: `adapters` LoRAs on every token, `trained` of them; `remat` as in `forward`.

    organisms x rows x length tokens, of which `targets` for each organism meet the vocabulary; `fill` and `target_fill`
    are the shares of them that are real. `backward` is False for generation, whose new tokens attend to `cached` ones
    besides. `frozen`: what the adapters below the trained one are, where they are of another kind. `share`: of the
    layers, which the backward pass goes through: from the lowest that the trained adapter sits on to the last.
    """

    organisms: int
    rows: int
    length: int
    targets: int
    adapters: int
    trained: int
    remat: str
    backward: bool = True
    cached: int = 0
    fill: float = 1.0
    target_fill: float = 1.0
    frozen: LoraConfig | None = None
    share: float = 1.0

    def stack(self, lora: LoraConfig) -> tuple[LoraConfig, ...]:
        """The kinds of all adapters on a token, where that of the trained (of generation: the last) is `lora`."""
        own = max(self.trained, 1)
        return (*[self.frozen or lora] * (self.adapters - own), *[lora] * min(own, self.adapters))

    @property
    def tokens(self) -> int:
        return self.organisms * self.rows * self.length

    @property
    def reads(self) -> float:
        """How often all layers' weights are read: forward, again where a layer is recomputed, backward."""
        return 1 if not self.backward else 1 + (2 if self.whole_layers_again else 1) * self.share

    @property
    def whole_layers_again(self) -> bool:
        return self.remat in KEPT and not KEPT[self.remat]

    @property
    def gathers(self) -> float:
        """How often all layers' weights are gathered: recomputing and going back share one; sampling has them whole."""
        return 1 + self.share if self.backward else 0


def layer_parameters(cfg: ModelConfig) -> int:
    """Entries of one layer's matrices."""
    return sum(i * o for i, o in projection_sizes(cfg).values())


def matrix_bytes(cfg: ModelConfig) -> int:
    """Bytes of an entry of a layer's matrices: bf16, or int8."""
    return 1 if cfg.quantization else 2


def training_flops(
    cfg: ModelConfig, length: int, stack: Sequence[LoraConfig], trained: Sequence[LoraConfig]
) -> dict[str, float]:
    """FLOPs that the mathematics of a training step needs for each of its `tokens` and `supervised_tokens`.

    stack: all adapters on a token; `trained`: those of them that get gradients. length: of a row, as in `step_flops`.
    """
    (base, attention), lowest = _base_flops(cfg, length), lowest_layer(cfg, trained)
    forward = base + attention + _lora_flops(cfg, stack)
    above = (cfg.num_hidden_layers - lowest) / cfg.num_hidden_layers
    backward = above * (base + 2 * attention) + _lora_flops(cfg, stack, lowest) + _lora_flops(cfg, trained)
    return {"tokens": forward + backward, "supervised_tokens": 4 * cfg.vocab_size * cfg.hidden_size}


def lowest_layer(cfg: ModelConfig, trained: Sequence[LoraConfig]) -> int:
    """Where the backward pass ends: the lowest layer that any of these sits on (0 without any)."""
    return min([(layers_on(cfg, lora) or (0,))[0] for lora in trained] or [0])


def _base_flops(cfg: ModelConfig, length: int, cached: int = 0) -> tuple[float, float]:
    """Of one token, forward: base matrices, and attention over what is cached and half of its row."""
    layers = cfg.num_hidden_layers
    return 2 * layers * layer_parameters(cfg), 4 * layers * cfg.q_size * (cached + length / 2)


def _lora_flops(cfg: ModelConfig, loras: Sequence[LoraConfig], lowest: int = 0) -> float:
    """Of one token, forward, from layer `lowest` on. Vectors are additions, which count as nothing."""
    return 2.0 * sum(adapter_entries(cfg, lora, lowest) for lora in loras if lora.rank)


def adapter_entries(cfg: ModelConfig, lora: LoraConfig, lowest: int = 0) -> int:
    """Numbers in an adapter's leaves, from layer `lowest` on."""
    on = layers_on(cfg, lora) or range(cfg.num_hidden_layers)
    sizes = projection_sizes(cfg)
    each = sum(sum(sizes[t]) * lora.rank if t in sizes else cfg.hidden_size for t in lora.targets)
    return sum(layer >= lowest for layer in on) * each


def step_flops(cfg: ModelConfig, lora: LoraConfig, work: Work) -> tuple[float, float]:
    """FLOPs of a step on all chips: (what its real tokens need, what is executed with padding and recomputation).

    A multiply and an add count as two. The base is frozen: its backward pass has one product for each of the forward,
    not two. Attention is counted as causal over whole rows, so packed rows cost less than this.
    """
    targets = work.organisms * work.targets
    stack, trained = work.stack(lora), [lora] * work.trained
    base, attention = (work.tokens * x for x in _base_flops(cfg, work.length, work.cached))
    forward = base + attention + work.tokens * _lora_flops(cfg, stack)
    if not work.backward:
        head = 2 * targets * cfg.vocab_size * cfg.hidden_size
        return forward * work.fill + head * work.target_fill, forward + head
    each = training_flops(cfg, work.length, stack, trained)
    tokens, supervised = work.tokens * each["tokens"], targets * each["supervised_tokens"]
    lowest, sizes = lowest_layer(cfg, trained), projection_sizes(cfg)
    above = (cfg.num_hidden_layers - lowest) / cfg.num_hidden_layers
    wide = ("gate", "up")  # the backward pass does not need what down gives
    mlp = above * 2 * cfg.num_hidden_layers * sum(math.prod(sizes[t]) for t in wide)
    mlp += _lora_flops(
        cfg, [replace(s, targets=own) for s in stack if (own := tuple(set(wide) & set(s.targets)))], lowest
    )
    full = above * (base + attention) + work.tokens * _lora_flops(cfg, stack, lowest)
    products = above * attention
    again = {"none": 0.0, "products": products, "mlp": products + work.tokens * mlp}.get(work.remat, full)
    return tokens * work.fill + supervised * work.target_fill, tokens + supervised + again


def step_ici_bytes(cfg: ModelConfig, work: Work, shards: int, tp: int, copies: int = 1) -> tuple[float, float]:
    """Bytes that a chip receives in gathers of weights and, along `tp`, in sums of hidden states in bf16.

    shards: into how many parts the base is cut beside those of `tp`; copies: how many groups of chips have it whole.
    What a program really sends, `plan` reads from it; these are docs/plan.md's formulas, for what is not compiled.
    """
    layers, matrices = cfg.num_hidden_layers, cfg.num_hidden_layers * layer_parameters(cfg)
    gathered = (
        (matrix_bytes(cfg) * work.gathers * matrices + 2 * cfg.vocab_size * cfg.hidden_size)
        / tp
        * (shards - 1)
        / shards
    )
    # After o and down; of them one again, where the layer is recomputed; backward before q, k, v and gate, up.
    sums = 2 if not work.backward else 2 + (3 if work.whole_layers_again else 2) * work.share
    summed = sums * layers * 2 * work.tokens / (shards * copies) * cfg.hidden_size * 2 * (tp - 1) / tp
    return gathered, summed


def step_hbm_bytes(
    cfg: ModelConfig, lora: LoraConfig, work: Work, shards: int, tp: int, copies: int = 1, groups: int | None = None
) -> float:
    """An estimate of the bytes that one chip moves to and from HBM in a step (activations in bf16, weights as held).

    Weights: each pass reads a layer's matrices; each gather writes them. Activations: each pass reads and writes about
    six vectors of the hidden size and three of the widths inside attention and MLP. Cached keys and values: read once.
    Adapters: one that is trained is fp32, read and written with its gradient and two moments; a frozen organism's is
    picked from the bank in bf16, and read in each pass. shards, copies: as in `step_ici_bytes`; groups: of chips with
    organisms of their own (by default shards x copies).
    """
    layers, parts = cfg.num_hidden_layers, shards * copies
    gathers = 0 if shards == 1 else work.gathers
    weights = matrix_bytes(cfg) * (work.reads + gathers) * layers * layer_parameters(cfg) / tp
    inside = cfg.q_size + 2 * cfg.kv_size + cfg.intermediate_size
    activations = 4 * work.tokens / parts * (6 * cfg.hidden_size + 3 * inside / tp) * layers * work.reads
    cache = 2 * 2 * work.organisms * work.rows / parts * work.cached * cfg.kv_size / tp * layers
    own = max(1, work.organisms // (groups or parts))
    trained, frozen = (own, 0) if work.adapters == work.trained else (work.trained, own)
    adapters = 24 * trained * adapter_entries(cfg, lora) / tp
    adapters += 2 * (2 + work.reads) * frozen * adapter_entries(cfg, work.frozen or lora) / tp
    head = 2 * (1 if shards == 1 else 2) * cfg.vocab_size * cfg.hidden_size / tp
    return weights + activations + cache + adapters + head
