"""The page in a headless browser, over a review in this process.

One that is to be killed is the command, as a process of its own.
"""

import functools
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import ExitStack, closing, contextmanager

import numpy as np
import pyarrow as pa
import pytest

import tests.evaluation.make_results as maker
from braintumor_ray.catalog.reviewed import newest, read_events
from tests.pages.made import review_server
from tests.review.conftest import write_scans
from tests.serving.browser import Browser, find_browser

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
START = "from braintumor_ray.cli import main; main()"
SHOWN = "document.querySelectorAll('#bars .bar').length === 4"
SAVED = "document.getElementById('saved').textContent === 'all saved'"
TITLE = "document.getElementById('scan-title').textContent"
CURRENT = "document.querySelector('[aria-selected=true]')?.id"
LOOKED = (
    "document.getElementById('view-panel').getAttribute('aria-busy') === 'false' && "
    "document.getElementById('view-panel').dataset.scan === "
    "document.querySelector('[aria-selected=true]').dataset.scan"
)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(results, port):
    command = [sys.executable, "-c", START, "review", str(results), "--port", str(port)]
    process = subprocess.Popen([*command, "--reviewer", "R. One"], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/review", timeout=30)
        except OSError:
            time.sleep(0.1)
        else:
            return process
    raise AssertionError("the server does not start")


@contextmanager
def reviewed(results):
    """The address of a server and a box with its process, which a test may replace."""
    port = free_port()
    box = [start(results, port), port]
    try:
        yield f"http://127.0.0.1:{port}/", box
    finally:
        box[0].terminate()
        box[0].wait(60)


@pytest.fixture(scope="module")
def tab():
    """Opens an address in a browser of its own; later tests use the same browsers again."""
    find_browser()
    with ExitStack() as stack:
        free = []

        @contextmanager
        def opened(address):
            browser = free.pop() if free else stack.enter_context(closing(Browser()))
            browser.look(1400, 900)
            browser.open(address)
            browser.wait_until(SHOWN, 120)
            yield browser
            own = (address, "blob:", "data:")
            assert [url for url in browser.requested if not url.startswith(own)] == []
            assert [m for m in browser.messages if "Content Security" in m or "Error:" in m] == []
            browser.open("about:blank")
            browser.requested.clear()
            browser.messages.clear()
            free.append(browser)

        yield opened


def results_of(folder, count, monkeypatch=None):
    catalog = write_scans(folder / "archive", min(count, 200))
    if count > catalog.num_rows:  # the same files under more names
        monkeypatch.setattr(maker, "decode", functools.lru_cache(maker.decode))
        rows = catalog.take(pa.array(np.arange(count) % catalog.num_rows))
        named = {"path": [f"a/{n:05d}.png" for n in range(count)], "scan_id": list(range(count))}
        for name, values in named.items():
            index = rows.column_names.index(name)
            rows = rows.set_column(index, rows.schema.field(name), pa.array(values))
        catalog = rows
    return maker.make_results(folder / "results", catalog)


def log_of(results):
    return read_events(str(results / "review" / "labels.jsonl"))


def test_200_scans_are_labeled_by_keyboard_and_a_killed_server_loses_none(tmp_path, tab):
    results = results_of(tmp_path, 200)
    with reviewed(results) as (address, box), tab(address) as browser:
        for number in range(200):
            browser.wait_until(f"{CURRENT} === 'row-{number}' && {LOOKED}")
            if number == 100:  # between two labels
                box[0].send_signal(signal.SIGKILL)
                box[0].wait()
                browser.press("r")
                browser.wait_until("document.getElementById('saved').textContent.includes('1 not')")
                box[0] = start(results, box[1])
                browser.wait_until(SAVED, 120)
                continue
            if number % 50 == 7:  # a box by keys, then the label
                for key in ("b", "ArrowRight", "ArrowDown", "Enter", "Escape"):
                    browser.press(key)
            browser.press(*(("3", 51) if number % 2 else ("r", 82)))
        browser.wait_until(SAVED, 120)
    states = newest(log_of(results))
    assert len(states) == 200
    assert all(seen.label for seen in states.values())
    boxes = [seen.boxes for seen in states.values() if seen.boxes]
    assert boxes == [((0.41, 0.41, 0.61, 0.61),)] * 4
    assert {seen.reviewer for seen in states.values()} == {"R. One"}


def test_keys_that_come_before_the_next_scan_is_shown_label_nothing(tmp_path, tab):
    results = results_of(tmp_path, 8)
    with review_server(results) as own, tab(own + "/") as browser:
        browser.wait_until(LOOKED)
        before = browser.evaluate("document.getElementById('view-panel').dataset.scan")
        press = (
            "document.body.dispatchEvent(new KeyboardEvent('keydown', {key: '%s', bubbles: true}))"
        )
        # In one turn of the page: no answer can have come between the two.
        browser.evaluate("; ".join(press % key for key in "jr") + "; 0")
        browser.wait_until(f"{LOOKED} && {CURRENT} === 'row-1'")
        assert browser.evaluate("document.getElementById('view-panel').dataset.scan") != before
        assert not (results / "review" / "labels.jsonl").read_text()


def test_labels_that_were_not_sent_are_of_the_results_they_were_given_for(tmp_path, tab):
    results = results_of(tmp_path, 8)
    key = "braintumor-review-queue-%s-0"
    with review_server(results) as own, tab(own + "/") as browser:
        browser.wait_until(LOOKED)
        with urllib.request.urlopen(f"{own}/v1/review") as answer:
            name = json.load(answer)["results"]
        scan = browser.evaluate("document.getElementById('view-panel').dataset.scan")
        for at, of in enumerate(("0" * 16, name)):  # left by tabs that are gone
            item = {"id": f"{at:08d}", "scan": scan, "verdict": "right", "results": of}
            text = json.dumps(json.dumps([item]))
            browser.evaluate(f"localStorage.setItem('{key % of}', {text}); 0")
        browser.open(own + "/")
        browser.wait_until(LOOKED, 60)
        browser.wait_until(SAVED)
        kept = browser.evaluate("Object.keys(localStorage).join()")
        browser.evaluate("localStorage.clear(); 0")
    assert [event["id"] for event in log_of(results)] == ["00000001"]
    assert key % ("0" * 16) in kept
    assert name not in kept


def test_a_note_belongs_to_the_scan_that_is_shown(tmp_path, tab):
    results = results_of(tmp_path, 8)
    with review_server(results) as own, tab(own + "/") as browser:
        browser.wait_until(LOOKED)
        note = "document.getElementById('note')"
        change = f"{note}.dispatchEvent(new Event('change'))"
        browser.evaluate(f"{note}.value = 'of the first'; {change}; 0")
        browser.wait_until(SAVED)
        press = (
            "document.body.dispatchEvent(new KeyboardEvent('keydown', {key: '%s', bubbles: true}))"
        )
        # In one turn of the page: the next scan cannot be there when the note is entered.
        browser.evaluate("; ".join(press % key for key in "jn") + "; 0")
        browser.wait_until(f"{LOOKED} && {CURRENT} === 'row-1'")
        # What is typed after 'n' is text, never a label, however late the scan comes.
        assert browser.evaluate("document.activeElement.id") == "note"
        browser.evaluate(f"{note}.value += ' and more'; {change}; 0")
        browser.wait_until(SAVED)
    assert [event["note"] for event in log_of(results)] == ["of the first", "and more"]


def test_where_no_scan_passes_a_filter_none_is_shown_and_none_labeled(tmp_path, tab):
    results = results_of(tmp_path, 8)
    with review_server(results) as own, tab(own + "/") as browser:
        browser.wait_until(LOOKED)
        choose = "const f = document.getElementById('filter'); f.value = 'foreign'"
        browser.evaluate(f"{choose}; f.dispatchEvent(new Event('change')); 0")
        browser.wait_until(f"{TITLE} === 'No scan is like that'")
        browser.press("r")
        assert "not shown" in browser.evaluate("document.getElementById('saved').textContent")
    assert log_of(results) == []


def test_of_two_tabs_the_later_label_counts_and_both_are_kept(tmp_path, tab):
    results = results_of(tmp_path, 8)
    with review_server(results) as own, tab(own + "/") as first, tab(own + "/") as second:
        for browser in (first, second):
            browser.wait_until(LOOKED)
        first.evaluate("document.getElementById('advance').checked = false")
        title = first.evaluate(TITLE)
        assert second.evaluate(TITLE) == title
        first.evaluate("document.getElementById('reviewer').value = 'R. Two'")
        first.press("1", 49)
        first.wait_until(SAVED)
        second.press("2", 50)
        second.wait_until("document.getElementById('saved').textContent.includes('R. Two')")
        events = log_of(results)
        (state,) = newest(events).values()
        assert [event["label"] for event in events] == ["glioma_tumor", "meningioma_tumor"]
        assert (state.label, state.reviewer) == ("meningioma_tumor", "R. One")
        # The first tab sees what the other one has said.
        first.wait_until("document.getElementById('given').textContent.includes('meningioma')", 30)


def test_10_000_rows_scroll_without_a_pause(tmp_path, tab, monkeypatch):
    results = results_of(tmp_path, 10_000, monkeypatch)
    scroll = """(async () => {
      const list = document.getElementById('list');
      const gaps = []; let last = performance.now(); let most = 0;
      for (let step = 0; step <= 120; step++) {
        list.scrollTop = list.scrollHeight * step / 120;
        await new Promise(requestAnimationFrame);
        const now = performance.now(); gaps.push(now - last); last = now;
        most = Math.max(most, document.querySelectorAll('.scan-row').length);
      }
      return [Math.max(...gaps), most];
    })()"""
    with review_server(results) as own, tab(own + "/") as browser:
        passes = [browser.evaluate(scroll) for _ in range(3)]
        print("longest pause in ms, rows in the page:", passes)
        assert max(rows for _, rows in passes) < 60
        assert min(pause for pause, _ in passes) < 100  # other work on the machine pauses it, too
        browser.wait_until("document.getElementById('row-9999')?.dataset.filled === 'true'")
        browser.evaluate("document.getElementById('list').focus()")
        browser.press("End")
        browser.wait_until(f"{CURRENT} === 'row-9999'")


def test_a_phone_in_the_dark_shows_all_within_its_width(tmp_path, tab):
    results = results_of(tmp_path, 8)
    with review_server(results) as own, tab(own + "/") as browser:
        browser.look(390, 844, dark=True)
        browser.open(own + "/")
        browser.wait_until(SHOWN)
        assert browser.evaluate("document.documentElement.scrollWidth") <= 390
        assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == (
            "rgb(19, 20, 23)"
        )
        missing = "[...document.querySelectorAll('img[src]')].filter(i => !i.alt).length"
        assert browser.evaluate(missing) == 0
        browser.press("?")
        browser.wait_until("document.getElementById('help').open")
