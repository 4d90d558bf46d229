"""The steps that `accelerator.py` times, of training, prefill and decode, and the useful FLOPs and bytes of each."""

from typing import Any

from accelerator_models import by_organism, random_adapters, random_batch, whole
from accelerator_session import Session, emit


class Bench:
    """One base, a bank of organisms and the steps over them, to be timed in many shapes."""

    def __init__(self, session: Session, cfg: Any, params: Any, rank: int = 16, held: int = 16) -> None:
        import jax.numpy as jnp

        from ia_jax.models.lora import LoraConfig
        from ia_jax.training.optimizer import AdamW

        self.session, self.cfg, self.params = session, cfg, params
        self.lora, self.optimizer, self.held = LoraConfig(rank, 2.0 * rank), AdamW(lr=1e-4), held
        self.bank = random_adapters(cfg, self.lora, held, jnp.bfloat16) if held else None

    def picked(self, k: int) -> Any:
        """K organisms out of the bank, as SFT, DPO and generation take them."""
        import numpy as np

        from ia_jax.models.lora import Picked

        slots = np.random.default_rng(k).permutation(np.arange(max(k, self.held)) % self.held)[:k].astype(np.int32)
        return Picked(self.bank, by_organism(slots))

    def ia(self) -> Any:
        import jax
        import jax.numpy as jnp

        return whole(jax.tree.map(lambda x: x[0], random_adapters(self.cfg, self.lora, 1, jnp.float32)))

    def train(self, case: str, kind: str, k: int, rows: int, length: int, segments: int, remat: str = "none") -> None:
        """One measurement. kind: "sft", "organisms", "dpo" or "reference" (of DPO); the rest as in `random_batch`."""
        if not self.session.wanted(case):
            return
        with self.session.guarded(case):
            self._train(case, kind, k, rows, length, segments, remat)

    def _train(self, case: str, kind: str, k: int, rows: int, length: int, segments: int, remat: str) -> None:
        import jax
        import jax.numpy as jnp
        import numpy as np

        from ia_jax.data.batch import Beside
        from ia_jax.planning.chips import training_flops
        from ia_jax.training.losses import Dpo, Sft
        from ia_jax.training.state import init_on_mesh, init_state
        from ia_jax.training.trainer import reference_logps, train_step

        session, cfg, lora = self.session, self.cfg, self.lora
        batch = random_batch(cfg, k, rows, length, segments)
        tokens, supervised = batch.tokens.size, float(batch.target_weight.sum())
        static: dict[str, Any] = {"cfg": cfg, "loss": Sft(), "optimizer": self.optimizer, "remat": remat}
        steps = 1000
        if kind == "organisms":
            keys = by_organism(jax.vmap(jax.random.key)(jnp.arange(k)))
            total = by_organism(jnp.full(k, steps, jnp.int32))
            mesh, kinds = jax.sharding.get_mesh(), by_organism(jnp.zeros(k, jnp.int32))
            state: Any = init_on_mesh(mesh, keys, total, kinds, cfg, (lora,), self.optimizer)
            frozen: tuple[Any, ...] = ()
            stack, trained = [lora], [lora]
        else:
            frozen = (self.picked(k),)
            state = whole(init_state(self.ia(), steps, self.optimizer, scale=lora.scale))
            stack, trained = [lora, lora], [lora]
        beside = Beside()
        if kind in ("dpo", "reference"):
            examples = rows * segments
            own: dict[str, Any] = {"cfg": cfg, "examples": examples, "remat": remat}
            if kind == "reference":
                arguments = (self.params, (*frozen, state.member), batch)
                program, figures = session.compiled(reference_logps, *arguments, **own)
                seconds = session.seconds(lambda: program(*arguments))
                each = training_flops(cfg, length // segments, stack, [])
                flops = (tokens * each["tokens"] + supervised * each["supervised_tokens"]) / 2  # forward alone
                self._report(case, kind, k, rows, length, remat, seconds, flops, figures, {})
                return
            # As if the reference had been the policy of another day: margins are small and not zero.
            reference = by_organism(jnp.full((k, examples), -1.0 * supervised / k / examples, jnp.float32))
            beside, static["loss"] = Beside(reference), Dpo(0.1)
        program, figures = session.compiled(train_step, self.params, state, frozen, batch, beside, **static)
        losses = []
        metrics: dict[str, Any] = {}

        def call() -> Any:
            nonlocal state, metrics
            state, metrics = program(self.params, state, frozen, batch, beside, optimizer=self.optimizer)
            losses.append(metrics["loss"])
            return state

        seconds = session.seconds(call)
        session.kernels(case, call)
        first, last = (float(np.mean(np.asarray(x))) for x in (losses[0], losses[-1]))
        checks = {"first_loss": first, "last_loss": last, "updates": len(losses)}
        if not np.isfinite(last) or ("updated" in metrics and not bool(np.asarray(metrics["updated"]).all())):
            checks["error"] = f"the loss went from {first} to {last}; updated: {metrics.get('updated')}"
        each = training_flops(cfg, length // segments, stack, trained)
        flops = tokens * each["tokens"] + supervised * each["supervised_tokens"]
        self._report(case, kind, k, rows, length, remat, seconds, flops, figures, checks)

    def _report(
        self,
        case: str,
        kind: str,
        k: int,
        rows: int,
        length: int,
        remat: str,
        seconds: float,
        flops: float,
        figures: dict[str, float],
        checks: dict[str, Any],
    ) -> None:
        rates = {"tokens_per_s": k * rows * length / seconds, "step_ms": 1e3 * seconds}
        shape = {"kind": kind, "K": k, "rows": rows, "length": length, "remat": remat}
        emit({"case": case, **shape, **rates, **self.session.rates(flops, seconds), **figures, **checks})

    def decode(self, case: str, k: int, rows: int, prompt: int, new: int, unrolled: bool | None = None) -> None:
        """Prefill and decode of `rows` rows of each of k organisms, under the IA. Two rows of results."""
        if not self.session.wanted(case, 15):
            return
        with self.session.guarded(case):
            self._decode(case, k, rows, prompt, new, unrolled)

    def _decode(self, case: str, k: int, rows: int, prompt: int, new: int, unrolled: bool | None) -> None:
        import jax
        import jax.numpy as jnp
        import numpy as np

        from ia_jax.models.lora import lora_shapes
        from ia_jax.models.sampling import decode, taken_apart
        from ia_jax.models.transformer import decoding_rules
        from ia_jax.planning.chips import training_flops

        session, cfg = self.session, self.cfg
        tokens = np.random.default_rng(0).integers(1, cfg.vocab_size, (k, rows, prompt)).astype(np.int32)
        keys = jax.random.split(jax.random.key(0), (k, rows))
        stack = (self.picked(k), self.ia())
        never = np.asarray([cfg.vocab_size], np.int32)  # so that no row ends early
        rest = (keys, stack, never, jnp.float32(0.0), jnp.float32(1.0))
        static: dict[str, Any] = {"cfg": cfg, "max_new_tokens": new, "rules": decoding_rules(self.params)}
        static["unrolled"] = taken_apart(self.params) if unrolled is None else unrolled
        real, nobody = np.ones(tokens.shape, bool), np.zeros(tokens.shape, bool)
        program, figures = session.compiled(decode, self.params, tokens, real, *rest, **static)
        # Rows of nothing but padding are done before the first token: the same program, stopped after the prefill.
        prefill = session.seconds(lambda: program(self.params, tokens, nobody, *rest), 0.5)
        both = session.seconds(lambda: program(self.params, tokens, real, *rest), 0.5)
        session.kernels(case, lambda: program(self.params, tokens, real, *rest))
        out = np.asarray(program(self.params, tokens, real, *rest))
        step = (both - prefill) / new
        # Forward alone is half of a step in which nothing is trained.
        forward = training_flops(cfg, prompt, [self.lora] * 2, [])["tokens"] / 2
        own = {"K": k, "rows": rows, "prompt": prompt, "new": new, "unrolled": static["unrolled"]}
        count = k * rows
        rates = session.rates(count * prompt * forward, prefill)
        emit(
            {
                "case": f"{case} prefill",
                **own,
                "tokens_per_s": count * prompt / prefill,
                "step_ms": 1e3 * prefill,
                **rates,
                **figures,
            }
        )
        layers = sum(x.nbytes for x in jax.tree.leaves(self.params["layers"]))
        head = 2 * cfg.vocab_size * cfg.hidden_size
        adapter = sum(2 * int(np.prod(s)) for ab in lora_shapes(cfg, self.lora).values() for s in ab.values())
        filled = prompt + new / 2
        cache = 4 * count * filled * cfg.num_hidden_layers * cfg.kv_size
        least = layers + head + (k + 1) * adapter + cache
        flops = count * (training_flops(cfg, round(2 * filled), [self.lora] * 2, [])["tokens"] / 2 + head)
        row: dict[str, Any] = {"tokens_per_s": count / step, "step_ms": 1e3 * step, "gbs": least / step / 1e9}
        if session.bandwidth and session.matmul:
            times = {"hbm": least / session.bandwidth, "matmul": flops / session.matmul}
            row |= {"roofline": max(times.values()) / step, "bound": max(times, key=lambda n: times[n])}
        if (out < 0).any():
            row["error"] = "a row ended early"
        emit({"case": f"{case} decode", **own, **row, **{n: figures[n] for n in ("memory_gib",) if n in figures}})
