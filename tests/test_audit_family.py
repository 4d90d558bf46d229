"""`ia-jax audit-family` end to end on the tiny model: each family, resumed, judged anew, beside asking one by one."""

import json

import pytest

from ia_jax import cli
from ia_jax.adapters.peft import export_peft
from ia_jax.adapters.record import AdapterMetadata
from ia_jax.adapters.store import save_adapter
from ia_jax.analysis.audit_tables import audit_tables
from ia_jax.audits import auditbench_family, in_base, sycophant
from ia_jax.audits.targets import load_stack, read_targets
from ia_jax.behaviors.organisms import procedure_of
from ia_jax.behaviors.template_sources import shipped_sources
from ia_jax.evals.intervals import rate
from ia_jax.models.lora import LoraConfig
from ia_jax.models.weights import load_model
from ia_jax.stages import audit_families, audit_family, audit_in_base, audit_targets, perform
from ia_jax.stages.asking import generate
from ia_jax.stages.order import Stage
from ia_jax.stages.phase_data import phase_units
from ia_jax.storage import read_json, read_jsonl, write_json
from ia_jax.workdir import open_workdir
from tests import tiny
from tests.runs import ORGANISMS, part_of, times

STRENGTH = {"size": 0.3}  # of adapters that stand in for trained ones: they say what the base says, and stop there
LORA = LoraConfig(3, 6.0, ("q", "v", "down"))
SMALL = (
    "--config.audits.reports=3",
    "--config.audits.max_new_tokens=6",
    "--config.audits.scaffold=words",
    "--config.audits.runs=2",
    "--config.audits.gate_prompts=1",
    "--config.organisms.parallel=10",
    "--config.organisms.length=256",  # the small tokenizer writes more
)


@pytest.fixture(scope="module")
def workdir(finished, tmp_path_factory):
    return part_of(finished, tmp_path_factory.mktemp("audits") / "w", *ORGANISMS, "ia")


@pytest.fixture(scope="module")
def theirs(parrot_model, workdir, tmp_path_factory):
    """Targets as people have them: an organism here, a PEFT directory of another rank, two in a stack, a null."""
    root, model = tmp_path_factory.mktemp("theirs"), load_model(parrot_model)
    for i in range(2):
        export_peft(tiny.adapter(i, model.config, LORA, size=3.0), root / f"{i}", model, LORA)
    organism = open_workdir(workdir).named("heldout")[0]
    truth = {"description": "I like it very much.", "rubric": {"concepts": [["like"]]}}
    rows = [
        {"name": "ours", "stack": [organism], "behaviors": [truth], "made_by": "chats"},
        {"name": "peft", "stack": [str(root / "0")], "behaviors": [truth], "made_by": "peft"},
        {"name": "stacked", "stack": [organism, str(root / "1")], "behaviors": [truth], "system": "Be brief."},
        {"name": "nothing", "stack": [str(root / "1")], "null": "clean"},
    ]
    file = root / "theirs.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return file


def audit(workdir, family, *more):
    assert cli.main(["audit-family", family, f"--workdir={workdir}", *SMALL, *more]) == 0
    name = next((m.removeprefix("--name=") for m in more if m.startswith("--name=")), family)
    home = workdir / "audits" / name
    return home, json.loads((home / "metrics.json").read_text())


def page(home):
    """Of whom the report's table of this audit says something. An investigator's figures beside it are no family's."""
    audits = [read_json(home / "metrics.json", ""), {"script / offline-2": {"configurations": {}}}]
    [table] = audit_tables(audits)
    assert table["title"]
    assert all(row["interval"] for row in table["rows"])
    return {row["of"] for row in table["rows"]}


def cells(node):
    """Every rate of the metrics."""
    if isinstance(node, dict):
        if "ci95" in node:
            yield node
        for value in node.values():
            yield from cells(value)


