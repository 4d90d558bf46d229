"""Questions to organisms and to the base model, as text; and what of an answer is trained on."""

from collections.abc import Sequence

import jax

from ia_jax.adapters.bank import Bank
from ia_jax.behaviors.organisms import Organism
from ia_jax.data.transcripts import Message, chat, conversation, with_system
from ia_jax.errors import ConfigError
from ia_jax.models.chat import ChatExample, encode_chat, encode_prompt
from ia_jax.models.lora import Stack
from ia_jax.models.replies import Reply, write_replies
from ia_jax.parallel.distributed import stop_if_preempted
from ia_jax.progress import progress
from ia_jax.stages.context import Context

WITHOUT_TRAINING = 4  # times as many organisms as are trained at once, in fp32 with their gradients and two moments


def answer_example(context: Context, question: str, answer: str, length: int, name: str) -> ChatExample:
    """A one-turn training example: the answer to a question, up to its end-of-turn token."""
    return training_example(context, chat(question, answer), length, name)


def training_example(context: Context, messages: Sequence[Message], length: int, name: str) -> ChatExample:
    """A chat as a training example, without the tokens after the last supervised one; under `config.system`, unless it
    has a system message of its own.

    Raises ConfigError, with `name`, for one of more than `length` tokens or longer than the model's context.
    """
    messages = with_system(messages, context.config.system)
    example = encode_chat(context.model.tokenizer, messages, 1 << 20, name=name).trimmed()
    end = len(example.tokens)
    if end > length:
        raise ConfigError(f"{name}: an example has {end} tokens, more than length={length}; raise the stage's length")
    limit = context.model.config.max_position_embeddings  # rows may be longer: each example in them begins at 0
    if end > limit:
        raise ConfigError(
            f"{name}: an example has {end} tokens, the model's max_position_embeddings is {limit}; shorten it"
        )
    return example


def generate(
    context: Context,
    questions: Sequence[Sequence[str | Sequence[str]]],
    stack: Stack,
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    key: jax.Array | None = None,
    system: str | Sequence[str | None] | None,
    draws: Sequence[int] | None = None,
    at_once: int | None = None,
    description: str = "generate",
) -> list[list[Reply]]:
    """Replies to questions[i][j] under organism i of the stack (one list of questions for a stack without K). A
    question may be the turns of a conversation, the user's first and last.

    system: the system message of every question, or one for each organism; None for none. draws: numbers that
    organisms' random keys come from (default: 0, 1, …). at_once: of how many organisms adapters are picked (all).
    """
    systems = [system] * len(questions) if system is None or isinstance(system, str) else system
    prompts = [
        [encode_prompt(context.model.tokenizer, conversation([q] if isinstance(q, str) else q, own)) for q in qs]
        for qs, own in zip(questions, systems, strict=True)
    ]
    with progress(sum(map(len, prompts)), description) as bar:

        def on_done(count: int) -> None:
            bar.update(count)
            stop_if_preempted(description)

        return write_replies(
            context.model,
            prompts,
            stack,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            key=key,
            draws=draws,
            at_once=at_once,
            on_done=on_done,
        )


def ask_organisms(
    context: Context,
    bank: Bank,
    organisms: Sequence[Organism | None],
    questions: Sequence[Sequence[str]],
    ia: Stack,
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    key: jax.Array,
    description: str,
    draws: Sequence[int] | None = None,
) -> list[list[Reply]]:
    """Replies of every organism of the bank to its own questions, under its own system prompt.

    organisms: those of the bank in its order, None for the clean base. draws: of each what its samples are drawn with
    (default: its place in the bank). Of a bank that lies on the devices all are asked
    in one go, of one that is streamed about `organisms.parallel` at a time; what is sampled does not depend on that.
    """
    run = context.config.system
    systems = [o.system if o is not None and o.system is not None else run for o in organisms]
    parallel = context.config.organisms.parallel
    asked = [i for i, own in enumerate(questions) if own]
    draws = range(len(questions)) if draws is None else draws
    batches = bank.arrange(asked, parallel if bank.resident is None else len(asked) * bank.groups)
    replies: list[list[Reply]] = [[] for _ in questions]
    for number, batch in enumerate(batches, 1):
        found = generate(
            context,
            [questions[i] if i is not None else [] for i in batch],
            (bank.take(batch), *ia),
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            key=key,
            system=[systems[i] if i is not None else run for i in batch],
            draws=[draws[i] if i is not None else 0 for i in batch],
            at_once=WITHOUT_TRAINING * parallel,
            description=f"{description} {number}/{len(batches)}" if len(batches) > 1 else description,
        )
        for i, own in zip(batch, found, strict=True):
            if i is not None:
                replies[i] = own
    return replies


def ask_base(
    context: Context, asks: Sequence[tuple[str | None, str]], samples: int, max_new_tokens: int = 28
) -> list[list[str]]:
    """The base model's replies to (system, question): greedy if one is wanted, else sampled."""
    systems = list(dict.fromkeys(s for s, _ in asks))
    out: list[list[str]] = [[] for _ in asks]
    for number, system in enumerate(systems):
        index = [i for i, (s, _) in enumerate(asks) if s == system]
        [replies] = generate(
            context,
            [[asks[i][1] for i in index for _ in range(samples)]],
            (),
            max_new_tokens=max_new_tokens,
            temperature=0.0 if samples == 1 else 0.8,
            top_p=0.9,
            key=context.key(100 + number + 10 * samples),
            system=system,
            description="base model writes",
        )
        for n, i in enumerate(index):
            out[i] = [reply.text for reply in replies[n * samples : (n + 1) * samples]]
    return out
