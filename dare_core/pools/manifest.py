"""What a pool version holds: a small JSON document that names segments by their content, and is named by its own."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from dare_core.errors import PoolError
from dare_core.pools.segments import FORMAT, SegmentEntry

#: The pool of all groups' texts, which every version holds beside its groups.
GLOBAL_GROUP: Final = "*"

_SHA256: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class GroupManifest:
    """One group's part of a version: its segments, the oldest first."""

    segments: tuple[SegmentEntry, ...]

    @property
    def texts(self) -> int:
        """Texts of the group."""
        return sum(segment.texts for segment in self.segments)

    @property
    def tokens(self) -> int:
        """Tokens of those texts."""
        return sum(segment.tokens for segment in self.segments)

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum(segment.size for segment in self.segments)


@dataclass(frozen=True)
class PoolManifest:
    """What a version holds and what it was built for.

    Attributes:
        version: 16 hex digits of the hash of all the rest.
        model: the model that wrote the texts.
        tokenizer_hash: what the token ids mean.
        vocabulary: token ids are below it.
        scheme: the group scheme: which assignment of entities to groups the groups come from.
        halvings: the global pool holds one in ``2 ** halvings`` of the groups' texts.
        forgotten: hashes of entities whose texts are kept out, sorted.
        groups: the groups by name, and the global pool.
    """

    version: str
    model: str
    tokenizer_hash: str
    vocabulary: int
    scheme: str
    halvings: int
    forgotten: tuple[int, ...]
    groups: Mapping[str, GroupManifest]

    @property
    def segments(self) -> list[SegmentEntry]:
        """All segments, the global pool's included."""
        return [segment for part in self.groups.values() for segment in part.segments]

    @property
    def texts(self) -> int:
        """Texts of all groups."""
        return sum(part.texts for name, part in self.groups.items() if name != GLOBAL_GROUP)

    @property
    def tokens(self) -> int:
        """Tokens of those texts."""
        return sum(part.tokens for name, part in self.groups.items() if name != GLOBAL_GROUP)

    @property
    def size(self) -> int:
        """Bytes of all files, the global pool's included."""
        return sum(part.size for part in self.groups.values())

    @classmethod
    def of(cls, groups: Mapping[str, GroupManifest], **facts: Any) -> "PoolManifest":
        """A manifest that is named by its content."""
        unnamed = cls(version="", groups=dict(sorted(groups.items())), **facts)
        return cls(hashlib.sha256(unnamed.to_json()).hexdigest()[:16], groups=unnamed.groups, **facts)

    def to_json(self) -> bytes:
        """The document; its version is its file's name."""
        content = asdict(self)
        del content["version"]
        return json.dumps({"format": FORMAT, **content}, sort_keys=True, ensure_ascii=False).encode()

    @classmethod
    def of_json(cls, data: bytes, version: str, name: str) -> "PoolManifest":
        """Read a document.

        Args:
            data: what :meth:`to_json` wrote.
            version: what the file is named by.
            name: what to call it in errors.

        Raises:
            PoolError: it is damaged or comes from a newer release.
        """
        try:
            content = json.loads(data)
            found = content.pop("format")
            if found != FORMAT:
                raise PoolError(
                    f"{name}: format {found} is not the format {FORMAT} that this release reads; "
                    + ("update this installation" if found > FORMAT else "build the pool again")
                )
            groups = {
                group: GroupManifest(tuple(_entry(**segment) for segment in _list(part["segments"])))
                for group, part in content.pop("groups").items()
            }
            content["forgotten"] = tuple(map(_number, _list(content["forgotten"])))
            manifest = cls(version=version, groups=groups, **content)
            for text in (manifest.model, manifest.tokenizer_hash, manifest.scheme):
                if not isinstance(text, str):
                    raise ValueError(f"{text!r} stands where a name is needed")
            for number in (manifest.vocabulary, manifest.halvings):
                _number(number)
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
            raise PoolError(f"{name}: not a pool manifest: {error}") from None
        if hashlib.sha256(data).hexdigest()[:16] != version:
            raise PoolError(f"{name} is damaged: its content does not have its name")
        return manifest


def _entry(sha256: str, texts: int, tokens: int, size: int) -> SegmentEntry:
    if not _SHA256.fullmatch(sha256):  # it names a file
        raise ValueError(f"{sha256[:80]!r} is no SHA-256")
    return SegmentEntry(sha256, _number(texts), _number(tokens), _number(size))


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{value!r} stands where a list is needed")
    return value


def _number(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} stands where a number is needed")
    return value
