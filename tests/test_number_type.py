"""What model.dtype="auto" comes to: by flags, by timing, and once for a workdir."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import pytest

from ia_jax.config import ModelSection, RunConfig, with_dtype
from ia_jax.errors import ConfigError
from ia_jax.models import number_type
from ia_jax.models.number_type import Choice, by_flags, by_probe, choose, fastest, flags_in, product_rate
from ia_jax.planning import plan
from ia_jax.recipes import load_config
from ia_jax.stages.settings import DEPENDS, check_same, stage_hash, start_workdir, write_stage_record
from ia_jax.workdir import open_workdir

ROOT = Path(__file__).parent.parent
# Shortened lines of /proc/cpuinfo.
HASWELL = "fpu sse2 ssse3 fma sse4_1 sse4_2 avx f16c bmi1 avx2 bmi2"
SKYLAKE = f"{HASWELL} avx512f avx512dq avx512cd avx512bw avx512vl avx512_vnni"
ZEN4 = f"{SKYLAKE} avx512ifma avx512_bf16 avx512_vbmi2 gfni"
SAPPHIRE_RAPIDS = f"{ZEN4} avx512_fp16 amx_bf16 amx_tile amx_int8"
AMX_ALONE = f"{HASWELL} avx_vnni amx_bf16 amx_tile"


@pytest.mark.parametrize(
    ("platform", "flags", "dtype"),
    [
        ("cpu", HASWELL, "float32"),
        ("cpu", SKYLAKE, "float32"),
        ("cpu", f"{SKYLAKE} avx512_fp16 amx_int8 amx_tile", "float32"),
        ("cpu", "", "float32"),
        ("cpu", ZEN4, "bfloat16"),
        ("cpu", SAPPHIRE_RAPIDS, "bfloat16"),
        ("cpu", AMX_ALONE, "bfloat16"),
        ("gpu", HASWELL, "bfloat16"),
        ("tpu", "", "bfloat16"),
    ],
)
def test_flags_decide(platform, flags, dtype):
    choice = by_flags(platform, frozenset(flags.split()))
    assert choice is not None
    assert choice.dtype == dtype
    named = [flag for flag in ("amx_bf16", "avx512_bf16") if platform == "cpu" and flag in flags.split()]
    assert all(flag in choice.why for flag in named)


@pytest.mark.parametrize(("platform", "dtype"), [("cpu", None), ("metal", None), ("gpu", "bfloat16")])
def test_without_flags_the_machine_is_timed(platform, dtype):
    assert getattr(by_flags(platform, None), "dtype", None) == dtype
    asked = []

    def seconds(name):
        asked.append(name)
        return {"float32": 0.3, "bfloat16": 0.1}[name]

    assert choose(platform, None, seconds).dtype == "bfloat16"
    assert bool(asked) is (dtype is None)


@pytest.mark.parametrize(
    ("fp32", "bf16", "dtype"), [(2.0, 1.0, "bfloat16"), (1.05, 1.0, "float32"), (1.0, 3.0, "float32")]
)
def test_a_probe_wants_bf16_to_be_faster_beyond_noise(fp32, bf16, dtype):
    choice = by_probe({"float32": fp32, "bfloat16": bf16}.get)
    assert choice.dtype == dtype
    assert f"{fp32 / bf16:.2f} times" in choice.why


def test_a_timer_takes_the_fastest_and_not_the_first():
    now, lasts, done = [0.0], iter([9.0, 0.3, 0.1, 0.4, 0.2]), []

    def work():
        done.append(now[0])
        now[0] += next(lasts)

    assert fastest(work, budget=0.7, clock=lambda: now[0]) == pytest.approx(0.1)
    assert len(done) == 4  # the first, which compiles, and 0.3 + 0.1 + 0.4 s, which is enough


def test_a_rate_is_of_this_machine(monkeypatch):
    monkeypatch.setattr(number_type, "SHAPES", {"other": ((64, 32, 16), (128, 32, 16))})
    seconds = iter([0.5, 0.25])
    with monkeypatch.context() as patch:
        patch.setattr(number_type, "fastest", lambda work: (work(), next(seconds))[1])
        assert product_rate("bfloat16") == 2 * 128 * 32 * 16 / 0.25
    assert 1e5 < product_rate("float32") < 1e15


def cpuinfo(*cores):
    return "\n\n".join(
        f"processor\t: {i}\nmodel name\t: A CPU\nflags\t\t: {x}\nbugs\t: none" for i, x in enumerate(cores)
    )


def test_flags_are_those_of_all_cores():
    assert flags_in("x86_64", cpuinfo(ZEN4, ZEN4)) == frozenset(ZEN4.split())
    assert flags_in("AMD64", cpuinfo(SAPPHIRE_RAPIDS, HASWELL)) == frozenset(HASWELL.split())
    assert flags_in("x86_64", "processor : 0\nvmx flags : avx512_bf16\n") is None
    assert flags_in("x86_64", "") is None
    assert flags_in("aarch64", "Features\t: fp asimd bf16 i8mm\n") is None


# ------------------------------------------------------------------------------------------------------ in a workdir

FP32, BF16 = Choice("float32", "an old CPU"), Choice("bfloat16", "a new CPU")


def explicit(dtype, config=None):
    return replace(config or RunConfig(), model=ModelSection(dtype=dtype))


def begun(run, config):
    write_stage_record(run, config, "transcripts")
    run.organisms_file.touch()
    return run


def test_auto_is_the_run_that_says_so(tmp_path):
    asked = load_config(str(ROOT / "configs" / "smollm2_demo.py"))
    assert asked.model.dtype == "auto"
    run = start_workdir(tmp_path / "w", asked, lambda: BF16)
    assert run.config == explicit("bfloat16", asked) == with_dtype(asked, "bfloat16")
    for stage in DEPENDS:
        assert stage_hash(run.config, stage) == stage_hash(explicit("bfloat16", asked), stage)
        with pytest.raises(ValueError, match="auto"):
            stage_hash(asked, stage)
    noted = json.loads(run.config_file.read_text())["dtype"]
    assert noted == {"asked": "auto", "chosen": "bfloat16", "why": "a new CPU"}
    # And the explicit run goes on in the other's workdir.
    check_same(begun(run, run.config), explicit("bfloat16", asked), "transcripts")


@pytest.mark.parametrize(("first", "later"), [(FP32, BF16), (BF16, FP32)])
@pytest.mark.parametrize("has_begun", [False, True])
@pytest.mark.parametrize("given", ["auto", "stored"])
def test_a_workdir_stays_as_it_was_begun(tmp_path, capsys, first, later, has_begun, given):
    """On another machine, with the recipe or without it, whether anything was made or not."""
    run = start_workdir(tmp_path / "w", RunConfig(), lambda: first)
    if has_begun:
        begun(run, run.config)
    config = RunConfig() if given == "auto" else run.config
    assert start_workdir(tmp_path / "w", config, lambda: first).config.model.dtype == first.dtype
    assert capsys.readouterr().out == ""
    again = start_workdir(tmp_path / "w", config, lambda: later)
    assert again.config.model.dtype == first.dtype
    [line] = capsys.readouterr().out.splitlines()
    assert f"goes on in {first.dtype}" in line
    assert first.why in line
    assert f"would be in {later.dtype} here: {later.why}" in line
    assert json.loads(again.config_file.read_text())["dtype"]["chosen"] == first.dtype
    check_same(again, with_dtype(config, again.config.model.dtype), "transcripts")


def test_a_workdir_with_a_given_dtype_goes_on(tmp_path, capsys):
    """As those from before there was "auto"."""

    def never():
        raise AssertionError("nobody asked for auto")

    run = begun(start_workdir(tmp_path / "w", explicit("float32"), never), explicit("float32"))
    assert "dtype" not in json.loads(run.config_file.read_text())
    assert start_workdir(tmp_path / "w", explicit("float32"), never).config == explicit("float32")
    assert capsys.readouterr().out == ""
    assert start_workdir(tmp_path / "w", RunConfig(), lambda: BF16).config == explicit("float32")
    assert "goes on in float32" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"config\.model\.dtype was 'float32' and is now 'bfloat16'"):
        check_same(run, explicit("bfloat16"), "transcripts")


def test_until_a_stage_has_begun_a_given_dtype_may_be_mended(tmp_path):
    start_workdir(tmp_path / "w", explicit("float32"), lambda: BF16)
    assert start_workdir(tmp_path / "w", RunConfig(), lambda: BF16).config == explicit("bfloat16")
    assert start_workdir(tmp_path / "w", explicit("float32"), lambda: BF16).config == explicit("float32")
    assert "dtype" not in json.loads((tmp_path / "w" / "config.json").read_text())
    (tmp_path / "w" / "config.json").write_text('{"config": ')  # nothing was made yet: it is written again
    assert start_workdir(tmp_path / "w", RunConfig(), lambda: FP32).config == explicit("float32")


def test_this_machine_decides_for_the_command_line(tmp_path):
    run = start_workdir(tmp_path / "w", RunConfig())
    assert open_workdir(run.path).config.model.dtype in ("float32", "bfloat16")


def test_a_plan_for_a_tpu_is_in_bf16(monkeypatch):
    seen = []

    def data(config, stage):
        seen.append(config.model.dtype)
        raise ConfigError("seen")

    monkeypatch.setattr(plan, "devices_of", lambda topology: jax.devices())
    for dtype in ("auto", "float32"):
        config = explicit(dtype, RunConfig())
        config = replace(config, mesh=replace(config.mesh, fsdp=8))
        with pytest.raises(ConfigError, match="seen"):
            plan.plan(config, "v5e:2x4", "sft", data)
    assert seen == ["bfloat16", "float32"]


def test_large_recipes_say_bf16_themselves():
    assert load_config(str(ROOT / "configs" / "qwen3_8b.py")).model.dtype == "bfloat16"
