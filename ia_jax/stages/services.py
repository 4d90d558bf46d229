"""Who writes and who judges: Claude, a local model or the offline rubric, as a config says."""

from collections.abc import Sequence

import jax

from ia_jax.behaviors.claude_teacher import AskBase, ClaudeTeacher
from ia_jax.behaviors.local_model import Generate, LocalModel
from ia_jax.claude.calls import Completer, Reply
from ia_jax.claude.client import Client
from ia_jax.claude.models import load_models
from ia_jax.data.transcripts import conversation
from ia_jax.judging.claude_judge import ClaudeJudge
from ia_jax.judging.offline import OfflineJudge
from ia_jax.judging.protocol import Judge
from ia_jax.judging.rubric import RubricJudge
from ia_jax.models.chat import encode_prompt
from ia_jax.models.replies import write_replies
from ia_jax.models.weights import Model, load_model
from ia_jax.progress import progress
from ia_jax.stages.context import Context
from ia_jax.storage import path_of


def claude_client(context: Context) -> Client:
    """Claude under the run's settings; what was paid for is kept in the workdir, or where `claude.cache` says."""
    cache = context.config.claude.cache
    return Client(context.config.claude, path_of(cache) if cache else context.workdir.path / "claude")


def writing_teacher(context: Context, ask_base: AskBase | None = None) -> ClaudeTeacher:
    """Writes transcripts and makes behaviour checks; its calls are answered by Claude, or by the local model.

    ask_base: who answers everyday chat where the config says the base model itself.
    """
    config = context.config
    client: Completer
    if config.teacher.name == "local":
        client = LocalModel(_local_answers(context), context.workdir.path / "local_teacher.jsonl")
    else:
        client = claude_client(context)
    models = load_models(config.claude.prices)
    return ClaudeTeacher(client, config.teacher, config.seed, models, ask_base)


def judge_of(context: Context) -> Judge:
    """The judge that the config names."""
    j = context.config.judge
    if j.name == "claude":
        return ClaudeJudge(claude_client(context), j.model, j.effort, j.attempts)
    if j.name == "offline":
        return OfflineJudge()
    return RubricJudge()


def _local_answers(context: Context) -> Generate:
    """(asks, tokens, temperature, seed) -> replies of the local teacher, which is loaded when it is first asked."""
    loaded: list[Model] = []

    def model() -> Model:
        name, base = context.config.teacher.model, context.config.model
        if not loaded:
            kept = {"cache": context.model_cache}
            loaded.append(context.model if name == base.name else load_model(name, base.dtype, context.mesh, **kept))
        return loaded[0]

    def answer(asks: Sequence[tuple[str, ...]], tokens: int, temperature: float, seed: int) -> list[Reply]:
        teacher = model()
        prompts = [[encode_prompt(teacher.tokenizer, conversation(turns, system)) for system, *turns in asks]]
        with progress(len(asks), "the local teacher writes") as bar:
            [replies] = write_replies(
                teacher,
                prompts,
                (),
                max_new_tokens=tokens,
                temperature=temperature,
                top_p=0.95,
                key=jax.random.key(seed),
                on_done=bar.update,
            )
        return [Reply(r.text, "end_turn" if r.stopped else "max_tokens") for r in replies]

    return answer
