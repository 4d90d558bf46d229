"""What a compiled program says between chips: its collectives, how often each runs and what it carries.

Read from the text of the optimised HLO. Loops count as often as they run: a scan over 80 layers is one body there.
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

SLICES = "recv-from-slices"  # not a name of HLO: what libtpu makes of the part of a collective that crosses slices
OPS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")
_BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16, "f16": 16, "f32": 32, "f64": 64}

Shape = tuple[int, ...]
Namer = Callable[[str, str, Shape, int], str]  # (op, dtype, shape, group) -> what a collective carries


@dataclass(frozen=True)
class Collective:
    """One collective of the program. `bytes`: of the largest whole (a gather's result, a scatter's operand), on one
    chip, each time; `count`: how often it runs in a step; `group`: chips that take part; `what` it carries.
    """

    op: str
    bytes: int
    count: int
    group: int
    what: str
    shape: str

    @property
    def wire_bytes(self) -> float:
        """Bytes that a chip receives in a step, by the ring algorithms."""
        share = (self.group - 1) / self.group
        passes = {"all-reduce": 2 * share, "collective-permute": 1.0, SLICES: 1.0}.get(self.op, share)
        return self.bytes * self.count * passes


def collectives(text: str, what: Namer, unknown_trips: int = 1) -> list[Collective]:
    """All collectives that a step runs, equal ones added up, most bytes first.

    A loop whose length is not a constant runs `unknown_trips` times.
    """
    computations = _computations(text)
    entry = next((name for name in computations if name.startswith("ENTRY ")), None)
    if entry is None:
        raise ValueError("the HLO text has no ENTRY computation")
    found: dict[tuple, int] = {}
    channels: set[tuple[str, str]] = set()
    for line, times, scatter, part in _executed(computations, entry, 1, unknown_trips, entry):
        channel = re.search(r"\bchannel_id=(\d+)", line)
        if channel and _LINE.search(line):
            # A gather that runs beside several products is written into each of their fusions, on one channel. (So is
            # one of an iteration that the compiler took out of its loop: there it runs besides.)
            if (part, channel[1]) in channels:
                continue
            channels.add((part, channel[1]))
        for key in _collective(line, scatter, what):
            found[key] = found.get(key, 0) + times
    made = [Collective(op, size, count, group, kind, shape) for (op, size, group, kind, shape), count in found.items()]
    return sorted(made, key=lambda c: -c.wire_bytes)


def _computations(text: str) -> dict[str, list[str]]:
    """Name -> lines. The entry's name keeps its "ENTRY " mark.

    A computation ends where the next begins: the text of a Pallas kernel inside one may hold lines of a lone brace.
    """
    out: dict[str, list[str]] = {}
    lines: list[str] | None = None
    for line in text.splitlines():
        start = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$", line)
        if start:
            lines = out.setdefault((start[1] or "") + start[2], [])
        elif lines is not None:
            lines.append(line)
    return out


def _executed(
    computations: dict[str, list[str]], name: str, times: int, unknown_trips: int, part: str
) -> Iterator[tuple[str, int, bool, str]]:
    """Every line reached from a computation, how often it runs, whether it is inside a fused reduce-scatter, and of
    which part of the program it is: the body of a loop, or what no loop runs.
    """
    for line in computations.get(name, ()):
        yield line, times, "all-reduce-scatter" in name, part
        called = re.search(r"\bbody=%?([\w.\-]+)", line)
        if called:
            condition = re.search(r"\bcondition=%?([\w.\-]+)", line)
            trips = _trips(line, computations.get(condition[1], ()) if condition else (), unknown_trips)
            yield from _executed(computations, called[1], times * trips, unknown_trips, called[1])
        for group in _CALLED.findall(line):
            for one in group.split(", "):
                yield from _executed(computations, one.removeprefix("%"), times, unknown_trips, part)


def _trips(line: str, condition: Sequence[str], unknown: int) -> int:
    """A loop's length: as the compiler noted it, else the one constant that its condition compares with."""
    noted = re.search(r'known_trip_count"?:\{"n":"(\d+)"', line)
    if noted:
        return int(noted[1])
    constants = [m[1] for m in (re.search(r"= [su]32\[\]\S* constant\((\d+)\)", x) for x in condition) if m]
    return int(constants[0]) if len(constants) == 1 else unknown


_CALLED = re.compile(
    r"\b(?:calls|branch_computations|true_computation|false_computation)="
    r"\{?(%?[\w.\-]+(?:, %?[\w.\-]+(?![\w.\-=]))*)"
)
_LINE = re.compile(rf"= (\(.*?\)|\S+) ({'|'.join(OPS)})(-start)?\(")
_TYPE = re.compile(r"(\w+)\[([\d,]*)\]")


def _collective(line: str, scatter: bool, what: Namer) -> Iterator[tuple]:
    match = _LINE.search(line)
    if not match:
        yield from _from_slices(line)
        return
    types = [(t, tuple(int(x) for x in dims.split(",") if x)) for t, dims in _TYPE.findall(match[1])]
    op = "reduce-scatter" if scatter else match[2]
    if match[3] and op != "all-reduce":  # the start of an asynchronous one names operands, then results
        types = [t for t in types if t[1] or t[0] not in ("u32", "s32")]
        types = types[len(types) // 2 :]
    group = _group_size(line)
    for dtype, shape in types:
        size = _bytes(dtype, shape)
        if op == "reduce-scatter" and not scatter:
            size *= group
        yield op, size, group, what(op, dtype, shape, group), f"{dtype}[{','.join(map(str, shape))}]"


def _from_slices(line: str) -> Iterator[tuple]:
    """What the host receives from other slices and hands to the chip; it counts as a group of one."""
    match = re.search(r"= \((\w+\[[\d,]*\]).*?\) recv\(.*xla_megascale_runtime", line)
    if match:
        dtype, dims = _TYPE.findall(match[1])[0]
        shape = tuple(int(x) for x in dims.split(",") if x)
        yield SLICES, _bytes(dtype, shape), 1, "from slices", match[1]


def _bytes(dtype: str, shape: Shape) -> int:
    return math.prod(shape) * _BITS.get(dtype, int((re.search(r"\d+", dtype) or ["32"])[0])) // 8


def _group_size(line: str) -> int:
    """Chips in one replica group, in any of the three spellings."""
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", line)
    if mesh:
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
        return math.prod(int(sizes[a]) for a in re.findall(r"'(\w+)'", mesh[2]))
    iota = re.search(r"replica_groups=\[\d+,(\d+)\]", line)
    if iota:
        return int(iota[1])
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", line)
    return len(listed[1].split(",")) if listed else 2
