"""What inspect_ai finds through the entry point `inspect_ai`: the providers and the task."""

from ia_jax.audits.investigator.claude_provider import CappedClaude
from ia_jax.audits.investigator.provider import IaJax
from ia_jax.audits.investigator.task import auditbench

__all__ = ["CappedClaude", "IaJax", "auditbench"]
