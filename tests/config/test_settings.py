import re
from pathlib import Path

import pytest

from dare_core.config.domains import load_domain, misnamed_files, read_domain
from dare_core.config.settings import PROJECT_DIR, load_settings
from dare_core.errors import SettingError


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DARE_CONFIG", raising=False)


def test_the_environment_wins_over_the_file_which_wins_over_defaults(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert load_settings().batch_size == 16
    (tmp_path / "dare.toml").write_text("batch_size = 4\ntop_k = 3\n")
    assert load_settings().batch_size == 4
    monkeypatch.setenv("DARE_BATCH_SIZE", "8")
    assert (load_settings().batch_size, load_settings().top_k) == (8, 3)
    assert load_settings(batch_size=2).batch_size == 2


def test_another_file_can_be_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "production.toml").write_text('verification = "strict"\n')
    monkeypatch.setenv("DARE_CONFIG", str(tmp_path / "production.toml"))
    assert load_settings().verification == "strict"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("TOP_K", "0", "setting top_k (DARE_TOP_K) is '0': Input should be greater than or equal to 1"),
        (
            "VERIFICATION",
            "lax",
            "setting verification (DARE_VERIFICATION) is 'lax': Input should be 'strict' or 'relaxed'",
        ),
        ("MIN_PROB", "1.5", "setting min_prob (DARE_MIN_PROB) is '1.5': Input should be less than or equal to 1"),
        ("DTYPE", "int3", "DARE_DTYPE"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    monkeypatch.setenv(f"DARE_{name}", value)
    with pytest.raises(SettingError) as error:
        load_settings()
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_misspelt_name_and_a_broken_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "dare.toml").write_text("batchsize = 4\n")
    with pytest.raises(SettingError, match=r"setting batchsize \(DARE_BATCHSIZE\) does not exist"):
        load_settings()
    (tmp_path / "dare.toml").write_text("batch_size 4\n")
    with pytest.raises(SettingError, match=r"dare\.toml is not valid TOML"):
        load_settings()


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("DARE_BATCHSIZE", "batch_size (DARE_BATCH_SIZE)"),
        ("dare_verfication", "verification (DARE_VERIFICATION)"),
        ("DARE_WAREHOSE_URL", "warehouse_url (DARE_WAREHOUSE_URL)"),
        ("DARE_SECRET_DIR", "secrets_dir (DARE_SECRETS_DIR)"),
        ("DARE_AIRFLOWPORT", "airflow_port (DARE_AIRFLOW_PORT)"),
    ],
)
def test_a_misspelt_variable_is_refused_with_the_nearest_setting(
    monkeypatch: pytest.MonkeyPatch, name: str, meant: str
) -> None:
    monkeypatch.setenv(name, "x")
    with pytest.raises(SettingError, match=re.escape(f"({name}) does not exist; did you mean {meant}?")):
        load_settings()
    monkeypatch.setenv(name, "")
    load_settings()


def test_a_misspelt_file_of_the_secrets_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dare_warehouse_ulr").write_text("postgresql://db/dare")
    monkeypatch.setenv("DARE_SECRETS_DIR", str(tmp_path))
    with pytest.raises(SettingError, match=r"\(dare_warehouse_ulr\) does not exist; did you mean warehouse_url"):
        load_settings()


def test_variables_that_are_somebody_elses_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DARE_UID", "1000")
    monkeypatch.setenv("DARE_WEB_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("DARE_WEB_SERVICE_PORT", "80")
    monkeypatch.setenv("DARE_WEB_PORT", "tcp://10.0.0.1:80")
    monkeypatch.setenv("DARE_WEB_PORT_80_TCP_ADDR", "10.0.0.1")
    load_settings()


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("ghost://bucket/dare", "no installed filesystem serves the URL ghost://bucket/dare"),
        ("s3://key:very-secret@bucket/dare", "leave it out, and give it by environment variables"),
    ],
)
def test_storage_that_nothing_serves_or_that_shows_a_password_is_refused(url: str, why: str) -> None:
    with pytest.raises(SettingError, match=rf"storage \(DARE_STORAGE\) .*{why}") as refused:
        load_settings(storage=url)
    assert "very-secret" not in str(refused.value)


def test_what_machines_share_lies_in_the_storage_and_without_one_in_the_data_folder(tmp_path: Path) -> None:
    remote = load_settings(data_dir=tmp_path, storage="memory://bucket/dare")
    assert str(remote.run_dir("r1")) == "memory://bucket/dare/runs/r1"
    assert str(remote.pool_dir("movies", "item")) == "memory://bucket/dare/pools/movies/item"
    assert remote.pool_cache_dir.is_relative_to(tmp_path)
    assert load_settings(data_dir=tmp_path).run_dir("r1") == tmp_path / "runs" / "r1"
    assert load_settings(storage="shared").shared == Path("shared").absolute()
    assert load_settings(storage=f"file://{tmp_path}").data_docs_dir == tmp_path / "data_docs"


@pytest.mark.parametrize("name", ["data_dir", "config_dir", "jdbc_driver_jar"])
@pytest.mark.parametrize("url", ["s3://bucket/dare", "gs://bucket", "file:///data", "hdfs:/data"])
def test_a_url_where_a_path_is_needed_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, url: str) -> None:
    monkeypatch.setenv(f"DARE_{name.upper()}", url)
    with pytest.raises(SettingError, match=rf"{name} .*a URL is not allowed; give a path on this machine"):
        load_settings()


