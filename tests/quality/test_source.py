from pathlib import Path

import pyarrow as pa
import pytest

from dare_core.config.domains import Domain, read_domain
from dare_core.config.settings import PROJECT_DIR
from dare_core.errors import QualityError, SettingError
from dare_core.quality.findings import require
from dare_core.quality.source import COLUMNS, COMMANDS, check_source, coverage, required, unique
from dare_core.schemas import SOURCE_FIGURE

STRICT = "\n[quality.source]\nattribute_coverage = { warn = 0.9, fail = 0.6 }\n"
MOVIES = PROJECT_DIR / "config" / "movies.toml"


def figures(entities: int = 2, **failing: list[str]) -> pa.Table:
    """Counts as Spark makes them of items: ids that fail, by rule; of attributes, by attribute."""
    named = {"columns": COLUMNS, "required": required("item"), "unique": unique("item"), "commands": COMMANDS}
    named |= {name: coverage("item", name) for name in ("title", "release_year", "genres")}
    rows = [
        {
            "rule": rule,
            "entities": entities,
            "failing": len(failing.get(name, [])),
            "examples": failing.get(name, [])[:2],
        }
        for name, rule in named.items()
    ]
    return pa.Table.from_pylist(rows, SOURCE_FIGURE)


def domain(tmp_path: Path, quality: str = "") -> Domain:
    (tmp_path / "movies.toml").write_text(MOVIES.read_text() + quality)
    return read_domain(tmp_path / "movies.toml")


def test_missing_attributes_and_titles_that_command_are_warned_of(tmp_path: Path) -> None:
    few = domain(tmp_path, "\n[quality.source]\ncoverage_min_rows = 3\n")
    counted = figures(3, genres=["i1"], release_year=["i0", "i2", "i1"], commands=["i<1>"])
    found = check_source(counted, few, "item", tmp_path / "docs", "run")
    assert [(finding.severity, finding.sentence) for finding in found] == [
        ("warning", "items with a value in release_year: 3 of 3 (i0, i2, …), bound 0.5"),
        ("warning", "titles that look like a command: 1 of 3 (i&lt;1&gt;), bound 0"),
    ]
    [page] = (tmp_path / "docs" / "validations" / "source_item").glob("run/*/*.html")
    assert "i<1>" not in page.read_text("utf-8")


def test_a_bound_that_fails_ends_the_run_and_is_named_once(tmp_path: Path) -> None:
    strict = domain(tmp_path, STRICT + "coverage_min_rows = 1\n")
    found = check_source(figures(1, genres=["1"], release_year=["1"]), strict, "item", tmp_path / "docs", "run")
    assert {finding.severity for finding in found} == {"critical"}
    assert len(found) == 2  # one for each attribute
    with pytest.raises(QualityError, match=r"the films cannot be used: items with a value in .* bound 0\.6; see"):
        require(found, "the films", tmp_path / "docs")


def test_coverage_of_few_changed_entities_is_not_looked_at(tmp_path: Path) -> None:
    counted = figures(49, genres=[str(number) for number in range(49)])
    assert check_source(counted, domain(tmp_path, STRICT), "item", tmp_path / "docs", "run") == []


def test_another_schema_a_missing_value_and_a_doubled_entity_are_critical(tmp_path: Path) -> None:
    counted = figures(3, columns=["price"], required=["2"], unique=["1", "1"])
    found = check_source(counted, domain(tmp_path), "item", tmp_path / "docs", "run")
    assert {(finding.severity, finding.rule) for finding in found} == {
        ("critical", "columns"),
        ("critical", "required values of items"),
        ("critical", "one row per item"),
    }


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("[quality.texts]\nmax_ecko = 0.3\n", r"movies\.toml: quality\.texts\.max_ecko: Extra inputs"),
        ("[quality.texts]\nmax_echo = 3\n", r"movies\.toml: quality\.texts\.max_echo: .*less than or equal to 1"),
        ("[quality.texts]\nlanguage = 'elvish'\n", r"movies\.toml: quality\.texts\.language: .*'any'"),
        ("[quality.features]\nnorm_drift = { wran = 1 }\n", r"quality\.features\.norm_drift\.wran: Extra inputs"),
        ("[quality.texts]\nmin_characters = 9\nmax_characters = 8\n", "max_characters 8 is below min_characters 9"),
    ],
)
def test_a_wrong_threshold_is_named_with_its_file(tmp_path: Path, written: str, said: str) -> None:
    with pytest.raises(SettingError, match=said):
        domain(tmp_path, f"\n{written}")
