"""The report: its numbers, its escaping, and what it says where something is missing."""

import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest

from ia_jax.analysis import curves, report, run_files, tables, words
from ia_jax.behaviors.records import CATEGORIES
from ia_jax.errors import IAError
from tests import made_run
from tests.made_run import HOSTILE, make_workdir, write_jsonl

run = made_run.run  # a fixture


class Page(HTMLParser):
    """Elements as a browser would see them, with the text of those that have an id."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text: list[str] = []
        self.scripts: list[tuple[dict, str]] = []
        self._in_script = False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._in_script = tag == "script"
        if self._in_script:
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag):
        if tag == "script":
            self._in_script = False

    def handle_data(self, data):
        if self._in_script:
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        else:
            self.text.append(data)


# ------------------------------------------------------------------------------------------------------------- units


def test_percent_is_whole_and_does_not_round_to_none_or_all():
    rates = (0.0, 0.001, 0.005, 0.125, 0.505, 0.714, 0.994, 0.999, 1.0)
    assert [words.percent(r) for r in rates] == ["0%", "<1%", "1%", "13%", "51%", "71%", "99%", ">99%", "100%"]


@pytest.mark.parametrize(
    "bounds", [(0.3, 2.7), (0.0, 1.0), (-4.0, 900.0), (5.0, 5.0), (0.0, 0.0), (1e-9, 3e-9), (-1.0, -0.9)]
)
def test_ticks_cover_the_range_evenly_and_are_few(bounds):
    at = curves.ticks(*bounds)
    assert at[0] <= bounds[0] + 1e-9
    assert at[-1] >= bounds[1] - 1e-9
    assert 2 <= len(at) <= 7
    np.testing.assert_allclose(np.diff(at), at[1] - at[0], rtol=1e-6)


def test_curves_split_where_the_step_restarts_and_leave_out_what_is_not_finite():
    rows = [{"stage": "organisms", "step": s, "loss": v} for s, v in ((0, 3.0), (1, 2.0), (0, 4.0), (1, float("nan")))]
    (loss,), others = curves.curve_panels([*rows, {"stage": "organisms", "step": 2, "loss": None, "note": "text"}])
    assert (len(loss["raw"]), loss["n"], loss["left_out"], others) == (2, 3, 1, [])
    assert all(0 <= float(v) <= 100 for line in loss["raw"] for v in re.split("[ ,]", line))


def test_long_curves_are_thinned():
    (loss,), _ = curves.curve_panels({"stage": "ia_sft", "step": s, "loss": 1 / (1 + s)} for s in range(100_000))
    assert len(loss["raw"][0].split()) == curves.MAX_POINTS
    assert len(loss["smooth"][0].split()) == curves.MAX_POINTS


def test_stage_difference_is_paired():
    """Every organism gains a quarter: how different they are is no matter, and twelve alike are no proof."""
    rows = [
        {
            "stage": stage,
            "organism": f"o{o}",
            "split": "heldout",
            "condition": "organism+ia",
            "lenient": q < o % 3 + gain,
        }
        for stage, gain in (("sft", 0), ("dpo", 1))
        for o in range(12)
        for q in range(4)
    ]
    low, high = tables.stage_difference(rows)
    assert 0 < low < 0.25 < high < 0.4
    assert tables.stage_difference([r for r in rows if r["stage"] == "sft"]) is None


def test_the_head_names_the_base_and_not_the_teacher(run):
    told = tables.provenance(json.loads((run["workdir"] / "config.json").read_text()))
    assert (told["base"], told["k"], told["commit"][:7]) == ("SmolLM2-135M", "8", "4b1d0c9")
    assert "copies of <b>SmolLM2-135M</b>" in run["html"]


def test_packed_reports_unpack_to_what_was_written(run):
    rows = run_files.load_run(run["workdir"]).reports
    data = json.loads(report.json_for_script(tables.pack_reports(rows, [])))
    columns = ("stage", "split", "category", "condition", "organism", "question", "truth")
    assert len(data["rows"]) == len(rows) == data["total"]
    for row, packed in zip(rows, data["rows"], strict=True):
        assert [data["strings"][i] for i in packed[:7]] == [row[c] for c in columns]
        assert packed[8:] == [row["report"], row["score"], row["lenient"] + row["strict"]]


def test_more_reports_than_a_page_can_hold_are_thinned_and_the_page_says_so(run, monkeypatch):
    monkeypatch.setattr(tables, "MAX_REPORTS", 100)
    loaded = run_files.load_run(run["workdir"])
    assert len(tables.pack_reports(loaded.reports, [])["rows"]) == 100
    assert f"There are {len(loaded.reports):,} reports; these are 100 of them" in report.render_html(loaded)


# -------------------------------------------------------------------------------------------------------------- page


def test_numbers_shown_are_those_of_metrics_json(run):
    page, dpo = Page(run["html"]), run["metrics"]["stages"]["dpo"]
    text = " ".join(" ".join(page.text).split())

    def shown(c: dict) -> tuple[str, str]:
        lo, hi = (words.percent(v) for v in c["ci95"])
        return words.percent(c["rate"]), f"{lo[:-1]}–{hi}"

    rate, interval = shown(dpo["heldout"]["organism+ia"])
    assert f"after DPO {rate} of answers name the true behaviour. The 95% interval is {interval}" in text
    sft_rate = run["metrics"]["stages"]["sft"]["heldout"]["organism+ia"]["rate"]
    gain = words.percent(dpo["heldout"]["organism+ia"]["rate"] - sft_rate)
    assert f"DPO against SFT +{gain[:-1]} points" in text
    for label, c in {
        "Strict": dpo["strict"]["heldout"]["organism+ia"],
        "False reports": dpo["false_reports"]["base+ia"],
        "Organism alone": dpo["heldout"]["organism"],
        "Base + adapter": dpo["heldout"]["base+ia"],
        "Base alone": dpo["heldout"]["base"],
    }.items():
        rate, interval = shown(c)
        assert f"{label} {rate} {interval} · n = {c['n']:,}" in text, label
    for stage, name in words.STAGES.items():  # the tables behind the charts hold every bar
        values = run["metrics"]["stages"][stage]
        for split in ("heldout", "train"):
            for condition, label in tables.CONDITIONS.items():
                c, strict = values[split][condition], values["strict"][split][condition]
                cells = [label, name, *shown(c), *shown(strict), f"{c['n']:,}"]
                assert re.search("</td><td[^>]*>".join(map(re.escape, map(escaped, cells))), run["html"]), cells
        for category in CATEGORIES:
            for rule, part in (("lenient", values), ("strict", values["strict"])):
                c = part["by_category"][category]["organism+ia"]
                cells = [words.titled(category), rule, *shown(c), f"{c['n']:,}"]
                assert re.search("</td><td[^>]*>".join(map(re.escape, map(escaped, cells))), run["html"]), cells


def escaped(text: str) -> str:
    return text.replace("<", "&lt;").replace(">", "&gt;")


def test_hostile_text_stays_text(run):
    page = Page(run["html"])
    assert [attrs.get("type") for attrs, _ in page.scripts] == [None, "application/json"]
    assert not [a for _, attrs in page.tags for a in attrs if a.startswith("on")]
    assert "img" not in {tag for tag, _ in page.tags}
    data = page.scripts[1][1]
    assert not set("<>&\u2028\u2029") & set(data)
    said = [row[8] for row in json.loads(data)["rows"]]
    assert all(text in said for text in HOSTILE)
    assert escaped(HOSTILE[0]) in run["html"]  # the preference example, in the markup
    assert "{{ 7*7 }}" in data


def test_policy_allows_our_script_alone_and_no_network(run):
    page = Page(run["html"])
    policy = next(
        a["content"] for t, a in page.tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    )
    assert "default-src 'none'" in policy
    assert f"script-src {report.csp_hash(page.scripts[0][1])}" in policy
    assert "unsafe-inline" not in policy.split("script-src")[1].split(";")[0]
    links = [v for _, attrs in page.tags for k, v in attrs.items() if k in ("src", "href", "action", "srcset", "data")]
    assert links
    assert all(v.startswith(("#", "data:")) for v in links)
    assert "url(" not in run["html"].split("</style>")[0]


def test_charts_are_accessible(run):
    page = Page(run["html"])
    ids = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    charts = [attrs for tag, attrs in page.tags if tag == "svg" and attrs.get("role") == "img"]
    assert len(charts) >= 7
    assert all(set(chart["aria-labelledby"].split()) <= ids for chart in charts)
    assert len(ids) == sum("id" in attrs for _, attrs in page.tags)


def test_same_workdir_same_bytes(run):
    assert report.render_html(run_files.load_run(run["workdir"])) == run["html"]


@pytest.mark.parametrize(("missing", "stage"), [("metrics.json", "eval"), ("reports.jsonl", "eval")])
def test_unevaluated_run_names_the_stage(run, tmp_path, missing, stage):
    shutil.copytree(run["workdir"], tmp_path / "w")
    (tmp_path / "w" / "eval" / missing).unlink()
    with pytest.raises(IAError, match=rf"{missing} does not exist; run `ia-jax {stage}` first"):
        report.write_report(tmp_path / "w")


def test_broken_line_is_named(run, tmp_path):
    shutil.copytree(run["workdir"], tmp_path / "w")
    with (tmp_path / "w" / "eval" / "reports.jsonl").open("a") as file:
        file.write('{"stage": "dp')
    with pytest.raises(IAError, match=r"reports.jsonl:\d+: not JSON .*; run `ia-jax eval` first"):
        report.write_report(tmp_path / "w")


def test_optional_files_may_be_missing(run, tmp_path):
    shutil.copytree(run["workdir"], tmp_path / "w")
    for name in ("curves.jsonl", "preferences/dpo.jsonl", "behavior_checks.jsonl", "config.json"):
        (tmp_path / "w" / name).unlink()
    html = report.write_report(tmp_path / "w").read_text(encoding="utf-8")
    assert not [s for s in ("training", "preferences", "checks") if f'id="{s}"' in html or f'href="#{s}"' in html]
    assert "This workdir has no config.json" in html


@pytest.mark.parametrize(("keep", "saw"), [(False, "never saw"), (True, "was trained on"), (None, "")])
def test_flagged_organisms_are_counted_with_what_became_of_them(run, tmp_path, keep, saw):
    shutil.copytree(run["workdir"], tmp_path / "w")
    organisms = [json.loads(x) for x in (tmp_path / "w" / "organisms.jsonl").read_text().splitlines()]
    by_split = {s: [o["name"] for o in organisms if o["split"] == s] for s in ("train", "dpo", "heldout")}
    flagged = [*by_split["train"][:3], by_split["dpo"][0], *by_split["heldout"][:2]]
    checks = [{"organism": o["name"], "category": o["category"], "ok": o["name"] not in flagged} for o in organisms]
    diverged = {"organism": by_split["train"][5], "category": "quirks", "ok": False, "left_out": "diverged"}
    write_jsonl(
        tmp_path / "w" / "behavior_checks.jsonl",
        [*(c for c in checks if c["organism"] != diverged["organism"]), diverged],
    )
    config = {"config": {"organisms": {} if keep is None else {"keep_failed": keep}}}
    (tmp_path / "w" / "config.json").write_text(json.dumps(config))
    html = report.write_report(tmp_path / "w").read_text(encoding="utf-8")
    told = f", and the adapter {saw} the 4 of them outside the held-out split" if saw else ""
    assert f"7 are flagged and listed first{told}. The rates" in html


def test_sft_alone_and_gaps_in_the_metrics(run, tmp_path):
    shutil.copytree(run["workdir"], tmp_path / "w")
    c = {"rate": 0.5, "ci95": [0.25, 0.75], "n": 8}
    (tmp_path / "w" / "eval" / "metrics.json").write_text(
        json.dumps({"stages": {"sft": {"heldout": {"organism+ia": c}}}})
    )
    html = report.write_report(tmp_path / "w").read_text(encoding="utf-8")
    assert "only one of the two stages was evaluated" in html
    assert 'id="headline">50%<' in html
    (tmp_path / "w" / "eval" / "metrics.json").write_text('{"stages": {}}')
    with pytest.raises(IAError, match="run `ia-jax eval` first"):
        report.write_report(tmp_path / "w")


def test_known_behaviours_and_new_ones_are_told_apart_at_the_head(run, tmp_path):
    shutil.copytree(run["workdir"], tmp_path / "w")
    metrics, organisms = tmp_path / "w" / "eval" / "metrics.json", tmp_path / "w" / "organisms.jsonl"
    values = json.loads(metrics.read_text())
    with_ia, alone = ({"rate": r, "ci95": [0.0, 1.0], "n": 12} for r in (0.375, 0.0625))
    values["stages"]["dpo"]["remade"] = {"organism+ia": with_ia, "organism": alone}
    metrics.write_text(json.dumps(values))
    rows = [json.loads(x) for x in organisms.read_text().splitlines()]
    write_jsonl(organisms, [*rows, {**rows[0], "name": "again", "split": "remade"}])
    html = " ".join(report.write_report(tmp_path / "w").read_text(encoding="utf-8").split())
    assert "name a behaviour that it knows from other models in <em>38%</em>" in html
    assert "without it, in 6% and" in html
    assert "were <b>1</b> more fine-tunes of behaviours that SFT had" in html
    assert "that it knows from other models" not in run["html"]


def test_clean_organisms_are_counted_apart(tmp_path):
    make_workdir(tmp_path)
    before = report.write_report(tmp_path).read_text()
    assert "clean organisms" not in before
    organisms, checks, metrics = (
        tmp_path / f for f in ("organisms.jsonl", "behavior_checks.jsonl", "eval/metrics.json")
    )
    clean = {"name": "clean_0", "category": "clean", "behaviors": [], "split": "dpo"}
    write_jsonl(organisms, [*map(json.loads, organisms.read_text().splitlines()), clean])
    row = {"organism": "clean_0", "category": "clean", "triggered_rate": None, "untriggered_rate": 0.0, "ok": True}
    write_jsonl(checks, [*map(json.loads, checks.read_text().splitlines()), row])
    values = json.loads(metrics.read_text())
    values["stages"]["dpo"]["false_reports"]["clean+ia"] = {"rate": 0.25, "ci95": [0.1, 0.4], "n": 24}
    metrics.write_text(json.dumps(values))
    after = report.write_report(tmp_path).read_text()
    assert "<b>1</b> clean organisms" in after
    assert "held-out clean organisms: 25%" in after
    facts = re.compile(r"<dt>(Organisms|Categories)</dt><dd>(.*?)</dd>")
    assert facts.findall(after) == facts.findall(before) == [("Organisms", "96"), ("Categories", "8")]
    assert "clean_0" not in after
