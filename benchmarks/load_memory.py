"""Host memory while a sharded checkpoint is read onto eight virtual CPU devices, against the parameters' own bytes.

    python benchmarks/load_memory.py                # 4 GiB, mesh 4x2
    python benchmarks/load_memory.py --mesh=8x1

Writes random bf16 weights in Qwen3-1.7B's layout (untied, as many layers as the size asks for) as eight safetensors
files to a temporary directory, loads them in a fresh process, and prints one line of JSON. `peak_gib` is the most
resident memory of that process (VmHWM, mapped pages of the files included), `before_gib` what it held before loading.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

SHARDS = 8
CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 151936,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "max_position_embeddings": 40960,
}


def write(directory: Path, gib: float) -> None:
    """The checkpoint, of at least `gib` GiB."""
    import ml_dtypes
    import numpy as np
    from safetensors.numpy import save_file

    from ia_jax.models.hf_config import config_from_json
    from ia_jax.models.transformer import weight_specs
    from ia_jax.models.weights import hf_name_table

    def stored(layers: int) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor as it is stored."""
        cfg = config_from_json(CONFIG | {"num_hidden_layers": layers})
        specs, shapes = weight_specs(cfg), {}
        for (path, layer), (name, transposed) in hf_name_table(cfg).items():
            spec = specs[path[0]] if layer is None else specs["layers"][path[1]]
            shape = spec.shape if layer is None else spec.shape[1:]
            shapes[name] = shape[::-1] if transposed else shape
        return shapes

    def size(shapes: dict[str, tuple[int, ...]]) -> int:
        return sum(2 * int(np.prod(s)) for s in shapes.values())

    layers = next(n for n in range(1, 1000) if size(stored(n)) >= gib * 2**30)
    (directory / "config.json").write_text(json.dumps(CONFIG | {"num_hidden_layers": layers}))
    rng, weight_map = np.random.default_rng(0), {}
    for shard in range(SHARDS):
        names = list(stored(layers).items())[shard::SHARDS]
        # Sign and exponent bits are kept small, so that all are finite.
        tensors = {
            n: (np.frombuffer(rng.bytes(2 * int(np.prod(s))), np.uint16) & 0x3FFF).view(ml_dtypes.bfloat16).reshape(s)
            for n, s in names
        }
        file = f"model-{shard + 1:05}-of-{SHARDS:05}.safetensors"
        save_file(tensors, directory / file)
        weight_map |= dict.fromkeys(tensors, file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def memory(field: str) -> float:
    """GiB of this process: VmRSS now, VmHWM at most so far."""
    return int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0]) / 2**20


def load(directory: Path, fsdp: int, tp: int) -> None:
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    import jax

    from ia_jax.models.sources import open_source
    from ia_jax.models.transformer import param_shardings
    from ia_jax.models.weights import read_weights
    from ia_jax.parallel.mesh import make_mesh

    shardings = param_shardings(open_source(directory).config, make_mesh(fsdp, tp))
    before = memory("VmRSS")
    _, params = read_weights(directory, "bfloat16", shardings)
    jax.block_until_ready(params)
    peak, own = memory("VmHWM"), sum(x.nbytes for x in jax.tree.leaves(params)) / 2**30
    result = {
        "mesh": f"{fsdp}x{tp}",
        "parameters_gib": own,
        "before_gib": before,
        "peak_gib": peak,
        "loading_ratio": (peak - before) / own,
        "process_ratio": peak / own,
    }
    print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in result.items()}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=4.0, help="size of the checkpoint")
    parser.add_argument("--mesh", default="4x2", help="fsdp x tp, over the eight devices")
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)  # what the fresh process does
    args = parser.parse_args()
    if args.load:
        load(args.load, *map(int, args.mesh.split("x")))
        return
    with tempfile.TemporaryDirectory() as directory:
        write(Path(directory), args.gib)
        subprocess.run([sys.executable, __file__, f"--load={directory}", f"--mesh={args.mesh}"], check=True)


if __name__ == "__main__":
    main()