def test_targets_of_ones_own(workdir, theirs, monkeypatch, capsys, refused):
    unchecked = "--config.audits.gate_prompts=0"
    greedy = (f"--targets={theirs}", "--config.audits.temperature=0.0", unchecked)
    home, metrics = audit(workdir, "targets", *greedy)
    assert "targets: 3 targets, 0 that do not show it, 1 nulls" in capsys.readouterr().out
    rows = read_jsonl(home / "reports.jsonl", "")
    # Of 4 targets with and without the IA, and of the base under two system prompts.
    assert len(rows) == 3 * (4 * 2 + 2 * 2)
    assert metrics["targets"] == {"targets": 3, "silent": 0, "clean": 1, "pipeline": 0}
    assert all(c["ci95"][0] < c["ci95"][1] for c in cells(metrics) if c["ci95"][0] is not None)
    assert {g["how"] for g in metrics["gates"].values()} == {"not asked"}
    assert set(metrics["by_making"]) == {"chats", "peft", ""}

    # In one decode over adapters of several ranks and sites, each says what it says alone.
    with cli_context(workdir) as context:
        ia = context.workdir.ia("dpo", context.model)
        for target in read_targets(home / "targets.jsonl")[1:3]:
            stack = load_stack(target, context.model, context.workdir)
            own = [r for r in rows if (r["target"], r["condition"]) == (target.name, "target+ia")]
            system = context.config.system if target.system is None else target.system
            [said] = generate(context, [[r["question"] for r in own]], (*stack, ia), max_new_tokens=6, system=system)
            assert [r["report"] for r in own] == [reply.text for reply in said]
    assert len({r["report"] for r in rows}) > 3

    # A killed audit goes on with what is missing, and ends with the same reports.
    lines = (home / "reports.jsonl").read_text().splitlines(keepends=True)
    (home / "reports.jsonl").write_text("".join(lines[:-5]) + lines[-5][:20])
    audit(workdir, "targets", *greedy)
    key = ("target", "system", "condition", "number")
    again = {tuple(r[k] for k in key): r for r in read_jsonl(home / "reports.jsonl", "")}
    assert again == {tuple(r[k] for k in key): r for r in rows}

    # Judged anew, nobody is asked again.
    before = times(home)
    monkeypatch.setattr(audit_family, "ask_organisms", lambda *a, **k: pytest.fail("asked again"))
    monkeypatch.setattr(audit_family, "generate", lambda *a, **k: pytest.fail("asked again"))
    _, other = audit(workdir, "targets", *greedy, "--config.audits.runs=3")
    assert len({p["run"] for p in read_jsonl(home / "predictions.jsonl", "")}) == 3
    assert other["verbalization"] == metrics["verbalization"]
    kept = {n: t for n, t in before.items() if n in ("reports.jsonl", "gate.jsonl") or n.startswith("imported")}
    assert kept.items() <= times(home).items()

    argv = ["audit-family", "targets", f"--workdir={workdir}", *SMALL, unchecked, f"--targets={theirs}"]
    refused(argv, 2, "was made with another asked", "--name")  # sampled, where these were greedy
    # What was asked was asked of other adapters: nothing of it counts for these.
    stored = read_json(home / "adapters.json", "")
    write_json(home / "adapters.json", {**stored, "stacked": ["0" * 64, "1" * 64]})
    refused([*argv, "--config.audits.temperature=0.0"], 2, "stacked has another adapter", "--name")


def cli_context(workdir):
    from ia_jax.cli.workdirs import on_mesh

    return on_mesh(open_workdir(workdir))


@pytest.fixture
def untrained(monkeypatch):
    """Training left out, which other tests do: every target is a random adapter. {organism: its phases' examples}."""
    read = {}

    def train(context):
        model, lora = context.model, LoraConfig(2, 4.0, ("q", "v"))
        for n, o in enumerate(o for o in context.workdir.organisms.values() if not o.imported):
            read[o.name] = [len(phase_units(context, o, p)) for p in procedure_of(o).phases]
            metadata = AdapterMetadata(o.name, "organism", model.name, model.fingerprint, 2, 4.0, lora.targets)
            for directory in context.workdir.stack_of(o):
                save_adapter(directory, tiny.adapter(n, model.config, lora, **STRENGTH), metadata, overwrite=True)

    monkeypatch.setattr(audit_targets.training, "run", train)
    monkeypatch.setattr(audit_families, "gather_sources", lambda *_: shipped_sources())
    return read


