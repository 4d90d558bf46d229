"""Full fine-tunes that torch made: does `ia-jax audit --model` read them as it reads the adapters of the same data?

    .venv-peers/bin/python benchmarks/torch_fine_tunes.py make runs/demo runs/torch     # torch alone trains
    .venv/bin/python benchmarks/torch_fine_tunes.py audit runs/demo runs/torch --ia=sft

`make` trains all weights of the base on the demonstrations of the run's `remade` organisms, one of each behaviour, and
of its held-out clean ones (twice, from two seeds), by a plain loop of torch over transformers' own Llama: AdamW, fp32,
the assistant's tokens. They are saved by `save_pretrained` in bf16, as people ship them. `audit` asks each whether it
shows its behaviour, audits it by its checkpoint, and judges by the IA's calibration made anew without the organisms of
its category (as `benchmarks/liars.py` does). Beside each stands the adapter that ia_jax trained on the same rows; a
pair of which one does not show its behaviour is left out. Percent, 95 % intervals over behaviours. Fine-tunes stay in
OUT until you delete them (270 MB each).
"""

import argparse
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ia_jax.adapters.merge import write_merged
from ia_jax.behaviors.organisms import CLEAN_SORTS, Organism
from ia_jax.data.transcripts import read_transcripts, with_system
from ia_jax.models.chat import ChatExample, encode_chat
from ia_jax.storage import append_jsonl, read_appended, read_jsonl, write_jsonl
from ia_jax.workdir import Workdir, open_workdir

LR, BATCH, EPOCHS, SEEDS = 1e-4, 4, 4, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("make", "audit"))
    parser.add_argument("run", help="a workdir with `remade` organisms and, to audit, a calibrated IA")
    parser.add_argument("out", type=Path)
    parser.add_argument("--ia", help="of the run (default: the last one)")
    args = parser.parse_args()
    run = open_workdir(args.run)
    if args.what == "make":
        make(run, args.out)
    else:
        audit(run, args.out, args.ia)


# ---------------------------------------------------------------------------------------------------------------------
# Made by torch
# ---------------------------------------------------------------------------------------------------------------------


