"""Which version of a pool is in force, which were before, and which are in use.

With a warehouse these are rows in its database (:mod:`dare_core.warehouse.pools`), without one local files.
"""

import hashlib
import json
import re
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Final, Protocol

from dare_core.errors import PoolError
from dare_core.pools.manifest import PoolManifest
from dare_core.storage.atomic import alone, write_atomically

#: What a version is named: the first hex digits of its manifest's SHA-256.
VERSION: Final = re.compile(r"[0-9a-f]{16}")
_MEND: Final = "write into it the names of the files in versions/, without .json, the one to be in force first"


class Register(Protocol):
    """The pointer to the version in force, its predecessors, and pins."""

    def versions(self) -> list[str]:
        """The version in force, then those before it, the latest first; empty before the first."""
        ...

    def publish(self, manifest: PoolManifest, expected: str | None) -> None:
        """Make a version the one in force.

        Raises:
            PoolError: the version in force is no longer the ``expected`` one: somebody else has published.
        """
        ...

    def drop(self, version: str) -> None:
        """Forget a version that is no longer there."""
        ...

    def pins(self) -> dict[str, str]:
        """Who uses which version: versions by holder."""
        ...

    def pin(self, version: str, holder: str) -> None:
        """Keep a version from being deleted until the holder is done with it."""
        ...

    def unpin(self, holder: str) -> None:
        """The holder is done."""
        ...

    def removing(self, wait: bool = False) -> AbstractContextManager[bool]:
        """Versions may be removed while the block runs, if this is true: nobody copies them all meanwhile.

        Args:
            wait: for whoever copies them, so that it is true.
        """
        ...


class FileRegister:
    """A register in a local folder: ``CURRENT`` lists the versions, ``pins/`` holds a file per holder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def versions(self) -> list[str]:
        """See :class:`Register`.

        Raises:
            PoolError: the list cannot be read, or is none. It is not taken for an empty one: what the version in force
                keeps out would come back.
        """
        path = self._folder / "CURRENT"
        try:
            versions = path.read_text("ascii").split()
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            raise PoolError(f"{path} cannot be read: {error}; {_MEND}") from None
        for version in versions or [""]:  # it is never left empty
            if not VERSION.fullmatch(version):
                raise PoolError(f"{path} is damaged: {version[:40]!r} is no version; {_MEND}")
        return versions

    def publish(self, manifest: PoolManifest, expected: str | None) -> None:
        """See :class:`Register`."""
        with self._lock():
            versions = self.versions()
            current = versions[0] if versions else None
            if current != expected:
                raise published_meanwhile(manifest.version, expected, current)
            self._write([manifest.version, *(version for version in versions if version != manifest.version)])

    def drop(self, version: str) -> None:
        """See :class:`Register`."""
        with self._lock():
            self._write([other for other in self.versions() if other != version])

    def pins(self) -> dict[str, str]:
        """See :class:`Register`."""
        pins = {}
        for path in (self._folder / "pins").glob("*.json"):
            try:
                pin = json.loads(path.read_text("utf-8"))
                pins[str(pin["holder"])] = str(pin["version"])
            except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
                raise PoolError(f"{path} is no pin: {error}; remove it when no run is at work") from None
        return pins

    def pin(self, version: str, holder: str) -> None:
        """See :class:`Register`."""
        with self._lock():
            write_atomically(self._pin(holder), json.dumps({"holder": holder, "version": version}).encode())

    def unpin(self, holder: str) -> None:
        """See :class:`Register`."""
        self._pin(holder).unlink(missing_ok=True)

    def removing(self, wait: bool = False) -> AbstractContextManager[bool]:
        """See :class:`Register`; a backup is of the warehouse's pools."""
        return nullcontext(True)

    def _pin(self, holder: str) -> Path:
        return self._folder / "pins" / f"{hashlib.sha256(holder.encode()).hexdigest()[:16]}.json"

    def _write(self, versions: list[str]) -> None:
        try:
            write_atomically(self._folder / "CURRENT", "".join(f"{version}\n" for version in versions).encode())
        except OSError as error:
            raise PoolError(f"{self._folder}/CURRENT cannot be written: {error}; the version in force stays") from error

    def _lock(self) -> AbstractContextManager[None]:
        return alone(self._folder / ".lock")


class CandidateRegister:
    """A :class:`Register` for a store that builds without publishing.

    What is published through it is in force for this object alone; ``register.publish`` puts it in force for all.

    Args:
        register: says what is in force. Pins go to it.
    """

    def __init__(self, register: Register) -> None:
        self._register = register
        self._candidate: str | None = None
        self.drop, self.pins, self.pin, self.unpin = register.drop, register.pins, register.pin, register.unpin
        self.removing = register.removing

    def versions(self) -> list[str]:
        """See :class:`Register`."""
        versions = self._register.versions()
        if self._candidate is None:
            return versions
        return [self._candidate, *(version for version in versions if version != self._candidate)]

    def publish(self, manifest: PoolManifest, expected: str | None) -> None:
        """See :class:`Register`."""
        versions = self.versions()
        current = versions[0] if versions else None
        if current != expected:
            raise published_meanwhile(manifest.version, expected, current)
        self._candidate = manifest.version


def published_meanwhile(version: str, expected: str | None, current: str | None) -> PoolError:
    """What the slower of two builders is told."""
    return PoolError(
        f"version {version} was built to follow {expected or 'no version'}, but another builder has published "
        f"{current or 'none'} meanwhile; that one stays in force, build again"
    )
