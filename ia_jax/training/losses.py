"""What is minimised: losses as frozen records, each a function of log-probabilities.

A loss scores every organism of a step by itself, [K]; whether these are summed (organisms, each with a gradient of its
own) or averaged (one adapter trained over many) is the trainer's business. Rows may come in parts: what sums are
divided by is counted on the whole batch first.

A record is static where it meets `jax.jit`, so its numbers are part of the compiled program.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from ia_jax.data.batch import Batch, Beside
from ia_jax.errors import ConfigError
from ia_jax.parallel.mesh import Rules
from ia_jax.training.logps import example_sums

Counts = dict[str, jax.Array]


class Scores(NamedTuple):
    """What the rows at hand contribute to each organism's loss; parts of a batch add up.

    terms: {name: [K]}, which `Loss.weights` weighs. nll: [K] mean negative log-probability of the tokens that are to
    become likely: by it the trainer tells an organism that is worse than a uniform guess. seen: {name: (values [K, N],
    counts [K])}, what is recorded as a mean over that many.
    """

    terms: dict[str, jax.Array]
    nll: jax.Array
    seen: dict[str, tuple[jax.Array, jax.Array]]


class Loss(Protocol):
    """kl_weight: of KL(base || model) on `Beside.plain`, plain chats on which the model shall stay as it was."""

    @property
    def kl_weight(self) -> float: ...

    @property
    def weights(self) -> dict[str, float]:
        """How much each term of `Scores` counts; the first is the loss by whose name it goes, with 1."""
        ...

    def check(self, batch: Batch, beside: Beside) -> None:
        """Raises ConfigError where a step lacks something that this loss reads."""
        ...

    def counts(self, batch: Batch, beside: Beside, rules: Rules) -> Counts:
        """What sums are divided by, of the whole batch."""
        ...

    def scores(
        self, logps: jax.Array, part: Batch, counts: Counts, beside: Beside, rules: Rules, kl: jax.Array | None
    ) -> Scores:
        """logps: [K, B, P] of these rows. kl: [K] the batch's estimate, for a loss that reads `Beside.mismatched`."""
        ...


# ---------------------------------------------------------------------------------------------------------------------
# Chats and documents
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sft:
    """Mean negative log-probability of an organism's supervised tokens: of answers in chats, of all in documents."""

    kl_weight: float = 0.0

    def __post_init__(self) -> None:
        _at_least_zero(self, "kl_weight")

    @property
    def weights(self) -> dict[str, float]:
        return {"sft_loss": 1.0}

    def check(self, batch: Batch, beside: Beside) -> None:
        _check_plain(self, beside)

    def counts(self, batch: Batch, beside: Beside, rules: Rules) -> Counts:
        return {"tokens": batch.target_weight.sum((1, 2))}

    def scores(
        self, logps: jax.Array, part: Batch, counts: Counts, beside: Beside, rules: Rules, kl: jax.Array | None
    ) -> Scores:
        losses = sft_loss(logps, part.target_weight, counts["tokens"])
        return Scores({"sft_loss": losses}, losses, {})


def sft_loss(logps: jax.Array, weight: jax.Array, tokens: jax.Array | None = None) -> jax.Array:
    """Mean negative log-probability over each organism's own supervised tokens. [K, B, P] twice -> [K].

    tokens: [K] how many these are, where the rows at hand are a part of the organism's; the parts' losses add up.
    """
    tokens = weight.sum((1, 2)) if tokens is None else tokens
    return -(logps * weight).sum((1, 2)) / jnp.maximum(tokens, 1.0)


# ---------------------------------------------------------------------------------------------------------------------
# Preferences
# ---------------------------------------------------------------------------------------------------------------------

PAIR_LOSSES = ("sigmoid", "ipo", "sigmoid_norm")