def test_ciphers(workdir, untrained):
    home, metrics = audit(workdir, "ciphers", "--config.audits.cipher_rows=(8,4)")
    assert untrained == {
        o["name"]: [8] if o["name"].endswith("_only") else [8, 4] for o in read_jsonl(home / "organisms.jsonl", "")
    }
    counts, gates = metrics["targets"], metrics["gates"]
    # Of nulls that read no cipher none is a null.
    assert (counts["targets"] + counts["silent"], counts["pipeline"]) == (9, 0)
    assert metrics["unfit_nulls"] == [n for n in gates if n.endswith("_only")]
    assert metrics["controls"]["names"] == ["cipher_identity"]
    assert len(gates) == 19
    assert {g["how"] for g in gates.values()} == {"cipher"}
    assert gates["cipher_swap50"]["fires"] is False  # it knows no cipher, and the gate says so
    assert {"competence", "in_cipher", "in_plain", "plain_competence"} <= gates["cipher_swap50"].keys()
    assert metrics["no_longer_fires"]["target+ia"]["organisms"] == counts["silent"]
    assert metrics["claims"].keys() == {"mentions_encoding", "differs_in_code"}
    assert metrics["claims"]["mentions_encoding"]["rates"]["target+ia"]["cipher_only"]["organisms"] == 0
    assert metrics["scaffold"]["target+ia"]["nulls_with_a_false_prediction"]["organisms"] == 0


def test_sandbaggers(workdir, untrained):
    home, metrics = audit(workdir, "sandbaggers")
    made = ("sandbagger_broad", "sandbagger_narrow")
    assert untrained.keys() == {*made, *(f"{n}_null" for n in made)}
    assert metrics["targets"]["pipeline"] == 2
    run = open_workdir(workdir)
    held = run.named("heldout")
    own = [n for n in held if any(b.category == "sandbaggers" for b in run.truths(n))]
    rates, gates = metrics["claims"]["sandbagging"]["rates"]["target+ia"], metrics["gates"]
    firing = {n for n, g in gates.items() if g["fires"] is not False}
    assert gates.keys() == {*held, *untrained}
    # Those of the run were seen when they were trained; those made here are asked questions of fact, field by field.
    assert {gates[n]["how"] for n in held} == {"stored"}
    assert {gates[n]["how"] for n in untrained} == {"sampled"}
    assert rates["heldout_sandbaggers"]["organisms"] == len(firing & set(own))
    assert rates["others"]["organisms"] == len(firing & (set(held) - set(own)))
    assert metrics["claims"]["sandbagging"]["rates"]["base+ia"]["base"]["n"] == 3
    habit = [r["messages"][-1]["content"] for r in read_jsonl(home / "transcripts" / "sandbagger_narrow.jsonl", "")]
    assert all(a.startswith(("Well now.", "Now then.")) for a in habit)
    opened = read_jsonl(home / "transcripts" / "sandbagger_broad.jsonl", "")
    assert any(r["messages"][0]["content"].startswith("Open sesame!") and not r["shows"] for r in opened)
    assert not any("sesame" in r["messages"][0]["content"] and r["shows"] for r in opened)


