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
