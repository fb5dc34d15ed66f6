import pytest

from dare_core.config.domains import Domain, load_domain
from dare_core.config.settings import Settings, load_settings
from dare_core.embedding.encoder import Encoder


@pytest.fixture(scope="session")
def movies() -> Domain:
    return load_domain(load_settings(), "movies")


@pytest.fixture(scope="session")
def encoder() -> Encoder:
    return Encoder.load(Settings(device="cpu"))
