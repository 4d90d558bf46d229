"""Collectives read from program text, in every spelling that XLA has used for them."""

import pytest

from ia_jax.planning.hlo import collectives

PROGRAM = """HloModule jit_step, is_scheduled=true

%beside.1 (x: bf16[4,64]) -> bf16[8,64] {
  %ag = bf16[8,64] all-gather(%x), channel_id=7, replica_groups=[1,2]<=[2], dimensions={0}
}

%beside.2 (x: bf16[4,64]) -> bf16[8,64] {
  %ag = bf16[8,64] all-gather(%x), channel_id=7, replica_groups=[1,2]<=[2], dimensions={0}
}

%yes (x: bf16[4,16]) -> bf16[8,16] {
  %ag = bf16[8,16] all-gather(%x), channel_id=8, replica_groups=[1,2]<=[2], dimensions={0}
}

%no (x: bf16[4,16]) -> bf16[8,16] {
  %ag = f32[8,16] all-gather(%x), channel_id=9, replica_groups=[1,2]<=[2], dimensions={0}
}

%cond (p: (s32[], bf16[4,8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(80), metadata={op_name="lt"}
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}

%scatter.all-reduce-scatter.1 (x: bf16[16,64]) -> bf16[16,2] {
  %ar = bf16[16,64]{1,0:T(8,128)(2,1)} all-reduce(%x), replica_groups=[2,32]<=[64], to_apply=%add
}

%body (p: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %g = bf16[256,64]{1,0:T(8,128)(2,1)} all-gather(%w), replica_groups=mesh['a'=32,'b'=2] {'a'}, dimensions={0}
  %kernel = bf16[4,8] custom-call(%g), custom_call_target="tpu_custom_call", metadata={kernel="
}
func.func @main() {
"}
  %one = bf16[8,64] fusion(%g), kind=kCustom, calls=%beside.1
  %again = bf16[8,64] fusion(%one), kind=kCustom, calls=%beside.2
  %two = (f32[10]{0}, bf16[16]{0}) all-reduce(%a, %b), replica_groups={{0,1},{2,3}}, to_apply=%add
  %f = bf16[16,2] fusion(%g), kind=kCustom, calls=%scatter.all-reduce-scatter.1
}

ENTRY %main (p0: bf16[4,8]) -> bf16[4,8] {
  %loop = (s32[], bf16[4,8]) while(%init), condition=%cond, body=%body
  %first = bf16[8,64] fusion(%p0), kind=kCustom, calls=%beside.1
  %start = (bf16[4,8]{1,0}, bf16[16,8]{1,0}) all-gather-start(%p0), replica_groups=[1,4]<=[4], dimensions={0}
  %done = bf16[16,8]{1,0} all-gather-done(%start)
  %either = bf16[8,16] conditional(%p, %p0, %p0), true_computation=%yes, false_computation=%no
  ROOT %x = bf16[4,8] all-to-all(%p0), replica_groups={{0,1,2,3}}
}
"""


def found():
    named = collectives(PROGRAM, lambda op, dtype, shape, group: f"{op} of {dtype}")
    return {(c.op, c.shape): c for c in named}


def test_loops_count_as_often_as_they_run():
    assert found()["all-gather", "bf16[256,64]"].count == 80
    assert found()["all-gather", "bf16[16,8]"].count == 1


def test_a_kernels_text_ends_no_computation():
    assert found()["all-reduce", "f32[10]"].count == 80


@pytest.mark.parametrize(
    ("key", "size", "group", "received"),
    [
        (("all-gather", "bf16[256,64]"), 2 * 256 * 64, 32, 31 / 32),
        (("all-gather", "bf16[16,8]"), 2 * 16 * 8, 4, 3 / 4),  # asynchronous: the result, not the operand
        (("all-reduce", "f32[10]"), 40, 2, 1.0),
        (("all-reduce", "bf16[16]"), 32, 2, 1.0),
        (("reduce-scatter", "bf16[16,64]"), 2 * 16 * 64, 32, 31 / 32),  # an all-reduce fused with its slice
        (("all-to-all", "bf16[4,8]"), 64, 4, 3 / 4),
    ],
)
def test_bytes_and_groups(key, size, group, received):
    c = found()[key]
    assert (c.bytes, c.group) == (size, group)
    assert c.wire_bytes == pytest.approx(size * received * c.count)


def test_nothing_is_counted_twice():
    assert len(found()) == 9
    assert found()["all-gather", "bf16[8,64]"].count == 80 + 1  # the loop's, and of an iteration outside it
    assert found()["all-to-all", "bf16[4,8]"].what == "all-to-all of bf16"


def test_both_ways_of_a_condition_count():
    assert found()["all-gather", "bf16[8,16]"].count == found()["all-gather", "f32[8,16]"].count == 1


def test_a_text_that_is_no_program():
    with pytest.raises(ValueError, match="no ENTRY"):
        collectives("HloModule nothing", lambda *_: "")
