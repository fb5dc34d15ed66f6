"""The arms of an evaluation: what a click model is told of items and users."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from dare_core.config.domains import Domain, Form
from dare_core.config.settings import Settings
from dare_core.embedding.forms import passage
from dare_core.engines.precision import writes_int8
from dare_core.errors import InputError, SettingError
from dare_core.evaluation.inputs import Vectors
from dare_core.evaluation.service import Entity
from dare_core.evaluation.texts import RELAXED, STRICT, STRICT_INT8, WRITTEN_ARMS, Arm
from dare_core.schemas import KINDS

#: Arms by name, with what they are called. All but the first read vectors, in the same way.
LABELS: Final[Mapping[str, str]] = {
    "none": "no knowledge",
    "attributes": "attributes alone",
    "shuffled": "texts of others (strict, shuffled)",
    "strict": "strict",
    "relaxed": "relaxed (2, 0.1)",
    "int8": "strict, int8",
    "nightly": "strict, seen from the next midnight on",
}
#: Whose texts an arm reads, of those that read any.
_WRITTEN: Final[Mapping[str, Arm]] = {
    "shuffled": STRICT, "strict": STRICT, "relaxed": RELAXED, "int8": STRICT_INT8, "nightly": STRICT
}  # fmt: skip


def choose_arms(settings: Settings, names: Sequence[str] = ()) -> list[str]:
    """The arms of an evaluation, in the order of :data:`LABELS`.

    Args:
        settings: in force.
        names: of those that are asked for; none: all, but int8 only where our engine writes in it.

    Raises:
        InputError: there is no such arm.
        SettingError: int8 is asked for, and cannot be written here.
    """
    if unknown := sorted(set(names) - set(LABELS)):
        raise InputError(f"there is no arm {', '.join(unknown)}; arms are {', '.join(LABELS)}")
    if "int8" in names and not writes_int8(settings):
        raise SettingError(
            "the arm int8 needs our own engine with its compiled kernels on a CPU: DARE_ENGINE=transformers, "
            "DARE_DEVICE=cpu, DARE_DTYPE=float32, and no DARE_COMPILE_LAYERS"
        )
    return [arm for arm in LABELS if (arm in names if names else arm != "int8" or writes_int8(settings))]


def written_for(names: Collection[str]) -> list[Arm]:
    """The arms that texts must be written for, so that these arms can be compared."""
    return [arm for arm in WRITTEN_ARMS if any(_WRITTEN.get(name) is arm for name in names)]


def arm_vectors(
    settings: Settings,
    domain: Domain,
    form: Form,
    entities: Sequence[Entity],
    texts: Mapping[str, Sequence[Mapping[str, Any]]],
) -> dict[str, Vectors]:
    """Vectors of the arms that ``texts`` suffice for, of texts in some form; those of ``none`` are never looked at.

    ``attributes`` has what the form puts before the answer, or the attributes. ``shuffled`` has that of its entity
    and the answer about another one of the kind.

    Args:
        settings: name the encoder.
        domain: gives attributes and values.
        form: of the vectors.
        entities: items, then users.
        texts: by written arm, in the order of the entities.
    """
    answers = {name: [row["text"] for row in rows] for name, rows in texts.items()}
    if "strict" in answers:
        answers["shuffled"] = [answers["strict"][place] for place in _shuffled(entities)]
    parts = {
        name: [
            passage(domain, entity.kind, form, entity.attributes, text).parts
            for entity, text in zip(entities, of_arm, strict=True)
        ]
        for name, of_arm in answers.items()
    }
    described: Form = "attributes+answer" if form == "answer" else form
    parts["attributes"] = [
        passage(domain, entity.kind, described, entity.attributes, text="").parts[:1] for entity in entities
    ]
    matrices = embed(settings, parts)
    kinds = np.array([entity.kind for entity in entities])
    by_arm: dict[str, Vectors] = {
        name: {kind: matrix[kinds == kind] for kind in KINDS} for name, matrix in matrices.items()
    }
    same = {"none": "attributes", "nightly": "strict"}
    return by_arm | {name: by_arm[other] for name, other in same.items() if other in by_arm}


def embed(settings: Settings, parts: Mapping[str, Sequence[tuple[str, ...]]]) -> dict[str, NDArray[np.float32]]:
    """``[n, w]`` vectors by arm, of passages of equally many entities; a text that arms share is embedded once."""
    from dare_core.embedding.combination import combined
    from dare_core.embedding.encoder import Encoder

    found = combined(Encoder.load(settings), [part for of_arm in parts.values() for part in of_arm])
    matrix = found.flatten().to_numpy().reshape(len(parts), -1, found.type.list_size)
    return dict(zip(parts, matrix, strict=True))


def _shuffled(entities: Sequence[Entity]) -> NDArray[np.int64]:
    """For each entity the place of another one of its kind."""
    random = np.random.default_rng(0)
    kinds = np.array([entity.kind for entity in entities])
    places = np.arange(len(entities))
    for kind in KINDS:
        of_kind = random.permutation(np.flatnonzero(kinds == kind))
        places[of_kind] = np.roll(of_kind, 1)
    return places
