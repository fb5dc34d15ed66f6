"""The sections ``[grouping]`` and ``[knowledge]`` of a domain file."""

from pathlib import Path

import pytest

from dare_core.config.domains import read_domain
from dare_core.config.settings import PROJECT_DIR
from dare_core.errors import SettingError

MOVIES = (PROJECT_DIR / "config" / "movies.toml").read_text("utf-8")


def test_a_domain_without_the_section_groups_by_attribute_and_merges_nothing(tmp_path: Path) -> None:
    before, _, after = MOVIES.partition("[grouping.items]")
    (tmp_path / "shop.toml").write_text(before + "[knowledge]" + after.partition("[knowledge]")[2], "utf-8")
    grouping = read_domain(tmp_path / "shop.toml").grouping
    assert (grouping.items.min_count, grouping.items.several, grouping.users.clusters) == (1, "first", None)


@pytest.mark.parametrize(
    ("line", "wrong", "said"),
    [
        (
            "min_clusters = 4",
            "min_clusters = 13",
            r"grouping.users.clusters: .*max_clusters 12 is below min_clusters 13",
        ),
        ('rest = "rest"', 'rest = "*"', "grouping.items.rest: "),
        ('several = "first"', 'several = "some"', "grouping.items.several: "),
        (
            'embedded = "history+answer"',
            'embedded = "history"',
            r"knowledge.embedded: Input should be 'answer', 'attributes\+answer' or 'history\+answer'",
        ),
        ("min_interactions = 5", "min_interaction = 5", "grouping.users.clusters.min_interaction: "),
    ],
)
def test_a_wrong_value_is_named_by_its_key(tmp_path: Path, line: str, wrong: str, said: str) -> None:
    assert line in MOVIES
    (tmp_path / "shop.toml").write_text(MOVIES.replace(line, wrong), "utf-8")
    with pytest.raises(SettingError, match=said):
        read_domain(tmp_path / "shop.toml")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"x" * 32_769, "32769 bytes, of at most 32768; write it shorter"),
        (b"\xff", "not UTF-8 text: invalid start byte at byte 0"),
    ],
)
def test_a_template_that_is_no_text_of_usual_length_is_refused_by_its_file(
    tmp_path: Path, content: bytes, said: str
) -> None:
    (tmp_path / "shop.toml").write_text(MOVIES, "utf-8")
    file = tmp_path / "shop" / "prompts" / "user.md.j2"
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    with pytest.raises(SettingError, match=f"user.md.j2: {said}"):
        read_domain(tmp_path / "shop.toml")


@pytest.mark.parametrize(
    ("framework", "prompt"), [("once", "once@1"), ("kar@2", "kar@2"), ("kar@0", None), ("kar@", None), ("kra", None)]
)
def test_a_framework_is_named_with_or_without_a_version(tmp_path: Path, framework: str, prompt: str | None) -> None:
    (tmp_path / "shop.toml").write_text(MOVIES.replace('framework = "kar@1"', f'framework = "{framework}"'), "utf-8")
    if prompt is not None:
        knowledge = read_domain(tmp_path / "shop.toml").knowledge
        assert (knowledge.prompt, knowledge.framework_name) == (prompt, prompt.partition("@")[0])
        return
    with pytest.raises(
        SettingError, match=f"knowledge.framework: .*{framework!r} is no framework; there are kar, trawl"
    ):
        read_domain(tmp_path / "shop.toml")


def test_templates_are_files_and_no_key(tmp_path: Path) -> None:
    (tmp_path / "shop.toml").write_text("own_prompts = {}\n" + MOVIES, "utf-8")
    with pytest.raises(SettingError, match=r"own_prompts: put templates into .*shop/prompts; remove the line"):
        read_domain(tmp_path / "shop.toml")
