"""Every page, wide and on a phone, light and dark: accessible, in its width, from one place."""

from contextlib import contextmanager

import pytest

from tests.evaluation.conftest import run, run_catalog  # noqa: F401 - fixtures of a finished run
from tests.evaluation.make_results import make_results
from tests.pages.axe import axe_source, serious_faults
from tests.pages.made import (
    audit_page,
    many_classes_page,
    report_page,
    review_server,
    validation_page,
    worklist_page,
)
from tests.review.conftest import write_scans
from tests.serving.browser import Browser, find_browser
from tests.serving.conftest import decoders  # noqa: F401 - a fixture
from tests.serving.fakes import listening

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
LOOKS = [(1400, False), (1400, True), (390, False), (390, True)]
FILES = ("report", "many_classes", "validation", "audit", "worklist")
REVIEWED = "document.querySelectorAll('#bars .bar').length === 4"
EXPLAINED = "!document.getElementById('result').hidden"


@pytest.fixture(scope="module")
def pages(run, fingerprinted, tmp_path_factory):  # noqa: F811
    """Pages that are files, by name."""
    folder = tmp_path_factory.mktemp("pages")
    write_scans(folder / "archive", 12)
    return {
        "report": report_page(folder / "report", run),
        "many_classes": many_classes_page(folder / "many"),
        "validation": validation_page(folder / "validation", run),
        "audit": audit_page(folder / "audit", fingerprinted),
        "worklist": worklist_page(folder, folder / "archive"),
    }


@pytest.fixture(scope="module")
def browser():
    find_browser()
    found = Browser()
    yield found
    found.close()


@contextmanager
def all_from(browser, own):
    """Nothing is requested but from addresses that begin with `own`, and no script fails."""
    browser.requested.clear()
    browser.messages.clear()
    yield
    foreign = [url for url in browser.requested if not url.startswith((*own, "data:", "blob:"))]
    assert foreign == []
    assert browser.messages == []


def faults_in_all_looks(browser):
    """What is wrong in each look of the page as it is: axe's words, and what runs out of it."""
    found = []
    for width, dark in LOOKS:
        browser.look(width, 900, dark)
        named = f"{width} px, {'dark' if dark else 'light'}"
        found += [f"{named}: {fault}" for fault in serious_faults(browser)]
        if (wide := browser.evaluate("document.documentElement.scrollWidth")) > width:
            found.append(f"{named}: the page is {wide} px wide")
    return found


@pytest.mark.parametrize("name", FILES)
def test_a_page_of_a_file_is_accessible_and_loads_nothing(browser, pages, name):
    axe_source()
    with all_from(browser, (own := pages[name].as_uri(),)):
        browser.open(own)
        assert faults_in_all_looks(browser) == []


def test_the_review_is_accessible_with_its_help_and_with_a_box(browser, tmp_path):
    axe_source()
    results = make_results(tmp_path / "results", write_scans(tmp_path / "archive", 12))
    with review_server(results) as own, all_from(browser, (own,)):
        browser.look(1400, 900)
        browser.open(own + "/")
        browser.wait_until(REVIEWED)
        for key in ("b", "ArrowRight", "Enter", "Escape"):
            browser.press(key)
        assert faults_in_all_looks(browser) == []
        browser.press("?")
        browser.wait_until("document.getElementById('help').open")
        assert faults_in_all_looks(browser) == []


def test_the_service_is_accessible_before_and_after_a_scan_and_in_its_documents(
    browser,
    decoders,  # noqa: F811
):
    axe_source()
    with listening(decoders) as own, all_from(browser, (own,)):
        browser.open(own + "/")
        assert faults_in_all_looks(browser) == []
        browser.evaluate("document.getElementById('example').click()")
        browser.wait_until(EXPLAINED)
        assert faults_in_all_looks(browser) == []
        browser.open(own + "/docs")
        browser.wait_until("document.querySelectorAll('section').length > 5")
        assert faults_in_all_looks(browser) == []


def test_axe_finds_a_planted_fault(browser, tmp_path):
    """The check itself: text that is hardly darker than its paper, and a picture without words."""
    axe_source()
    page = tmp_path / "faulty.html"
    page.write_text(
        '<!doctype html><html lang="en"><title>t</title><body style="background:#fff">'
        '<p style="color:#ccc">pale</p><img src="data:image/gif;base64,R0lGODlhAQABAAAAACw=">'
    )
    browser.look(1400, 900)
    browser.open(page.as_uri())
    found = " ".join(serious_faults(browser))
    assert "color-contrast" in found
    assert "image-alt" in found
