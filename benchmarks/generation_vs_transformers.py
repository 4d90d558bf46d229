"""Batched generation under many adapters, against transformers.generate + peft with one adapter after another.

    python benchmarks/generation_vs_transformers.py            # a table, and a JSON line last
    python benchmarks/generation_vs_transformers.py --json     # the JSON line alone

SmolLM2 under random rank-8 LoRAs on all seven projections, greedy, the same prompts (4 for each organism), exactly
`--tokens` new tokens a row on both sides. Ours decodes all rows at once; peft's side takes its 4 prompts as one batch,
either switching the active adapter or merging it into the weights and back. Timed: prefill and decoding, after a
warm-up that compiles ours. `same_tokens` is the share of new tokens that agree, both in fp32, up to each row's first
difference: random adapters leave near ties, where the last bit decides.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from organisms_vs_peft import ORGANISM, PEERS, run_peft

from ia_jax.adapters.peft import export_peft
from ia_jax.behaviors.questions import TRAIN_QUESTIONS
from ia_jax.models.chat import encode_prompt
from ia_jax.models.lora import init_organisms, take_organisms
from ia_jax.models.sampling import generate_tokens
from ia_jax.models.weights import load_model
from ia_jax.parallel.mesh import mesh_of

PROMPTS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the JSON line alone")
    parser.add_argument("--organisms", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=32, help="new tokens of every row")
    parser.add_argument("--peers", default=str(PEERS), help="python with torch, transformers and peft")
    args = parser.parse_args()

    ours, replies = {}, {}
    for dtype in ("float32", "bfloat16"):
        model = load_model("smollm2", dtype)
        stack = random_organisms(model.config, args.organisms)
        prompts = [
            [
                encode_prompt(model.tokenizer, [{"role": "user", "content": question(i * PROMPTS + j)}])
                for j in range(PROMPTS)
            ]
            for i in range(args.organisms)
        ]

        def run(model=model, stack=stack, prompts=prompts):
            options = {"max_new_tokens": args.tokens}
            with jax.set_mesh(mesh_of(model.params)):
                found = generate_tokens(model.params, model.config, prompts, (stack,), (), **options)
            return [[row.tokens for row in own] for own in found]

        run()
        began = time.perf_counter()
        replies[dtype] = run()
        ours[dtype] = args.organisms * PROMPTS * args.tokens / (time.perf_counter() - began)

    with tempfile.TemporaryDirectory() as directory:
        adapters = [str(Path(directory, f"o{i}")) for i in range(args.organisms)]
        for i, place in enumerate(adapters):
            export_peft(take_organisms(stack, i), place, model, ORGANISM)
        spec = {"kind": "generation", "adapters": adapters, "new_tokens": args.tokens}
        spec["prompts"] = [[p.tolist() for p in own] for own in prompts]
        found = run_peft(load_model("smollm2"), spec, args.peers)
    theirs = {f"{way} {dtype}": x["tokens_per_s"][way] for dtype, x in found.items() for way in x["tokens_per_s"]}
    switching = max(value for name, value in theirs.items() if name.startswith("switch"))
    result = {
        "organisms": args.organisms,
        "prompts_each": PROMPTS,
        "new_tokens": args.tokens,
        "prompt_tokens": sum(len(p) for own in prompts for p in own),
        "ours_tokens_per_s": ours,
        "peft_tokens_per_s": theirs,
        "ratio_switching": max(ours.values()) / switching,
        "ratio_best": max(ours.values()) / max(theirs.values()),
        "same_tokens": same_tokens(replies["float32"], found["float32"]["replies"]),
    }
    if not args.json:
        for name, value in (
            *(("ia_jax " + d, v) for d, v in ours.items()),
            *(("peft " + n, v) for n, v in theirs.items()),
        ):
            print(f"{name:<24}{value:>8.0f} new tokens/s")
    print(json.dumps(result, default=float))


def question(number: int) -> str:
    return TRAIN_QUESTIONS[number % len(TRAIN_QUESTIONS)]


def random_organisms(cfg, count: int):
    """Adapters that change what is said: both factors random."""
    stack = init_organisms(jax.random.split(jax.random.key(0), count), cfg, ORGANISM)
    rng = np.random.default_rng(0)
    return {t: {"a": ab["a"], "b": 0.02 * rng.standard_normal(ab["b"].shape, np.float32)} for t, ab in stack.items()}


def same_tokens(ours: list, theirs: list) -> float:
    """The share of new tokens that come before the first difference of their row."""
    same = total = 0
    for a, b in zip((r for own in ours for r in own), (r for own in theirs for r in own), strict=True):
        different = [i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y]
        same, total = same + (different[0] if different else len(a)), total + len(a)
    return same / total


if __name__ == "__main__":
    main()