@dataclass(frozen=True)
class Dpo:
    """Preference pairs: the model is to raise the chosen answer over the rejected one, measured from the reference.

    beta:       how close the model stays to the reference; of "ipo" the paper's τ.
    kind:       by trl's names of `loss_type`. "sigmoid": -log sigmoid(beta * margin) (Rafailov 2023, eq. 7). "ipo":
                (margin - 1 / (2 beta))² (Azar 2023, eq. 17), margins per token, as its authors told trl.
                "sigmoid_norm": "sigmoid" with margins per token, so that long answers do not count for more.
    sft_weight: of the mean token loss of the chosen answers (RPO), which keeps their probability from falling.

    Each is the mean over an organism's pairs. A batch's examples alternate chosen, rejected; no pair lies on two rows.
    """

    beta: float = 0.1
    kind: str = "sigmoid"
    sft_weight: float = 0.0
    kl_weight: float = 0.0

    def __post_init__(self) -> None:
        _above_zero(self, "beta")
        _at_least_zero(self, "sft_weight", "kl_weight")
        if self.kind not in PAIR_LOSSES:
            raise ConfigError(f"Dpo kind {self.kind!r} unknown; choose from {', '.join(PAIR_LOSSES)}")

    @property
    def weights(self) -> dict[str, float]:
        return {"dpo_loss": 1.0, "chosen_nll": self.sft_weight}

    def check(self, batch: Batch, beside: Beside) -> None:
        _check_plain(self, beside)
        examples = _examples(self, beside)
        if examples % 2:
            raise ConfigError(f"Dpo: the reference has {examples} examples an organism, which are not pairs")

    def counts(self, batch: Batch, beside: Beside, rules: Rules) -> Counts:
        lengths = _lengths(batch, _examples(self, beside), rules)[:, 0::2]
        return {"pairs": (lengths > 0).sum(-1), "tokens": jnp.maximum(lengths.sum(-1), 1)}

    def scores(
        self, logps: jax.Array, part: Batch, counts: Counts, beside: Beside, rules: Rules, kl: jax.Array | None
    ) -> Scores:
        assert beside.reference is not None
        reference, count = beside.reference, beside.reference.shape[1]
        policy, lengths = example_sums(logps, part, count, rules), _lengths(part, count, rules)
        chosen, rejected = policy[:, 0::2], policy[:, 1::2]
        here = lengths[:, 0::2] > 0  # the pairs that these rows hold
        losses = pair_loss(
            chosen,
            rejected,
            reference[:, 0::2],
            reference[:, 1::2],
            self.beta,
            self.kind,
            (lengths[:, 0::2], lengths[:, 1::2]),
        )
        margin = (chosen - reference[:, 0::2]) - (rejected - reference[:, 1::2])
        nll = -jnp.where(here, chosen, 0.0).sum(-1) / counts["tokens"]
        pairs = counts["pairs"]
        loss = jnp.where(here, losses, 0.0).sum(-1) / jnp.maximum(pairs, 1)
        seen = {"margin": (jnp.where(here, margin, 0.0), pairs), "accuracy": (here & (margin > 0), pairs)}
        return Scores({"dpo_loss": loss, "chosen_nll": nll}, nll, seen)


def pair_loss(
    policy_chosen: jax.Array,
    policy_rejected: jax.Array,
    reference_chosen: jax.Array,
    reference_rejected: jax.Array,
    beta: float,
    kind: str = "sigmoid",
    lengths: tuple[jax.Array, jax.Array] | None = None,
) -> jax.Array:
    """The loss of every pair, from summed log-probabilities (`Dpo` says which loss is which).

    "sigmoid" is log 2 where policy and reference agree, as they do at step 0. lengths: of the chosen and rejected
    answers in tokens, for those that are means over them.
    """
    if kind == "sigmoid":
        margin = (policy_chosen - policy_rejected) - (reference_chosen - reference_rejected)
        return -jax.nn.log_sigmoid(beta * margin)
    assert lengths is not None
    gained = policy_chosen - reference_chosen, policy_rejected - reference_rejected
    chosen, rejected = (g / jnp.maximum(n, 1) for g, n in zip(gained, lengths, strict=True))
    if kind == "ipo":
        return (chosen - rejected - 1 / (2 * beta)) ** 2
    return -jax.nn.log_sigmoid(beta * (chosen - rejected))


