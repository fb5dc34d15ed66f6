"""An object store that speaks S3, on loopback: OpenStack Swift, which scripts/install_object_store.sh installs."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from secrets import token_urlsafe
from tempfile import TemporaryDirectory
from typing import Final

import s3fs

from dare_core.errors import ProgramMissingError
from dare_core.storage.locations import Location, location

_SERVER: Final = Path(__file__).with_name("swift_server.py")
#: Swift is a package of the system's Python.
_PYTHON: Final = "/usr/bin/python3"
_HOST: Final = "127.0.0.1"
_BUCKET: Final = "dare"
#: An account of Swift's, and a user of it.
USER: Final = "dare:tests"
_END_SECONDS: Final = 10


@dataclass(frozen=True)
class ObjectStore:
    """A running store with an empty bucket.

    Attributes:
        endpoint: its URL.
        url: of the bucket.
    """

    endpoint: str
    access_key: str
    secret_key: str
    url: str = f"s3://{_BUCKET}"

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which a process finds the store."""
        loopback = ",".join(filter(None, (os.environ.get("NO_PROXY") or os.environ.get("no_proxy"), _HOST)))
        return {
            "NO_PROXY": loopback,
            "no_proxy": loopback,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def at(self, endpoint: str) -> "ObjectStore":
        """The same store, as one that talks to something before it sees it."""
        return replace(self, endpoint=endpoint)

    def place(self, name: str) -> Location:
        """A folder of the bucket, for a process that has the environment."""
        return location(f"{self.url}/{name}")


def is_installed() -> bool:
    """Whether there is a Swift to start."""
    if shutil.which(_PYTHON) is None:
        return False
    program = "import importlib.util, sys; sys.exit(not importlib.util.find_spec('swift.proxy.server'))"
    return subprocess.run([_PYTHON, "-c", program], capture_output=True, check=False, env={}).returncode == 0


@contextmanager
def object_store(access_key: str = USER, secret_key: str = "") -> Iterator[ObjectStore]:
    """A store of one's own for as long as the block lasts.

    Args:
        access_key: of its one user; Swift wants an account and a name, with a colon between.
        secret_key: theirs; made up when it is empty.

    Raises:
        ProgramMissingError: Swift is not installed, or does not start.
    """
    secret_key = secret_key or token_urlsafe(24)
    with TemporaryDirectory(prefix="dare-store-") as folder:
        log = Path(folder) / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [_PYTHON, str(_SERVER), f"{folder}/swift", access_key, secret_key],
                env={},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                start_new_session=True,
            )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            port = process.stdout.readline().strip().decode()
            if not port:
                raise ProgramMissingError(
                    "the object store did not start; install it with scripts/install_object_store.sh: "
                    + log.read_text("utf-8", "replace")[-2000:]
                )
            store = ObjectStore(f"http://{_HOST}:{port}", access_key, secret_key)
            _make_bucket(store)
            yield store
        finally:
            process.stdin.close()  # by which it ends
            try:
                process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()


def _make_bucket(store: ObjectStore) -> None:
    fs = s3fs.S3FileSystem(
        key=store.access_key,
        secret=store.secret_key,
        endpoint_url=store.endpoint,
        client_kwargs={"region_name": "us-east-1"},
        skip_instance_cache=True,
    )
    fs.mkdir(_BUCKET)
