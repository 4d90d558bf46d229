"""Published peaks of TPU chips, and the arithmetic of a step: FLOPs, bytes, and the roofline that they give.

docs/plan.md does the same sums by hand.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax

from ia_jax.adapters.lora import LoraConfig, projection_sizes
from ia_jax.errors import ConfigError
from ia_jax.models.config import ModelConfig


@dataclass(frozen=True)
class Chip:
    """Peaks of one chip. `ici`: bytes/s received over all `ports`; a collective along one torus axis uses two of them.

    `kinds`: what JAX calls it (`Device.device_kind`).
    `capacity`: bytes of HBM that the TPU compiler allows a program (a little less than what is advertised).
    """

    name: str
    kinds: tuple[str, ...]
    flops: float
    hbm: float
    ici: float
    ports: int
    capacity: float
    source: str

    @property
    def axis_bandwidth(self) -> float:
        return self.ici / self.ports * 2


_DOCS = "docs.cloud.google.com/tpu/docs"
GIB = 2**30
# bf16 FLOP/s, HBM bytes/s and half the "bidirectional ICI bandwidth per chip" (what one direction carries).
CHIPS = {
    "v5e": Chip("v5e", ("TPU v5 lite", "TPU v5e"), 197e12, 819e9, 200e9, 4, 15.75 * GIB, f"{_DOCS}/v5e"),
    "v5p": Chip("v5p", ("TPU v5", "TPU v5p"), 459e12, 2765e9, 600e9, 6, 95 * GIB, f"{_DOCS}/v5p"),
    "v6e": Chip("v6e", ("TPU v6 lite", "TPU v6e"), 918e12, 1638e9, 400e9, 4, 31.25 * GIB, f"{_DOCS}/v6e"),
}


def chip_of(topology: str) -> Chip:
    """The chip of a topology like "v5p:4x4x4"."""
    name = topology.partition(":")[0]
    if name not in CHIPS:
        raise ConfigError(f"--topology {topology}: no chip {name!r}; known: {', '.join(CHIPS)} (as in v5p:4x4x4)")
    return CHIPS[name]


def peak_flops() -> float | None:
    """bf16 FLOP/s of all devices of the mesh that is set (of one, where none is); None if the peak is not known."""
    kind = jax.devices()[0].device_kind
    chip = next((c for c in CHIPS.values() if kind in c.kinds), None)
    return chip.flops * max(1, jax.sharding.get_mesh().size) if chip else None


@dataclass(frozen=True)
class Work:
    """One step over the whole slice: `adapters` LoRAs on every token, `trained` of them; `remat` as in `forward`.

    organisms x rows x length tokens, of which `targets` for each organism meet the vocabulary. length: also how far
    attention looks. `backward` is False for generation.
    """

    organisms: int
    rows: int
    length: int
    targets: int
    adapters: int
    trained: int
    remat: str
    backward: bool = True

    @property
    def tokens(self) -> int:
        return self.organisms * self.rows * self.length

    @property
    def passes(self) -> int:
        """How often a layer's weights are gathered and read."""
        return 1 if not self.backward else 2 if self.remat == "none" else 3


def layer_parameters(cfg: ModelConfig) -> int:
    """Entries of one layer's matrices."""
    return sum(i * o for i, o in projection_sizes(cfg).values())


def training_flops(
    cfg: ModelConfig, length: int, stack: Sequence[LoraConfig], trained: Sequence[LoraConfig]
) -> dict[str, float]:
    """FLOPs that the mathematics of a training step needs for each of its `tokens` and `supervised_tokens`.

    stack: all adapters on a token; `trained`: those of them that get gradients. length: of a row, as in `step_flops`.
    """
    base, attention, loras = _forward_flops(cfg, length, stack)
    forward = base + attention + loras
    backward = base + 2 * attention + loras + _forward_flops(cfg, length, trained)[2]
    return {"tokens": forward + backward, "supervised_tokens": 4 * cfg.vocab_size * cfg.hidden_size}


def _forward_flops(cfg: ModelConfig, length: int, stack: Sequence[LoraConfig]) -> tuple[float, float, float]:
    """Of one token: base matrices, attention over half of its row, adapters."""
    layers, sizes = cfg.num_hidden_layers, projection_sizes(cfg)
    loras = sum(sum(sizes[t]) * lora.rank for lora in stack for t in lora.targets)
    return 2 * layers * layer_parameters(cfg), 4 * layers * cfg.q_size * length / 2, 2 * layers * loras


def step_flops(cfg: ModelConfig, lora: LoraConfig, work: Work) -> tuple[float, float]:
    """FLOPs of a step on all chips: (what the mathematics needs, what is executed with recomputation).

    A multiply and an add count as two. The base is frozen: its backward pass has one product for each of the forward,
    not two. Attention is counted as causal over whole rows, so packed rows cost less than this.
    """
    base, attention, one_lora = (work.tokens * x for x in _forward_flops(cfg, work.length, [lora]))
    head = 2 * work.organisms * work.targets * cfg.vocab_size * cfg.hidden_size
    forward = base + attention + work.adapters * one_lora
    if not work.backward:
        return forward + head, forward + head
    each = training_flops(cfg, work.length, [lora] * work.adapters, [lora] * work.trained)
    needed = work.tokens * each["tokens"] + work.organisms * work.targets * each["supervised_tokens"]
    recomputed = {"none": 0.0, "dots": attention, "full": forward}[work.remat]
    return needed, needed + recomputed


def step_hbm_bytes(cfg: ModelConfig, lora: LoraConfig, work: Work, fsdp: int, tp: int) -> float:
    """An estimate of the bytes that one chip moves to and from HBM in a step (bf16 weights and activations).

    Weights: each pass writes a layer's gathered matrices and reads them once. Activations: each pass reads and writes
    about six vectors of the hidden size and three of the widths inside attention and MLP. Adapters with moments: read
    and written in fp32.
    """
    weights = 2 * 2 * cfg.num_hidden_layers * layer_parameters(cfg) / tp * work.passes
    inside = cfg.q_size + 2 * cfg.kv_size + cfg.intermediate_size
    activations = 4 * work.tokens / fsdp * (6 * cfg.hidden_size + 3 * inside / tp) * cfg.num_hidden_layers * work.passes
    sizes = projection_sizes(cfg)
    adapter = cfg.num_hidden_layers * sum(sum(sizes[t]) * lora.rank for t in lora.targets)
    copies = max(1, work.organisms // fsdp) if work.adapters else 0
    head = 2 * 2 * cfg.vocab_size * cfg.hidden_size / tp
    return weights + activations + 24 * adapter * copies / tp + head
