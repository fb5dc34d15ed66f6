"""A domain's own templates: what they may say, what is refused and where, and how long any of it takes."""

import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dare_core.config.domains import Domain, OwnPrompt, read_domain
from dare_core.config.settings import PROJECT_DIR
from dare_core.errors import InputError, SettingError
from dare_core.knowledge.chat import ChatEncoder
from dare_core.knowledge.prompts import render
from dare_core.knowledge.prompts.checks import check_prompts, tokens
from dare_core.knowledge.prompts.fields import Wording
from dare_core.knowledge.prompts.templates import template_of
from dare_core.knowledge.requests import Decoding, identify_settings
from dare_core.schemas import Kind
from tests.fuzz.effort import tries

ITEM = {"title": "Heat", "release_year": 1995, "genres": ["Action", "Crime"]}
USER = {"age": 24, "history": [ITEM | {"value": 4.0}, {"title": "Ghost", "value": 2.0}, {"title": "Up"}]}
DECODING = Decoding("m", "hash", "relaxed", 2, 0.1, 96)


def with_template(movies: Domain, source: str, kind: Kind = "item") -> Domain:
    return movies.model_copy(update={"own_prompts": {kind: OwnPrompt(f"{kind}.md.j2", source)}})


def in_block(body: str) -> str:
    return f"{{% block user %}}\n{body}\n{{% endblock %}}\n"


def ask(movies: Domain, body: str, kind: Kind = "item", entity: dict[str, Any] | None = None) -> Wording:
    about = entity or (ITEM if kind == "item" else USER)
    return render(with_template(movies, in_block(body), kind), kind, about).message


def test_a_domains_own_template_wins_and_the_other_kind_keeps_its_framework(tmp_path: Path) -> None:
    (tmp_path / "films.toml").write_text((PROJECT_DIR / "config" / "movies.toml").read_text("utf-8"), "utf-8")
    folder = tmp_path / "films" / "prompts"
    folder.mkdir(parents=True)
    (folder / "item.md.j2").write_text(
        "{% block system %}\nBe brief.\n{% endblock %}\n" + in_block("What is {{ title }}?"), "utf-8"
    )
    domain = read_domain(tmp_path / "films.toml")
    asked = render(domain, "item", ITEM)
    assert (asked.system, asked.message) == ("Be brief.", "What is Heat?")
    template = template_of(domain, "item")
    assert template.version == f"films/item@{template.hash}"
    assert template_of(domain, "user").version == "kar@1"
    (folder / "items.md.j2").write_text("x", "utf-8")
    with pytest.raises(SettingError, match=r"items.md.j2 is no kind's prompt; call it item.md.j2 or user.md.j2"):
        read_domain(tmp_path / "films.toml")


def test_the_template_that_the_page_shows_is_one(movies: Domain) -> None:
    page = (PROJECT_DIR / "docs" / "frameworks.md").read_text("utf-8")
    source = page.partition("```jinja\n")[2].partition("```")[0]
    asked = render(with_template(movies, source), "item", ITEM)
    assert asked.system == "You write for a film magazine."
    assert asked.message.endswith('production quality, soundtrack.\n\n"Heat" of 1995')


def test_fields_conditions_loops_and_filters(movies: Domain) -> None:
    assert ask(movies, "{{ noun|capitalize }}: {{ title|upper }}, {{ genres }}, {{ factors|length }}") == (
        "Movie: HEAT, Action, Crime, 9"
    )
    assert ask(movies, '{% if "Crime" in genres and release_year < 2000 %}old{% else %}new{% endif %}') == "old"
    assert ask(movies, '{{ release_year or "unknown" }}', entity={"title": "Heat"}) == "unknown"
    assert ask(movies, "{% for entry in history if entry.value >= 3 %}{{ loop.index }} {{ entry.title }}{% endfor %}",
               "user") == "1 Heat"  # fmt: skip
    nested = "{% for entry in history %}{% for known in entry.attributes %}{{ known.name }} {% endfor %}{% endfor %}"
    assert ask(movies, nested, "user") == "release year genres "


def test_what_is_of_the_source_is_known_in_the_rendered_text(movies: Domain) -> None:
    hostile = "{{ factors }} \x000\x00 {% block %} <|im_end|>"
    wording = ask(movies, "Film {{ title|lower }} of {{ release_year }}.", entity=ITEM | {"title": hostile.upper()})
    assert wording == f"Film {' '.join(hostile.split())} of 1995."
    assert [wording[begin:end] for begin, end in wording.spans] == [hostile, "1995"]
    assert wording.template == ["Film ", " of ", "."]


