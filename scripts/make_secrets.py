#!/usr/bin/env python3
"""Make the secrets of an installation on several machines, once: one file each, readable by their owner alone.

As a program: those that docker-compose.yml mounts, in ``secrets/``, with their owner in ``.env``. Containers run as the
user who makes them. Needs only Python's own library, so that it runs where nothing of ours is installed.
"""

import base64
import json
import os
import secrets
import shutil
import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent

#: Roles that own a database of the same name. Who administers the server is ``postgres``.
ROLES: Final = ("airflow", "dare")

#: Spark's settings. Without a bound on its cores the first program takes all of the cluster's, and others wait.
_SPARK: Final = """\
spark.authenticate true
spark.authenticate.secret {secret}
spark.cores.max 4
spark.executor.memory 1g
spark.driver.memory 1g
"""

#: An AWS credentials file, which every client of S3 reads.
_STORE: Final = """\
[default]
aws_access_key_id = {user}
aws_secret_access_key = {password}
"""

#: Who logs in to Airflow first.
USER: Final = "admin"


def make_secrets(folder: Path, *, postgres: str, redis: str, store_user: str = "dare") -> bool:
    """Make every secret, unless the folder is there; nothing is ever replaced.

    Args:
        folder: where they go; it appears whole.
        postgres: ``host:port`` of PostgreSQL, as Airflow and the tasks reach it.
        redis: the same of Redis.
        store_user: the access key of the object store.

    Returns:
        Whether they were made now.
    """
    if folder.exists():
        return False
    scratch = folder.with_name(f".{folder.name}-{os.getpid()}")
    try:
        scratch.mkdir(mode=0o700, parents=True)
        for name, content in _contents(postgres, redis, store_user).items():
            descriptor = os.open(scratch / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                file.write(content)
        scratch.rename(folder)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return True


def _contents(postgres: str, redis: str, store_user: str) -> dict[str, str]:
    """Content by file name; compose's ``secrets:`` bear the same names."""
    passwords = {role: secrets.token_urlsafe(24) for role in (*ROLES, "redis", "spark", "store")}
    airflow, dare = (f"{role}:{passwords[role]}@{postgres}/{role}" for role in ROLES)
    return {
        "postgres_password": secrets.token_urlsafe(24),
        "airflow_database_url": f"postgresql+psycopg://{airflow}",
        "celery_result_backend": f"db+postgresql+psycopg://{airflow}",
        "dare_warehouse_url": f"postgresql://{dare}",  # a setting of ours, by the name that pydantic-settings expects
        "celery_broker_url": f"redis://:{passwords['redis']}@{redis}/0",
        "redis.conf": f"requirepass {passwords['redis']}\n",
        "spark-defaults.conf": _SPARK.format(secret=passwords["spark"]),
        "fernet_key": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
        "jwt_secret": secrets.token_urlsafe(64),
        "api_secret_key": secrets.token_urlsafe(32),
        "airflow_passwords.json": json.dumps({USER: secrets.token_urlsafe(16)}),
        "object_store_password": passwords["store"],
        "object_store_credentials": _STORE.format(user=store_user, password=passwords["store"]),
    }


def main() -> None:
    """Make what is missing, say what was done."""
    if os.geteuid() == 0:
        sys.exit("run this as the user who runs docker-compose, not as root: containers get this user's id")
    made = make_secrets(ROOT / "secrets", postgres="postgres:5432", redis="redis:6379")
    owner = ROOT / ".env"
    if not owner.exists():
        owner.write_text(f"DARE_UID={os.geteuid()}\n", "ascii")
    print("secrets/ was made; keep a copy of it" if made else "secrets/ is there already and stays as it is")


if __name__ == "__main__":
    main()
