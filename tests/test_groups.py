"""Tests that share what is costly are run by one process."""


def test_side_by_side_every_test_is_in_a_group(request):
    """xdist puts the group's name behind a test's id; without one, it deals out single tests."""
    ids = [item.nodeid for item in request.session.items]
    grouped = [name for name in ids if name.rfind("@") > name.rfind("]")]
    assert len(grouped) == (len(ids) if hasattr(request.config, "workerinput") else 0)
