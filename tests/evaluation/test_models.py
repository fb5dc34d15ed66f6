import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from dare_core.evaluation.data import HISTORY, Examples, Split
from dare_core.evaluation.models import MODEL_NAMES, MODELS, WIDTH, Batch, Din, KnowledgeAdaptor, ModelName
from dare_core.evaluation.training import train_and_test
from dare_core.schemas import EMBEDDING_WIDTH, KINDS

USERS, ITEMS = 30, 40


def vectors(seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    counts = {"item": ITEMS, "user": USERS}
    return {kind: random.normal(size=(counts[kind], EMBEDDING_WIDTH)).astype(np.float32) for kind in KINDS}


def examples(n: int, item_is_liked: np.ndarray | None = None, seed: int = 0) -> Examples:
    """Random ones; an item that is liked is liked by everybody, and shows it by its text alone."""
    random = np.random.default_rng(seed)
    users, items = random.integers(USERS, size=n), random.integers(ITEMS, size=n)
    labels = random.integers(2, size=n) if item_is_liked is None else item_is_liked[items]
    fields = np.stack([1 + users, np.full(n, 1 + USERS)], axis=1)
    history = random.integers(0, USERS, size=(n, HISTORY))
    return Examples(fields, history, np.stack([1 + items, 1 + users], axis=1), labels.astype(np.float32))


def model(name: ModelName) -> torch.nn.Module:
    torch.manual_seed(0)
    return MODELS[name](2 + USERS, 2, {kind: torch.from_numpy(array) for kind, array in vectors().items()})


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_there_is_a_logit_for_each_example(name: ModelName) -> None:
    assert model(name)(Batch.of(examples(5))).shape == (5,)


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_every_parameter_has_a_gradient(name: ModelName) -> None:
    made = model(name)
    batch = Batch.of(examples(64))
    batch.texts[::2] = 0  # some without a text
    binary_cross_entropy_with_logits(made(batch), batch.labels).backward()
    assert [key for key, value in made.named_parameters() if value.grad is None or not value.grad.abs().sum()] == []


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_an_example_s_logit_does_not_depend_on_the_others(name: ModelName) -> None:
    made = model(name).eval()
    batch = Batch.of(examples(16))
    alone = torch.cat([made(batch.take(torch.tensor([row]))) for row in range(16)])
    torch.testing.assert_close(made(batch), alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_an_empty_history_says_nothing_whatever_its_padding(name: ModelName) -> None:
    made = model(name)
    pooled = made.pool(torch.randn(3, WIDTH), torch.randn(3, HISTORY, WIDTH), torch.zeros(3, HISTORY, dtype=torch.bool))
    assert pooled.abs().sum() == 0


def test_din_weighs_a_history_by_the_item_at_hand() -> None:
    made = model("din")
    assert isinstance(made, Din)
    history, present = torch.randn(1, HISTORY, WIDTH), torch.ones(1, HISTORY, dtype=torch.bool)
    assert not torch.allclose(
        made.pool(torch.randn(1, WIDTH), history, present), made.pool(torch.randn(1, WIDTH), history, present)
    )


def test_an_adapted_text_is_a_mixture_of_its_kind_s_experts_by_the_gate() -> None:
    adaptor = KnowledgeAdaptor(EMBEDDING_WIDTH)
    text = torch.randn(1, EMBEDDING_WIDTH)
    experts = [*adaptor.shared, *adaptor.dedicated["item"]]
    gate = torch.softmax(adaptor.gates["item"](text), 1)[0]
    assert gate.sum().item() == pytest.approx(1)
    expected = sum(weight * expert(text) for weight, expert in zip(gate, experts, strict=True))
    torch.testing.assert_close(adaptor(text, "item"), expected)
    assert not torch.allclose(adaptor(text, "user"), expected)


@pytest.fixture(scope="module")
def planted() -> Split:
    """Items are liked or not; only their texts tell, in a direction of their vectors."""
    liked = vectors()["item"] @ np.random.default_rng(1).normal(size=EMBEDDING_WIDTH) > 0
    return Split(None, 2 + USERS, examples(20_000, liked, seed=1), examples(2000, liked, seed=2))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_a_signal_in_the_texts_is_learned_and_without_them_there_is_none(planted: Split, name: ModelName) -> None:
    assert train_and_test(planted, vectors(), name, seed=0).auc > 0.95
    assert train_and_test(planted, vectors(), name, seed=0, with_texts=False).auc < 0.6


def test_a_seed_gives_the_same_score_again_and_another_seed_another(planted: Split) -> None:
    first = train_and_test(planted, vectors(), "dcnv2", seed=3)
    torch.rand(7)  # whatever happened between
    assert train_and_test(planted, vectors(), "dcnv2", seed=3) == pytest.approx(first, rel=1e-2, abs=0)
    assert train_and_test(planted, vectors(), "dcnv2", seed=4) != pytest.approx(first, rel=1e-2, abs=0)
