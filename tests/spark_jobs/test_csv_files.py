"""CSV tables as other tools write them are read as they were meant, or what is wrong is said by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import Row, SparkSession

from dare_core.errors import SettingError, SourceError
from spark_jobs.source_tables import SourceTables, failures_in_words

Read = Callable[..., list[Row]]

HEADER = "item_id,title,release_year,genres,price,updated_at\n"
SPARKS = HEADER + 'a1,"Say \\"Hello\\"",1999,Drama,1,2024-01-01\n'


@pytest.fixture
def read(spark: SparkSession, shop: Any, tmp_path: Path) -> Read:
    """The ids and titles of the items' table, given the lines of ``[source.csv]``."""

    @failures_in_words()
    def read(csv: str = "", *columns: str) -> list[tuple[Any, ...]]:
        shop.write_domain(f'format = "csv"\nlocation = "{tmp_path}"\n[source.csv]\n{csv}')
        frame = SourceTables(spark, shop.domain, None).read("items", columns or ("item_id", "title"))
        return sorted(tuple(row) for row in frame.collect())

    return read


def test_quotes_escaped_with_a_backslash_are_read_or_refused_by_column(read: Read, tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text(SPARKS)
    assert read("escape = '\\'") == [("a1", 'Say "Hello"')]
    with pytest.raises(
        SourceError, match=r"column 'title' holds a backslash before a quote; .*csv\.escape = '\\'.*Say"
    ):
        read()
    assert read("escape = '\"'") == [("a1", '"Say \\"Hello\\""')]  # asked for
    (tmp_path / "items.csv").write_text(SPARKS.replace("Hello", "Hello, you"))
    with pytest.raises(SourceError, match=r"items.csv cannot be read: a row has not as many .*csv.escape = '\\'"):
        read()


def test_a_row_with_a_field_too_many_is_shown_whichever_columns_are_read(read: Read, tmp_path: Path) -> None:
    rows = "".join(f"a{number},T,1999,Drama,1,2024-01-01\n" for number in range(50))
    (tmp_path / "items.csv").write_text(f"{HEADER}{rows}b1,Snow, over Oslo,1999,Drama,1,2024-01-01\n")
    for columns in (["item_id", "title"], ["item_id"]):
        with pytest.raises(SourceError, match=r"as many fields as the header.*'b1,Snow, over Oslo,1999,Drama,1,2024"):
            read("", *columns)


def test_encoding_separator_and_quote_are_the_domains(read: Read, tmp_path: Path) -> None:
    table = f"{HEADER}a1,'Café; 12€',1999,Drama,1,2024-01-01\n".replace(",", ";").replace("Café;", "Café;")
    for name in ("cp1252", "utf-16", "utf-8-sig", "iso8859-15"):
        (tmp_path / "items.csv").write_text(table, name)
        encoding = f'encoding = "{name}"\nseparator = ";"\nquote = "\'"'
        assert read(encoding) == [("a1", "Café; 12€")], name
    with pytest.raises(SettingError, match=r"source\.csv\.encoding: .*there is no encoding 'latin-99'"):
        read('encoding = "latin-99"')


@pytest.mark.parametrize(("written", "said"), [("latin-1", "utf-8"), ("latin-1", "shift_jis")])
def test_bytes_that_are_no_text_are_told_of_by_file_line_and_count(
    read: Read, tmp_path: Path, capsys: pytest.CaptureFixture[str], written: str, said: str
) -> None:
    rows = ["a1,Plain,1,x,1,2024-01-01", "a2,Caf\xe9,1,x,1,2024-01-01", "a3,\xc9t\xe9,1,x,1,2024-01-01"]
    (tmp_path / "items.csv").write_bytes((HEADER + "\n".join(rows) + "\n").encode(written))
    assert len(read(f'encoding = "{said}"')) == 3
    told = capsys.readouterr().err
    assert f"items.csv: 2 lines hold bytes that are no {said}, line 3 first" in told


def test_columns_of_several_files_go_by_name(read: Read, tmp_path: Path) -> None:
    folder = tmp_path / "items"
    folder.mkdir()
    (folder / "0.csv").write_text(HEADER + "a1,One,1999,Drama,1,2024-01-01\n")
    (folder / "1.csv").write_text(
        "\ufefftitle,item_id,price,genres,updated_at,release_year,x,x\nTwo,a2,1,D,2024-01-01,1,,\n"
    )
    (folder / "2.csv").write_text("")
    (folder / "3.csv").write_text(HEADER)
    assert read() == [("a1", "One"), ("a2", "Two")]
    (folder / "2.csv").write_text("item_id,title,release_year,genres,updated_at\na3,Three,1,D,2024-01-01\n")
    with pytest.raises(SourceError, match=r"items/2.csv: no column 'price', which other files of .*items have"):
        read()
    (folder / "2.csv").write_text("item_id,title,title,release_year,genres,price,updated_at\n")
    with pytest.raises(SourceError, match=r"items/2.csv: the header has column 'title' 2 times"):
        read()
    for file in folder.iterdir():
        file.write_text("")
    with pytest.raises(SourceError, match="items has no header line"):
        read()
