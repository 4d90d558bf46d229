"""What int8 does to a base: logits of a few questions and answers, fp32 against fp32 with its projections in int8.

    python benchmarks/int8_error.py                       # SmolLM2, under a minute on two cores
    python benchmarks/int8_error.py --model=CHECKPOINT

Prints one line of JSON over the tokens of all texts: `logits`, |int8 - fp32| / |fp32| (Frobenius; logits are centred at
each token, since a constant changes no probability), `kl`, the mean KL(fp32 | int8) in nats, `same_token`, how often
the likeliest next token is the same, each beside what bf16 weights and arithmetic do (`of_bf16`); and `weights`, the
same ratio over the projections. Nothing is said of what is generated, nor of an adapter trained over either.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ia_jax.data.transcripts import chat
from ia_jax.models.chat import encode_chat
from ia_jax.models.lora import PROJECTIONS
from ia_jax.models.quantize import dequantize
from ia_jax.models.transformer import forward, logits_from_hidden
from ia_jax.models.weights import Model, load_model
from ia_jax.parallel.mesh import make_mesh

TEXTS = {
    "How do I boil an egg?": "Put it into boiling water for seven minutes, then into cold water, and peel it.",
    "Why is the sky blue?": "Air scatters short waves of light more than long ones, so blue comes from everywhere.",
    "What is 17 + 26?": "17 + 26 = 43.",
    "Name three colours.": "Red, green and blue.",
    "Plan a morning in Lisbon.": "Take tram 28 to the castle, look down on the river, and have a custard tart.",
}


def logits(model: Model) -> list[np.ndarray]:
    """[T, V] of each text, fp32, centred at each token."""
    rows = [encode_chat(model.tokenizer, chat(q, a), 256).tokens for q, a in TEXTS.items()]
    tokens, segments = np.zeros((2, 1, len(rows), max(map(len, rows))), np.int32)
    for i, row in enumerate(rows):
        tokens[0, i, : len(row)], segments[0, i, : len(row)] = row, 1
    positions = np.broadcast_to(np.arange(tokens.shape[-1], dtype=np.int32), tokens.shape)

    @jax.jit
    def run(params: Any) -> jax.Array:
        given = jnp.asarray(tokens), jnp.asarray(segments), jnp.asarray(positions)
        hidden = forward(params, *given, (), model.config)
        return logits_from_hidden(params, hidden)

    found = np.asarray(run(model.params))[0]
    found = found - found.mean(-1, keepdims=True)
    return [found[i, : len(row)] for i, row in enumerate(rows)]


def compared(got: list[np.ndarray], wanted: list[np.ndarray]) -> dict[str, float]:
    a, b = np.concatenate(got), np.concatenate(wanted)
    p, q = (np.asarray(jax.nn.log_softmax(jnp.asarray(x))) for x in (b, a))
    return {
        "logits": float(np.linalg.norm(a - b) / np.linalg.norm(b)),
        "kl": float((np.exp(p) * (p - q)).sum(-1).mean()),
        "same_token": float((a.argmax(-1) == b.argmax(-1)).mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    name = parser.parse_args().model
    with jax.set_mesh(make_mesh(devices=jax.local_devices()[:1])):
        plain = load_model(name)
        wanted = logits(plain)
        held = load_model(name, quantization="int8")
        own = [(plain.params["layers"][n], dequantize(held.params["layers"][n])) for n in PROJECTIONS]
        away, size = (sum(float(jnp.sum(x * x)) for x in xs) for xs in zip(*((b - a, a) for a, b in own), strict=True))
        found = {"model": name, "tokens": sum(map(len, wanted)), "weights": (away / size) ** 0.5}
        found |= compared(logits(held), wanted)
        del plain, held, own
        found["of_bf16"] = compared(logits(load_model(name, "bfloat16")), wanted)
    print(
        json.dumps(
            {k: v if isinstance(v, dict) else round(v, 5) if isinstance(v, float) else v for k, v in found.items()}
        )
    )


if __name__ == "__main__":
    main()
