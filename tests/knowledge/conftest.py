import pytest
from transformers import PreTrainedTokenizerBase

from dare_core import models
from dare_core.config.domains import Domain, load_domain
from dare_core.config.settings import load_settings
from dare_core.knowledge.chat import ChatEncoder


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    """The bundled model's tokenizer; the model is converted on first use and kept."""
    return models.load_tokenizer(load_settings())


@pytest.fixture(scope="session")
def encoder(tokenizer: PreTrainedTokenizerBase) -> ChatEncoder:
    return ChatEncoder(tokenizer)


@pytest.fixture(scope="session")
def movies() -> Domain:
    return load_domain(load_settings(), "movies")
