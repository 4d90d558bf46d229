"""Configs as text: one resolved, two compared, and the reference of all settings (docs/config.md).

What a setting means stands in the docstring of its section, as `name: text` or `name, other: text`, and nowhere else.
"""

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Mapping
from typing import Any

from ia_jax.config import RunConfig, flat
from ia_jax.recipes import CHOICES

_ENTRY = re.compile(r"([a-z_0-9]+(?:, [a-z_0-9]+)*): (.*)")
_HEAD = """\
# Settings

All settings of a run, with their defaults. A recipe (`configs/*.py`) changes what it needs, the command line any field:
`--config.sft.steps=50`. `ia-jax config show --config=FILE` prints what a recipe comes to, `ia-jax config diff A B` how
two recipes or workdirs differ. Made by `make config-docs` from the docstrings of `ia_jax/config.py`.
"""


def changed(config: RunConfig) -> dict[str, tuple[Any, Any]]:
    """{setting: (default, value)} of those that are not at their default."""
    return difference(RunConfig(), config)


def difference(one: RunConfig, other: RunConfig) -> dict[str, tuple[Any, Any]]:
    """{setting: (value in one, value in other)} where they differ."""
    theirs = flat(other)
    return {name: (value, theirs[name]) for name, value in flat(one).items() if value != theirs[name]}


def as_text(config: RunConfig) -> str:
    """A setting a line; a star and the default beside those that differ from it."""
    settings, other = flat(config), changed(config)
    width = max(map(len, settings))
    return "\n".join(
        f"{'*' if name in other else ' '} {name.ljust(width)}  {_shown(value)}"
        + (f"   (default {_shown(other[name][0])})" if name in other else "")
        for name, value in settings.items()
    )


def difference_as_text(differing: Mapping[str, tuple[Any, Any]], one: str, other: str) -> str:
    if not differing:
        return f"{one} and {other} are the same in every setting"
    rows = [("", one, other), *((name, _shown(a), _shown(b)) for name, (a, b) in differing.items())]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    return "\n".join("  ".join(x.ljust(w) for x, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def _shown(value: Any) -> str:
    return repr(value) if isinstance(value, str | tuple) else f"{value:g}" if isinstance(value, float) else str(value)


def markdown() -> str:
    """docs/config.md: a table for every section, in the order of `RunConfig`."""
    return _HEAD + "".join(_section(RunConfig(), RunConfig, ""))


def _section(node: Any, cls: type, prefix: str) -> list[str]:
    """The section's table, and those of the sections in it."""
    about, entries = documented(cls)
    hints = typing.get_type_hints(cls)
    rows, inner = [], []
    for f in dataclasses.fields(cls):
        value, name = getattr(node, f.name), f"{prefix}{f.name}"
        if dataclasses.is_dataclass(value):
            inner += _section(value, type(value), f"{name}.")
            continue
        text = " ".join(filter(None, [entries.get(f.name, ""), _choices(name, value)]))
        rows.append(f"| `{f.name}` | `{_shown(value)}` | {_kind(hints[f.name])} | {text.replace('|', chr(92) + '|')} |")
    title = f"config.{prefix.rstrip('.')}" if prefix else "config"
    table = ["| setting | default | type | meaning |", "|---|---|---|---|", *rows]
    return ["\n".join(["", f"## {title}", "", about, "", *table, ""]), *inner]


def _kind(hint: Any) -> str:
    if typing.get_origin(hint) is tuple:
        return f"list of {_kind(typing.get_args(hint)[0])}"
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(map(_kind, typing.get_args(hint)))
    return {str: "text", type(None): "None", bool: "yes or no", int: "whole number", float: "number"}.get(
        hint, str(hint)
    )


def _choices(name: str, value: Any) -> str:
    how = "Any of" if isinstance(value, tuple) else "One of"
    return f"{how} {', '.join(f'`{c}`' for c in CHOICES[name])}." if name in CHOICES else ""


def documented(section: type) -> tuple[str, dict[str, str]]:
    """(what a section is, {field: what it means}), from its docstring."""
    names = {f.name for f in dataclasses.fields(section)}
    about: list[str] = []
    entries: dict[str, str] = {}
    current: list[str] = []  # fields that the lines read now belong to
    for line in map(str.strip, (inspect.getdoc(section) or "").split("\n")):
        entry = _ENTRY.fullmatch(line)
        if entry and (fields := entry[1].split(", ")) and names.issuperset(fields):
            current = fields
            entries |= dict.fromkeys(fields, _capital(entry[2]))
        elif not line:
            current = []
        elif current:
            entries |= {name: f"{entries[name]} {line}" for name in current}
        else:
            about.append(line)
    return " ".join(about), entries


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
