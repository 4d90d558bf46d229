"""Host memory and time while a sharded checkpoint is read onto eight virtual CPU devices.

    python benchmarks/load_memory.py                # 4 GiB, mesh 4x2, from files
    python benchmarks/load_memory.py --over=files,http --mesh=8x1

Writes random bf16 weights in Qwen3-1.7B's layout (untied, as many layers as the size asks for) as eight safetensors
files to a temporary directory, loads them in a fresh process, and prints one line of JSON. `peak_gib` is the most
resident memory of that process (VmHWM, mapped pages of files included), `before_gib` what it held before loading;
`cpu_s_per_gb` is its processor time, which does not depend on who else computes. Files come from the system's cache.
http: through gs:// and Google's client, from a server on this machine that sends files as they are: what the client
costs, not what a network or Google's service gives.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

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


class Store(BaseHTTPRequestHandler):
    """As much of Google Cloud Storage as reading takes: lists, and ranges of objects, which are files."""

    protocol_version = "HTTP/1.1"
    root = Path()

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query, (_, _, rest) = dict(parse_qsl(url.query)), url.path.partition("/o")
        name = unquote(rest.strip("/"))
        if "media" in query.get("alt", ""):
            size = (self.root / name).stat().st_size
            asked = self.headers.get("Range", f"bytes=0-{size - 1}").removeprefix("bytes=").split("-")
            first, last = int(asked[0]), min(int(asked[1] or size - 1), size - 1)
            self.send_response(206)
            self.send_header("Content-Length", str(last + 1 - first))
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
            self.end_headers()
            self.wfile.flush()
            with (self.root / name).open("rb") as file:
                self.connection.sendfile(file, first, last + 1 - first)
            return
        files = [p for p in sorted(self.root.rglob("*")) if p.is_file()]
        known = {str(p.relative_to(self.root)): p.stat().st_size for p in files}
        items = [{"name": n, "size": str(s), "generation": "1"} for n, s in known.items()]
        if name:
            items = [item for item in items if item["name"] == name]
        else:
            items = [item for item in items if item["name"].startswith(query.get("prefix", ""))]
        content = json.dumps(items[0] if name and items else {"items": items}).encode()
        self.send_response(200 if items else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        pass


def serve(root: Path) -> None:
    """Says its port, and serves until it is killed."""
    Store.root = root
    with ThreadingHTTPServer(("127.0.0.1", 0), Store) as server:
        print(server.server_port, flush=True)
        server.serve_forever()


def load(directory: str, fsdp: int, tp: int) -> None:
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    import jax

    from ia_jax.models.sources import open_source
    from ia_jax.models.transformer import param_shardings
    from ia_jax.models.weights import read_weights
    from ia_jax.parallel.mesh import make_mesh

    shardings = param_shardings(open_source(directory).config, make_mesh(fsdp, tp))
    before, began, spent = memory("VmRSS"), time.perf_counter(), time.process_time()
    _, params = read_weights(directory, "bfloat16", shardings)
    jax.block_until_ready(params)
    seconds, spent = time.perf_counter() - began, time.process_time() - spent
    peak, own = memory("VmHWM"), sum(x.nbytes for x in jax.tree.leaves(params)) / 2**30
    result = {
        "over": "http" if directory.startswith("gs://") else "files",
        "mesh": f"{fsdp}x{tp}",
        "parameters_gib": own,
        "before_gib": before,
        "peak_gib": peak,
        "loading_ratio": (peak - before) / own,
        "process_ratio": peak / own,
        "seconds": seconds,
        "mb_per_s": own * 2**30 / 1e6 / seconds,
        "cpu_s_per_gb": spent / (own * 2**30 / 1e9),
    }
    print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in result.items()}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=4.0, help="size of the checkpoint")
    parser.add_argument("--mesh", default="4x2", help="fsdp x tp, over the eight devices")
    parser.add_argument("--over", default="files", help="files, http or files,http")
    parser.add_argument("--load", help=argparse.SUPPRESS)  # what the fresh process does
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve)
    elif args.load:
        load(args.load, *map(int, args.mesh.split("x")))
    else:
        with tempfile.TemporaryDirectory() as directory:
            (Path(directory) / "model").mkdir()
            write(Path(directory) / "model", args.gib)
            for over in args.over.split(","):
                measure(Path(directory), over, args.mesh)


def measure(directory: Path, over: str, mesh: str) -> None:
    command = [sys.executable, __file__, f"--mesh={mesh}"]
    if over == "files":
        subprocess.run([*command, f"--load={directory / 'model'}"], check=True)
        return
    server = subprocess.Popen([sys.executable, __file__, f"--serve={directory}"], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        host = f"http://127.0.0.1:{server.stdout.readline().strip()}"
        given = {"STORAGE_EMULATOR_HOST": host, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
        subprocess.run([*command, "--load=gs://bench/model"], check=True, env={**os.environ, **given})
    finally:
        server.kill()
        server.wait()


if __name__ == "__main__":
    main()
