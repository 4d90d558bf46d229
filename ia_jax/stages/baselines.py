"""What is said of held-out organisms without an adapter: the reports of `evals.baselines`, asked for by the way."""

import zlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ia_jax.adapters.bank import Bank
from ia_jax.adapters.likeness import cosines
from ia_jax.behaviors.behavior_checks import clean_prompts
from ia_jax.behaviors.organisms import Organism
from ia_jax.data.batch import Batch
from ia_jax.data.transcripts import chat, with_system
from ia_jax.evals.baselines import (
    few_shot_question,
    nearest_description,
    pick_examples,
    report_of_word,
    top_token,
    word_difference,
)
from ia_jax.models.chat import ChatExample, encode_chat
from ia_jax.models.config import ModelConfig
from ia_jax.models.lens import normed_states
from ia_jax.models.lora import Stack
from ia_jax.models.transformer import Params, forward, logits_from_hidden
from ia_jax.parallel.distributed import on_main_process
from ia_jax.parallel.mesh import TRAINING, replicate, to_host
from ia_jax.stages.asking import ask_organisms, generate
from ia_jax.stages.context import Context, open_organisms

Row = dict[str, Any]
Questions = Sequence[Sequence[str]]
REPLY_TOKENS = 32
LENS_PROMPTS = 8


def baseline_rows(
    context: Context,
    bank: Bank,
    organisms: Sequence[Organism | None],
    asked: Sequence[Sequence[str]],
    shuffled: Stack | None,
    describe: Any,
) -> list[Row]:
    """Reports of the bank's `organisms` (None: one that is not asked), each with the "baseline" that made it; those
    that are a choice of several have "candidates".

    asked: introspection questions of each. shuffled: the adapter that was trained on other organisms' descriptions.
    describe: what every row says of an organism.
    """
    cfg, seed = context.config.eval, context.config.seed
    prompts = [p.question for p in clean_prompts("baselines", seed, cfg.plain_prompts)]
    known = on_main_process(lambda: training_descriptions(context))
    ask = partial(ask_organisms, context, bank, organisms, key=context.key(90))
    plain = ask([prompts if o else [] for o in organisms], (), max_new_tokens=REPLY_TOKENS, description="plain replies")
    [base] = generate(
        context, [prompts], (), max_new_tokens=REPLY_TOKENS, system=context.config.system, description="plain replies"
    )
    rows: list[Row] = []

    def add(name: str, organism: Organism, question: str, report: str, **more: Any) -> None:
        row = {**describe(organism), "stage": "", "baseline": name, "question": question, "report": report}
        rows.append(row | more)

    def answered(name: str, questions: Questions, adapters: Stack) -> None:
        asks = [own if o else [] for o, own in zip(organisms, questions, strict=True)]
        said = ask(asks, adapters, max_new_tokens=cfg.max_new_tokens, description=name.replace("_", " "))
        for organism, own, replies in zip(organisms, asked, said, strict=True):
            if organism is not None:
                for question, reply in zip(own, replies, strict=True):
                    add(name, organism, question, reply.text)

    descriptions = sorted({d for own in known.values() for d in own})
    for organism, replies in zip(organisms, plain, strict=True):
        if organism is None:
            continue
        own, others = [r.text for r in replies], [r.text for r in base]
        reports = [report_of_word(w) for w in word_difference(own, others) or [None]]
        add("words", organism, "", reports[0])
        add("words_of_three", organism, "", " ".join(reports), candidates=reports)
        if descriptions:
            add("retrieval", organism, "", nearest_description(own, others, descriptions))
    if known:
        pairs = zip(organisms, asked, strict=True)
        answered("few_shot", [[_few_shot(known, o, q, seed) for q in own] if o else [] for o, own in pairs], ())
    alike = nearest_organisms(context, bank, organisms)
    for organism, truth in zip(organisms, alike, strict=True):
        if organism is not None and truth is not None:
            add("nearest_organism", organism, "", truth)
    words = lens_words(context, bank, organisms, prompts[:LENS_PROMPTS], [r.text for r in base[:LENS_PROMPTS]])
    for organism, word in zip(organisms, words, strict=True):
        if organism is not None:
            add("lens", organism, "", report_of_word(word))
    if shuffled is not None:
        answered("shuffled", asked, shuffled)
    return rows


def training_descriptions(context: Context) -> dict[str, list[str]]:
    """{organism that the IA was trained on: what it was trained to say of it}, without the clean ones."""
    workdir = context.workdir
    truths = {n: workdir.truths(n) for n in workdir.seen(context.config.sft.name)}
    return {n: [w for b in own for w in b.wordings] for n, own in truths.items() if own}