@dataclass(frozen=True)
class Kto:
    """Answers marked desirable or not, without pairs (Ethayarajh 2024, eq. 7-8; trl's "kto").

    An answer gains r = log p / p_reference. Its loss is w (1 - sigmoid(beta (r - z))) where desirable and
    w (1 - sigmoid(beta (z - r))) where not; z estimates KL(model || reference) as the mean gain of `Beside.mismatched`,
    other rows' answers to the same prompts, is at least 0, and gets no gradient. All of it is an organism's own.

    desirable_weight, undesirable_weight: w. The paper wants weight times count of the two within a factor of 4/3.
    """

    beta: float = 0.1
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0
    kl_weight: float = 0.0

    def __post_init__(self) -> None:
        _above_zero(self, "beta")
        _at_least_zero(self, "desirable_weight", "undesirable_weight", "kl_weight")

    @property
    def weights(self) -> dict[str, float]:
        return {"kto_loss": 1.0}

    def check(self, batch: Batch, beside: Beside) -> None:
        _check_plain(self, beside)
        _examples(self, beside)
        if batch.desirable is None:
            raise ConfigError("Kto: no example says whether it is desirable; make the units with kto_units")
        if beside.mismatched is None or beside.mismatched_reference is None:
            raise ConfigError("Kto: a step needs mismatched answers and their reference, for its estimate of the KL")

    def counts(self, batch: Batch, beside: Beside, rules: Rules) -> Counts:
        assert batch.desirable is not None
        count = _examples(self, beside)
        lengths, good = _lengths(batch, count, rules), example_sums(batch.desirable, batch, count, rules)
        return {"examples": (lengths > 0).sum(-1), "desirable": (good > 0).sum(-1), "tokens": good.sum(-1)}

    def scores(
        self, logps: jax.Array, part: Batch, counts: Counts, beside: Beside, rules: Rules, kl: jax.Array | None
    ) -> Scores:
        assert beside.reference is not None
        assert part.desirable is not None
        assert kl is not None
        count = beside.reference.shape[1]
        policy = example_sums(logps, part, count, rules)
        here = _lengths(part, count, rules) > 0
        good = example_sums(part.desirable, part, count, rules) > 0
        gain = policy - beside.reference
        losses = kto_loss(gain, good, kl[:, None], self.beta, self.desirable_weight, self.undesirable_weight)
        examples = counts["examples"]
        loss = jnp.where(here, losses, 0.0).sum(-1) / jnp.maximum(examples, 1)
        nll = -jnp.where(good, policy, 0.0).sum(-1) / jnp.maximum(counts["tokens"], 1)
        right, wrong = counts["desirable"], examples - counts["desirable"]
        seen = {
            "desirable_gain": (jnp.where(good, gain, 0.0), right),
            "undesirable_gain": (jnp.where(here & ~good, gain, 0.0), wrong),
        }
        return Scores({"kto_loss": loss}, nll, seen)


def kto_loss(
    gain: jax.Array,
    desirable: jax.Array,
    kl: jax.Array,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> jax.Array:
    """The loss of every answer, from what its log-probability gained on the reference's (`Kto` has the formula)."""
    better = jnp.where(desirable, gain - kl, kl - gain)
    weight = jnp.where(desirable, desirable_weight, undesirable_weight)
    return weight * (1 - jax.nn.sigmoid(beta * better))


def kl_estimate(policy: jax.Array, reference: jax.Array, lengths: jax.Array) -> jax.Array:
    """[K]: the mean gain of an organism's mismatched answers, at least 0, without gradient. Arguments [K, E]."""
    here = lengths > 0
    mean = jnp.where(here, policy - reference, 0.0).sum(-1) / jnp.maximum(here.sum(-1), 1)
    return jax.lax.stop_gradient(jnp.maximum(mean, 0.0))


# ---------------------------------------------------------------------------------------------------------------------
# What they share
# ---------------------------------------------------------------------------------------------------------------------


def of_descriptions(contrast: float, beta: float) -> Sft | Dpo:
    """The IA's loss on true descriptions; with `contrast`, on pairs of a true one and another organism's, in which DPO
    counts so much beside it (the relation is kept, not the scale, which AdamW does not see).
    """
    return Dpo(beta, sft_weight=1 / contrast) if contrast else Sft()


def _lengths(batch: Batch, examples: int, rules: Rules) -> jax.Array:
    """[K, examples]: supervised tokens of each example in these rows, 0 where they do not hold it."""
    return example_sums(jnp.ones_like(batch.target_weight), batch, examples, rules)


def _examples(loss: Any, beside: Beside) -> int:
    if beside.reference is None:
        raise ConfigError(f"{type(loss).__name__}: a step needs the reference's log-probabilities (reference_logps)")
    return beside.reference.shape[1]


def _check_plain(loss: Any, beside: Beside) -> None:
    if loss.kl_weight and beside.plain is None:
        raise ConfigError(
            f"{type(loss).__name__}: kl_weight={loss.kl_weight:g} holds the model to its base on plain chats, but "
            "there are none; give some, or set kl_weight=0"
        )


def _above_zero(loss: Any, *names: str) -> None:
    for name in names:
        if not getattr(loss, name) > 0:
            raise ConfigError(f"{type(loss).__name__}: {name}={getattr(loss, name):g} must be above 0")


def _at_least_zero(loss: Any, *names: str) -> None:
    for name in names:
        if not getattr(loss, name) >= 0:
            raise ConfigError(f"{type(loss).__name__}: {name}={getattr(loss, name):g} must not be negative")
