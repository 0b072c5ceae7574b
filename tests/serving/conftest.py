"""One pool of real decoding processes for all tests of the service."""

import pytest

from tests.serving.fakes import make_client, make_decoders


@pytest.fixture(scope="session")
def decoders():
    pool = make_decoders()
    yield pool
    pool.close()


@pytest.fixture
def client(decoders):
    with make_client(decoders) as found:
        yield found
