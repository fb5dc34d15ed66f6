"""Pool versions on disk: immutable, named by their content, published by an atomic rename.

<root>/CURRENT                          the version that readers take when they name none
<root>/versions/<version>/manifest.json
<root>/versions/<version>/<group key>/{tokens,suffixes}.npy
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dare_core.errors import PoolError
from dare_core.pools.index import SuffixIndex

#: The pool of all groups' texts, which every version holds beside its groups.
GLOBAL_GROUP: Final = "*"
_FORMAT: Final = 1
_VERSION: Final = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True)
class GroupManifest:
    """One group's part of a version."""

    key: str
    texts: int
    tokens: int
    sha256: str


@dataclass(frozen=True)
class PoolManifest:
    """What a version holds and what it was built for."""

    version: str
    model: str
    tokenizer_hash: str
    groups: Mapping[str, GroupManifest]

    @property
    def texts(self) -> int:
        """Texts in the pool."""
        return self.groups[GLOBAL_GROUP].texts

    @property
    def tokens(self) -> int:
        """Tokens of those texts."""
        return self.groups[GLOBAL_GROUP].tokens


class Pool:
    """An opened version. Indexes are memory-mapped, each when first asked for."""

    def __init__(self, folder: Path, manifest: PoolManifest) -> None:
        self.manifest = manifest
        self._folder = folder
        self._indexes: dict[str, SuffixIndex] = {}

    def resolve(self, group: str) -> str | None:
        """``group`` where the pool has it, else the global pool; None when the pool is empty."""
        if not self.manifest.texts:
            return None
        return group if group in self.manifest.groups else GLOBAL_GROUP

    def index(self, group: str) -> SuffixIndex:
        """The texts of a group that the manifest names.

        Raises:
            PoolError: its files are missing or damaged.
        """
        if group not in self._indexes:
            folder = self._folder / self.manifest.groups[group].key
            try:
                mapped = (np.load(folder / f"{part}.npy", mmap_mode="r") for part in ("tokens", "suffixes"))
                tokens, suffixes = map(np.asarray, mapped)  # still mapped, without memmap's cost per access
            except (OSError, ValueError) as error:
                raise PoolError(
                    f"pool version {self.manifest.version}: group {group!r} cannot be read: {error}"
                ) from None
            self._indexes[group] = SuffixIndex(tokens, suffixes)
        return self._indexes[group]


class PoolStore:
    """The versions under one root folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def build(self, texts: pa.Table, model: str, tokenizer_hash: str, vocabulary: int) -> PoolManifest:
        """Index texts and make them the current version. The same texts give the same version, written once.

        Args:
            texts: columns ``group`` and ``token_ids`` (``schemas.POOL_TEXT``).
            model: the model that wrote them; kept for the reader.
            tokenizer_hash: what the token ids mean.
            vocabulary: token ids are below it.

        Raises:
            PoolError: a group is named like the global pool, or a token id is out of range.
        """
        token_ids = texts["token_ids"].combine_chunks()
        ids = token_ids.flatten().to_numpy().astype(np.int32)
        if len(ids) and not 0 <= ids.min() <= ids.max() < vocabulary:
            worst = ids.min() if ids.min() < 0 else ids.max()
            raise PoolError(f"token_ids holds {worst}, which is outside the tokenizer's 0..{vocabulary - 1}")
        offsets = np.concatenate([[0], np.cumsum(token_ids.value_lengths().to_numpy())]) if len(token_ids) else [0]
        rows = [ids[begin:end] for begin, end in pairwise(offsets)]
        members: dict[str, list[NDArray[np.int32]]] = {GLOBAL_GROUP: []}
        for group, row in zip(texts["group"].to_pylist(), rows, strict=True):
            if group == GLOBAL_GROUP:
                raise PoolError(f"the group name {GLOBAL_GROUP!r} is the global pool's; rename the group")
            if len(row):
                members.setdefault(group, []).append(row)
                members[GLOBAL_GROUP].append(row)

        versions = self.root / "versions"
        versions.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".building-", dir=versions))
        try:
            groups = {group: _write_group(scratch, group, members[group]) for group in sorted(members)}
            content: dict[str, Any] = {
                "format": _FORMAT,
                "model": model,
                "tokenizer_hash": tokenizer_hash,
                "groups": {group: asdict(part) for group, part in groups.items()},
            }
            version = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
            (scratch / "manifest.json").write_text(json.dumps(content, indent=1, ensure_ascii=False), "utf-8")
            scratch.chmod(0o755)
            try:
                scratch.rename(versions / version)
            except OSError:
                if not (versions / version / "manifest.json").exists():  # else the same content is already there
                    raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        self._point_to(version)
        return PoolManifest(version, model, tokenizer_hash, groups)

    def current(self) -> str:
        """The version in force.

        Raises:
            PoolError: there is no pool at this root.
        """
        try:
            return (self.root / "CURRENT").read_text().strip()
        except OSError:
            raise PoolError(
                f"there is no pool at {self.root}; build one with `dare pool build --out {self.root}`"
            ) from None

    def manifest(self, version: str | None = None) -> PoolManifest:
        """What a version (default: the current one) holds.

        Raises:
            PoolError: the version is not there, or its manifest is damaged or from a newer release.
        """
        version = version or self.current()
        if not _VERSION.fullmatch(version):
            raise PoolError(f"{version!r} is not a pool version; versions are 16 hex digits")
        path = self.root / "versions" / version / "manifest.json"
        try:
            content = json.loads(path.read_text("utf-8"))
            if content["format"] != _FORMAT:
                raise PoolError(
                    f"{path}: format {content['format']} is not the format {_FORMAT} that this release reads"
                )
            groups = {group: GroupManifest(**part) for group, part in content["groups"].items()}
            return PoolManifest(version, content["model"], content["tokenizer_hash"], groups)
        except FileNotFoundError:
            raise PoolError(f"pool {self.root} has no version {version!r}") from None
        except (KeyError, TypeError, ValueError) as error:
            raise PoolError(f"{path}: not a pool manifest: {error}") from None

    def open(self, tokenizer_hash: str, version: str | None = None) -> Pool:
        """A version (default: the current one) to draft from.

        Raises:
            PoolError: see :meth:`manifest`; or the pool was built with another tokenizer.
        """
        manifest = self.manifest(version)
        if manifest.tokenizer_hash != tokenizer_hash:
            raise PoolError(
                f"pool {self.root} version {manifest.version} was built with tokenizer {manifest.tokenizer_hash} "
                f"(model {manifest.model}), but the model in use has tokenizer {tokenizer_hash}; build the pool again"
            )
        return Pool(self.root / "versions" / manifest.version, manifest)

    def _point_to(self, version: str) -> None:
        scratch = self.root / f".CURRENT-{os.getpid()}"
        scratch.write_text(version)
        scratch.replace(self.root / "CURRENT")


def _write_group(version: Path, group: str, texts: Sequence[NDArray[np.int32]]) -> GroupManifest:
    index = SuffixIndex.build(texts)
    key = hashlib.sha256(group.encode()).hexdigest()[:16]  # a group may be named anything, a folder may not
    (version / key).mkdir()
    np.save(version / key / "tokens.npy", index.tokens)
    np.save(version / key / "suffixes.npy", index.suffixes)
    checksum = hashlib.sha256(index.tokens.tobytes() + index.suffixes.tobytes()).hexdigest()
    return GroupManifest(key, len(texts), len(index.tokens) - len(texts), checksum)
