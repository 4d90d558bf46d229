"""The peer's half of `organisms_vs_peft.py` and `generation_vs_transformers.py`: one organism after another.

Runs torch, transformers and peft in .venv-peers on a spec written by the other half (token ids, loss masks, base
weights as safetensors) and prints one JSON line. Best practice for a CPU: 2 threads, rows padded to the longest of
their batch, loss on assistant tokens.
"""

import json
import sys
import time
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

torch.set_num_threads(2)
spec_dir = Path(sys.argv[1])
spec = json.loads((spec_dir / "spec.json").read_text())
dtype = getattr(torch, sys.argv[2])


def peak_gib() -> float:
    """Peak resident memory of this process (ru_maxrss would count the parent's before exec)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 2**20


def base_model() -> LlamaForCausalLM:
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**spec["config"]))
    weights = {k: v.to(dtype) for k, v in load_file(str(spec_dir / "model.safetensors")).items()}
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model.load_state_dict(weights, strict=True, assign=True)
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)  # its buffers are not in the file
    return model.requires_grad_(False)


def adapter_config() -> LoraConfig:
    return LoraConfig(r=spec["rank"], lora_alpha=spec["alpha"], target_modules=spec["targets"], task_type="CAUSAL_LM")


def collate(batch: list[dict]) -> dict[str, torch.Tensor]:
    longest = max(len(e["tokens"]) for e in batch)
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for i, e in enumerate(batch):
        n = len(e["tokens"])
        ids[i, :n], mask[i, :n] = torch.tensor(e["tokens"]), 1
        labels[i, :n] = torch.where(torch.tensor(e["loss_mask"]), torch.tensor(e["tokens"]), -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def train(model: torch.nn.Module, updates: list[list[dict]]) -> tuple[int, float]:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=spec["lr"], weight_decay=0.0)
    tokens, began = 0, time.perf_counter()
    for batch in updates:
        loss = model(**collate(batch)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        tokens += sum(len(e["tokens"]) for e in batch)
    return tokens, time.perf_counter() - began


def generate(way: str, model: PeftModel) -> tuple[list, float]:
    """New tokens of all organisms' prompts and the seconds taken. way: "switch" or "merge" the active adapter."""
    replies, began = [], time.perf_counter()
    for name, prompts in zip(model.peft_config, spec["prompts"], strict=True):
        model.set_adapter(name)
        if way == "merge":
            model.merge_adapter([name])
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
        out = model.generate(
            input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=spec["new_tokens"], pad_token_id=0
        )
        if way == "merge":
            model.unmerge_adapter()
        replies.append(out[:, longest:].tolist())
    return replies, time.perf_counter() - began


def fp32_adapters(model: torch.nn.Module) -> torch.nn.Module:
    for p in model.parameters():
        if p.requires_grad:
            p.data = p.data.float()
    return model


figures, tokens, seconds = {}, 0, 0.0
if spec["kind"] == "organisms":
    for number, updates in enumerate(spec["organisms"]):
        base = base_model()
        model = fp32_adapters(get_peft_model(base, adapter_config())).train()
        if number == 0:
            train(model, updates[:1])  # warm up
        n, s = train(model, updates)
        tokens, seconds = tokens + n, seconds + s
elif spec["kind"] == "joint":
    # The released trainer's way (paper_facts 2.3): activate organism and IA, accumulate k batches, one update.
    model = get_peft_model(base_model(), adapter_config(), adapter_name="o0")
    for i in range(1, spec["count"]):
        model.add_adapter(f"o{i}", adapter_config())
    model.add_adapter(
        "ia", LoraConfig(r=spec["ia_rank"], lora_alpha=2 * spec["ia_rank"], target_modules=spec["targets"])
    )
    ia = [p for n, p in model.named_parameters() if ".ia." in n]
    fp32_adapters(model).train()
    optimizer = torch.optim.AdamW(ia, lr=spec["lr"], weight_decay=0.0)
    for number, step in enumerate([spec["steps"][0], *spec["steps"]]):
        began = time.perf_counter()
        for organism, batch in step:
            model.base_model.set_adapter([f"o{organism}", "ia"])
            for n, p in model.named_parameters():
                p.requires_grad_(".ia." in n)
            (model(**collate(batch)).loss / len(step)).backward()
        torch.nn.utils.clip_grad_norm_(ia, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if number:  # the first is the warm-up
            seconds += time.perf_counter() - began
            tokens += sum(len(e["tokens"]) for _, batch in step for e in batch)
else:
    model = PeftModel.from_pretrained(base_model(), spec["adapters"][0], adapter_name="o0")
    for i, directory in enumerate(spec["adapters"][1:], 1):
        model.load_adapter(directory, adapter_name=f"o{i}")
    model.to(dtype).eval()
    model.generation_config.eos_token_id = None  # no row ends early
    speeds, replies = {}, {}
    with torch.inference_mode():
        generate("switch", model)  # warm up
        for way in ("switch", "merge"):
            replies[way], took = generate(way, model)
            speeds[way] = sum(len(row) for own in replies[way] for row in own) / took
    figures = {"tokens_per_s": speeds, "replies": replies["switch"]}
if seconds:
    figures = {"tokens": tokens, "seconds": seconds, "tokens_per_s": tokens / seconds}
print(json.dumps(figures | {"peak_gib": peak_gib()}))
