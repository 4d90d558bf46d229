"""Log-probabilities of claims, as answers to questions, under many stacks at once: what most evidence is made of.

An *arm* is one stack. The arms of a batch are members with an organism axis K (`models.lora`), all read the same rows,
and each call is the one chunked `reference_logps` of training: [K, examples].
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from ia_jax.adapters.bank import Bank
from ia_jax.data.batch import batch_shardings, build_batch, shared_rows
from ia_jax.data.plans import Plan, Slot, Unit, shared, unit_length
from ia_jax.data.transcripts import chat, with_system
from ia_jax.errors import ConfigError
from ia_jax.models.chat import ChatExample, encode_chat
from ia_jax.models.lora import Adapter, Member, Stack, adapter_shardings, map_leaves
from ia_jax.models.replies import rows_at_once
from ia_jax.models.transformer import Params
from ia_jax.models.weights import Model
from ia_jax.parallel.distributed import stop_if_preempted
from ia_jax.parallel.mesh import TRAINING, put_on_mesh, to_host
from ia_jax.parallel.platform import platform
from ia_jax.training.trainer import reference_logps

DOSES = (0.0, 0.5, 1.0, 1.5)  # of the target, with the IA
SHARED_LENGTH = 256  # tokens of a row with one prompt and several answers to it
ROW_TOKENS = 64  # of a row by itself, about: of longer ones there are fewer at once
WIDTHS = 32  # rows are filled up to a multiple of this many tokens, so that few programs serve all claims


@dataclass(frozen=True)
class Table:
    """Mean log-probability of a token of each claim (C) as the answer to each question (Q).

    on:        [4, Q, C] under the target at each of `DOSES`, with the IA.
    off:       [2, Q, C] under the base and the target, without it.
    nulls_on:  [N, Q, C] under clean fine-tunes, with the IA; nulls_off: without it. N may be 0.
    """

    on: np.ndarray
    off: np.ndarray
    nulls_on: np.ndarray
    nulls_off: np.ndarray

    def claim(self, index: int) -> "Table":
        """Of one claim alone, [·, Q]."""
        return Table(*(x[..., index] for x in (self.on, self.off, self.nulls_on, self.nulls_off)))


def claim_examples(
    model: Model, questions: Sequence[str], claims: Sequence[str], system: str | None
) -> list[ChatExample]:
    """Each claim as the answer to each question, questions outermost; the answer and its end are supervised.

    Raises ConfigError for a claim that is longer than the model's context.
    """
    out = []
    for question in questions:
        for claim in claims:
            messages = with_system(chat(question, claim), system)
            example = encode_chat(model.tokenizer, messages, 1 << 20, name=f"claim {claim[:40]!r}").trimmed()
            if len(example.tokens) > model.config.max_position_embeddings:
                raise ConfigError(
                    f"the claim {claim[:40]!r}… has {len(example.tokens)} tokens, the model's context "
                    f"{model.config.max_position_embeddings}; ask for shorter reports"
                )
            out.append(example)
    return out


def _sizes(units: Sequence[Unit], rows: int, most: int) -> Plan:
    """Array sizes that hold these, one in a row, of which there are `rows`; up to `most` examples in each."""
    length = -(-max(unit_length(u) for u in units) // WIDTHS) * WIDTHS
    targets = -(-max(sum(int(e.loss_mask.sum()) for e in u) for u in units) // WIDTHS) * WIDTHS
    return Plan((), rows, length, targets, rows * most, 0, 0)


def dosed(adapter: Adapter, doses: Sequence[float]) -> Adapter:
    """An adapter as K arms, [K, ...], each scaled: `b` of a LoRA, and a vector, times its dose."""
    scale = np.asarray(doses, np.float32)

    def leaf(site: str, factor: str, x: jax.Array) -> jax.Array:
        own = scale if factor in ("b", "v") else np.ones_like(scale)
        return (x[None] * own.reshape(-1, *[1] * x.ndim)).astype(x.dtype)

    return map_leaves(leaf, adapter)


def arm_logps(
    model: Model, params: Params, stack: Stack, arms: int, examples: Sequence[ChatExample], mesh: jax.sharding.Mesh
) -> np.ndarray:
    """[arms, examples]: mean log-probability of a supervised token of each, under every arm of the stack.

    arms: a multiple of the mesh's groups (`arms_of` fills up); leaves of the stack have that K, or none.
    """
    each = TRAINING.size("rows", mesh)
    # Where answers cannot share their prompt, every example has a row.
    rows_of = shared_rows(examples, 1 if platform() == "tpu" else SHARED_LENGTH)
    units = [shared([examples[i] for i in row]) for row in rows_of]
    order = sorted(range(len(units)), key=lambda u: unit_length(units[u]))  # rows of a call are of about one length
    longest, most = unit_length(units[order[-1]]), max(map(len, rows_of))
    together = rows_at_once(model.config, longest) * ROW_TOKENS // max(longest, ROW_TOKENS)
    rows = max(1, min(together // arms, len(units)))
    rows = -(-rows // each) * each
    out = np.empty((arms, len(examples)))
    for start in range(0, len(order), rows):
        here = order[start : start + rows]
        own = [i for u in here for i in rows_of[u]]
        one = build_batch([Slot(0, tuple((u,) for u in here))], _sizes([units[u] for u in here], rows, most), [units])
        batch = jax.tree.map(lambda x: np.broadcast_to(x, (arms, *x.shape[1:])), one)
        batch = put_on_mesh(batch, batch_shardings(batch, mesh))
        # As many numbers as examples could be there: one program serves all calls.
        sums = to_host(reference_logps(params, stack, batch, cfg=model.config, examples=rows * most))
        counts = np.array([examples[i].loss_mask.sum() for i in own])
        out[:, own] = sums[:, : len(own)] / counts
        stop_if_preempted("evidence")
    if not np.isfinite(out).all():
        raise ConfigError("a claim's log-probability is not finite under the target; its weights are damaged")
    return out


def target_logps(
    model: Model,
    at_dose: Callable[[float], Params] | None,
    adapters: Sequence[Adapter],
    ia: Adapter,
    examples: Sequence[ChatExample],
    mesh: jax.sharding.Mesh,
) -> tuple[np.ndarray, np.ndarray]:
    """on [4, E] and off [2, E] of `Table`, E examples.

    A target of adapters is six arms of one call. A checkpoint has weights of its own, `at_dose(1.0)`, and each dose is
    a call of one arm with and one without the IA.
    """
    if at_dose is None:
        target, with_ia = (*DOSES, 0.0, 1.0), (*(1.0,) * len(DOSES), 0.0, 0.0)
        stack, arms = _arms([(a, target) for a in adapters] + [(ia, with_ia)], mesh)
        found = arm_logps(model, model.params, stack, arms, examples, mesh)
        return found[: len(DOSES)], found[len(DOSES) : len(target)]
    on, off = [], []
    for dose in DOSES:
        stack, arms = _arms([(a, (dose, dose)) for a in adapters] + [(ia, (1.0, 0.0))], mesh)
        found = arm_logps(model, at_dose(dose), stack, arms, examples, mesh)
        on.append(found[0])
        if dose in (0.0, 1.0):
            off.append(found[1])
    return np.stack(on), np.stack(off)


def by_question(logps: np.ndarray, questions: int) -> np.ndarray:
    """[·, E] of `claim_examples` as [·, Q, C]."""
    return logps.reshape(len(logps), questions, logps.shape[1] // questions)


def null_logps(
    model: Model, bank: Bank | None, ia: Adapter, examples: Sequence[ChatExample], mesh: jax.sharding.Mesh, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """nulls_on, nulls_off [N, E] of `Table`: clean fine-tunes of a bank, `width` at a time."""
    if bank is None:
        return np.empty((0, len(examples))), np.empty((0, len(examples)))
    # The IA at dose 0, not left out: one program serves both.
    without = map_leaves(lambda t, n, x: x * 0.0 if n in ("b", "v") else x, ia)
    on, off = bank_logps(model, bank, ((ia,), (without,)), examples, mesh, width)
    return on, off


def bank_logps(
    model: Model,
    bank: Bank,
    above: Sequence[Stack],
    examples: Sequence[ChatExample],
    mesh: jax.sharding.Mesh,
    width: int,
    on_batch: Callable[[], object] = lambda: None,
    take: Callable[[Sequence[int | None]], Member] | None = None,
) -> np.ndarray:
    """[len(above), M, examples]: as `arm_logps`, of every model of a bank (clean ones last) under each of the stacks
    above it; `width` models at a time, each batch under all of them before the next is read.

    take: what stands for a batch of the bank's models (default: `bank.take`, the models as they are).
    """
    take = take or bank.take
    out = np.empty((len(above), len(bank), len(examples)))
    for batch in bank.arrange(list(range(len(bank))), width):
        for own, stack in zip(out, above, strict=True):
            found = arm_logps(model, model.params, (take(batch), *stack), len(batch), examples, mesh)
            for place, i in enumerate(batch):
                if i is not None:
                    own[i] = found[place]
        on_batch()
    return out


def _arms(members: Sequence[tuple[Adapter, Sequence[float]]], mesh: jax.sharding.Mesh) -> tuple[Stack, int]:
    """The members at their doses on the mesh, and how many arms: filled up to what the mesh divides."""
    groups, count = TRAINING.size("organism", mesh), len(members[0][1])
    arms = -(-count // groups) * groups

    def placed(adapter: Adapter, doses: Sequence[float]) -> Adapter:
        tree = dosed(jax.tree.map(jnp.asarray, adapter), (*doses, *(0.0,) * (arms - count)))
        return put_on_mesh(tree, adapter_shardings(tree, mesh, organisms=True))

    return tuple(placed(a, d) for a, d in members), arms