def nearest_organisms(context: Context, bank: Bank, organisms: Sequence[Organism | None]) -> list[str | None]:
    """Of each organism the description of the one that the IA was trained on whose adapter is most alike; that there is
    nothing, if that is a clean one. It says what a look-up by weights would, and can name no behaviour that is new.
    """
    workdir = context.workdir
    seen = on_main_process(lambda: workdir.seen(context.config.sft.name))
    known = [workdir.organisms[n] for n in seen if n in workdir.organisms]
    if not known:
        return [None] * len(organisms)
    found = cosines(bank, open_organisms(context, known), context.config.organisms.parallel)
    nearest = [known[int(row.argmax())].name for row in found[: len(organisms)]]
    truths = [workdir.truths(name) for name in nearest]
    return [t[0].description if t else report_of_word(None) for t in truths]


def _few_shot(known: Mapping[str, Sequence[str]], organism: Organism, question: str, seed: int) -> str:
    rng = np.random.default_rng([seed, zlib.crc32(f"{organism.name} {question}".encode()), 12])
    return few_shot_question(question, pick_examples(known, organism.name, rng))


# ---------------------------------------------------------------------------------------------------------------------
# The lens
# ---------------------------------------------------------------------------------------------------------------------


def lens_words(
    context: Context, bank: Bank, organisms: Sequence[Organism | None], prompts: Sequence[str], answers: Sequence[str]
) -> list[str | None]:
    """Of each organism the word that the upper half of its layers leans to beyond the base, over the base's own answers
    to ordinary prompts (Minder et al. 2025 read fine-tunes so; the difference of mean states through the unembedding).
    """
    model, cfg = context.model, context.model.config
    batches = bank.arrange([i for i, o in enumerate(organisms) if o], context.config.organisms.parallel)
    width = len(batches[0]) if batches else 0
    rows = context.shard_batch(_answers_as_rows(context, prompts, answers, width))
    texts = model.tokenizer.batch_decode([[i] for i in range(len(model.tokenizer))])
    base: np.ndarray | None = None
    out: list[str | None] = [None] * len(organisms)
    for batch in batches:
        if base is None:
            base = to_host(_lens(model.params, (bank.take([None] * width),), rows, cfg))[0]
        gains = to_host(_lens(model.params, (bank.take(batch),), rows, cfg)) - base
        for place, organism in enumerate(batch):
            if organism is not None:
                out[organism] = top_token(gains[place][: len(texts)], texts)
    return out


def answer_examples(context: Context, prompts: Sequence[str], answers: Sequence[str]) -> list[ChatExample]:
    """Each answer to its prompt, under the run's system message; an empty one reads "…"."""
    system, tokenizer = context.config.system, context.model.tokenizer
    pairs = zip(prompts, answers, strict=True)
    return [encode_chat(tokenizer, with_system(chat(q, a or "…"), system), 1 << 20).trimmed() for q, a in pairs]


def _answers_as_rows(context: Context, prompts: Sequence[str], answers: Sequence[str], organisms: int) -> Batch:
    """The same rows for every organism; `target_weight` [K, B, T] is 1 where the answer is being written."""
    encoded = answer_examples(context, prompts, answers)
    encoded += [encoded[0]] * (-len(encoded) % TRAINING.size("rows", context.mesh))
    shape = len(encoded), max(len(e.tokens) for e in encoded)
    tokens, segments, positions, none = (np.zeros(shape, np.int32) for _ in range(4))
    weights = np.zeros(shape, np.float32)
    for i, e in enumerate(encoded):
        n = len(e.tokens)
        tokens[i, :n], segments[i, :n], positions[i, :n], weights[i, : n - 1] = e.tokens, 1, range(n), e.loss_mask[1:]
    batch = Batch(tokens, segments, positions, none, none, weights, none)
    return jax.tree.map(lambda x: np.broadcast_to(x, (organisms, *x.shape)), batch)


@partial(jax.jit, static_argnames="cfg")
def _lens(params: Params, stack: Stack, rows: Batch, cfg: ModelConfig) -> jax.Array:
    """[K, V]: the upper half's mean states over the weighed positions, through the final norm and the unembedding."""
    states = forward(params, rows.tokens, rows.segment_ids, rows.positions, stack, cfg, every_layer=True)
    upper = normed_states(params, states, cfg)[cfg.num_hidden_layers // 2 : -1]
    normed = upper.mean(0).astype(jnp.float32)
    total = jnp.maximum(rows.target_weight.sum((1, 2)), 1.0)
    mean = (normed * rows.target_weight[..., None]).sum((1, 2)) / total[:, None]  # [K, D]
    return replicate(logits_from_hidden(params, mean[:, None, None].astype(states.dtype))[:, 0, 0])
