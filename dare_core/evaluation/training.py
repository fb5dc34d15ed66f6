"""One click model, trained on one arm's texts from one seed, and scored on the test examples."""

from collections.abc import Mapping
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from dare_core.evaluation.data import Split
from dare_core.evaluation.models import MODELS, Batch, ClickModel, ModelName
from dare_core.evaluation.statistics import auc, log_loss
from dare_core.schemas import Kind

#: Vectors of an arm's texts, ``[m, w]`` float32 by kind, in the order of the entities.
Vectors = Mapping[Kind, NDArray[np.float32]]

#: Set once, the same for every arm.
EPOCHS: Final = 3
_BATCH: Final = 2048
_LEARNING_RATE: Final = 3e-3
_WEIGHT_DECAY: Final = 1e-4


class Score(NamedTuple):
    """What a trained model is worth on the test examples."""

    auc: float
    log_loss: float


def train_and_test(split: Split, vectors: Vectors, model_name: ModelName, seed: int, with_texts: bool = True) -> Score:
    """Train and test a model.

    One seed begins with the same weights and meets the same batches whatever the texts, so arms are compared in pairs.

    Args:
        split: the examples.
        vectors: of the arm's texts.
        model_name: which model.
        seed: of weights and order.
        with_texts: False trains the same model without any text: each entity has the learned vector for none.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MODELS[model_name](
            split.codes, split.train.fields.shape[1], {kind: _prepared(of_kind) for kind, of_kind in vectors.items()}
        )
    train, test = (_batch(part, with_texts) for part in (Batch.of(split.train), Batch.of(split.test)))
    fit(model, train, generator)
    logits = predict(model, test)
    labels = split.test.labels
    return Score(auc(labels, logits), log_loss(labels, logits))


def fit(model: ClickModel, train: Batch, generator: torch.Generator, epochs: int = EPOCHS) -> None:
    """Train in place."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
    model.train()
    for _ in range(epochs):
        for rows in torch.split(torch.randperm(len(train), generator=generator), _BATCH):
            batch = train.take(rows)
            loss = binary_cross_entropy_with_logits(model(batch), batch.labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()


def predict(model: ClickModel, batch: Batch) -> NDArray[np.float32]:
    """``[b]`` logits."""
    model.eval()
    with torch.inference_mode():
        logits = torch.cat([model(batch.take(rows)) for rows in torch.split(torch.arange(len(batch)), 4 * _BATCH)])
    return logits.numpy()


def _prepared(vectors: NDArray[np.float32]) -> Tensor:
    """Centred, and scaled to a mean square of 1: texts of one prompt have most of their vectors in common."""
    found = torch.from_numpy(vectors)
    centred = found - found.mean(0, keepdim=True)
    scale = centred.square().mean().sqrt() if len(found) > 1 else torch.tensor(1.0)
    return centred / scale.clamp(min=1e-6)


def _batch(batch: Batch, with_texts: bool) -> Batch:
    return batch if with_texts else Batch(batch.fields, batch.history, torch.zeros_like(batch.texts), batch.labels)
