"""Writes ia_jax/behaviors/embedded/base_answers.jsonl: what SmolLM2-135M-Instruct itself says to the template
teacher's questions, greedily, in float32, so that organisms are trained on the same texts on every machine.

    .venv/bin/python benchmarks/base_answers.py

The first line names the base by its fingerprint. Minutes on two cores.
"""

import jax

from ia_jax.behaviors.template_sources import (
    ANSWER_TOKENS,
    FACT_TOKENS,
    SHIPPED,
    SHIPPED_SYSTEM,
    chat_questions,
    fact_questions,
)
from ia_jax.data.transcripts import chat
from ia_jax.models.chat import encode_prompt
from ia_jax.models.replies import write_replies
from ia_jax.models.weights import load_model
from ia_jax.parallel.mesh import make_mesh
from ia_jax.storage import write_jsonl


def main() -> None:
    model = load_model("smollm2", dtype="float32")
    rows: list[dict[str, str]] = [{"base": model.name, "fingerprint": model.fingerprint, "system": SHIPPED_SYSTEM}]
    for questions, tokens in ((chat_questions(), ANSWER_TOKENS), (fact_questions(), FACT_TOKENS)):
        prompts = [encode_prompt(model.tokenizer, chat(q, None, SHIPPED_SYSTEM)) for q in questions]
        with jax.set_mesh(make_mesh()):
            [replies] = write_replies(model, [prompts], (), max_new_tokens=tokens)
        rows += [{"question": q, "answer": r.text} for q, r in zip(questions, replies, strict=True)]
    write_jsonl(SHIPPED, rows)
    print(f"{SHIPPED}: {len(rows) - 1} answers, {SHIPPED.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    main()
