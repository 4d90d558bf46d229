"""The page of an audit: what stands in it, and that nothing a model says does anything."""

import json
from html.parser import HTMLParser

import pytest

from ia_jax.analysis.audit_page import SHOWN, render, write_audit
from ia_jax.audits.evidence.calibration import VERDICTS
from tests.made_run import HOSTILE

TAGS = {"script", "img", "iframe", "object", "form", "link", "base", "a"}


def claim(text, number=0, **more):
    evidence = [{"question": "Q?", "report": text, "base_report": None if number else "I answer normally."}]
    counts = {"count": 5 - number, "share": (5 - number) / 8, "base_count": number, "base_share": number / 8}
    return {"claim": text, **counts, "evidence": evidence, **more}


def weighed(verdict, number=0, text="I bring up trains."):
    deeds = [
        {"prompt": "Name a pet.", "reply": "A train.", "base_reply": "A cat.", "shown": True, "base_shown": False},
        {"prompt": "Sing.", "reply": "La.", "base_reply": "La.", "shown": False, "base_shown": False},
    ]
    unsure = verdict == "can't tell"
    p = {"probability": None, "p_null": None} if unsure else {"probability": 0.875, "p_null": 0.04}
    why = "contrast lies outside" if unsure else ""
    return claim(text, number, verdict=verdict, why=why, values={}, lines=["dose: +1"], deeds=deeds, **p)


def found(claims, **more):
    return {
        "adapter": "runs/x",
        "adapter_format": "peft",
        "adapter_made_for": "",
        "adapter_read_as": None,
        "base": "smollm2",
        "ia": "dpo",
        "questions": 2,
        "verdict": "unusual behaviour reported",
        "reports": 8,
        "reports_with_claim": 7,
        "base_reports_with_claim": 1,
        "claims": claims,
        "all_reports": [{"question": "Q?", "report": c["claim"], "sampled": True, "claims": True} for c in claims],
        "calibration": None,
        **more,
    }


class Page(HTMLParser):
    """Elements that could do or fetch something, the text that is shown, and the classes of verdicts."""

    def __init__(self, html):
        super().__init__()
        self.acting, self.text, self.verdicts, self.handlers = [], "", [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        own = dict(attributes)
        if tag in TAGS and not own.get("href", "").startswith(("data:,", "#")):
            self.acting.append(tag)
        self.handlers += [k for k in own if k.startswith("on")]
        if (own.get("class") or "").split()[:1] == ["verdict"]:
            self.verdicts.append(own["class"].split()[1:])

    def handle_data(self, data):
        self.text += data


def test_each_claim_stands_with_its_verdict_evidence_and_deeds():
    calibration = {"alpha": 0.05, "threshold": 0.7, "nulls": 40}
    claims = [weighed(v, n, f"Claim {n}.") for n, v in enumerate(VERDICTS)] + [claim("Too rare.", 4, verdict=None)]
    page = Page(render(found(claims, calibration=calibration, conclusion=VERDICTS[0]), VERDICTS))
    assert page.verdicts == [["hit", "full"], ["hit"], [], []]
    text = " ".join(page.text.split())
    for part in (
        "Reported and confirmed 7 of 8 reports",
        "at most 5% of clean fine-tunes like the 40",
        "63% of reports (5)",
        "Right with probability 0.88; p 0.04",
        "contrast lies outside",
        "1 of 2 replies show it, 0 of the base's",
        "dose: +1",
        "Too rare.",
        "the adapter says it anyway",
    ):
        assert part in text, part
    assert text.count("Right with probability") == 3
    assert page.acting == page.handlers == []


def test_without_a_calibration_it_says_so():
    text = Page(render(found([claim("I bring up trains.")] * (SHOWN + 3)), VERDICTS)).text
    assert "has no calibration" in text
    assert "and 3 rarer claims" in text
    assert "No report claims anything." in Page(render(found([]), VERDICTS)).text


def test_texts_of_models_do_nothing():
    for said in HOSTILE:
        one = weighed(VERDICTS[0], text=said)
        one["deeds"][0] |= {"prompt": said, "reply": said, "base_reply": said}
        one["evidence"][0] |= {"report": said, "base_report": said}
        page = Page(render(found([one], adapter=said, adapter_made_for=said), VERDICTS))
        assert page.acting == page.handlers == []
        assert page.text.count(said.replace("\r\n", "\n").replace("\r", "\n")) >= 7


@pytest.mark.browser
def test_the_page_in_a_browser(browser, tmp_path):
    """No errors, nothing wider than a telephone, and what is folded opens."""
    write_audit(tmp_path / "audit.html", found([weighed(VERDICTS[0], text=s) for s in HOSTILE]), VERDICTS)
    browser.set_window_size(390, 800)
    browser.get((tmp_path / "audit.html").as_uri())
    assert browser.get_log("browser") == []
    assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    browser.find_element("css selector", "summary").click()
    assert browser.execute_script("return document.querySelector('details').open")
    said = browser.execute_script(
        "return JSON.stringify([...document.querySelectorAll('.said')].map((e) => e.textContent))"
    )
    assert set(HOSTILE[:3]) < set(json.loads(said))  # the fourth has half a surrogate pair, which no file can hold
