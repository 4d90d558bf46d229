"""The peer's half of `accelerator.py`: one LoRA of SmolLM2's shape after another, by torch, transformers and peft.

Rows are full and causal (no packing, which would cost it a mask), the second half of each 128 tokens supervised, as on
our side. SDPA attention, bf16 base, fused AdamW; adapters in bf16 and, under autocast, in fp32; a few numbers of rows.
It trains one LoRA at a time, so its tokens a second are those of any number of organisms.
"""

import argparse
import json
import time

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

MARK = "@row "


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=60)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--rows", default="", help="numbers of rows, separated by commas")
    args = parser.parse_args()
    ends = time.monotonic() + args.budget
    rows = [int(x) for x in (args.rows or ("1" if args.tiny else "4,16,1")).split(",")]
    for count in rows:
        for adapters in ("bf16", "fp32"):
            case = f"rows={count} adapters={adapters}"
            if ends - time.monotonic() < 12 and not args.tiny:
                emit({"case": case, "error": "left out: no time is left"})
                continue
            try:
                emit({"case": case, "rows": count, **train(count, adapters, args.tiny)})
            except Exception as error:  # no memory, say
                emit({"case": case, "error": f"{type(error).__name__}: {str(error)[:300]}"})


def emit(row: dict) -> None:
    print(MARK + json.dumps(row), flush=True)


def train(rows: int, adapters: str, tiny: bool) -> dict[str, float]:
    """Tokens a second of training steps on `rows` rows, and the memory they take at most."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    length, shape = (16, (64, 32, 48, 2, 4, 2)) if tiny else (512, (49152, 576, 1536, 30, 9, 3))
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    config = LlamaConfig(
        **dict(zip((*names, "num_key_value_heads"), shape, strict=True)),
        tie_word_embeddings=True,
        attn_implementation="sdpa",
    )
    torch.manual_seed(0)
    with torch.device(device):
        base = LlamaForCausalLM(config).to(torch.bfloat16)
    targets = [f"{t}_proj" for t in ("q", "k", "v", "o", "gate", "up", "down")]
    lora = LoraConfig(r=16, lora_alpha=32, target_modules=targets, task_type="CAUSAL_LM")
    model = get_peft_model(base, lora, autocast_adapter_dtype=adapters == "fp32").train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0, fused=device == "cuda")
    tokens = torch.randint(1, config.vocab_size, (rows, length), device=device)
    each = length // 4
    labels = torch.where(torch.arange(length, device=device) % each >= each // 2, tokens, -100)

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=adapters == "fp32"):
            loss = model(input_ids=tokens, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for _ in range(1 if tiny else 4):
        step()
    wait()
    blocks, count = [], 1 if tiny else 8
    for _ in range(1 if tiny else 3):
        began = time.monotonic()
        for _ in range(count):
            step()
        wait()
        blocks.append((time.monotonic() - began) / count)
    seconds = sorted(blocks)[len(blocks) // 2]
    memory = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else 0.0
    return {"tokens_per_s": rows * length / seconds, "step_ms": 1e3 * seconds, "memory_gib": memory}


if __name__ == "__main__":
    main()
