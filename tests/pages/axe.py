"""axe-core in a page of the headless browser; its source comes with a package of extra `dev`."""

import importlib.util
from functools import cache
from pathlib import Path

import pytest

_RUN = """axe.run(document, {resultTypes: ['violations']}).then(found => found.violations
  .filter(v => ['serious', 'critical'].includes(v.impact))
  .map(v => `${v.impact} ${v.id}: ${v.nodes.length} x `
    + v.nodes.slice(0, 4).map(n => n.target.join(' ') + ' | ' + n.failureSummary).join('; ')))"""


@cache
def axe_source():
    """The text of the library, or a skip; the package is not imported: it would load Playwright."""
    found = importlib.util.find_spec("axe_playwright_python")
    if found is None:
        pytest.skip("axe-core is not installed; it comes with pip install -e '.[dev]'")
    return (Path(found.submodule_search_locations[0]) / "axe.min.js").read_text(encoding="utf-8")


def serious_faults(browser):
    """What axe calls serious or critical in the page as it is now, a line each."""
    if browser.evaluate("typeof axe") == "undefined":
        browser.evaluate(axe_source() + "; 0")
    return browser.evaluate(_RUN)
