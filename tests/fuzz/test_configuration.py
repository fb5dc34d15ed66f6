"""Settings and domain files of any content: read, or refused in one line that says where the mistake is."""

import os
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dare_core.config.domains import Domain, domain_names, load_domain, read_domain
from dare_core.config.settings import PROJECT_DIR, Settings, load_settings
from dare_core.errors import SettingError
from dare_core.stages.request import RunRequest
from tests.fuzz.damage import damaged
from tests.fuzz.effort import tries

SHIPPED = (PROJECT_DIR / "config" / "movies.toml").read_bytes()
#: Values that a form, a script or a tired person may give for anything.
ODD = st.sampled_from(
    [
        "",
        " ",
        "0",
        "-1",
        "1e999",
        "nan",
        "-inf",
        "1_000",
        "true",
        "None",
        "[]",
        "{}",
        "..",
        "/",
        "x" * 10_000,
        "١٢",
        "1\n2",
    ]
) | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)


@pytest.fixture(autouse=True)
def _nothing_set(tmp_path: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        for name in list(os.environ):
            if name.startswith("DARE_"):
                patch.delenv(name)
        yield


@tries(250)
@given(name=st.sampled_from(sorted(Settings.model_fields)), value=ODD)
def test_a_setting_of_the_environment_is_used_or_refused_by_its_name(name: str, value: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(f"DARE_{name.upper()}", value)
        try:
            used(load_settings())
        except SettingError as error:
            assert f"setting {name} (DARE_{name.upper()})" in str(error)
            assert "\n" not in str(error)
            assert len(str(error)) < 1000


def used(settings: Settings) -> None:
    """What every run does with settings, whatever they are."""
    assert settings.run_dir("run").name == "run"
    settings.model_dump_json()


TOML = st.recursive(
    st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), inner, max_size=2)
    ),
    max_leaves=4,
)


def toml(value: Any) -> str:
    """A value as TOML writes it."""
    match value:
        case bool():
            return str(value).lower()
        case int() | float():
            return repr(value)
        case str():
            return '"' + "".join(f"\\U{ord(letter):08x}" for letter in value) + '"'
        case list():
            return f"[{', '.join(map(toml, value))}]"
        case dict():
            return "{" + ", ".join(f"{key} = {toml(inner)}" for key, inner in value.items()) + "}"
    raise AssertionError(value)


@tries(250)
@given(name=st.sampled_from([*sorted(Settings.model_fields), "no_such_setting"]), value=TOML)
def test_a_setting_of_the_file_is_used_or_refused_by_its_name(tmp_path: Path, name: str, value: Any) -> None:
    (tmp_path / "dare.toml").write_text(f"{name} = {toml(value)}\n", "utf-8")
    try:
        used(load_settings())
    except SettingError as error:
        assert f"setting {name}" in str(error)
        assert len(str(error)) < 1000


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff\xfe", "not valid TOML: 'utf-8' codec"),
        (b"batch_size = 4\0", "not valid TOML"),
        (b"batch_size = " + b"[" * 100_000, "not valid TOML"),
        (b"batch_size = " + b"9" * 5000, "dare.toml"),
        (b'data_dir = "a\\u0000b"', "setting data_dir .*NUL"),
    ],
)
def test_a_settings_file_that_is_none_is_said_to_be(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "dare.toml").write_bytes(content)
    with pytest.raises(SettingError, match=said):
        load_settings()


def test_times_without_end_are_refused_where_they_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "DEADLINE_HOURS",
        "KEEP_RUN_DAYS",
        "SHARD_MINUTES",
        "CHECKPOINT_SECONDS",
        "COST_PER_HOUR",
        "CACHE_GIB",
    ):
        with monkeypatch.context() as patch:
            patch.setenv(f"DARE_{name}", "inf")
            with pytest.raises(SettingError, match=name):
                load_settings()


def test_a_secret_that_is_no_text_is_refused_without_being_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dare_warehouse_url").write_bytes(b"postgresql://me:tell-no-one\xff@db/dare")
    monkeypatch.setenv("DARE_SECRETS_DIR", str(tmp_path))
    with pytest.raises(SettingError, match=r"warehouse_url.*UTF-8") as raised:
        load_settings()
    assert "tell-no-one" not in str(raised.value)


# Domain files


def parsed(path: Path) -> Domain | None:
    try:
        return read_domain(path)
    except SettingError as error:
        assert str(path) in str(error)
        assert "\n" not in str(error)
        return None


@tries(120)
@given(data=damaged(SHIPPED))
def test_a_damaged_domain_file_is_read_or_refused_by_its_name(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "movies.toml"
    path.write_bytes(data)
    if (domain := parsed(path)) is not None:
        assert domain.name == "movies"
        tomllib.loads(data.decode())


KEYS = [(section, key) for section, keys in tomllib.loads(SHIPPED.decode()).items() for key in keys]


@tries(250)
@given(place=st.sampled_from(KEYS), value=TOML)
def test_a_key_of_a_domain_with_any_value_is_read_or_refused(
    tmp_path: Path, place: tuple[str, str], value: Any
) -> None:
    section, key = place
    content = tomllib.loads(SHIPPED.decode())
    content[section][key] = value
    path = tmp_path / "movies.toml"
    path.write_text("\n".join(f"{name} = {toml(inner)}" for name, inner in content.items()), "utf-8")
    parsed(path)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('table = "ratings"', 'table = "../ratings"', "cannot name a file of source.location"),
        ('table = "ratings"', 'table = "/etc/ratings"', "cannot name a file of source.location"),
        ('table = "ratings"', 'table = ".."', "cannot name a file of source.location"),
        ('table = "ratings"', 'table = "rat\\u0000ings"', "NUL"),
        ("[source]", 'name = "../../movies"\n[source]', "a domain is called what its file is"),
        ("[source]", "[source]\noverlap_minutes = 999999999999", "overlap_minutes"),
    ],
)
def test_names_of_a_domain_file_lead_nowhere_else(tmp_path: Path, old: str, new: str, said: str) -> None:
    files = SHIPPED.decode().replace('format = "postgres"', 'format = "parquet"')
    path = tmp_path / "movies.toml"
    path.write_text(files, "utf-8")
    read_domain(path)
    assert old in files
    path.write_text(files.replace(old, new, 1), "utf-8")
    with pytest.raises(SettingError, match=said):
        read_domain(path)


@tries(150)
@given(
    name=st.text(max_size=80)
    | st.sampled_from(["..", "../movies", "movies/../movies", "movies\0", "Movies", "m" * 300])
)
def test_a_domain_is_found_by_the_name_of_its_file_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / "movies.toml").write_bytes(SHIPPED)
    settings = Settings(config_dir=tmp_path, warehouse_url=None)
    assert domain_names(settings) == ["movies"]
    if name == "movies":
        return
    with pytest.raises(SettingError, match="is not configured"):
        load_domain(settings, name)


@tries(200)
@given(run_id=st.text(max_size=220) | st.sampled_from(["..", ".", "a/b", "a\\b", "a\0", "a" * 201, "-x", "a\n"]))
def test_a_run_id_is_a_plain_name_or_refused(tmp_path: Path, run_id: str) -> None:
    try:
        request = RunRequest(run_id=run_id)
    except ValueError:
        return
    folder = Settings(data_dir=tmp_path, warehouse_url=None).run_dir(request.run_id)
    assert folder.resolve().parent == (tmp_path / "runs").resolve()
    assert run_id.isascii() and len(run_id) <= 200
