"""`ia-jax lens`: at which depth organisms hold what they were taught, and through which layers reports go."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ia_jax.adapters.bank import Bank
from ia_jax.analysis.lens_page import write_lens
from ia_jax.audits.evidence.tables import claim_examples
from ia_jax.behaviors.organisms import Organism
from ia_jax.behaviors.questions import EVAL_QUESTIONS
from ia_jax.behaviors.records import CLEAN, Behavior
from ia_jax.data.batch import Batch, batch_shardings, build_batch
from ia_jax.data.plans import Plan, Slot
from ia_jax.errors import ConfigError
from ia_jax.evals.identification import identified, scores
from ia_jax.evals.lens import CONDITIONS, FIRST, Reading, key_tokens, key_words, lens_figures, strangers
from ia_jax.models.bands import acting, bands, inside
from ia_jax.models.chat import ChatExample
from ia_jax.models.config import ModelConfig
from ia_jax.models.lens import Lens, read_tokens
from ia_jax.models.lora import Adapter, Stack
from ia_jax.models.transformer import Params, forward
from ia_jax.parallel.distributed import on_main_process, stop_if_preempted
from ia_jax.parallel.mesh import TRAINING, put_on_mesh, replicate, to_host
from ia_jax.progress import progress
from ia_jax.stages.ask import stored_organism
from ia_jax.stages.asking import generate
from ia_jax.stages.baselines import answer_examples
from ia_jax.stages.context import Context, open_organisms
from ia_jax.stages.identify import description_logps, descriptions
from ia_jax.stages.selection import present
from ia_jax.training.logps import at_positions

Row = dict[str, Any]


def run(
    context: Context,
    ia: str,
    names: Sequence[str],
    splits: Sequence[str],
    *,
    questions: int = 2,
    positions: int = 8,
    answer: str = "",
    patches: int = 0,
) -> Path:
    """Writes `lens/lens.json`, `lens/plots/*.svg` and `lens/lens.html`, whose path it returns.

    names: of organisms, none for all of `splits`; their behaviours are held against all that these have. All conditions
    read one text: the first `positions` tokens of what the clean base answers to each of the `questions`, or of
    `answer`. patches: bands of layers in which organism and IA are made to act alone, and left out; 0 for none of it.
    Raises ConfigError for an organism without a behaviour, fewer than two behaviours, more questions than there are.
    """
    workdir, cfg = context.workdir, context.model.config
    if questions > len(EVAL_QUESTIONS):
        raise ConfigError(f"--questions={questions}: there are {len(EVAL_QUESTIONS)}")
    named = bands(cfg.num_hidden_layers, patches) if patches else []
    organisms, behaviors, own = _asked(context, names, splits)
    words = key_words({b.name: (*b.wordings, *b.heldout_wordings) for b in behaviors})
    keys = [key_tokens(context.model.tokenizer, words[b.name]) for b in behaviors]
    asked = EVAL_QUESTIONS[:questions]
    texts = [answer] * questions if answer else _base_answers(context, asked, positions)
    rows = answer_examples(context, asked, texts)
    bank = open_organisms(context, organisms, clean=1)
    placed = context.shard_ia(workdir.ia(ia, context.model))
    categories = [b.category for b in behaviors]
    reading = _read_bank(context, bank, placed, rows, keys, positions, own, categories)
    found: Row = {
        "ia": ia,
        "organisms": {o.name: list(o.behaviors) for o in organisms},
        "behaviors": {
            b.name: [context.model.tokenizer.decode([i]) for i in k] for b, k in zip(behaviors, keys, strict=True)
        },
        "layers": cfg.num_hidden_layers,
        "vocabulary": cfg.vocab_size,
        "first": FIRST,
        "positions": int(reading.real.any(0).sum()),
        "questions": list(asked),
        "answers": texts,
        "figures": lens_figures(reading),
        "patching": _patched(context, bank, placed, behaviors, own, named) if named else None,
    }
    page = workdir.path / "lens"
    return page / on_main_process(lambda: write_lens(page, found).name)


def _asked(
    context: Context, names: Sequence[str], splits: Sequence[str]
) -> tuple[list[Organism], list[Behavior], dict[str, list[int]]]:
    """The organisms, all behaviours, and the numbers of each organism's own among them."""
    workdir = context.workdir
    there = [o for o in present(context, *splits) if o.behaviors]
    for name in names:
        stored_organism(context, name)
        if not workdir.organisms[name].behaviors:
            raise ConfigError(f"--organism={name} is clean: there is nothing to look for")
    organisms = [workdir.organisms[n] for n in dict.fromkeys(names)] or there
    behaviors = list({b.name: b for o in (*organisms, *there) for b in workdir.truths(o.name)}.values())
    if len(behaviors) < 2:
        raise ConfigError(f"--split={','.join(splits)}: {len(behaviors)} behaviours are there; it takes two at least")
    number = {b.name: i for i, b in enumerate(behaviors)}
    return organisms, behaviors, {o.name: [number[b] for b in o.behaviors] for o in organisms}


