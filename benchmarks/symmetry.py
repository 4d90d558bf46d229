"""The symmetry attack ("Symmetry Defeats Auditing", arXiv 2605.27836) and `ia-jax align`, on organisms of a workdir.

    python benchmarks/symmetry.py runs/study --count=12 --split=remade,dpo --out=symmetry.json

Each organism is merged into its base, attacked (MLP permutation; values; queries and keys; all), attacked with noise on
top, and aligned. For each the share of greedy reports under the IA that name the behaviour, 95 % intervals over
behaviours, beside the same merged model as it was and what the clean base is said to have; the distance to the base;
the time of `align`, and the peak memory of everything.
"""

import argparse
import json
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save_file

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ia_jax.errors import ConfigError
from ia_jax.evals.intervals import difference, rate
from ia_jax.judging.protocol import Item
from ia_jax.models.lora import layers_of
from ia_jax.models.weights import to_hf_tensors
from ia_jax.stages.ask import trained_ia
from ia_jax.stages.checkpoint import align, read_checkpoint
from ia_jax.stages.context import Context
from ia_jax.stages.evidence import QUESTIONS, ask_stack, report_judge, reports_of
from ia_jax.stages.selection import usable
from ia_jax.workdir import open_workdir
from tests import symmetry

ATTACKS = {"mlp": ("mlp",), "values": ("values",), "queries": ("queries",), "all": symmetry.PARTS}
NOISE = (0.001, 0.01)  # of each weight's norm


def write(context: Context, params: dict[str, Any], directory: Path) -> Path:
    """A tree of weights as a Hugging Face directory, fp32."""
    cfg = context.model.config
    directory.mkdir(parents=True)
    fields = {
        "model_type": cfg.family,
        "rope_parameters": {"rope_type": "default", "rope_theta": cfg.rope_theta},
        "dtype": "float32",
        **{
            name: getattr(cfg, name)
            for name in (
                *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
                *("num_key_value_heads", "head_dim", "rms_norm_eps", "tie_word_embeddings", "attention_bias"),
                "max_position_embeddings",
            )
        },
    }
    (directory / "config.json").write_text(json.dumps(fields))
    save_file(dict(to_hf_tensors(cfg, params)), directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def merged(context: Context, name: str) -> dict[str, Any]:
    params = jax.tree.map(lambda x: np.array(x, np.float32), context.model.params)
    for adapter in context.workdir.organism(name, context.model):
        layers = list(layers_of(adapter) or range(context.model.config.num_hidden_layers))
        for target, ab in adapter.items():
            params["layers"][target][layers] += np.einsum("lir,lro->lio", ab["a"], ab["b"], dtype=np.float32)
    return params


def noisy(params: dict[str, Any], share: float, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)

    def leaf(x: np.ndarray) -> np.ndarray:
        step = rng.normal(size=x.shape).astype(np.float32)
        return x + share * step * np.linalg.norm(x) / np.linalg.norm(step)

    return jax.tree.map(leaf, params)


def named(context: Context, ia: Any, directory: Path | None, organism: Any, questions: list[str]) -> list[bool]:
    """Of each greedy report whether it names the organism's behaviour; of the base's where there is no directory."""
    theirs = context
    if directory is not None:
        full = read_checkpoint(context, str(directory))
        assert full.params is not None
        theirs = context.with_weights(full.params)
    ask = ask_stack(theirs, (), ia, context.config.system)
    [reports] = reports_of(context, ask, 1, questions, 0, organism.name)
    truths = context.workdir.truths(organism.name)
    items = [Item(b, questions[r.question], r.text) for r in reports for b in truths]
    said = report_judge(context).judge_many(items, ("lenient",))
    count = len(truths)
    return [any(v.lenient for v in said[i * count : (i + 1) * count]) for i in range(len(reports))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("workdir")
    parser.add_argument("--count", type=int, default=12)
    parser.add_argument("--questions", type=int, default=8)
    parser.add_argument("--split", default="remade", help="of the organisms, commas between (default %(default)s)")
    parser.add_argument("--ia")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    run = open_workdir(args.workdir)
    context = Context(run, run.config)
    questions, rows = list(QUESTIONS[: args.questions]), {}
    seconds: list[float] = []
    base: dict[str, list[bool]] = {}
    with jax.set_mesh(context.mesh), tempfile.TemporaryDirectory() as scratch:
        ia = context.shard_ia(run.ia(trained_ia(context, args.ia), context.model))
        organisms = [o for o in usable(context, *args.split.split(",")) if not o.clean][: args.count]
        for number, organism in enumerate(organisms):
            model, of = merged(context, organism.name), organism.behaviors[0]
            base.setdefault(of, []).extend(named(context, ia, None, organism, questions))
            variants = {"merged": model}
            variants |= {k: symmetry.attack(model, context.model.config, v, number) for k, v in ATTACKS.items()}
            variants |= {f"all, noise {s:g}": noisy(variants["all"], s, number) for s in NOISE}
            for name, params in variants.items():
                place = write(context, jax.tree.map(np.asarray, params), Path(scratch, "model"))
                row = rows.setdefault(name, {"before": {}, "after": {}, "distances": [], "refused": []})
                row["before"].setdefault(of, []).extend(named(context, ia, place, organism, questions))
                began = time.monotonic()
                aligned = place
                try:
                    found = align(str(place), Path(scratch, "aligned"), context.config.model.name)
                    aligned = Path(scratch, "aligned")
                    seconds.append(time.monotonic() - began)
                    row["distances"].append([found["distance_before"], found["distance_after"]])
                except ConfigError as error:  # it says that it can't, and the model stays as it was given
                    row["refused"].append(f"{organism.name}: {error}")
                row["after"].setdefault(of, []).extend(named(context, ia, aligned, organism, questions))
                for directory in ("model", "aligned"):
                    shutil.rmtree(Path(scratch, directory), ignore_errors=True)
            print(f"{number + 1}/{len(organisms)} {organism.name}", flush=True)
    start = rows["merged"]["before"]
    table = {
        name: {
            "attacked": rate(row["before"]),
            "aligned": rate(row["after"]),
            "aligned_minus_merged": difference(start, row["after"]),
            "distance": np.mean(row["distances"], axis=0).round(5).tolist() if row["distances"] else None,
            "refused": row["refused"],
        }
        for name, row in rows.items()
    }
    result = {
        "organisms": [o.name for o in organisms],
        "base": rate(base),
        "device": jax.devices()[0].device_kind,
        "align_seconds": {"median": float(np.median(seconds)), "largest": float(max(seconds))},
        "peak_gib_of_all": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "table": table,
    }
    args.out.write_text(json.dumps(result, indent=1))
    print(json.dumps(result["table"], indent=1))


if __name__ == "__main__":
    main()
