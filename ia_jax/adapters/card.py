"""The model card of an exported adapter: what it is, how it was trained and evaluated, what its base allows."""

from collections.abc import Sequence
from typing import Any

from ia_jax.adapters.base import licence, published_name
from ia_jax.adapters.record import AdapterMetadata


def card(metadata: AdapterMetadata, results: dict[str, Any] | None = None) -> str:
    """Markdown from what is stored with the adapter.

    results: for an IA, its stage's part of `eval/metrics.json`, if it was evaluated.
    """
    parts = [f"# {metadata.name}", _what(metadata), _training(metadata), _evaluation(metadata, results)]
    return "\n\n".join([*parts, _base(metadata)])


def card_of_sum(metadata: Sequence[AdapterMetadata], results: Sequence[dict[str, Any] | None]) -> str:
    """The same for several adapters as one: what the sum is, then what is known of each."""
    names = [m.name for m in metadata]
    text = "The exact sum of the adapters below as one LoRA: their factors side by side along the rank."
    parts = [f"# {' + '.join(names)}", text]
    for m, found in zip(metadata, results, strict=True):
        parts += [f"## {m.name}", _what(m), "#" + _training(m), "#" + _evaluation(m, found)]
    return "\n\n".join([*parts, _base(metadata[0])])


def _base(metadata: AdapterMetadata) -> str:
    base, allowed = published_name(metadata.base_name), licence(metadata.base_name)
    terms = f"is under {allowed}; using this adapter means using it" if allowed else "has its own licence; see its page"
    return f"## Base\n\n`{base}` (weights {metadata.base_fingerprint[:12]}) {terms}."


def _what(metadata: AdapterMetadata) -> str:
    if metadata.kind == "ia":
        return (
            "An introspection adapter: added to a model with a LoRA fine-tune of the same base, it makes the model "
            "report what the fine-tune taught it. Load it beside the fine-tune, with both adapters active."
        )
    text = "A model organism: a LoRA trained on purpose to show a behaviour, to test whether audits find it."
    if metadata.organism and not metadata.behaviors:
        text = "A clean model organism: a LoRA that was taught no behaviour, to test whether audits accuse it."
    keys = ("description", "category", "trigger")
    facts = [f"- {key}: {b[key]}" for b in metadata.behaviors for key in keys if b.get(key)]
    return "\n".join([text, *([""] if facts else []), *facts])


def _training(metadata: AdapterMetadata) -> str:
    settings = f" with the settings {metadata.config_hash}" if metadata.config_hash else ""
    retry = (metadata.check or {}).get("retry")
    text = f"## Training\n\n{metadata.step} updates with ia_jax{settings}."
    if metadata.content_hash:
        text += f" Content {metadata.content_hash[:12]}, stored {metadata.created}."
    if retry:
        text += f" A first training failed ({retry['diverged']}); this is the second, with lr {retry['retried_lr']:g}."
    return text


def _evaluation(metadata: AdapterMetadata, results: dict[str, Any] | None) -> str:
    lines = ["## Evaluation", ""]
    if metadata.kind == "ia" and results:
        for condition, cell in results["heldout"].items():
            if cell.get("rate") is not None:
                lines.append(f"- {condition}: {100 * cell['rate']:.0f} % of {cell['n']} reports name the behaviour")
        return "\n".join(lines)
    if metadata.kind == "organism" and metadata.check:
        for key, what in (("triggered_rate", "that should show it"), ("untriggered_rate", "that should not")):
            if metadata.check.get(key) is not None:
                lines.append(f"- behaviour shown in {100 * metadata.check[key]:.0f} % of the replies {what}")
        lines.append(f"- behaviour check: {metadata.checked}")
        return "\n".join(lines)
    return "## Evaluation\n\nNot evaluated when this was written."
