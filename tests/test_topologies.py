"""Topologies in words, plans by hand, and what they cost: against published figures and sums done on paper."""

import datetime
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from ia_jax import cli
from ia_jax.errors import ConfigError
from ia_jax.models.known import KNOWN
from ia_jax.models.lora import LoraConfig
from ia_jax.parallel import mesh as meshes
from ia_jax.parallel.mesh import make_mesh
from ia_jax.planning import plan, prices
from ia_jax.planning.batches import Batches
from ia_jax.planning.chips import CHIPS, GIB, Work
from ia_jax.planning.hlo import SLICES, collectives
from ia_jax.planning.hours import memory_by_hand, step_by_hand
from ia_jax.planning.prices import amount, price_of, price_table, priced
from ia_jax.planning.roofline import Layout, bandwidths, dcn_by_hand
from ia_jax.planning.text import as_text
from ia_jax.planning.topology import stand_ins, topology_of
from ia_jax.recipes import load_config
from ia_jax.studies import cost

ROOT = Path(__file__).parent.parent
# Steps of the table "What the compiler says" in docs/plan.md: the sizes of a batch, and how many organisms a bank has.
SFT = Batches(6845, 2, 1, 176, 96, 4, 2 * 6845 * 150, 2 * 6845 * 64, 2 * 6845, bank=541)


def made(config, stage):
    if stage == "dpo":
        raise ConfigError("no DPO")
    return SFT


@pytest.mark.parametrize(
    ("text", "chips", "devices", "slices", "libtpu"),
    [
        ("v5p:4x4x4", 64, 64, 1, "v5p:4x4x4"),
        ("2xv5e:4x4", 32, 32, 2, "v5e:4x4"),
        ("v7x:2x2x1", 4, 8, 1, "tpu7x:2x2x1"),
        ("4xtpu7x:2x2x2", 32, 64, 4, "tpu7x:2x2x2"),
        ("h200:8", 8, 8, 1, ":8"),
    ],
)
def test_topologies(text, chips, devices, slices, libtpu):
    where = topology_of(text)
    assert (where.chips, where.devices, where.slices, where.of_libtpu) == (chips, devices, slices, libtpu)
    assert len(stand_ins(where)) == devices
    assert len({(d.slice_index, d.coords) for d in stand_ins(where)}) == chips


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("v9:2x2", "no chip 'v9'; known: v5e, v5p, v6e, v7x, h100, h200"),
        ("2xb200:8", "no chip 'b200'"),
        ("v5p", "not of the form CHIP:SHAPE"),
        ("v5p:4x4x", "not of the form CHIP:SHAPE"),
        ("h100:2x4", "h100 is a node of up to 8; write it like h100:4"),
        ("h100:16", "a node has 8; write several like 2xh100:8"),
        ("v6e:0x4", "at least 1"),
        ("0xv6e:4x4", "at least 1"),
        ("", "no chip ''"),
    ],
)
def test_topologies_that_are_none(text, said):
    with pytest.raises(ConfigError, match=r"--topology") as error:
        topology_of(text)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def grid(text, *shape):
    out = np.empty(topology_of(text).devices, object)
    out[:] = stand_ins(topology_of(text))
    return out.reshape(shape)


def test_links_of_switches_cores_and_slices():
    """A GPU has all of NVLink to any group; both cores of a chip their own way; slices are left out."""
    assert bandwidths(grid("h100:8", 1, 4, 1, 2), CHIPS["h100"]) == dict.fromkeys((1, 2, 4, 8), 450e9)
    v7x = bandwidths(grid("v7x:2x2x1", 1, 4, 1, 2), CHIPS["v7x"])
    assert (v7x[2], v7x[8]) == (600e9, 2 * 50e9)
    one, two = grid("v5e:4x4", 1, 4, 1, 4), grid("2xv5e:4x4", 2, 4, 1, 4)
    assert bandwidths(two, CHIPS["v5e"]) == bandwidths(one, CHIPS["v5e"])


def test_what_goes_between_slices_by_hand():
    """The 70B's IA of 207,093,760 entries in fp32, a part of it on each of eight chips; three quarters of it twice."""
    cfg, lora, layout = KNOWN["meta-llama/Llama-3.3-70B-Instruct"], LoraConfig(16, 32.0), Layout(1, 8, dcn=4)
    sft = Work(4, 1, 256, 96, adapters=2, trained=1, remat="none")
    seconds = dcn_by_hand(cfg, lora, sft, layout, CHIPS["v5p"], 4)
    assert seconds == pytest.approx(4 * 207_093_760 / 8 * 2 * 3 / 4 / 6.25e9)
    assert dcn_by_hand(cfg, lora, sft, layout, CHIPS["v5p"], 1) == 0
    organisms = Work(4, 1, 256, 96, adapters=1, trained=1, remat="none")
    assert dcn_by_hand(cfg, lora, organisms, layout, CHIPS["v5p"], 4) == 0