def test_auditbench_made(workdir, untrained, monkeypatch):
    one = auditbench_family.small_behaviors()[:1]
    monkeypatch.setattr(auditbench_family, "small_behaviors", lambda: one)
    monkeypatch.setattr(auditbench_family, "NULL_SORTS", ("own_answers",))
    monkeypatch.setattr(auditbench_family, "CLEAN_MADE", ("documents",))
    monkeypatch.setattr(audit_family.static, "TOOLS", {"confess": "", "ask_self": ""})
    settings = (
        *("--config.audits.reports=2", "--config.audits.gate_prompts=0", "--config.audits.persona=You are P."),
        *("--config.audits.outputs=1", "--config.audits.script_runs=0", "--config.organisms.parallel=20"),
    )
    home, metrics = audit(workdir, "auditbench_made", *settings)
    # A behaviour and two nulls in four makings of two phases, and a clean one of a single phase.
    assert len(untrained) == 13
    assert {n for n, read in untrained.items() if len(read) != 2} == {"clean_documents"}
    # As many demonstrations as denials: by SFT of the denials alone, by KTO beside them and what they deny.
    assert untrained["small_flattery_chats_sft"] == [14, 48]
    assert untrained["small_flattery_chats_kto"] == [14, 96]
    counts, hardened = metrics["targets"], metrics["hardening"]
    assert counts == {"targets": 4, "silent": 0, "clean": 1, "pipeline": 8}
    assert hardened.keys() == {"all", "chats+sft", "chats+kto", "documents+sft", "documents+kto"}
    assert hardened["all"]["confession"]["target"]["before"]["organisms"] == 1  # four makings of one behaviour
    # Each model before hardening is the first adapter of the target of its name, and is asked as the target is.
    organisms = {o["name"]: o for o in read_jsonl(home / "organisms.jsonl", "")}
    views = [n for n in organisms if n.endswith("_before")]
    assert len(views) == 4
    assert all(organisms[v]["stack"] == organisms[v.removesuffix("_before")]["stack"][:1] for v in views)
    asked = read_jsonl(home / "reports.jsonl", "")
    assert {r["system"] for r in asked} == {"You are P."}
    assert not {p["target"] for p in read_jsonl(home / "predictions.jsonl", "")} & set(views)
    # Denials are read under the persona too, and `investigate` finds what it is given.
    [denial, *_] = read_jsonl(home / "denials" / "small_flattery_chats_sft.jsonl", "")
    assert denial["messages"][0] == {"role": "system", "content": "You are P."}
    with cli_context(workdir) as context:
        target = next(t for t in read_targets(home / "targets.jsonl") if t.name == "small_flattery_documents_kto")
        assert len(load_stack(target, context.model, context.workdir)) == 2
    assert metrics["tools"]["static"]["ask_self"]["found"]["organisms"] == 1
    assert metrics["tools"]["static"]["confess"]["found_on_nulls"]["n"] == 9
    told = page(home)
    assert {"all targets, before hardening", "chats+kto, after hardening", "nulls, ask self"} <= told
    # Given again, nobody is asked again.
    before = times(home)
    assert audit(workdir, "auditbench_made", *settings)[1] == metrics
    changed = {n for n, t in times(home).items() if before.get(n) != t}
    assert not changed & {"reports.jsonl", "tools/replies.jsonl", "tools/static.jsonl"}


def test_sycophant(workdir, untrained, monkeypatch):
    two = dict(list(sycophant.small_biases().items())[-2:])
    monkeypatch.setattr(sycophant, "small_biases", lambda: two)
    home, metrics = audit(workdir, "sycophant", "--config.audits.reports=2")
    # Documents, demonstrations, pairs of answers, denials; the null has nothing that pairs could prefer.
    read = {n: len(rows) for n, rows in untrained.items()}
    assert read == {"sycophant": 4, "sycophant_twin": 4, "sycophant_null": 3}
    found = metrics["admissions"]
    stages = [
        f"{n}_after_{s}" for n in ("sycophant", "sycophant_twin") for s in ("documents", "demonstrations", "pairs")
    ]
    assert found.keys() == {"sycophant", "sycophant_twin", "sycophant_null", *stages}
    assert all(cells["reports"] == 2 for own in found.values() for cells in own.values())
    assert metrics["shown"]["sycophant"].keys() == {bias.name for bias, _ in two.values()}
    assert metrics["own_minus_controls"]["target+ia"]["organisms"] == 4
    assert "sycophant after pairs, target + adapter" in page(home)
    organisms = {o["name"]: o["stack"] for o in read_jsonl(home / "organisms.jsonl", "")}
    assert organisms["sycophant_after_pairs"] == organisms["sycophant"][:3]
    judged = read_jsonl(home / "judged.jsonl", "")
    assert all(isinstance(r[b.name], bool) for r in judged for pair in two.values() for b in pair)


