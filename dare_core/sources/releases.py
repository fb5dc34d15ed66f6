"""Public data sets that a user has downloaded: which one lies in a folder is seen from its files."""

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from dare_core.errors import SourceError
from dare_core.sources.amazon import SUFFIXES, read_amazon
from dare_core.sources.lines import LineFile
from dare_core.sources.movielens import read_movielens
from dare_core.sources.movielens_release import read_release


@dataclass(frozen=True)
class Release:
    """A data set to import.

    Attributes:
        tables: by name; to be read one after the other, in their order.
        files: what they are read from line by line, and what was found there once they were read.
    """

    tables: dict[str, pa.Table | pa.RecordBatchReader]
    files: list[LineFile]


def open_release(folder: Path) -> Release:
    """The data set in a folder: MovieLens (``.dat``, ``.csv``, RecBole's 100K) or Amazon reviews.

    Raises:
        SourceError: it is no folder, holds neither, or a file is missing.
    """
    if not folder.is_dir():
        raise SourceError(f"{folder} is no folder; unpack the release and name the folder with its files")
    if (folder / "ml-100k.inter").exists():
        return Release(read_movielens(folder), [])
    if any(folder.glob("movies.dat*")) or any(folder.glob("movies.csv*")):
        return Release(*read_release(folder))
    if any(path.name.endswith(SUFFIXES) for path in folder.iterdir()):
        return Release(*read_amazon(folder))
    raise SourceError(
        f"{folder} holds no release that is known: movies.dat or movies.csv (MovieLens), ml-100k.inter (RecBole), or "
        "JSON lines of reviews and products (Amazon)"
    )