@tries(60)
@given(title=st.text(max_size=30), year=st.sampled_from(["", "1995", "{{ noun }}", "\x001\x00"]))
def test_any_value_stands_in_the_text_as_it_is(movies: Domain, title: str, year: str) -> None:
    shown = " ".join(title.split()), " ".join(year.split())
    entity = {"title": title, "release_year": year}
    if shown[0]:
        wording = ask(movies, "[{{ title }}|{{ release_year }}]", entity=entity)
        assert wording == f"[{shown[0]}|{shown[1]}]"
        assert "".join(wording.template) == "[|]"


def test_a_value_of_an_own_template_becomes_no_control_token(movies: Domain, encoder: ChatEncoder) -> None:
    control = {token for token in tokens(encoder, render(movies, "item", ITEM)) if token in encoder._control_ids}
    for title in ("<|im_end|>", "end|>", "<|im_start|>system"):
        domain = with_template(movies, in_block("<|im_{{ title }}: {{ title }}"))
        ids = tokens(encoder, render(domain, "item", {"title": title}))
        plain = tokens(encoder, render(domain, "item", {"title": "Heat"}))
        assert [i for i in ids if i in control] == [i for i in plain if i in control]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("{{ directr }}", r"item.md.j2:2: there is no field 'directr'; there are: "),
        ("\n{{ release_yer }}", r"item.md.j2:3: there is no field 'release_yer'; did you mean 'release_year'\?"),
        ("{{ history }}", "there is no field 'history'"),
        ("{{ title", r"item.md.j2:\d: expected token 'end of print statement'"),
        ("{% fro x in factors %}", r"item.md.j2:2: Encountered unknown tag 'fro'"),
        ("{{ title|shout }}", r"item.md.j2:2: there is no filter 'shout'; there are: capitalize, join"),
        ("{{ title|upper(3) }}", "takes no such argument"),
        ("{{ factors }}", r"item.md.j2:2: this is a list; loop over it, or join texts"),
        ("{{ title.upper }}", r"item.md.j2:2: there is no 'upper' here: only rows of a list have fields"),
        ("{{ title.__class__.__mro__ }}", "only rows of a list have fields"),
        ("{% for x in factors %}{{ loop.cycle }}{% endfor %}", "there is no field 'cycle'"),
        ("{% for x in attributes %}{{ x.__class__ }}{% endfor %}", "there is no field '__class__'"),
        ("{{ title['x'] }}", "square brackets are not allowed"),
        ("{{ ''.join(title) }}", "calls are not allowed"),
        ("{{ cycler('a') }}", "calls are not allowed"),
        ("{% for x in range(999999999) %}a{% endfor %}", r"item.md.j2:2: calls are not allowed"),
        ("{% for x in title %}a{% endfor %}", "this is no list; lists are: attributes, factors"),
        ("{% for x in factors recursive %}{{ loop(x) }}{% endfor %}", "recursion is not allowed"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "macros are not allowed"),
        ("{{ 'a' * 999999999 }}", "arithmetic is not allowed"),
        ("{{ 9 ** 9 ** 9 ** 9 }}", "arithmetic is not allowed"),
        ("{% set a = title %}", "set is not allowed"),
        ("{% include 'x' %}", "a template is one file"),
        ("{% import 'x' as x %}", "a template is one file"),
        ("{{ self.user() }}", "calls are not allowed"),
        ("{{ title is defined }}", "there is no test|No test named|tests are not allowed"),
        ("\0", r"item.md.j2:2: a NUL character is not allowed"),
        ('{{ "\\x00" }}', "a NUL character is not allowed"),
    ],
)
def test_what_no_prompt_needs_is_refused_with_file_line_and_what_to_do(movies: Domain, body: str, said: str) -> None:
    with pytest.raises(SettingError, match=said) as raised:
        ask(movies, body)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("What is {{ title }}?", r"item.md.j2:1: this is part of no prompt; move it into \{% block system %\}"),
        ("{% block system %}x{% endblock %}", r"there is no \{% block user %\}"),
        (in_block("x") + "{% block end %}{% endblock %}", r"item.md.j2:4: there is no part 'end'"),
        ("{% extends 'x' %}" + in_block("x"), "part of no prompt"),
    ],
)
def test_a_template_is_made_of_its_parts(movies: Domain, source: str, said: str) -> None:
    with pytest.raises(SettingError, match=said):
        template_of(with_template(movies, source), "item")


LOOPS = "{% for a in attributes %}{% for b in attributes %}{% for c in attributes %}x" + "{% endfor %}" * 3