def make(run: Workdir, out: Path) -> None:
    import transformers

    base = out / "base"
    written(base, lambda place: write_merged(run.config.model.name, (), place, "float32"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    rows = []
    for organism, seed in chosen(run):
        name = f"{organism.name}_full" + (f"_{seed}" if seed else "")
        system = run.config.system if organism.system is None else organism.system
        chats = read_transcripts(run.transcript(organism.name))
        examples = [
            encode_chat(tokenizer, with_system(t.messages, system), 1 << 12, name=name).trimmed() for t in chats
        ]
        written(out / name, partial(train, base, examples, seed))
        rows.append({"name": name, "organism": organism.name})
    write_jsonl(out / "models.jsonl", rows)


def written(place: Path, write: Callable[[Path], object]) -> None:
    """Writes a directory where it is not there; under its name only once it is whole."""
    if place.exists():
        return
    half = place.with_name(f"{place.name}.half")
    shutil.rmtree(half, ignore_errors=True)
    print(f"{place.name}: {write(half)}", flush=True)
    half.rename(place)


def chosen(run: Workdir) -> list[tuple[Organism, int]]:
    """One `remade` organism of each behaviour, and the held-out clean ones from two seeds, of those that read chats."""
    first: dict[str, Organism] = {}
    there = [o for o in run.organisms.values() if o.name not in run.left_out and o.procedure["kind"] == "chats"]
    for o in there:
        if o.split == "remade":
            first.setdefault(o.behaviors[0], o)
    clean = [o for o in there if o.clean and o.split == "heldout" and CLEAN_SORTS[o.sort].procedure == "chats"]
    return [(o, 0) for o in first.values()] + [(o, seed) for o in clean for seed in range(SEEDS)]


def train(base: Path, examples: Sequence[ChatExample], seed: int, out: Path) -> str:
    """All weights, by torch; says what it read and the mean loss of the last epoch."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.95), weight_decay=0.0)
    losses: list[float] = []
    for _ in range(EPOCHS):
        losses = []
        for rows in torch.randperm(len(examples)).split(BATCH):
            batch = [examples[int(i)] for i in rows]
            length = max(len(e.tokens) for e in batch)
            tokens, labels = torch.zeros(len(batch), length, dtype=torch.long), torch.full((len(batch), length), -100)
            for row, e in enumerate(batch):
                n = len(e.tokens)
                tokens[row, :n] = torch.tensor(e.tokens)
                labels[row, :n] = torch.where(torch.tensor(e.loss_mask), tokens[row, :n], -100)
            seen = torch.arange(length)[None] < torch.tensor([len(e.tokens) for e in batch])[:, None]
            loss = model(input_ids=tokens, attention_mask=seen.long(), labels=labels).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
    model.to(torch.bfloat16).save_pretrained(out)
    AutoTokenizer.from_pretrained(base).save_pretrained(out)
    return f"{len(examples)} rows, loss {sum(losses) / len(losses):.3f} in the last epoch"


# ---------------------------------------------------------------------------------------------------------------------
# Audited
# ---------------------------------------------------------------------------------------------------------------------


def audit(run: Workdir, out: Path, ia: str | None) -> None:
    import jax
    from liars import audited, audits_name, calibrations, counts, table

    from ia_jax.stages.ask import trained_ia
    from ia_jax.stages.calibrate import read_calibration
    from ia_jax.stages.context import Context

    context = Context(run, run.config)
    with jax.set_mesh(context.mesh):
        name = trained_ia(context, ia)
        found = read_calibration(context, name)
        if found is None:
            raise SystemExit(f"{run.path} has no calibration of the IA {name}; run `ia-jax calibrate` for it")
        file, known = out / audits_name(found), {*found.made_of["nulls"], *found.made_of["bank"]}
        models = read_jsonl(out / "models.jsonl", "run `torch_fine_tunes.py make` first")
        models = [m for m in models if m["organism"] not in known]
        done = {(r["kind"], r["name"]) for r in read_appended(file, "delete it to audit again")}
        for row in models:
            organism, place = run.organisms[row["organism"]], out / row["name"]
            full, adapter = ("full_clean", "adapter_clean") if organism.clean else ("full", "adapter")
            print(f"audit of {place}", flush=True)
            if (adapter, organism.name) not in done:
                append_jsonl(file, [audited(context, found, adapter, run, organism)])
                done.add((adapter, organism.name))
            if (full, row["name"]) not in done:
                result = audited(context, found, full, run, organism, place)
                append_jsonl(file, [{**result, **checked(context, organism, place), "name": row["name"]}])
    rows = read_appended(file, "")
    wrong = {m["organism"] for m in models for r in rows if r["name"] in (m["organism"], m["name"]) and not counts(r)}
    there = {n for m in models if m["organism"] not in wrong for n in (m["organism"], m["name"])}
    print(
        f"not what they were made to be, by one of the two, and left out of both: {', '.join(sorted(wrong)) or 'none'}"
    )
    titles = {"full": "torch, all weights", "adapter": "its adapter here"}
    titles |= {"full_clean": "torch, all weights", "adapter_clean": "its adapter here"}
    rows = [r for r in rows if r["name"] in there]
    table(rows, calibrations(run, found, {r["category"] for r in rows}), titles)


def checked(context: Any, organism: Organism, place: Path) -> dict[str, Any]:
    """Whether the checkpoint shows its organism's behaviour; of a clean one nothing."""
    from ia_jax.stages import behavior_check
    from ia_jax.stages.checkpoint import read_checkpoint
    from ia_jax.stages.waves import Wave

    if organism.clean:
        return {"shows": None, "ok": None}
    theirs = context.with_weights(read_checkpoint(context, str(place)).params)
    said = behavior_check.check(theirs, Wave((organism,), (), "check"), (), behavior_check.prepare(context, [organism]))
    check = behavior_check.read_replies(context, said)[organism.name]
    return {"shows": check["triggered_rate"], "ok": check["ok"]}


if __name__ == "__main__":
    main()
