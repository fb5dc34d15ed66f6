"""``dare evaluate --search``: which form of vectors, and which training, validates best. Tests are never looked at.

The candidates are trained on the first split's training part and scored on its validation part, which lies before all
tests. What wins is written into the domain's file by whoever asked, and is fixed from then on.
"""

from itertools import product
from typing import Any, Final, get_args

import numpy as np

from dare_core.config.domains import Form, load_domain
from dare_core.config.settings import Settings
from dare_core.evaluation import arms, texts
from dare_core.evaluation.run import Ground
from dare_core.evaluation.source import read_source
from dare_core.evaluation.statistics import auc
from dare_core.evaluation.texts import OnProgress
from dare_core.evaluation.trials import run_trials
from dare_core.warehouse.session import open_warehouse

SEEDS: Final = 3
_LEARNING_RATES: Final = (1e-3, 3e-3)
_DROPOUTS: Final = (0.0, 0.2)


def search(
    settings: Settings,
    domain_name: str,
    seeds: int = SEEDS,
    on_progress: OnProgress = lambda what, done, wanted: None,
) -> dict[str, Any]:
    """Compare forms and trainings by the validation's AUC of strict texts, the mean over seeds.

    Returns:
        ``candidates``, the best first, each with ``form``, ``training`` and ``auc``; ``lines`` for the domain's file.
    """
    domain = load_domain(settings, domain_name)
    with open_warehouse(settings) as (_, engine):
        ground = Ground.of(domain, read_source(engine, domain))
    assert domain.evaluation is not None
    split = ground.splits[0]
    written = texts.write_texts(settings, domain, ground.entities, (texts.STRICT,), on_progress)
    by_form = {
        form: arms.arm_vectors(settings, domain, form, ground.entities, written.by_arm)["strict"]
        for form in get_args(Form)
    }
    inputs = ground.inputs(by_form, [split])
    base = domain.evaluation.training
    labels = ground.examples.labels[split.validation]
    candidates: list[dict[str, Any]] = []
    trainings = [
        base.model_copy(update={"learning_rate": rate, "dropout": dropout})
        for rate, dropout in product(_LEARNING_RATES, _DROPOUTS)
    ]
    for number, how in enumerate(trainings):
        trials = run_trials(inputs, domain.evaluation.click_model, seeds, how)
        candidates += [
            {
                "form": form,
                "training": {"learning_rate": how.learning_rate, "dropout": how.dropout},
                "auc": round(float(np.mean([auc(labels, trial.validation) for trial in of_split])), 6),
            }
            for form, [of_split] in trials.items()
        ]
        on_progress("searching", number + 1, len(trainings))
    candidates.sort(key=lambda candidate: -candidate["auc"])
    return {"candidates": candidates, "lines": _lines(candidates[0])}


def _lines(best: dict[str, Any]) -> list[str]:
    training = (f"{name} = {value}" for name, value in best["training"].items())
    return ["[knowledge]", f'embedded = "{best["form"]}"', "[evaluation.training]", *training]