def test_what_a_program_receives_from_other_slices():
    """Lines as libtpu 0.0.50 has them: a sum over both axes, of which the part between slices is the host's."""
    text = """ENTRY %main (p: f32[8,128]) -> f32[8,128] {
  %p = f32[8,128]{1,0} parameter(0)
  %all-reduce.1 = f32[1,8,128]{2,1,0:T(8,128)} all-reduce(%p), channel_id=1, replica_groups={{0,1},{2,3}}, to_apply=%add
  %send = (f32[1,8,128]{2,1,0}, u32[]{:S(2)}, token[]) send(%all-reduce.1, %after-all), channel_id=2, \
is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime"}
  %recv = (f32[1,8,128]{2,1,0}, u32[]{:S(2)}, token[]) recv(%after-all), channel_id=1, \
is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime"}
  %recv.2 = (f32[16]{0}, u32[], token[]) recv(%after-all), channel_id=3, is_host_transfer=true
}
"""
    found = {c.op: c for c in collectives(text, lambda *_: "activations")}
    assert set(found) == {"all-reduce", SLICES}
    assert found[SLICES].wire_bytes == 8 * 128 * 4
    assert found["all-reduce"].wire_bytes == 8 * 128 * 4  # of two chips, each a half there and back


def test_more_copies_than_slices(monkeypatch):
    """Copies lie within slices, slice after slice."""
    asked = {}

    def hybrid(inside, between, devices, **_):
        asked.update(inside=inside, between=between)
        return np.array(jax.devices()[:8]).reshape(4, 1, 1, 2)

    monkeypatch.setattr(meshes.mesh_utils, "create_hybrid_device_mesh", hybrid)
    devices = [SimpleNamespace(platform="tpu", slice_index=i // 4) for i in range(8)]
    make_mesh(1, 2, dcn=4, devices=devices)
    assert asked == {"inside": (2, 1, 1, 2), "between": (2, 1, 1, 1)}
    with pytest.raises(ConfigError, match=r"over 2 slices; set --config\.mesh\.dcn=2, or a multiple"):
        make_mesh(1, 2, dcn=3, devices=[*devices[:3], *devices[4:7]])


@pytest.mark.parametrize(
    ("recipe", "topology", "stays"),
    [("qwen3_32b", "v5p:2x2x2", 46.77), ("qwen3_14b", "v6e:2x4", 24.04), ("qwen3_0p6b", "v5e:1x1", 11.39)],
)
def test_what_stays_is_what_the_compiler_says(recipe, topology, stays):
    """Arguments of the compiled sft step, from docs/plan.md's table; it has the batch in it too, which is little."""
    config = load_config(str(ROOT / "configs" / f"{recipe}.py"))
    memory = memory_by_hand(config, topology_of(topology), "sft", SFT)
    assert memory["argument_gib"] == pytest.approx(stays, rel=0.005)
    assert memory["fits"]


def test_a_gpu_by_hand():
    """Qwen3-0.6B on one H100: reading the weights bounds it, and two thirds of them are the matrices of 28 layers."""
    config = load_config(str(ROOT / "configs" / "qwen3_0p6b.py"))
    report = priced(plan.plan_by_hand(config, "h100:1", "sft", made), "2")
    matrices = 28 * (1024 * (2048 + 1024 + 1024) + 2048 * 1024 + 3 * 1024 * 3072)
    assert report["bounds_s"]["hbm"] > 2 * 2 * matrices / 3350e9
    assert report["bounds_s"]["compute"] > 4 * 352 * matrices / 989e12
    assert report["chip_hours"]["sft"] == pytest.approx(6845 * report["predicted_step_s"] / 3600, abs=6e-4)
    assert set(report["chip_hours"]) == {"organisms", "sft", "sample", "total"}
    assert report["dollars"]["total"] == pytest.approx(2 * report["chip_hours"]["total"], abs=0.01)
    page = as_text(report)
    assert "ROOFLINE BY HAND: nothing was compiled or run" in page
    assert "at $2 a chip-hour, as given" in page
    assert "collectives" not in page
    with pytest.raises(ConfigError, match="h100:1 is no TPU, so there is no compiler"):
        plan.devices_of("h100:1")


def test_a_chip_of_two_devices_is_paid_once():
    config = load_config(str(ROOT / "configs" / "qwen3_32b.py"))  # 8 devices: four chips of v7x
    report = plan.plan_by_hand(config, "v7x:2x2x1", "sft", made)
    assert report["chips"] == 4
    assert report["chip_hours"]["sft"] == pytest.approx(6845 * report["predicted_step_s"] * 4 / 3600, abs=6e-4)
    with pytest.raises(ConfigError, match=r"v7x:2x2x2 has 8 chips of 2 devices, config\.mesh 8"):
        step_by_hand(config, topology_of("v7x:2x2x2"), "sft", SFT)
    with pytest.raises(ConfigError, match=r"8xv5p:1x1x1 has 8 chips on 8 slices \(config\.mesh\.dcn a multiple\)"):
        step_by_hand(config, topology_of("8xv5p:1x1x1"), "sft", SFT)


def test_the_price_table():
    """Every chip has a row, and says when, where, on what terms and by whom; what nobody has read says so."""
    assert set(price_table()) == set(CHIPS)
    for name, row in price_table().items():
        assert 0.5 < row.dollars < 20, name
        assert datetime.date(2026, 1, 1) <= datetime.date.fromisoformat(row.date) <= datetime.date.today(), name
        assert row.terms == "list price, on demand"
        assert row.region.startswith("us-")
        second_hand = row.source.startswith("from memory, check before use") or "as read for" in row.source
        assert second_hand is not row.verified, name
    # Newer chips give more for a dollar, at list prices too: a row with a slipped digit would not.
    worth = {n: CHIPS[n].flops * CHIPS[n].cores / row.dollars for n, row in price_table().items()}
    assert max(worth.values()) < 6 * min(worth.values())


def test_prices():
    assert price_of("v5e", "0").dollars == 0
    assert price_of("v9", "3.5").dollars == 3.5
    for bad in ("cheap", "-1", "nan", "inf", ""):
        with pytest.raises(ConfigError, match=f"--price={bad} is no amount; give dollars") as error:
            price_of("v5e", bad)
        assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match=r"no price of v5e is known; give --price=DOLLARS"):
        price_of("v5e", table={})
    with pytest.raises(ConfigError, match=r"no price of v9 is known \(no such chip; known: v5e, "):
        price_of("v9")
    assert [amount(x) for x in (0.004, 2.567, 21.4, 12345.6)] == ["$0.00", "$2.57", "$21", "$12,346"]


def test_a_study_is_priced_job_by_job():
    """Two hours on v6e at its price and one that nobody has priced: the sum has no dollars then."""
    known = cost._dollars("2xv6e:2x2", 2.0)
    assert known == 2 * price_table()["v6e"].dollars
    assert cost._dollars("v9:1", 2.0) is None
    job: Any = None
    jobs = [cost.Cost(job, (), chip_hours=h, dollars=d) for h, d in ((2.0, 5.4), (1.0, 1.2), (1.0, None))]
    assert cost.total(jobs[:2]).startswith("to run: at least 3 chip-hours, $6.60 at list prices (a roofline")
    assert "$" not in cost.total(jobs)


def test_a_plan_without_a_price_says_so(monkeypatch):
    monkeypatch.setattr(prices, "price_table", dict)
    report = priced({"topology": "v6e:2x2", "chip_hours": {"total": 1.0}})
    assert report["dollars"] is None
    assert "no price of v6e is known; give --price" in report["price"]
    assert priced({"topology": "v6e:2x2", "fits": False}) == {"topology": "v6e:2x2", "fits": False}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--topology=v9:2x2",), "no chip 'v9'"),
        (("--topology=h100:1", "--price=x"), "--price=x is no amount"),
        (("--topology=h100:1", "--search"), "h100:1 is no TPU"),
        (("--topology=h100:2",), "h100:2 has 2 chips, config.mesh 1"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(capsys, monkeypatch, more, said):
    monkeypatch.setattr("ia_jax.stages.planned.planned", lambda *_, **__: made)
    arguments = ["plan", f"--config={ROOT / 'configs' / 'qwen3_0p6b.py'}", "--stage=sft", *more]
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1


def test_the_command_prints_dollars(capsys, monkeypatch):
    monkeypatch.setattr("ia_jax.stages.planned.planned", lambda *_, **__: made)
    common = [
        "plan",
        f"--config={ROOT / 'configs' / 'qwen3_0p6b.py'}",
        "--stage=sft",
        "--topology=v5e:1x1",
        "--by-hand",
    ]
    assert cli.main([*common, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert "compile_s" not in report
    assert report["dollars"]["sft"] == pytest.approx(1.2 * report["chip_hours"]["sft"], abs=0.01)
    assert report["capacity_gib"] == CHIPS["v5e"].capacity / GIB
    assert cli.main(common) == 0
    assert "$1.2 a chip-hour (list price, on demand, us-central1, 2026-" in capsys.readouterr().out
