from dataclasses import replace

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from dare_core.config.domains import ClickModelName
from dare_core.evaluation.examples import HISTORY
from dare_core.evaluation.models import MODELS, WIDTH, Batch, ClickModel, Din, KnowledgeAdaptor
from dare_core.schemas import KINDS

from .conftest import unit_vectors

USERS, ITEMS, NUMBERS, TEXT_WIDTH = 30, 40, 5, 64


def examples(n: int, seed: int = 0) -> Batch:
    """Random ones; some see no text, and some have fewer likes."""
    draw = torch.Generator().manual_seed(seed)

    def places(most: int, *size: int) -> torch.Tensor:
        return torch.randint(0, most + 1, size or (n,), generator=draw)

    users = 1 + torch.randint(0, USERS, (n,), generator=draw)
    return Batch(
        fields=torch.stack([users, torch.full((n,), 1 + USERS)], dim=1),
        history=places(1 + USERS, n, HISTORY),
        item_texts=places(ITEMS),
        user_texts=places(USERS),
        history_texts=places(ITEMS, n, HISTORY),
        numbers=torch.randn(n, NUMBERS, generator=draw),
        labels=torch.randint(0, 2, (n,), generator=draw).float(),
    )


def model(name: ClickModelName, dropout: float = 0.0) -> ClickModel:
    torch.manual_seed(0)
    texts = {"item": unit_vectors(ITEMS, TEXT_WIDTH), "user": unit_vectors(USERS, TEXT_WIDTH, seed=1)}
    return MODELS[name](2 + USERS, 2, NUMBERS, {kind: torch.from_numpy(texts[kind]) for kind in KINDS}, dropout)


@pytest.mark.parametrize("name", list(MODELS))
def test_there_is_a_logit_for_each_example(name: ClickModelName) -> None:
    assert model(name)(examples(5)).shape == (5,)


@pytest.mark.parametrize("name", list(MODELS))
def test_every_parameter_has_a_gradient(name: ClickModelName) -> None:
    made = model(name)
    batch = examples(64)
    binary_cross_entropy_with_logits(made(batch), batch.labels).backward()
    assert [key for key, value in made.named_parameters() if value.grad is None or not value.grad.abs().sum()] == []


@pytest.mark.parametrize("name", list(MODELS))
def test_an_example_s_logit_does_not_depend_on_the_others(name: ClickModelName) -> None:
    made = model(name).eval()
    batch = examples(16)
    alone = torch.cat([made(batch.take(torch.tensor([row]))) for row in range(16)])
    torch.testing.assert_close(made(batch), alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", list(MODELS))
def test_an_empty_history_says_nothing_whatever_its_padding(name: ClickModelName) -> None:
    made = model(name)
    history = torch.randn(3, HISTORY, 2 * WIDTH)
    pooled = made.pool(torch.randn(3, 2 * WIDTH), history, torch.zeros(3, HISTORY, dtype=torch.bool))
    assert pooled.abs().sum() == 0


def test_din_weighs_a_history_by_the_item_at_hand() -> None:
    made = model("din")
    assert isinstance(made, Din)
    history, present = torch.randn(1, HISTORY, 2 * WIDTH), torch.ones(1, HISTORY, dtype=torch.bool)
    assert not torch.allclose(
        made.pool(torch.randn(1, 2 * WIDTH), history, present), made.pool(torch.randn(1, 2 * WIDTH), history, present)
    )


def test_an_adapted_text_is_a_mixture_of_its_kind_s_experts_by_the_gate() -> None:
    adaptor = KnowledgeAdaptor(TEXT_WIDTH)
    text = torch.randn(1, TEXT_WIDTH)
    experts = [*adaptor.shared, *adaptor.dedicated["item"]]
    gate = torch.softmax(adaptor.gates["item"](text), 1)[0]
    assert gate.sum().item() == pytest.approx(1)
    expected = sum(weight * expert(text) for weight, expert in zip(gate, experts, strict=True))
    torch.testing.assert_close(adaptor(text, "item"), expected)
    assert not torch.allclose(adaptor(text, "user"), expected)


@pytest.mark.parametrize("name", list(MODELS))
def test_each_thing_that_an_example_has_counts(name: ClickModelName) -> None:
    made, batch = model(name).eval(), examples(64)
    logits = made(batch)
    for changed in ("fields", "history", "item_texts", "user_texts", "history_texts", "numbers"):
        other = getattr(batch, changed).clone()
        other[:32] = other[:32].flip(0)
        found = made(replace(batch, **{changed: other}))
        assert not torch.allclose(found[:32], logits[:32]), changed
        torch.testing.assert_close(found[32:], logits[32:])


def test_what_was_not_liked_before_does_not_count_whatever_its_text() -> None:
    made, batch = model("din").eval(), examples(8)
    batch = replace(batch, history=torch.zeros_like(batch.history))
    other = replace(batch, history_texts=batch.history_texts.flip(0))
    torch.testing.assert_close(made(batch), made(other))


def test_dropout_is_for_training_alone() -> None:
    made, batch = model("dcnv2", dropout=0.5), examples(16)
    assert not torch.allclose(made(batch), made(batch))
    made.eval()
    torch.testing.assert_close(made(batch), made(batch))
