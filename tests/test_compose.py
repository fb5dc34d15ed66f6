"""docker-compose.yml, read as data: what a careless edit would break and no engine here would notice."""

import configparser
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from dare_core.config.settings import PROJECT_DIR, Settings
from scripts.make_secrets import make_secrets
from tests.support.local_cluster import CLUSTER_ENV

FILE = PROJECT_DIR / "docker-compose.yml"
COMPOSE: dict[str, Any] = yaml.safe_load(FILE.read_text("utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
ONCE = {"init", "setup"}  # they do their work and end
LASTING = sorted(SERVICES.keys() - ONCE)


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "secrets"
    assert make_secrets(folder, postgres="postgres:5432", redis="redis:6379")
    return folder


def words(service: dict[str, Any]) -> str:
    """A service's command in one line."""
    command = service["command"]
    return command if isinstance(command, str) else " ".join(command)


def serves(service: dict[str, Any]) -> list[str]:
    """The queues of a Celery worker."""
    return re.findall(r"celery worker --queues (\S+)", words(service))


def test_every_part_of_the_cluster_is_a_service() -> None:
    assert SERVICES.keys() >= {
        *("postgres", "redis", "object-store", "spark-master", "spark-worker"),
        *("api-server", "scheduler", "dag-processor", "triggerer", "worker-cpu", "worker-gpu", "init", "setup"),
    }


@pytest.mark.parametrize("name", LASTING)
def test_a_lasting_service_has_a_health_check_and_is_started_again(name: str) -> None:
    assert SERVICES[name]["healthcheck"]["test"]
    assert SERVICES[name]["restart"] == "unless-stopped"


@pytest.mark.parametrize("name", sorted(ONCE))
def test_a_service_that_prepares_something_runs_once(name: str) -> None:
    assert SERVICES[name]["restart"] == "no"


def test_only_the_ui_is_published_and_on_loopback() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published == {"api-server": ["127.0.0.1:8080:8080"]}
    assert not any("network_mode" in service for service in SERVICES.values())


def test_no_two_services_have_a_folder_in_common() -> None:
    mounts = [mount for service in SERVICES.values() for mount in service.get("volumes", ()) if ":" in mount]
    writable = [mount.partition(":")[0] for mount in mounts if not mount.endswith(":ro")]
    assert sorted(writable) == sorted(COMPOSE["volumes"])  # each is one service's


def ours() -> dict[str, dict[str, Any]]:
    """The services that run our image."""
    return {name: service for name, service in SERVICES.items() if service["image"].startswith("dare-platform:")}


@pytest.mark.parametrize("name", sorted(ours()))
def test_what_is_ours_has_a_folder_of_its_own_and_shares_by_the_object_store(name: str) -> None:
    service = SERVICES[name]
    dockerfile = (PROJECT_DIR / service["build"]["dockerfile"]).read_text("utf-8")
    (folder,) = re.findall(r"DARE_DATA_DIR=(\S+)", dockerfile)
    assert folder in service["volumes"]
    assert service["env_file"] == "docker/cluster.env"
    assert service["environment"]["AWS_ENDPOINT_URL"] == "http://object-store:9000"
    if name not in ("setup", "spark-master"):  # which read and write nothing there
        assert "object_store_credentials" in service["secrets"]


def test_the_bucket_is_made_before_anything_needs_it() -> None:
    assert variables()["DARE_STORAGE"].startswith("s3://dare/")
    assert "makedirs('dare', exist_ok=True)" in words(SERVICES["init"])
    assert SERVICES["init"]["depends_on"]["object-store"] == {"condition": "service_healthy"}


def test_the_platform_and_the_object_store_know_one_another_by_the_same_secret(secrets: Path) -> None:
    read = configparser.ConfigParser()
    read.read(secrets / Path(variables()["AWS_SHARED_CREDENTIALS_FILE"]).name, "ascii")
    assert dict(read["default"]) == {
        "aws_access_key_id": SERVICES["object-store"]["environment"]["MINIO_ROOT_USER"],
        "aws_secret_access_key": (secrets / "object_store_password").read_text("ascii"),
    }


def test_the_gpu_worker_serves_the_generation_queue_with_a_device_of_its_own() -> None:
    (device,) = SERVICES["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "device_ids": ["0"], "capabilities": ["gpu"]}
    queues = {name: serves(service) for name, service in SERVICES.items() if name.startswith("worker")}
    assert queues == {"worker-cpu": ["default"], "worker-gpu": ["gpu"]}


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_images_are_pinned_and_the_dockerfiles_named_are_there(name: str) -> None:
    service = SERVICES[name]
    tag = service["image"].rpartition(":")[2]
    assert re.search(r"\d+\.\d+|RELEASE\.\d{4}", tag), service["image"]
    if build := service.get("build"):
        assert (PROJECT_DIR / build["dockerfile"]).is_file()
        assert all(re.search(r":\d+\.\d+\.\d+-", line) for line in base_images(build["dockerfile"]))


def base_images(dockerfile: str) -> list[str]:
    return re.findall(r"^FROM (\S+)", (PROJECT_DIR / dockerfile).read_text("utf-8"), re.MULTILINE)


def test_our_image_runs_as_a_plain_user_and_installs_the_locks_pins() -> None:
    dockerfile = (PROJECT_DIR / "docker" / "Dockerfile").read_text("utf-8")
    assert re.findall(r"^USER (\S+)", dockerfile, re.MULTILINE) == ["dare"]
    assert "--no-deps -r requirements.lock" in dockerfile
    assert len(base_images("docker/Dockerfile")) > 1  # what builds is not what runs


def test_every_secret_is_made_by_the_script_and_none_is_for_nobody(secrets: Path) -> None:
    made = {path.name for path in secrets.iterdir()}
    assert {name: value["file"] for name, value in COMPOSE["secrets"].items()} == {
        name: f"secrets/{name}" for name in made
    }
    assert {name for service in SERVICES.values() for name in service.get("secrets", ())} == made


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_a_service_is_given_the_secrets_that_it_reads(name: str) -> None:
    service = SERVICES[name]
    said = yaml.safe_dump({key: service.get(key) for key in ("command", "environment", "healthcheck")})
    assert set(re.findall(r"/run/secrets/([\w.-]+)", said)) <= set(service.get("secrets", ()))
    if "airflow" in words(service).split() or "celery" in words(service).split():
        settings = {"fernet_key", "airflow_database_url"}
        assert name in ONCE or settings <= set(service["secrets"])


def variables() -> dict[str, str]:
    """Every variable that a container is given."""
    lines = [line for line in CLUSTER_ENV.read_text("utf-8").splitlines() if re.match(r"[A-Z]", line)]
    of_all = dict(line.split("=", 1) for line in lines)
    return of_all | {
        name: value for service in SERVICES.values() for name, value in service.get("environment", {}).items()
    }


def test_no_secret_stands_in_the_file_or_among_the_variables() -> None:
    secret = re.compile(
        r"PASSWORD(?!S_FILE)|SECRET(?!S_DIR)|_KEY|SQL_ALCHEMY_CONN|BROKER_URL|RESULT_BACKEND|WAREHOUSE_URL"
    )
    for name, value in variables().items():
        if secret.search(name):
            assert name.endswith(("_CMD", "_FILE")), name
            assert re.fullmatch(r"(cat )?/run/secrets/[\w.-]+", value), name
        assert not re.search(r"://[^/]*@", value), name  # nor in an address
    assert not re.search(r"requirepass|://[^/\s]*:[^/\s]*@", FILE.read_text("utf-8"))


def test_variables_name_settings_that_exist() -> None:
    ours = {name for name in variables() if name.startswith("DARE_")} - {"DARE_SECRETS_DIR"}
    assert {name.removeprefix("DARE_").lower() for name in ours} <= Settings.model_fields.keys()


def test_secrets_are_made_once_and_for_their_owner_alone(secrets: Path) -> None:
    before = {path.name: path.read_bytes() for path in secrets.iterdir()}
    assert not make_secrets(secrets, postgres="elsewhere:1", redis="elsewhere:2")
    assert {path.name: path.read_bytes() for path in secrets.iterdir()} == before
    assert {stat.S_IMODE(path.stat().st_mode) for path in (secrets, *secrets.iterdir())} == {0o700, 0o600}


def test_two_installations_share_no_secret(secrets: Path, tmp_path: Path) -> None:
    make_secrets(tmp_path / "secrets", postgres="postgres:5432", redis="redis:6379")
    same = [
        path.name for path in secrets.iterdir() if path.read_bytes() == (tmp_path / "secrets" / path.name).read_bytes()
    ]
    assert same == []


def test_the_script_needs_nothing_but_python() -> None:
    program = "import scripts.make_secrets, sys; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run(
        [sys.executable, "-S", "-c", program], cwd=PROJECT_DIR, capture_output=True, text=True, check=True
    ).stdout.split()
    assert set(loaded) <= sys.stdlib_module_names | {"scripts", "__main__"}


@pytest.mark.skipif(shutil.which("docker-compose") is None, reason="no docker-compose here")
def test_docker_compose_accepts_the_file() -> None:
    done = subprocess.run(
        ["docker-compose", "--file", str(FILE), "config", "--quiet"],
        env={**os.environ, "DARE_UID": "1000"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
