"""The page in a headless browser, over a service in this process."""

import zipfile
from contextlib import closing

import numpy as np
import pytest

from braintumor_ray.serving.web import PAGE, STATIC
from tests.serving.browser import Browser, find_browser
from tests.serving.fakes import encoded, listening

SHOWN = "!document.getElementById('result').hidden"
REFUSED = "!document.getElementById('error').hidden"


def test_every_static_part_is_in_the_package_and_names_no_other_host():
    for name, _ in STATIC.values():
        content = (PAGE / name).read_bytes()
        assert content
        if not name.endswith((".png", ".svg")):
            assert b"http:" not in content
            assert b"https:" not in content
            assert b"//cdn" not in content


@pytest.fixture(scope="module")
def address(decoders):
    with listening(decoders) as found:
        yield found


@pytest.fixture(scope="module")
def browser():
    find_browser()
    with closing(Browser()) as found:
        yield found


@pytest.fixture
def page(browser, address):
    browser.open("about:blank")  # what the test before began is over
    browser.messages.clear()
    browser.requested.clear()
    browser.look(1100, 1200)
    browser.open(address + "/")
    yield browser
    assert browser.messages == []  # no exception, nothing that the policy forbids
    assert {
        url for url in browser.requested if not url.startswith((address, "data:", "blob:"))
    } == set()


@pytest.mark.slow
def test_a_scan_is_uploaded_explained_mixed_and_a_wrong_file_refused(page, tmp_path):
    scan, note = tmp_path / "scan.png", tmp_path / "note.txt"
    scan.write_bytes(encoded())
    note.write_text("not a scan")

    page.upload("#file", scan)
    page.wait_until(SHOWN)
    assert page.evaluate("document.querySelectorAll('#bars .bar').length") == 4
    assert "threshold 50.0%" in page.evaluate("document.getElementById('decision').innerText")
    assert "Grad-CAM for class" in page.evaluate("document.getElementById('caption').innerText")

    first = page.evaluate("document.getElementById('heat').src")
    page.evaluate("document.querySelector('input[value=gradcam_pp]').focus()")
    page.press(" ", 32, " ")  # by keyboard
    assert "Grad-CAM++" in page.evaluate("document.getElementById('caption').innerText")
    assert page.evaluate("document.getElementById('heat').src").startswith(first[:20])

    page.evaluate("document.getElementById('mix').focus()")
    page.press("End", 35)
    assert page.evaluate("document.getElementById('heat').style.opacity") == "1"
    page.press("Home", 36)
    assert page.evaluate("document.getElementById('heat').style.opacity") == "0"

    page.upload("#file", note)
    page.wait_until(REFUSED)
    assert "send JPEG" in page.evaluate("document.getElementById('error').innerText")
    assert page.evaluate("document.getElementById('result').hidden")


@pytest.mark.slow
def test_the_example_fits_a_phone_in_the_dark(page):
    page.look(390, 844, dark=True)
    assert page.evaluate("document.getElementById('example').hidden")  # not of phantoms
    page.evaluate("document.getElementById('example').click()")
    page.wait_until(SHOWN)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(19, 20, 23)"


@pytest.mark.slow
def test_the_documents_are_drawn_without_any_other_host(page, address):
    page.open(address + "/docs")
    page.wait_until("document.querySelectorAll('section').length > 5")
    text = page.evaluate("document.body.innerText")
    assert "POST /v1/predict" in text
    assert "too-many-pixels" in text


@pytest.mark.slow
def test_slices_planes_and_classes_are_chosen(page, tmp_path):
    from tests.decode.volume_files import nifti_bytes

    volume = np.random.default_rng(0).integers(50, 255, (12, 14, 10)).astype(np.int16)
    (tmp_path / "volume.nii").write_bytes(nifti_bytes(volume))
    page.upload("#file", tmp_path / "volume.nii")
    told = "document.getElementById('frame-value').textContent"
    page.wait_until(f"{told} === '6 of 10'")  # starts in the middle
    choose = "((id, value) => {{ const e = document.getElementById(id); e.value = value; "
    choose += "e.dispatchEvent(new Event('change')); }})('{}', '{}')"
    page.evaluate(choose.format("plane", "sagittal"))
    page.wait_until(f"{told} === '7 of 12'")
    page.evaluate(choose.format("class", "no_tumor"))
    page.wait_until("document.getElementById('caption').textContent.includes('no tumor')")


@pytest.mark.slow
def test_the_documents_show_commands_and_try_them(page, address):
    page.open(address + "/docs")
    page.wait_until("document.querySelectorAll('.try button').length >= 4")
    commands = page.evaluate("[...document.querySelectorAll('pre.curl')].map(p => p.textContent)")
    assert any("--data-binary @scan.png" in c and "/v1/predict" in c for c in commands)
    page.evaluate("document.querySelectorAll('.try button')[2].click()")
    page.wait_until("document.querySelectorAll('pre.answer')[2].textContent.includes('status 200')")


@pytest.mark.slow
def test_the_documents_try_several_scans_and_a_zip_among_them(page, address, tmp_path):
    page.open(address + "/docs")
    chooser = "input[aria-label='Scans for /v1/predict/batch']"
    page.wait_until(f'document.querySelector("{chooser}") !== null')
    scan, packed = tmp_path / "scan.png", tmp_path / "series.zip"
    scan.write_bytes(encoded())
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("inner.png", encoded(seed=2))
    page.upload(chooser, scan, packed)
    answered = f'document.querySelector("{chooser}").closest(".try")'
    page.evaluate(f"{answered}.querySelector('button').click()")
    page.wait_until(f"{answered}.querySelector('pre').textContent.includes('status 200')")
    shown = page.evaluate(f"{answered}.querySelector('pre').textContent")
    assert '"series.zip/inner.png"' in shown
    assert shown.count('"predicted_class"') == 2
