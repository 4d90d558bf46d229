"""Architecture of a decoder as one frozen record; every weight's shape follows from it (`transformer.weight_specs`)."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3 frequency scaling (`rope_type: llama3`) or plain linear scaling (`rope_type: linear`)."""

    kind: str
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192


@dataclass(frozen=True)
class ModelConfig:
    """Hyperparameters of a Llama-like decoder, under Hugging Face's names. Hashable, so it can be a static argument.

    `qk_norm` is Qwen3's RMS norm on every query and key head; `attention_bias` adds biases to q, k, v and o, `qkv_bias`
    (Qwen2) to q, k and v alone. `quantization` says how the projections are held (`models.quantize`); no file has it.
    """

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None = None
    tie_word_embeddings: bool = True
    qk_norm: bool = False
    attention_bias: bool = False
    max_position_embeddings: int = 8192
    qkv_bias: bool = False
    quantization: str = ""

    @property
    def q_size(self) -> int:
        return self.num_attention_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_key_value_heads * self.head_dim

    @property
    def biased(self) -> tuple[str, ...]:
        """The projections that have a bias."""
        return ("q", "k", "v", "o") if self.attention_bias else ("q", "k", "v") if self.qkv_bias else ()
