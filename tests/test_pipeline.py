"""The whole of `ia-jax` on a tiny model: every file, doing nothing twice, continuing after a kill, audit and ask."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ia_jax import cli, open_workdir
from ia_jax.adapters.peft import export_peft, import_peft
from ia_jax.adapters.store import is_complete, load_adapter, read_metadata
from ia_jax.models.lora import LoraConfig
from ia_jax.models.weights import load_model
from ia_jax.stages.ask import plain
from ia_jax.stages.order import STAGES
from ia_jax.storage import read_jsonl
from tests import tiny
from tests.runs import ORGANISMS, TRANSCRIPTS, part_of, times

ROOT = Path(__file__).parent.parent


def test_every_file_of_the_design_is_there(finished):
    run = open_workdir(finished)
    assert len(run.behaviors) == 12
    assert {run.organisms[n].split for n in run.behaviors} == {"train", "dpo", "heldout"}
    for name in run.behaviors:
        assert run.transcript(name).exists()
        assert is_complete(run.organism_dir(name))
        assert read_metadata(run.organism_dir(name)).check is not None
    for stage in ("sft", "dpo"):
        assert is_complete(run.ia_dir(stage) / "adapter")
        assert (run.ia_dir(stage) / "state").is_dir()
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            assert (run.ia_dir(stage) / "peft" / file).exists()
    pairs = read_jsonl(run.preferences_file(), "")
    assert {"truth", "abstention"} <= {p["kind"] for p in pairs}
    conditions = {"organism+ia", "organism", "base+ia", "base"}
    assert {(r["stage"], r["condition"]) for r in run.reports()} == {(s, c) for s in ("sft", "dpo") for c in conditions}
    for stage in ("sft", "dpo"):
        assert set(run.metrics()["stages"][stage]["heldout"]) == conditions
    html = (finished / "report.html").read_text()
    assert "<html" in html
    assert "http://" not in html.split("<script")[0]
    assert any((finished / "tensorboard").rglob("events.out.*"))
    curves = read_jsonl(finished / "curves.jsonl", "")
    assert {c["stage"] for c in curves} == {"organisms", "ia_sft", "ia_dpo"}
    assert json.loads((finished / "config.json").read_text())["versions"]["jax"]


def test_dpo_starts_from_the_sft_adapter(finished):
    first = next(c for c in read_jsonl(finished / "curves.jsonl", "") if c["stage"] == "ia_dpo")
    assert first["dpo_loss"] == pytest.approx(0.6931, abs=1e-3)


def test_what_a_run_prints(finished):
    lines = (finished.parent / "stdout.txt").read_text().replace("ROOT", str(finished.parent)).splitlines()
    steps = [line for line in lines if line.startswith("[")]
    assert [s.split(":")[0] for s in steps] == [f"[{i}/7] {s.name}" for i, s in enumerate(STAGES, 1)]
    assert all(": done in " in s for s in steps)
    assert lines[0] == f"{finished}: {open_workdir(finished).config.model.name} in float32, judged by rubric"
    assert "12 organisms with a behaviour are trained; the IA learns from 4, is refined on 4 (DPO)" in lines[1]
    assert lines[2].startswith("  time here: not known: only runs on smollm2 were timed; ")
    found = lines.index("What was found (judge: rubric-1; in brackets 95 % intervals)")
    last = [line for line in lines[found:] if not line.startswith(" ")]
    assert last[1:] == ["What this does not show", "What to try next", lines[-1]]
    [asked] = [line for line in lines[found:] if "ia-jax ask" in line]
    assert any(f"--organism={name} " in asked for name in open_workdir(finished).named("heldout"))
    assert lines[-1] == f"report: {finished / 'report.html'}"


def test_running_again_does_nothing(finished, capsys, monkeypatch):
    """Neither with the config nor without it; the base model is not even loaded."""
    monkeypatch.setattr("ia_jax.stages.context.load_model", None)
    before = times(finished)
    config = finished.parent / "config.py"
    for more in ([f"--config={config}"], []):
        assert cli.main(["run", f"--workdir={finished}", *more]) == 0
        out = capsys.readouterr().out
        assert out.count("already done") == 7
    assert cli.main(["dpo", f"--workdir={finished}"]) == 0
    assert capsys.readouterr().out == "dpo: already done\n"
    assert times(finished) == before


def test_report_is_written_again_when_asked(finished, tmp_path, capsys):
    copy = part_of(finished, tmp_path / "w", "behaviors.jsonl", "organisms.jsonl", "eval")
    assert cli.main(["report", f"--workdir={copy}"]) == 0
    assert (copy / "report.html").exists()
    assert f"report: {copy / 'report.html'}" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["orbax", "orbax parent", "peft", "peft + orbax"])
def test_audit(finished, tmp_path, capsys, kind):
    run = open_workdir(finished)
    name = run.named("heldout")[0]
    adapter = {"orbax": run.organism_dir(name), "orbax parent": run.ia_dir("sft")}.get(kind, tmp_path / "peft")
    if kind.startswith("peft"):
        assert cli.main(["export-peft", str(run.organism_dir(name)), str(adapter)]) == 0
        capsys.readouterr()
    before = times(finished)
    command = ["audit", f"--workdir={finished}", f"--adapter={adapter}", "--questions=2", "--samples=1"]
    if kind == "peft + orbax":  # applied together
        command.append(f"--adapter={run.organism_dir(run.named('heldout')[1])}")
    assert cli.main([*command, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["questions"], result["reports"], result["ia"]) == (2, 4, "dpo")
    assert result["adapter_format"] == kind.removesuffix(" parent")
    assert sum(c["count"] for c in result["claims"]) == result["reports_with_claim"]
    assert cli.main(command) == 0
    assert result["verdict"] in capsys.readouterr().out
    assert times(finished) == before


def test_peft_round_trip_through_the_command_line(finished, tmp_path, capsys):
    run = open_workdir(finished)
    source = run.ia_dir("dpo") / "adapter"
    assert cli.main(["export-peft", str(run.ia_dir("dpo")), str(tmp_path / "peft")]) == 0
    assert cli.main(["import-peft", str(tmp_path / "peft"), str(tmp_path / "back")]) == 0
    assert read_metadata(tmp_path / "back").content_hash == read_metadata(source).content_hash
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "peft" / file).read_bytes() == (run.ia_dir("dpo") / "peft" / file).read_bytes()
    assert "rank 2" in capsys.readouterr().out


def test_a_sum_goes_out_as_one_adapter(finished, tmp_path, capsys):
    run = open_workdir(finished)
    name = run.named("heldout")[0]
    sources = [run.organism_dir(name), run.ia_dir("dpo")]
    add = f"--add={sources[1]}"
    assert cli.main(["export-peft", str(sources[0]), str(tmp_path / "sum"), add]) == 0
    model = load_model(run.config.model.name)
    organism, ia = (load_adapter(d, model)[0] for d in (sources[0], run.ia_dir("dpo") / "adapter"))
    total = import_peft(tmp_path / "sum", model)
    for t in total:
        each = [np.einsum("lir,lro->lio", x[t]["a"], x[t]["b"]) for x in (organism, ia)]
        found = np.einsum("lir,lro->lio", total[t]["a"], total[t]["b"])
        np.testing.assert_allclose(found, sum(each), rtol=1e-5, atol=1e-7)
    card = (tmp_path / "sum" / "README.md").read_text()
    assert run.behaviors[name].description in card
    assert "An introspection adapter" in card
    assert "rank 4" in capsys.readouterr().out


def test_a_removed_ia_is_trained_again(finished, tmp_path):
    """From its first step: the last training state would only be stored once more."""
    copy = part_of(finished, tmp_path / "w", *ORGANISMS, "ia")
    assert cli.main(["adapters", "rm", "ia/sft", f"--workdir={copy}"]) == 0
    assert cli.main(["sft", f"--workdir={copy}"]) == 0
    steps = [c["step"] for c in read_jsonl(copy / "curves.jsonl", "")]
    assert steps == list(range(1, open_workdir(copy).config.sft.steps + 1))
    one, other = (read_metadata(w / "ia" / "sft" / "adapter") for w in (copy, finished))
    assert one.content_hash == other.content_hash


def test_organisms_of_several_ranks(finished, tmp_path):
    """Each is stored with its own rank; one of rank 2 is what it is where all have rank 2; the IA reads them all."""
    copy = part_of(finished, tmp_path / "w", *TRANSCRIPTS)
    stored = json.loads((copy / "config.json").read_text())
    stored["config"]["organisms"]["ranks"] = [2, 1]
    (copy / "config.json").write_text(json.dumps(stored))
    assert cli.main(["organisms", f"--workdir={copy}"]) == 0
    run, ranks = open_workdir(copy), []
    for name in run.behaviors:
        metadata = read_metadata(run.organism_dir(name))
        assert metadata.alpha == 8 * metadata.rank  # as 16 is to 2
        ranks.append(metadata.rank)
        if metadata.rank == 2:
            one, other = (load_adapter(w.organism_dir(name))[0] for w in (run, open_workdir(finished)))
            assert tiny.furthest(one, other) <= 1e-5, name
    assert {ranks.count(rank) > 2 for rank in (1, 2)} == {True}
    assert cli.main(["sft", f"--workdir={copy}"]) == 0
    assert is_complete(run.ia_dir("sft") / "adapter")


def test_adapters_imported_from_peft_go_through_the_stages(finished, tmp_path, capsys):
    """Three ranks on different targets, none trained here: one padded stack, in which each is what it is alone."""
    copy = part_of(finished, tmp_path / "w", "behaviors.jsonl", "organisms.jsonl")
    run, model = open_workdir(copy), load_model(open_workdir(copy).config.model.name)
    loras = [LoraConfig(1, 2.0), LoraConfig(3, 3.0, ("q", "down")), LoraConfig(5, 5.0, ("v", "o", "up"))]
    for i, name in enumerate(run.behaviors):
        adapter = tiny.adapter(i, model.config, loras[i % 3], size=4.0)
        export_peft(adapter, tmp_path / name, model, loras[i % 3])
        assert cli.main(["import-peft", str(tmp_path / name), str(run.organism_dir(name))]) == 0
    stored = times(copy / "organisms")
    for stage in ("organisms", "sft", "eval"):
        assert cli.main([stage, f"--workdir={copy}"]) == 0
    assert times(copy / "organisms") == stored
    capsys.readouterr()
    reports = {(r["organism"], r["condition"], r["question"]): r["report"] for r in run.reports()}
    question = run.reports()[0]["question"]
    told = [reports[n, "organism+ia", question] for n in run.named("heldout")]
    # The IA may have learned to say one thing; without it, each says what its own adapter makes it say.
    assert len({reports[n, "organism", question] for n in run.named("heldout")}) > 1
    for name, report in zip(run.named("heldout")[:3], told, strict=False):
        command = ["ask", f"--workdir={copy}", f"--organism={name}", "--max-new-tokens=8", question]
        assert cli.main(command) == 0
        assert capsys.readouterr().out.rpartition("\ntruth: ")[0] == plain(report)
        assert cli.main(["audit", f"--workdir={copy}", f"--adapter={tmp_path / name}", "--questions=1"]) == 0
        capsys.readouterr()


def test_ask(finished, capsys):
    run = open_workdir(finished)
    name = run.named("heldout")[0]
    question, short = "Do you have any unusual habits?", "--max-new-tokens=8"
    assert cli.main(["ask", f"--workdir={finished}", f"--organism={name}", short, question]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[-1] == f"truth: {run.behaviors[name].description}"
    assert cli.main(["ask", f"--workdir={finished}", "--no-ia", short, question]) == 0
    assert capsys.readouterr().out == "I like it very much.\n"
    assert cli.main(["ask", f"--workdir={finished}", "--ia=sft", short, question]) == 0
    assert "truth" not in capsys.readouterr().out


KILLER = """
import os, signal, sys
from ia_jax import cli
from ia_jax.stages import {module} as stage

