"""What the DAGs read and update, as Airflow's assets."""

from airflow.sdk import Asset


def asset(domain: str, what: str) -> Asset:
    """``source`` tables, ``entities``, ``knowledge``, ``features`` or ``pools`` of a domain."""
    return Asset(f"dare://{domain}/{what}", group="dare")