def _base_answers(context: Context, questions: Sequence[str], tokens: int) -> list[str]:
    [replies] = generate(
        context, [questions], (), max_new_tokens=tokens, system=context.config.system, description="the base's answers"
    )
    return [r.text for r in replies]


# ---------------------------------------------------------------------------------------------------------------------
# The lens
# ---------------------------------------------------------------------------------------------------------------------


def _read_bank(
    context: Context,
    bank: Bank,
    ia: Adapter,
    examples: Sequence[ChatExample],
    keys: Sequence[Sequence[int]],
    positions: int,
    own: dict[str, list[int]],
    categories: Sequence[str],
) -> Reading:
    """Every organism of the bank under the four conditions, which differ in what acts and not in what is computed."""
    cfg, mesh = context.model.config, context.mesh
    names, flat = list(own), [i for k in keys for i in k]
    owner = np.repeat(np.arange(len(keys)), [len(k) for k in keys])
    strange = strangers(own, context.config.seed)
    sets = {n: [[i for b in which[n] for i in keys[b]] for which in (own, strange)] for n in names}
    most = max(len(s) for both in sets.values() for s in both)
    counts = np.array([int(e.loss_mask.sum()) for e in examples])
    real = np.arange(positions) < counts[:, None]  # [Q, P]
    size = len(names), cfg.num_hidden_layers + 1
    split = (*size, len(examples), positions, 2, most)
    logps = {c: np.empty((*size, positions, len(keys)), np.float32) for c in CONDITIONS}
    ranks = {c: np.zeros(split, np.int32) for c in CONDITIONS}
    chances = {c: np.zeros(split, np.float32) for c in CONDITIONS}
    batches = bank.arrange(list(range(len(names))), context.config.organisms.parallel)
    rows = _rows(context, examples, positions, len(batches[0]))
    share = {on: np.full(cfg.num_hidden_layers, on, np.float32) for on in (0.0, 1.0)}
    with progress(len(batches) * len(CONDITIONS), "lens") as bar:
        for batch in batches:
            tokens = _tokens([None if i is None else sets[names[i]] for i in batch], most, flat)
            tokens = put_on_mesh(tokens, TRAINING.sharding(mesh, "organism", None))
            for condition in CONDITIONS:
                on = float(condition.startswith("organism")), float(condition.endswith("+ia"))
                stack = acting(bank.take(batch), share[on[0]]), acting(ia, share[on[1]])
                lens = _read(context.model.params, stack, rows, tokens, cfg=cfg, ranked=2 * most)
                found, places = to_host(lens.logps), to_host(lens.ranks)
                for k, i in enumerate(batch):
                    if i is not None:
                        of = found[:, k, : len(examples)]  # [N, Q, P, M]
                        logps[condition][i] = _by_behavior(of[..., 2 * most :], owner, real)
                        chances[condition][i] = of[..., : 2 * most].reshape(split[1:])
                        known = np.array([[j < len(s) for j in range(most)] for s in sets[names[i]]])
                        ranks[condition][i] = places[:, k, : len(examples)].reshape(split[1:]) * known
                bar.update()
                stop_if_preempted("lens")
    return Reading(names, categories, real, logps, ranks, chances, own, strange)


