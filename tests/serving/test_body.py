"""Forms as clients write them, without a service around them."""

import pytest

from braintumor_ray.serving.body import parse_files
from braintumor_ray.serving.problems import ProblemError

TYPE = "multipart/form-data; boundary=b"


def part(content=b"x", name=b"scan.png", more=b""):
    head = b'Content-Disposition: form-data; name="file"; filename="' + name + b'"\r\n' + more
    return b"--b\r\n" + head + b"\r\n" + content + b"\r\n"


def parsed(form, most=9, content_type=TYPE):
    return [(p.name, bytes(p.data)) for p in parse_files(bytearray(form), content_type, most)]


def test_files_come_in_order_with_their_names():
    form = part(b"one", b"1.png") + part(b"", b"2.png") + b"--b--\r\n"
    assert parsed(form) == [("1.png", b"one"), ("2.png", b"")]


@pytest.mark.parametrize(
    "preamble", [b"", b"\r\n", b"not\r\nfor you\r\n", b"x" * 200_000 + b"\r\n"]
)
@pytest.mark.parametrize("epilogue", [b"", b"\r\n", b"\r\nnor this", b"\r\n--b\r\n" * 50_000])
def test_what_is_before_the_first_boundary_and_after_the_last_is_ignored(preamble, epilogue):
    assert parsed(preamble + part() + b"--b--" + epilogue) == [("scan.png", b"x")]


@pytest.mark.parametrize("shift", range(-2, 8))
def test_a_boundary_may_lie_across_the_pieces_that_are_parsed(shift):
    first, _ = part(b"|").split(b"|")
    content = (b"\r\n--" * 2**14)[: 2**16 - len(first) - shift]
    assert parsed(part(content) + part(b"z") + b"--b--")[0][1] == content


def test_the_body_is_not_kept_beside_its_files():
    body = bytearray(part(b"x" * 100_000) + b"--b--")
    (found,) = parse_files(body, TYPE, 1)
    assert len(found.data) == 100_000
    assert not body


@pytest.mark.parametrize(
    ("sent", "name"),
    [
        ("größe.png".encode(), "größe.png"),
        ("größe.png".encode("latin-1"), "gr\ufffd\ufffde.png"),
        (b"a%22b.png", 'a"b.png'),
    ],
)
def test_a_name_is_utf8_or_near_it(sent, name):
    assert parsed(part(name=sent) + b"--b--")[0][0] == name


@pytest.mark.parametrize(
    "form",
    [
        part(),  # no end
        part()[:-4],
        b"--b\r\nA: b\r\n\r\nx\r\n--b--",
        b"text--b\r\n" + part()[5:] + b"--b--",
        part(more=b"X: " + b"a" * 4096 + b"\r\n") + b"--b--",
        part(more=(b"X: " + b"a" * 1000 + b"\r\n") * 5) + b"--b--",
        part(more=b"X: a\r\n" * 9) + b"--b--",
    ],
)
def test_a_form_that_is_cut_off_or_has_wrong_or_too_many_headers_is_malformed(form):
    with pytest.raises(ProblemError, match="form") as caught:
        parsed(form)
    assert caught.value.kind == "bad-request"


def test_more_files_than_allowed_are_refused():
    with pytest.raises(ProblemError) as caught:
        parsed(part() * 3 + b"--b--", most=2)
    assert caught.value.kind == "too-large"


@pytest.mark.parametrize("boundary", ["", "b" * 71, "\xe4"])
def test_a_boundary_that_cannot_be_one_is_refused(boundary):
    with pytest.raises(ProblemError, match="boundary"):
        parsed(part() + b"--b--", content_type=f"multipart/form-data; boundary={boundary}")
