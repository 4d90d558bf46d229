"""benchmarks/accelerator.py with tiny shapes: what it measures, what it leaves out, and what a failure costs."""

import argparse
import importlib
import json
from pathlib import Path

import jax
import pytest

from ia_jax.models.lora import LoraConfig
from ia_jax.planning.chips import training_flops

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def module(name):
    """A file of benchmarks/, which finds those beside it as when it is run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        return importlib.import_module(name)


@pytest.fixture(scope="module")
def script():
    return module("accelerator")


@pytest.fixture(scope="module")
def models():
    return module("accelerator_models")


def rows_of(script, capsys, *argv):
    """What a section's process prints, run in this one."""
    script.main(["--child", "--tiny", *argv])
    printed = capsys.readouterr().out.splitlines()
    return {r["case"]: r for r in (json.loads(x[len(script.MARK) :]) for x in printed if x.startswith(script.MARK))}


def test_training_is_measured(script, models, capsys):
    rows = rows_of(script, capsys, "--sections=llama", '--known={"matmul_tflops": 0.01, "copy_gbs": 1.0}')
    assert list(rows) == ["sft K=4x1 none", "organisms K=4x1 none", "dpo K=2x1 none", "reference K=2x1"]
    for row in rows.values():
        assert "error" not in row
        assert row["tokens_per_s"] == pytest.approx(
            row["K"] * row["rows"] * row["length"] / row["step_ms"] * 1e3, rel=1e-4
        )
        assert row["tflops"] / row["of_matmul"] == pytest.approx(0.01, rel=1e-4)
        assert row["memory_gib"] > 0
    assert rows["dpo K=2x1 none"]["first_loss"] > 0
    # Useful work is what the mathematics needs: 64 tokens in segments of 8, half of them supervised.
    cfg, lora, row = models.architecture("llama", True), LoraConfig(16, 32.0), rows["organisms K=4x1 none"]
    each = training_flops(cfg, 8, [lora], [lora])
    needed = 64 * (each["tokens"] + each["supervised_tokens"] / 2)
    assert row["tflops"] * 1e12 * row["step_ms"] / 1e3 == pytest.approx(needed, rel=1e-4)


def test_prefill_and_decode_are_measured(script, capsys):
    rows = rows_of(script, capsys, "--sections=decode", '--known={"matmul_tflops": 0.01, "copy_gbs": 1.0}')
    assert list(rows) == ["rows=4 prefill", "rows=4 decode"]
    assert rows["rows=4 decode"]["bound"] in ("hbm", "matmul")
    assert "error" not in rows["rows=4 decode"]


def test_a_batch_is_full_and_half_supervised(models):
    cfg = models.architecture("smollm2", True)
    batch = jax.tree.map(jax.device_get, models.random_batch(cfg, k=3, rows=2, length=16, segments=4))
    assert (batch.segment_ids > 0).all()
    assert batch.target_weight.sum() == batch.tokens.size / 2
    for i, where in enumerate(batch.target_index[0, 1]):
        assert batch.segment_ids[0, 1, where] == batch.segment_ids[0, 1, where + 1]
        assert batch.tokens[0, 1, where + 1] == batch.target_token[0, 1, i]
        assert batch.target_example[0, 1, i] == 4 + batch.segment_ids[0, 1, where] - 1


def test_the_run_survives_its_sections(script, tmp_path, monkeypatch, capsys):
    """A section that dies is a row with its error; what no time is left for is named; the file holds what there was."""
    child = tmp_path / "child.py"
    child.write_text(
        'import sys\nprint("noise")\n'
        'row = \'{"case": "machine", "device": "x", "jax": "1", "matmul_tflops": 2.0, "copy_gbs": 3.0}\'\n'
        f"print({script.MARK!r} + row, flush=True)\n"
        'sys.exit("out of memory" if "--sections=llama" in sys.argv else 0)\n'
    )
    monkeypatch.setattr(script, "__file__", str(child))
    out = tmp_path / "out.json"
    script.main(["--sections=machine,llama,qwen", f"--out={out}", "--budget=70"])
    monkeypatch.setitem(script.NEEDS, "qwen", 1000)
    found = script.supervise(
        argparse.Namespace(
            sections=["machine", "llama", "qwen"],
            budget=70.0,
            out=out,
            tiny=False,
            cases="",
            profile=False,
            weights="smollm2",
        )
    )
    assert json.loads(out.read_text())["rows"] == found["rows"]
    assert [r["job"] for r in found["rows"]] == ["machine", "llama", "llama"]
    assert "out of memory" in found["rows"][-1]["error"]
    assert list(found["left_out"]) == ["qwen"]
    assert "out of memory" in capsys.readouterr().out