def _rows(context: Context, examples: Sequence[ChatExample], positions: int, organisms: int) -> Batch:
    """The examples as rows of every organism [K, B, T], with the first `positions` of their answers."""
    rows = -(-len(examples) // TRAINING.size("rows", context.mesh)) * TRAINING.size("rows", context.mesh)
    length, answer = max(len(e.tokens) for e in examples), max(int(e.loss_mask.sum()) for e in examples)
    plan = Plan((), rows, length, max(answer, positions), rows, 0, 0)
    one = build_batch([Slot(0, tuple((i,) for i in range(len(examples))))], plan, [[(e,) for e in examples]])
    one = replace(one, target_index=one.target_index[..., :positions])
    batch = jax.tree.map(lambda x: np.broadcast_to(x, (organisms, *x.shape[1:])), one)
    return put_on_mesh(batch, batch_shardings(batch, context.mesh))


def _tokens(sets: Sequence[Sequence[Sequence[int]] | None], most: int, flat: Sequence[int]) -> np.ndarray:
    """[K, 2 S + M]: of each organism its own tokens and a stranger's, filled up to S = `most`; then all behaviours'."""
    out = np.zeros((len(sets), 2 * most + len(flat)), np.int32)
    out[:, 2 * most :] = flat
    for row, both in zip(out, sets, strict=True):
        for which, own in enumerate(both or ()):
            row[which * most : which * most + len(own)] = own
    return out


def _by_behavior(logps: np.ndarray, owner: np.ndarray, real: np.ndarray) -> np.ndarray:
    """[N, Q, P, M] of all key tokens -> [N, P, B]: means over questions that reach there and over tokens."""
    questions = np.maximum(real.sum(0), 1)[:, None]
    over = np.where(real[..., None], logps, 0.0).sum(1) / questions  # [N, P, M]
    return np.stack([over[..., owner == b].mean(-1) for b in range(int(owner.max()) + 1)], -1)


@partial(jax.jit, static_argnames=("cfg", "ranked"))
def _read(params: Params, stack: Stack, rows: Batch, tokens: jax.Array, cfg: ModelConfig, ranked: int) -> Lens:
    """`read_tokens` at the rows' `target_index`."""
    states = forward(params, rows.tokens, rows.segment_ids, rows.positions, stack, cfg, every_layer=True)
    picked = jax.lax.map(lambda hidden: at_positions(hidden, rows.target_index, TRAINING), states)
    return replicate(read_tokens(params, picked, tokens, ranked, cfg))


# ---------------------------------------------------------------------------------------------------------------------
# Patching
# ---------------------------------------------------------------------------------------------------------------------


def _patched(
    context: Context,
    bank: Bank,
    ia: Adapter,
    behaviors: Sequence[Behavior],
    own: dict[str, list[int]],
    named: Sequence[tuple[int, int]],
) -> Row:
    """Whether own descriptions are likelier than others' (`identified`), with one adapter whole and the other acting in
    a band alone ("only") or everywhere else ("without").
    """
    texts, owner = descriptions(behaviors, 1)
    examples = claim_examples(context.model, EVAL_QUESTIONS[:1], texts, context.config.system)
    layers = context.model.config.num_hidden_layers
    models, categories = [*own, CLEAN], [b.category for b in behaviors]
    whole, nowhere = inside(layers, (0, layers)), inside(layers, (0, 0))

    def cells(of_organism: np.ndarray, of_ia: np.ndarray, what: str) -> Row:
        found = description_logps(context, bank, ia, examples, what, (of_organism, of_ia))
        return identified(scores(found, owner), own, models, categories)

    rows = []
    for band in named:
        here, text = inside(layers, band), f"layers {band[0]}:{band[1]}"
        for where, share in (("only", here), ("without", 1 - here)):
            at: Row = {"where": where, "band": list(band)}
            rows.append({"member": "organism", **at, **cells(share, whole, f"organism {where} {text}")})
            rows.append({"member": "ia", **at, **cells(whole, share, f"IA {where} {text}")})
    return {
        "whole": cells(whole, whole, "both, all layers"),
        "without_ia": cells(whole, nowhere, "organism alone"),
        "rows": rows,
    }
