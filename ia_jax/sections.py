"""Mappings into frozen dataclasses, whose fields may be dataclasses again: unknown keys and wrong types raise."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

import ml_collections

from ia_jax.errors import ConfigError

T = TypeVar("T")


def override(section: T, values: Mapping[str, Any], where: str) -> T:
    """The section with some of its fields set otherwise. Raises ConfigError as `parse_section` does."""
    given = dataclasses.asdict(section)  # pyright: ignore[reportArgumentType]
    return parse_section(type(section), given | dict(values), where)


def parse_section(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """A section from a mapping. Raises ConfigError, with `where`, for unknown keys, wrong types, what it refuses."""
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]  # pyright: ignore[reportArgumentType]
    unknown = sorted(set(values) - set(names))
    if unknown:
        raise ConfigError(f"{where}.{unknown[0]} is not a known setting; {where} has: {', '.join(names)}")
    given = {n: _value(hints[n], values[n], f"{where}.{n}") for n in names if n in values}
    try:
        return cls(**given)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _value(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping | ml_collections.ConfigDict):
            raise ConfigError(f"{where} must be a group of settings, got {value!r}")
        return parse_section(typing.cast(type, hint), typing.cast(Mapping, value), where)
    if typing.get_origin(hint) is tuple:
        if isinstance(value, str) or not isinstance(value, list | tuple):
            raise ConfigError(f"{where} must be a list, got {value!r}")
        entry = typing.get_args(hint)[0]
        if not all(isinstance(x, entry) and not isinstance(x, bool) for x in value):
            raise ConfigError(f"{where} must be a list of {entry.__name__}, got {value!r}")
        return tuple(value)
    if isinstance(hint, types.UnionType):  # `str | None`; on the command line, None is a word
        if value in (None, "None"):
            return None
        kinds = [kind for kind in typing.get_args(hint) if kind is not types.NoneType]
        if len(kinds) > 1:  # a list, or a text that says the same
            return _value(kinds[isinstance(value, str)], value, where)
        [hint] = kinds
    wanted = (int, float) if hint is float else hint
    if not isinstance(value, wanted) or (isinstance(value, bool) != (hint is bool)):
        raise ConfigError(f"{where} must be {getattr(hint, '__name__', hint)}, got {value!r}")
    return float(value) if hint is float else value
