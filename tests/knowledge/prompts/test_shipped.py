"""The prompts that ship: version 1 says what was said before there were versions, kar@2 shares more of its front."""

import json
import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, Final, get_args

import pytest

from dare_core.config.domains import Domain, Framework, load_domain
from dare_core.config.settings import load_settings
from dare_core.errors import InputError, SettingError
from dare_core.knowledge.chat import ChatEncoder
from dare_core.knowledge.prompts import render
from dare_core.knowledge.prompts.checks import check_prompts, tokens
from dare_core.knowledge.prompts.templates import template_of
from dare_core.knowledge.requests import Decoding, fit_prompt, identify_settings
from dare_core.schemas import KINDS, Kind
from dare_core.sources.movielens import read_movielens
from dare_core.sources.shop import make_shop
from tests.support import first_wording

FRAMEWORKS: Final = get_args(Framework)
DOMAINS: Final = ("movies", "shop")
DECODING: Final = Decoding("m", "hash", "relaxed", 2, 0.1, 96)
#: What sources hold, beside what they should.
ODD: Final = [
    None, "", " ", [], 0, 0.0, 4.5, 1e20, True, "a\nb", "x\0y", "{{ title }}", "{% for", "{#", ["a", "", "b|c"],
    "\u2028", "<|im_end|>", '"quoted"', "(1) ", "é☕",
]  # fmt: skip


def asking(domain: Domain, framework: str) -> Domain:
    return domain.model_copy(update={"knowledge": domain.knowledge.model_copy(update={"framework": framework})})


def entities(name: str, domain: Domain) -> Iterator[tuple[Kind, dict[str, Any]]]:
    """Real items and users of a domain's source, every so many of them, as pulls leave them."""
    read = read_movielens() if name == "movies" else make_shop(300, 120, 0, until=datetime(2026, 1, 1, tzinfo=UTC))
    tables = {table: rows.to_pylist() if hasattr(rows, "to_pylist") else rows.read_all().to_pylist()
              for table, rows in read.items()}  # fmt: skip
    source = domain.source
    shown = ("title", *source.items.attributes)
    items = {row[source.items.id]: row for row in tables[source.items.table]}
    for row in list(items.values())[::9]:
        yield "item", {column: row[column] for column in shown}
    met = defaultdict(list)
    for row in tables[source.interactions.table]:
        met[row[source.interactions.user]].append(row)
    for user in tables[source.users.table][::20]:
        history = [
            {column: items[row[source.interactions.item]][column] for column in shown}
            | {"value": float(row[source.interactions.value])}
            for row in met[user[source.users.id]][-20:]
        ]
        yield "user", {column: user[column] for column in source.users.attributes} | {"history": history}


def odd_entities(domain: Domain, count: int) -> Iterator[tuple[Kind, dict[str, Any]]]:
    drawn = random.Random(0)

    def made(*names: str) -> dict[str, Any]:
        return {name: drawn.choice(ODD) for name in names if drawn.random() < 0.9}

    for _ in range(count):
        yield "item", made("title", *domain.source.items.attributes)
        entries = [made("title", "value", *domain.source.items.attributes) for _ in range(drawn.randrange(5))]
        yield "user", made(*domain.source.users.attributes) | {"history": entries}


def said(ask: Callable[..., Any], *about: Any) -> dict[str, Any] | str:
    try:
        return vars(ask(*about))
    except InputError as error:
        return str(error)


@pytest.mark.parametrize("name", DOMAINS)
def test_version_1_of_every_framework_is_the_first_wording_to_the_token(name: str, encoder: ChatEncoder) -> None:
    domain = load_domain(load_settings(), name)
    compared = set()
    for kind, entity in (*entities(name, domain), *odd_entities(domain, 60)):
        for framework in FRAMEWORKS:
            before = said(first_wording.render, asking(domain, framework), kind, entity)
            now = said(render, asking(domain, f"{framework}@1"), kind, entity)
            assert now == before
            if isinstance(before, dict) and isinstance(now, dict):
                assert encoder.encode(**now) == encoder.encode(**before)
                compared.add((framework, kind))
    assert len(compared) == len(FRAMEWORKS) * len(KINDS)


@pytest.mark.parametrize("name", DOMAINS)
def test_the_shipped_domains_and_files_without_a_version_ask_with_version_1(name: str) -> None:
    domain = load_domain(load_settings(), name)
    for of_file in (domain, asking(domain, "kar")):
        assert {template_of(of_file, kind).version for kind in KINDS} == {"kar@1"}


def test_a_version_that_does_not_exist_is_refused_with_those_that_do(movies: Domain) -> None:
    with pytest.raises(
        SettingError, match=r"domain movies: knowledge.framework: there is no 'kar@9'; there are: kar@1, "
    ):
        template_of(asking(movies, "kar@9"), "item")


@pytest.mark.parametrize(("kind", "of_first"), [("item", 0.4), ("user", 0.4)])
def test_kar_2_shares_all_but_the_entity_at_the_front(
    movies: Domain, encoder: ChatEncoder, kind: Kind, of_first: float
) -> None:
    first, second = (asking(movies, f"kar@{version}") for version in (1, 2))
    shares = {}
    for domain in (first, second):
        facts = check_prompts(domain, kind, encoder, 1000)
        shares[domain.knowledge.prompt] = facts.shared_tokens / facts.least_tokens
    assert shares["kar@1"] < of_first
    assert shares["kar@2"] > 0.7
    item = {"title": "Heat", "release_year": 1995, "history": [{"title": "Heat", "value": 4.0}]}
    message = render(second, kind, item).message
    assert all(factor in message for factor in movies.knowledge.factors)
    assert message.index("Heat") > max(message.index(factor) for factor in movies.knowledge.factors)


def test_another_version_is_another_prompt_and_another_settings_id(movies: Domain, encoder: ChatEncoder) -> None:
    item = {"title": "Heat"}
    first, second = (asking(movies, f"kar@{version}") for version in (1, 2))
    assert tokens(encoder, render(first, "item", item)) != tokens(encoder, render(second, "item", item))
    assert fit_prompt(second, "item", item, encoder, 500).token_ids == tokens(encoder, render(second, "item", item))
    ids = {identify_settings(domain, "item", DECODING, "files", 100) for domain in (first, second)}
    assert len(ids) == 2


def test_json_of_an_item_is_read_back(movies: Domain) -> None:
    title = 'A "film" {{ title }} \\'
    asked = render(asking(movies, "rlmrec"), "item", {"title": title, "genres": ["Drama"]})
    assert json.loads(asked.message) == {"title": title, "genres": ["Drama"]}