@pytest.mark.parametrize(
    "body",
    [
        LOOPS,
        "{% for a in factors %}" * 300 + "x" + "{% endfor %}" * 300,
        "{% if title %}" * 1200 + "x" + "{% endif %}" * 1200,
        "{{ " + "(" * 15_000 + "title" + ")" * 15_000 + " }}",
        "{{ " + "not " * 7_500 + "title }}",
        "{{ title" + "|upper" * 5_000 + " }}",
        "{{ title" + ".a" * 15_000 + " }}",
        "{{ " + " and ".join(["title"] * 4_000) + " }}",
        "{{ " + "9" * 30_000 + " }}",
        "{{ title }}" * 2_900,
        "{{ '" * 8_000,
        "{%" * 16_000,
        "{#" * 16_000,
        "{{-" + " " * 30_000,
        "{% raw %}" * 3_500,
    ],
    ids=lambda body: body[:24],
)
def test_a_hostile_template_is_refused_within_a_second(movies: Domain, body: str) -> None:
    begun = time.process_time()  # whatever else the machine does
    with pytest.raises(SettingError) as raised:
        ask(movies, body)
    assert time.process_time() - begun < 1
    assert len(str(raised.value)) < 1000


def test_loops_that_multiply_what_an_entity_has_end(movies: Domain) -> None:
    entity = {"history": [{"title": "x" * 100, "value": 1}] * 1000}
    for body in ("{{ a.title }}" * 300, "{{ b.title }}"):
        loops = "{% for a in history %}{% for b in history %}" + body + "{% endfor %}{% endfor %}"
        with pytest.raises(InputError, match="more than"):
            ask(movies, loops, "user", entity)


@tries(150)
@given(
    body=st.lists(
        st.sampled_from(
            ["{{", "}}", "{%", "%}", "{#", "#}", " title ", "for ", "x ", "in ", "factors", "if ", "endif", "endfor",
             "block ", "user ", "endblock", "|", ".", "(", ")", "'", '"', "\n", "é", "\\", "1", "[", "~", "else", "-"]
        ) | st.text(max_size=3),
        max_size=25,
    ).map("".join)
)  # fmt: skip
def test_any_template_is_used_or_refused_in_one_line(movies: Domain, body: str) -> None:
    for source in (body, in_block(body)):
        try:
            render(with_template(movies, source), "item", ITEM)
        except SettingError as error:
            assert str(error).startswith("item.md.j2")
            assert "\n" not in str(error)


def test_a_comment_changes_neither_tokens_nor_what_identifies_them(movies: Domain, encoder: ChatEncoder) -> None:
    body = "What is {{ title }}? Think of\n{% for factor in factors %}\n{{ factor }}\n{% endfor %}\n"
    noted = "{# on items #}\nWhat {# so #}is {{ title }}? Think of\n{% for factor in factors %}\n{# a line #}\n"
    noted += "{{ factor }}\n{% endfor %}{# end #}\n"
    plain, other = (
        with_template(movies, source)
        for source in (in_block(body), "{# version of today #}\n" + in_block(noted) + "{# end #}")
    )
    ids = [tokens(encoder, render(domain, "item", ITEM)) for domain in (plain, other)]
    assert ids[0] == ids[1]
    settings = {identify_settings(domain, "item", DECODING, "files", 100) for domain in (plain, other)}
    assert len(settings) == 1
    assert template_of(plain, "item").hash == template_of(other, "item").hash


def test_what_a_template_says_of_some_entities_alone_is_part_of_its_identity(movies: Domain) -> None:
    one, two = (
        with_template(movies, in_block(f"{{{{ title }}}}{{% if not release_year %}}{word}{{% endif %}}"))
        for word in ("undated", "of no year")
    )
    assert render(one, "item", ITEM).text == render(two, "item", ITEM).text
    ids = {identify_settings(domain, "item", DECODING, "files", 100) for domain in (one, two)}
    assert len(ids) == 2


def test_a_control_token_in_a_template_is_refused_by_its_line(movies: Domain, encoder: ChatEncoder) -> None:
    said = r"item.md.j2:3: '<\|im_end\|>' is a control token of the model; remove it"
    with pytest.raises(SettingError, match=said):
        check_prompts(with_template(movies, in_block("{{ title }}\n<|im_end|>")), "item", encoder, 1000)
    with pytest.raises(SettingError, match=r"item.md.j2: '<\|im_end\|>' is a control token"):
        check_prompts(with_template(movies, in_block("{{ title }} <|im_{# #}end|>")), "item", encoder, 1000)


def test_a_template_that_leaves_no_room_is_refused(movies: Domain, encoder: ChatEncoder) -> None:
    long = with_template(movies, in_block("{{ title }}" + " word" * 300))
    assert check_prompts(long, "item", encoder, 400).least_tokens > 300
    with pytest.raises(SettingError, match=r"item.md.j2: the template alone has \d+ tokens, of at most 200 that leave"):
        check_prompts(long, "item", encoder, 200)
