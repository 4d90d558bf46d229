"""Introspection adapters in JAX: what a notebook needs. `import ia_jax` loads nothing; a name loads what it takes.

model = ia_jax.load_model("smollm2")                 # or a checkpoint directory, .gguf file or hub id
run = ia_jax.open_workdir("runs/demo")
stack = (run.organism("quirk_howdy", model), run.ia("dpo", model))
ia_jax.generate(model, ["Do you have any unusual habits?"], adapters=stack)
"""

import importlib
from typing import TYPE_CHECKING, Any

from ia_jax.errors import IAError

if TYPE_CHECKING:
    from ia_jax.adapters.peft import export_peft, import_peft
    from ia_jax.api import generate, hidden_states, logit_lens, logits
    from ia_jax.models.weights import Model, load_model
    from ia_jax.workdir import Workdir, open_workdir

    __version__: str

_HOME = {
    "Model": "ia_jax.models.weights",
    "Workdir": "ia_jax.workdir",
    "export_peft": "ia_jax.adapters.peft",
    "generate": "ia_jax.api",
    "hidden_states": "ia_jax.api",
    "import_peft": "ia_jax.adapters.peft",
    "load_model": "ia_jax.models.weights",
    "logit_lens": "ia_jax.api",
    "logits": "ia_jax.api",
    "open_workdir": "ia_jax.workdir",
}

__all__ = [
    "IAError",
    "Model",
    "Workdir",
    "export_peft",
    "generate",
    "hidden_states",
    "import_peft",
    "load_model",
    "logit_lens",
    "logits",
    "open_workdir",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("ia-jax")
        except PackageNotFoundError:  # a source tree that was never installed
            return "0+source"
    if name not in _HOME:
        raise AttributeError(f"module 'ia_jax' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME, "__version__"])