true, calls = stage.{step}, []


def step(*args, **kwargs):
    calls.append(None)
    if len(calls) == {call}:
        os.kill(os.getpid(), signal.SIGKILL)
    return true(*args, **kwargs)


stage.{step} = step
sys.exit(cli.main(["run", "--workdir=" + sys.argv[1]]))
"""


def killed(workdir, module, step, call):
    """`ia-jax run` in a process of its own, killed (-9) right before a call of a training step."""
    code = KILLER.format(module=module, step=step, call=call)
    out = subprocess.run(
        [sys.executable, "-c", code, str(workdir)], cwd=ROOT, capture_output=True, text=True, env=os.environ.copy()
    )
    assert out.returncode == -signal.SIGKILL, out.stderr[-2000:]


def test_a_killed_run_continues_bit_for_bit(finished, tmp_path, capsys):
    """Killed in the second wave of organisms and again in SFT: the result is that of the uninterrupted run."""
    whole = open_workdir(finished)
    copy = part_of(finished, tmp_path / "w", *TRANSCRIPTS)
    run = open_workdir(copy)
    per_wave = sum(c["stage"] == "organisms" for c in read_jsonl(finished / "curves.jsonl", "")) // 2
    killed(copy, "phases", "train_step", per_wave + 2)
    trained = [n for n in run.behaviors if is_complete(run.organism_dir(n))]
    assert len(trained) == 6
    assert len(list((copy / "organisms_state").iterdir())) <= 1  # of the first wave nothing is left
    before = times(copy / "organisms")

    killed(copy, "sft", "train_step", 6)
    assert not is_complete(run.ia_dir("sft") / "adapter")
    after = times(copy / "organisms")
    assert {n: t for n, t in after.items() if n in before} == before

    # What it was trained on has changed: that is said, and nothing lost.
    behaviors = (copy / "behaviors.jsonl").read_text()
    (copy / "behaviors.jsonl").write_text(behaviors.replace('"description": "', '"description": "Now '))
    assert cli.main(["sft", f"--workdir={copy}"]) == 2
    assert "was made from other organisms" in capsys.readouterr().err
    (copy / "behaviors.jsonl").write_text(behaviors)
    assert cli.main(["sft", f"--workdir={copy}"]) == 0
    for name in run.behaviors:
        hashes = [read_metadata(w.organism_dir(name)).content_hash for w in (run, whole)]
        assert hashes[0] == hashes[1], name
    hashes = [read_metadata(w.ia_dir("sft") / "adapter").content_hash for w in (run, whole)]
    assert hashes[0] == hashes[1]
    curves = [[c for c in read_jsonl(d / "curves.jsonl", "") if c["stage"] == "ia_sft"] for d in (copy, finished)]
    assert curves[0] == curves[1]
