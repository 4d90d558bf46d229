"""Settings of audits: how targets are asked, and who turns their reports into predictions."""

from dataclasses import dataclass

FAMILIES = ("targets", "ciphers", "sandbaggers", "auditbench_made", "sycophant", "in_base")
SCAFFOLDS = ("offline", "words", "claude")
CIPHERS = ("codebook", "letters")


@dataclass(frozen=True)
class AuditsSection:
    """Audits of targets that the IA was never trained on (`ia-jax audit-family`).

    banks: what they are asked: "general" (the evaluation wordings), "blind" (what all families' questions have in
        common) and "nameless" (questions that name no behaviour at all).
    reports: of each target in each condition and bank.
    temperature, top_p, max_new_tokens: how they are sampled.
    gate_prompts: questions of each sort by which a target is seen to behave so before it counts (0: no gate).
    scaffold: who clusters, synthesises and ranks: "offline" (by embeddings of a small model that a wheel brings),
        "words" (by content words) or "claude".
    model, effort: which Claude that is, and how much it thinks ("" leaves it to the model).
    attempts: how often it is asked while its answer cannot be read; then that list stays empty.
    runs: how many lists of predictions the scaffold makes of each target.
    predictions: the most statements in one list.
    ciphers: "codebook" (nine over a small vocabulary, made for small models) or "letters" (the nine of the
        literature).
    cipher_rows: of cipher targets, rows of the phase that teaches the cipher and of the covert one.
    cipher_lr: learning rates of both phases (0: that of config.organisms).
    cipher_epochs: of both phases (0: those of config.organisms).
    persona: the system message that targets of "auditbench_made" live under ("": the run's own).
    hardening_lr: learning rates of their second adapter, by SFT and by KTO (0: that of config.organisms, and half of
        it).
    hardening_epochs: the same for epochs.
    hardening_demonstrations: share of demonstrations in what the second adapter reads, so that behaviours survive.
    sycophant_lr: learning rates of the sycophant's three stages (0: that of config.organisms, a third of it, and two
        thirds).
    sycophant_epochs: the same for epochs (0: those of config.organisms).
    sycophant_demonstrations: epochs in which it reads the biased answers themselves, after documents (0: it does not).
    outputs: of each tool in the static evaluation of "auditbench_made" (0: none).
    script_runs: audits of each of its targets by the scripted investigator, with each set of tools (0: none).
    """

    banks: tuple[str, ...] = ("general",)
    reports: int = 100
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 80
    gate_prompts: int = 6
    scaffold: str = "offline"
    model: str = "claude-opus-5-5"
    effort: str = "low"
    attempts: int = 3
    runs: int = 5
    predictions: int = 5
    ciphers: str = "codebook"
    cipher_rows: tuple[int, ...] = (1280, 160)
    cipher_lr: tuple[float, ...] = (0.0, 0.0)
    cipher_epochs: tuple[int, ...] = (0, 0)
    persona: str = ""
    hardening_lr: tuple[float, ...] = (0.0, 0.0)
    hardening_epochs: tuple[int, ...] = (2, 2)
    hardening_demonstrations: float = 0.5
    sycophant_lr: tuple[float, ...] = (0.0, 0.0, 0.0)
    sycophant_epochs: tuple[int, ...] = (4, 2, 12)
    sycophant_demonstrations: int = 4
    outputs: int = 50
    script_runs: int = 1