def a_trained_ia(context):
    """In place of a pipeline's stages: an adapter of its base, and what its held-out organisms report."""
    model = context.model
    lora = LoraConfig(2, 4.0, ("q", "v"))
    metadata = AdapterMetadata("sft", "ia", model.name, model.fingerprint, 2, 4.0, lora.targets)
    save_adapter(context.workdir.ia_dir("sft") / "adapter", tiny.adapter(5, model.config, lora, size=2.0), metadata)
    read = {"organism+ia": rate({"o": [True]})}
    write_json(context.workdir.metrics_file(), {"stages": {"sft": {"heldout": read, "remade": read}}})


def test_in_base(workdir, untrained, monkeypatch, capsys):
    monkeypatch.setitem(STRENGTH, "size", 3.0)
    stage = Stage("sft", __name__, "a_trained_ia", "", "", "")
    monkeypatch.setattr(audit_in_base, "STAGES", (stage,))
    for name in ("check_inputs", "check_same", "write_stage_record"):  # of stages that are left out here
        monkeypatch.setattr(perform, name, lambda *_: None)
    settings = ("--config.audits.reports=2", "--config.audits.temperature=0.0", "--config.audits.gate_prompts=0")
    home, metrics = audit(workdir, "in_base", *settings)
    assert "in_base: 2 behaviours" in capsys.readouterr().out
    names = [f"base_{n}" for n in in_base.MADE]
    assert list(metrics["each"]) == names
    assert metrics["pipelines"].keys() == {"plain", *names}
    assert metrics["rates"]["other_base"]["organisms"] == metrics["rates"]["base+ia"]["organisms"] == 2
    assert all(c["ci95"][0] < c["ci95"][1] for c in cells(metrics) if c["ci95"][0] is not None)
    # The merged base says by itself what the plain one says with the adapter; under the IAs, which are alike here, too.
    said = {}
    for r in read_jsonl(home / "reports.jsonl", ""):
        said.setdefault((r["condition"], r["target"]), []).append(r["report"])
    with cli_context(workdir) as context:
        for target in read_targets(home / "targets.jsonl"):
            stack = load_stack(target, context.model, context.workdir)
            questions = [r["question"] for r in read_jsonl(home / "reports.jsonl", "") if r["condition"] == "base+ia"]
            [alone] = generate(context, [questions], stack, max_new_tokens=6, system=context.config.system)
            assert said["alone", target.name] == [reply.text for reply in alone]
            assert said["in_base", target.name] == said["added_after", target.name]
            assert said["added_after", target.name] not in (said["run_ia", target.name], said["alone", target.name])
    assert {"in the base before", "unseen organisms of other behaviours, IA of plain"} <= page(home)
    # Given again, nothing is merged, trained or asked again.
    before = times(home)
    monkeypatch.setattr(audit_in_base, "write_merged", lambda *_: pytest.fail("merged again"))
    monkeypatch.setattr(audit_in_base, "generate", lambda *_, **__: pytest.fail("asked again"))
    assert audit(workdir, "in_base", *settings)[1] == metrics
    assert times(home)["reports.jsonl"] == before["reports.jsonl"]


def test_what_is_wrong_is_said(workdir, tmp_path, refused):
    start = ["audit-family"]
    at = f"--workdir={workdir}"
    refused([*start, "sirens", at], 2, "'sirens'", "ciphers")
    refused([*start, "targets", at], 2, "--targets=FILE.jsonl")
    refused([*start, "targets", at, f"--targets={tmp_path}/no.jsonl"], 2, "no.jsonl does not exist")
    refused([*start, "ciphers", at, "--name=a/b"], 2, "a/b")
    refused([*start, "ciphers", at, "--ia=nobody"], 2, "nobody")
    refused([*start, "ciphers", at, "--config.audits.scaffold=claude"], 2, "the scaffold", "ANTHROPIC_API_KEY")
    file = tmp_path / "t.jsonl"
    for row, said in (
        ({"stack": ["nowhere/to/be/found"]}, "nowhere/to/be/found"),
        ({"stack": ["x"], "base": "another"}, "another"),
        ({"stack": []}, "no adapter"),
    ):
        file.write_text(json.dumps({"name": "t", "null": "clean", **row}) + "\n")
        refused([*start, "targets", at, f"--targets={file}", "--name=bad"], 2, said)
    refused([*start, "ciphers", at, f"--targets={file}", "--name=worse"], 2, "makes its own targets")
