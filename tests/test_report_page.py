"""The report in a real browser: hostile answers, search and filters, theme, widths, and five thousand reports."""

import json

import pytest

from ia_jax.analysis import report, run_files
from tests import made_run
from tests.made_run import HOSTILE, make_workdir

run = made_run.run  # a fixture


@pytest.fixture
def page(browser, run):
    browser.set_window_size(1280, 900)
    browser.get(run["path"].as_uri())
    browser.execute_script("localStorage.clear()")
    browser.get_log("browser")  # whatever an earlier test left there
    browser.refresh()
    yield browser
    assert browser.get_log("browser") == []  # neither errors nor refused scripts


def count(page) -> str:
    return page.find_element("id", "count").text


def rows(page) -> list:
    return page.find_elements("css selector", "#report-rows tr")


def choose(page, name: str, value: str) -> None:
    page.find_element("css selector", f'input[name="{name}"][value="{value}"] + span').click()


@pytest.mark.browser
def test_hostile_answers_are_shown_and_do_nothing(page):
    shown = page.execute_script(  # JSON, as the driver cannot carry half a surrogate pair
        "return JSON.stringify([...document.querySelectorAll('.said')].map((e) => e.textContent))"
    )
    assert set(HOSTILE) <= set(json.loads(shown))
    assert page.execute_script("return window.pwned") is None
    assert (
        page.execute_script("return document.querySelectorAll('img, #report-rows svg, #report-rows script').length")
        == 0
    )
    assert page.execute_script("return document.scripts.length") == 2


@pytest.mark.browser
def test_search_and_filters_change_rows_and_count(page, run):
    reports = run_files.load_run(run["workdir"]).reports
    total = f"{len(reports):,}"
    assert count(page).startswith(f"{total} of {total} reports · ")
    assert len(rows(page)) == 50
    page.find_element("id", "more").click()
    assert len(rows(page)) == 100

    search = page.find_element("id", "search")
    search.send_keys("Basalt")
    found = [
        r for r in reports if "basalt" in " ".join((r["organism"], r["question"], r["report"], r["truth"])).lower()
    ]
    assert 0 < len(found) < len(reports)
    assert count(page).startswith(f"{len(found):,} of {total} reports")
    assert len(rows(page)) == min(50, len(found))
    assert {m.text.lower() for m in page.find_elements("css selector", "#report-rows mark")} == {"basalt"}

    choose(page, "stage", "dpo")
    choose(page, "condition", "organism+ia")
    choose(page, "split", "heldout")
    choose(page, "lenient", "yes")
    left = [
        r
        for r in found
        if (r["stage"], r["condition"], r["split"], r["lenient"]) == ("dpo", "organism+ia", "heldout", True)
    ]
    assert 0 < len(left) < 50
    assert count(page) == f"{len(left)} of {total} reports · 100% name the behaviour"
    assert len(rows(page)) == len(left)
    assert all("Organism + adapter" in r.text and "after DPO" in r.text for r in rows(page))

    page.find_element("id", "clear").click()
    page.execute_async_script("setTimeout(arguments[0], 50)")
    assert count(page).startswith(f"{total} of {total}")
    search.send_keys("(.*[ <script> nothing has this")
    assert count(page) == f"0 of {total} reports"
    assert rows(page) == []
    assert page.find_element("id", "none").is_displayed()


@pytest.mark.browser
def test_theme_toggles_and_is_kept(page):
    def paper() -> str:
        return page.execute_script("return getComputedStyle(document.body).backgroundColor")

    button, before = page.find_element("id", "theme"), paper()
    label = button.text
    button.click()
    after = paper()
    assert (after != before, button.text != label) == (True, True)
    page.refresh()
    assert paper() == after
    page.find_element("id", "theme").click()
    assert paper() == before


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 400])
def test_nothing_sticks_out_sideways(page, width):
    """Headless windows have a least width, so the page is laid out at this one by emulation."""
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    )
    try:
        page.refresh()
        assert page.execute_script("return innerWidth") == width
        page.execute_script("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
        assert page.execute_script("return document.documentElement.scrollWidth") <= width
        sticking = page.execute_script(
            "return [...document.querySelectorAll('svg text')].filter((t) => { const r = t.getBoundingClientRect();"
            " return r.right > innerWidth + 0.5 || r.left < -0.5; }).map((t) => t.textContent)"
        )
        assert sticking == []
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.browser
def test_five_thousand_reports_are_searched_between_two_keystrokes(browser, tmp_path):
    make_workdir(tmp_path / "w", organisms=150, hostile=False)
    path = report.write_report(tmp_path / "w")
    browser.get(path.as_uri())
    took = browser.execute_script(
        "const s = document.getElementById('search'); const t = performance.now();"
        "for (const v of ['t', 'ti', 'tid', 'tidal', 'tidal p']) { s.value = v; s.dispatchEvent(new Event('input')); }"
        "return (performance.now() - t) / 5;"
    )
    assert int(count(browser).split(" of ")[1].split()[0].replace(",", "")) > 5000
    assert took < 400  # milliseconds; 11 on an idle machine
