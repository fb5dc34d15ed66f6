"""One click model, trained on one arm's texts from one seed, and its logits of what it was not trained on."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from dare_core.config.domains import ClickModelName, ClickTraining
from dare_core.evaluation.inputs import Inputs
from dare_core.evaluation.models import MODELS, Batch, ClickModel
from dare_core.evaluation.statistics import auc
from dare_core.schemas import Kind

_BATCH: Final = 2048


@dataclass(frozen=True)
class Trial:
    """What a trained model makes of the examples that it was not trained on: logits ``[n]`` of validation and test."""

    validation: NDArray[np.float32]
    test: NDArray[np.float32]


def run_trial(inputs: Inputs, model_name: ClickModelName, seed: int, how: ClickTraining) -> Trial:
    """Train a model on one thread, so that it is the same whatever the machine; see :func:`train`."""
    torch.set_num_threads(1)
    parts = {name: _batch(inputs, rows) for name, rows in vars(inputs.split).items()}
    vectors = {kind: torch.from_numpy(of_kind) for kind, of_kind in inputs.vectors.items()}
    model = train(inputs.codes, vectors, parts["train"], parts["validation"], model_name, seed, how)
    return Trial(predict(model, parts["validation"]), predict(model, parts["test"]))


def _batch(inputs: Inputs, rows: slice) -> Batch:
    return Batch(**{field.name: torch.from_numpy(getattr(inputs, field.name)[rows].copy()) for field in fields(Batch)})


def train(
    codes: int,
    vectors: Mapping[Kind, Tensor],
    examples: Batch,
    validation: Batch,
    model_name: ClickModelName,
    seed: int,
    how: ClickTraining,
) -> ClickModel:
    """Train a model; the weights of its best epoch are kept.

    One seed begins with the same weights and meets the same batches whatever the texts, so arms are compared in pairs.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MODELS[model_name](codes, examples.fields.shape[1], examples.numbers.shape[1], vectors, how.dropout)
        optimizer = torch.optim.AdamW(model.parameters(), lr=how.learning_rate, weight_decay=how.weight_decay)
        labels = validation.labels.numpy()
        best, kept, since = -1.0, model.state_dict(), 0
        for _ in range(how.epochs):
            _epoch(model, examples, optimizer, generator)
            found = auc(labels, predict(model, validation))
            if found > best:
                best, since = found, 0
                kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            else:
                since += 1
                if since >= how.patience:
                    break
    model.load_state_dict(kept)
    return model


def _epoch(model: ClickModel, examples: Batch, optimizer: torch.optim.Optimizer, generator: torch.Generator) -> None:
    model.train()
    for rows in torch.split(torch.randperm(len(examples), generator=generator), _BATCH):
        batch = examples.take(rows)
        loss = binary_cross_entropy_with_logits(model(batch), batch.labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def predict(model: ClickModel, batch: Batch) -> NDArray[np.float32]:
    """``[b]`` logits."""
    model.eval()
    with torch.inference_mode():
        parts = [model(batch.take(slice(at, at + 4 * _BATCH))) for at in range(0, len(batch), 4 * _BATCH)]
    return torch.cat(parts).numpy()
