"""Train a small ranker from the warehouse, with and without knowledge, and print what knowledge gains.

    python examples/rank_with_features.py [DOMAIN]

The ranker is a logistic regression. Without knowledge it knows how often the user and the item were liked so far. With
it, it also reads the likeness of the item to what the user had liked before, point in time (docs/sql.md). It trains on
the first 80% of the interactions and is tested on the others. Run the pipeline first: no text, no likeness.
"""

import sys
from collections import defaultdict

import numpy as np
import pyarrow as pa
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from dare_core.config.settings import load_settings
from dare_core.evaluation.statistics import auc
from dare_core.features.dataset import InteractionDataset
from dare_core.features.history import read_features
from dare_core.warehouse.interactions import stream_interactions
from dare_core.warehouse.session import open_warehouse

TRAINED = 0.8


def main(domain: str) -> None:
    """Read, train twice, print."""
    with open_warehouse(load_settings()) as (_, engine):
        interactions = pa.Table.from_batches(stream_interactions(engine, domain)).sort_by("event_timestamp")
        items, users = (read_features(engine, domain, kind) for kind in ("item", "user"))
    dataset = InteractionDataset(interactions, items, users)
    examples = dataset.batch(torch.arange(len(dataset)))
    without = liked_so_far(interactions)
    likeness = examples["likeness"].clone()
    likeness[:, 4:] /= likeness[:, :1].clamp(min=1)  # the histogram in shares
    labels = examples["label"]
    trained = int(TRAINED * len(labels))
    found = [test(columns, labels, trained) for columns in (without, torch.cat([without, likeness[:, 1:]], dim=1))]
    seen = examples["has_item"][trained:].float().mean()
    print(
        f"{trained} interactions train, {len(labels) - trained} test; {seen:.0%} of the tests have a text of the item"
    )
    print(f"AUC without knowledge {found[0]:.4f}, with it {found[1]:.4f}: {found[1] - found[0]:+.4f}")


def liked_so_far(interactions: pa.Table) -> torch.Tensor:
    """``[n, 4]``, of user and item how many interactions there were strictly before, and the share that was liked."""
    columns = {name: interactions[name].to_pylist() for name in ("user_id", "item_id", "event_timestamp", "label")}
    counts: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    pending: list[tuple[tuple[str, str], int]] = []
    rows, moment = [], None
    for user, item, time, label in zip(*columns.values(), strict=True):
        if time != moment:  # what shares a moment is counted together, afterwards
            for key, liked in pending:
                counts[key][0] += 1
                counts[key][1] += liked
            pending, moment = [], time
        row = []
        for key in (("user", user), ("item", item)):
            met, likes = counts[key]
            row += [np.log1p(met), (likes + 2.5) / (met + 5)]
            pending.append((key, label))
        rows.append(row)
    return torch.tensor(rows, dtype=torch.float32)


def test(columns: torch.Tensor, labels: torch.Tensor, trained: int) -> float:
    """AUC on the tests of a logistic regression on some columns."""
    scale = columns[:trained].std(dim=0, keepdim=True).clamp(min=1e-6)
    scaled = (columns - columns[:trained].mean(dim=0, keepdim=True)) / scale
    torch.manual_seed(0)
    model = torch.nn.Linear(columns.shape[1], 1)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=100)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = binary_cross_entropy_with_logits(model(scaled[:trained]).squeeze(1), labels[:trained])
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    with torch.inference_mode():
        logits = model(scaled[trained:]).squeeze(1)
    return auc(labels[trained:].numpy(), logits.numpy())


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "movies")