@pytest.mark.parametrize("name", ["My-Shop.toml", "shop.TOML", "2nd.toml", "my shop.toml"])
def test_a_domain_file_whose_name_is_no_domains_is_named_with_the_rule(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("")
    (tmp_path / ".#movies.toml").touch()
    settings = load_settings(config_dir=tmp_path)
    [error] = misnamed_files(settings)
    assert str(error).startswith(f"{tmp_path / name} is not read: a domain's file is called <name>.toml")
    with pytest.raises(SettingError, match=r"there are: none; .* is not read"):
        load_domain(settings, Path(name).stem)


def test_a_config_file_that_is_named_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DARE_CONFIG", "nowhere.toml")
    with pytest.raises(SettingError, match=r"DARE_CONFIG names nowhere\.toml, which is not there"):
        load_settings()


def test_a_password_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DARE_WAREHOUSE_URL", "postgresql://me:tell-no-one@db/dare")
    assert "tell-no-one" not in repr(load_settings())
    assert "tell-no-one" not in load_settings().model_dump_json()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("endpoint_key", "sk-tell no-one", "only visible ASCII characters"),
        ("endpoint_key", "sk-tell\nno-one", "only visible ASCII characters"),
        ("endpoint_key", "sk-tell-no-oné", "only visible ASCII characters"),
        ("endpoint_url", "https://me:tell-no-one@api.example.com/v1", "give the key as endpoint_key"),
        ("endpoint_url", "https://api.example.com/v1?key=tell-no-one", "a query"),
        ("endpoint_url", "api.example.com/v1", "http:// or https://"),
        ("endpoint_url", "ftp://api.example.com/v1", "http:// or https://"),
        ("endpoint_url", "http://api.example.com:99999/v1", "http:// or https://"),
        ("endpoint_url", "http:///v1", "http:// or https://"),
        ("endpoint_url", "http://[::1/v1", "http:// or https://"),
        ("endpoint_url", "http://api.exämple.com/v1", "in ASCII"),
    ],
)
def test_a_wrong_endpoint_is_refused_and_its_value_not_shown(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    monkeypatch.setenv(f"DARE_{name.upper()}", value)
    with pytest.raises(SettingError, match=re.escape(f"{name} (DARE_{name.upper()}) is its value: ")) as caught:
        load_settings()
    assert said in str(caught.value)
    assert value not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [("endpoint_concurrency", "0"), ("endpoint_requests_per_minute", "0"), ("endpoint_tokens_per_minute", "-1"),
     ("endpoint_timeout", "0"), ("endpoint_retries", "-1"), ("endpoint_may_see_users", "perhaps"), ("engine", "api")],
)  # fmt: skip
def test_a_wrong_value_of_the_endpoint_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"DARE_{name.upper()}", value)
    with pytest.raises(SettingError, match=rf"setting {name} \(DARE_{name.upper()}\) is '{value}': "):
        load_settings()


def test_the_endpoint_s_key_comes_from_a_file_and_is_shown_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dare_endpoint_key").write_text("sk-tell-no-one\n")
    monkeypatch.setenv("DARE_SECRETS_DIR", str(tmp_path))
    monkeypatch.setenv("DARE_ENDPOINT_URL", "https://api.example.com/v1/")
    found = load_settings()
    assert found.endpoint_url == "https://api.example.com/v1"
    assert found.endpoint_key is not None and found.endpoint_key.get_secret_value() == "sk-tell-no-one"
    assert "tell-no-one" not in repr(found) + found.model_dump_json()


def test_the_shipped_domain_is_valid_and_others_are_said_not_to_be_there() -> None:
    assert load_domain(load_settings(), "movies").knowledge.noun == "movie"
    for name in ("books", "../movies", "Movies"):
        with pytest.raises(SettingError, match="there are: movies"):
            load_domain(load_settings(), name)


def test_a_domain_file_with_a_mistake_is_named_with_the_key(tmp_path: Path) -> None:
    shipped = (PROJECT_DIR / "config" / "movies.toml").read_text()
    path = tmp_path / "shop.toml"
    path.write_text(shipped.replace('time = "rated_at"', ""))
    with pytest.raises(SettingError, match=r"shop\.toml: source\.interactions\.time: Field required"):
        read_domain(path)
    path.write_text(shipped.replace("[source]", "[source"))
    with pytest.raises(SettingError, match=r"shop\.toml: not valid TOML"):
        read_domain(path)


def test_a_file_of_the_secrets_folder_holds_a_setting_that_the_environment_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dare_warehouse_url").write_text("postgresql://of-the-file/dare\n")
    (tmp_path / "fernet_key").write_text("somebody else's")
    monkeypatch.setenv("DARE_SECRETS_DIR", str(tmp_path))
    monkeypatch.setenv("DARE_WAREHOUSE_URL", "")
    found = load_settings().warehouse_url
    assert found is not None and found.get_secret_value() == "postgresql://of-the-file/dare"

    monkeypatch.setenv("DARE_WAREHOUSE_URL", "postgresql://of-the-environment/dare")
    found = load_settings().warehouse_url
    assert found is not None and found.get_secret_value() == "postgresql://of-the-environment/dare"


def test_a_secrets_folder_that_is_not_there_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DARE_SECRETS_DIR", str(tmp_path / "none"))
    with pytest.raises(SettingError, match="DARE_SECRETS_DIR"):
        load_settings()
