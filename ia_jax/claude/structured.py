"""Text that nobody vouches for, in and out of a prompt: quoted so that it stays data, read back by a strict parser."""

import json
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

_SHAPELESS = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
# Letters and marks by category that show nothing (Unicode: Default_Ignorable_Code_Point; and the blank braille cell):
# fillers, and variation selectors, of which a row can spell a hidden text.
_UNSEEN = frozenset(
    (
        *(0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x3164, 0xFFA0),
        *(*range(0x180B, 0x1810), *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)),
    )
)
LIMIT = 2000  # characters of an untrusted text that a judge reads


def quote(fields: Mapping[str, str | None]) -> str:
    """The fields as one JSON object, a line each, in which no text can end its string, open a tag or break a line.

    JSON escapes quotes and line breaks. Escaped on top are angle brackets and ampersands, and every character without
    a shape of its own (controls, zero-width and bidirectional marks, tags, fillers, variation selectors, surrogates):
    what one sees is what there is.
    """
    lines = (f"{json.dumps(k)}: {_visible(json.dumps(v, ensure_ascii=False))}" for k, v in fields.items())
    return "{\n" + ",\n".join(lines) + "\n}"


def quote_tree(value: Any) -> str:
    """Any JSON value on several lines, its texts escaped as in `quote`."""
    lines = json.dumps(value, ensure_ascii=False, indent=1).split("\n")  # what is in a text holds no line break
    return "\n".join(map(_visible, lines))


def _visible(text: str) -> str:
    return "".join(_escaped(c) if _shapeless(c) or c in "<>&" else c for c in text)


def _shapeless(character: str) -> bool:
    return unicodedata.category(character) in _SHAPELESS or ord(character) in _UNSEEN


def _escaped(character: str) -> str:
    data = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{data[i]:02x}{data[i + 1]:02x}" for i in range(0, len(data), 2))


def schema(**properties: Any) -> dict[str, Any]:
    """JSON schema of an object with exactly these properties. A list of values stands for an enum."""
    kinds = {k: {"enum": list(v)} if isinstance(v, list | tuple | range) else v for k, v in properties.items()}
    return {"type": "object", "properties": kinds, "required": list(kinds), "additionalProperties": False}


YES_NO = ("yes", "no")


class Malformed(ValueError):
    """A reply that does not follow its schema."""


def parse(text: str, form: Mapping[str, Any]) -> dict[str, Any]:
    """The object that a reply consists of, and nothing beside it. Raises Malformed.

    Checked again although the API promises the schema: a reply may be cut off, refused, or come from elsewhere.
    """

    def unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        if len({k for k, _ in pairs}) != len(pairs):
            raise Malformed("a field is given twice")
        return dict(pairs)

    try:
        value = json.loads(text, object_pairs_hook=unique)
    except Malformed:
        raise
    except (ValueError, RecursionError):
        raise Malformed(f"not a JSON object: {text[:60]!r}") from None
    if not isinstance(value, dict) or value.keys() != form["properties"].keys():
        raise Malformed(f"not the fields {', '.join(form['properties'])}: {text[:60]!r}")
    for name, kind in form["properties"].items():
        if not _fits(value[name], kind):
            raise Malformed(f"{name} is {str(value[name])[:40]!r}")
    return value


def _fits(value: Any, kind: Mapping[str, Any]) -> bool:
    if "enum" in kind:
        return any(type(value) is type(option) and value == option for option in kind["enum"])
    if kind["type"] == "array":
        return isinstance(value, list) and all(_fits(v, kind["items"]) for v in value)
    return isinstance(value, str)
