"""What an installation decides: its settings, its domains and their schedules."""

from airflow.sdk import DAG, Connection
from airflow.sdk.exceptions import AirflowNotFoundException, AirflowTimetableInvalid
from pydantic import SecretStr

from dare_core.config.domains import Domain, domain_names, load_domain, misnamed_files
from dare_core.config.settings import ENDPOINT_CONNECTION, WAREHOUSE_CONNECTION, Settings, load_settings
from dare_core.errors import SettingError, WarehouseError

#: As they are when a DAG file is parsed; tasks read them anew, by :func:`settings`.
SETTINGS = load_settings()

#: The domains that have DAGs.
DOMAINS: list[Domain] = []
#: What is wrong with the files of the others; `dags/domain_errors.py` shows it.
DOMAIN_ERRORS: list[SettingError] = misnamed_files(SETTINGS)


def settings() -> Settings:
    """The settings in force; where they name no warehouse, Airflow's connection ``dare_warehouse`` may.

    Likewise the password of the connection ``dare_endpoint`` is the endpoint's key.
    """
    found = load_settings()
    of_connections: dict[str, object] = {}
    if found.warehouse_url is None and (connection := _connection(WAREHOUSE_CONNECTION)):
        from dare_airflow.setup import warehouse_url

        fields = ("login", "password", "host", "port", "schema", "extra")
        of_connections["warehouse_url"] = warehouse_url({name: getattr(connection, name) for name in fields})
    if found.engine == "endpoint" and found.endpoint_key is None and (connection := _connection(ENDPOINT_CONNECTION)):
        of_connections["endpoint_key"] = connection.password
    return load_settings(**of_connections) if of_connections else found


def _connection(name: str) -> Connection | None:
    try:
        connection: Connection = Connection.get(name)
    except AirflowNotFoundException:
        return None
    return connection


def served_settings() -> Settings:
    """:func:`settings` for what merely looks: a warehouse that is there already, or none.

    Raises:
        WarehouseError: neither settings nor connection name a warehouse, and the embedded server does not run.
    """
    from dare_core.warehouse.server import running

    found = settings()
    if (url := running(found)) is None:
        raise WarehouseError(
            f"no warehouse is known here: set DARE_WAREHOUSE_URL, or Airflow's connection {WAREHOUSE_CONNECTION} "
            "(`dare airflow setup` makes it); an embedded server is not started for a page"
        )
    return found.model_copy(update={"warehouse_url": SecretStr(url)})


def schedule(asked: str) -> str | None:
    """A schedule of the settings as Airflow takes it: ``none`` leaves the DAG to people."""
    return None if asked == "none" else asked


def refresh_schedule(domain: Domain) -> str | None:
    """That of the domain's file, else that of the settings, whose ``none`` holds for all."""
    return schedule(SETTINGS.refresh_schedule) and (domain.schedule.refresh or SETTINGS.refresh_schedule)


def _checked(name: str) -> Domain:
    domain = load_domain(SETTINGS, name)
    try:
        DAG(name, schedule=domain.schedule.refresh).validate()  # type: ignore[no-untyped-call]
    except AirflowTimetableInvalid as error:
        raise SettingError(f"{SETTINGS.config_dir / name}.toml: schedule.refresh: {error}") from None
    return domain


for each in domain_names(SETTINGS):
    try:
        DOMAINS.append(_checked(each))
    except SettingError as broken:
        DOMAIN_ERRORS.append(broken)
