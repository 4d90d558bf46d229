"""Scale: Qwen3 of five sizes with the paper's 682 behaviours, each on a slice of its own.

What it asks: `ia_jax/studies/paper.py`. The slices and meshes are those of the recipes in `configs/`.
"""

from ml_collections import ConfigDict

from ia_jax.studies.paper import scale


def on(name: str, copies: int, tp: int, parallel: int, bank_gib: float) -> tuple[str, ...]:
    return (
        f"model.name=Qwen/{name}",
        f"mesh.dcn={copies}",
        f"mesh.tp={tp}",
        f"organisms.parallel={parallel}",
        f"organisms.bank_gib={bank_gib}",
    )


def get_config() -> ConfigDict:
    sizes = {
        "qwen3_0p6b": (0.6, on("Qwen3-0.6B", 1, 1, 4, 11.0), "v5e:1x1"),
        "qwen3_1p7b": (1.7, on("Qwen3-1.7B", 1, 1, 4, 18.0), "v6e:1x1"),
        "qwen3_4b": (4.0, on("Qwen3-4B", 2, 2, 8, 0.0), "v6e:2x2"),
        "qwen3_8b": (8.0, on("Qwen3-8B", 2, 2, 8, 16.0), "v6e:2x2"),
        "qwen3_14b": (14.0, on("Qwen3-14B", 2, 4, 8, 17.5), "v6e:2x4"),
    }
    return scale(sizes, base="../paper.py")
