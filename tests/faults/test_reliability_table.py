"""The page's table is what the tries beside it say."""

from tests.faults.crash_matrix import read_results
from tests.faults.reliability_table import PAGE, TRIES, markdown, written_between


def test_the_table_of_the_page_counts_the_tries_that_are_kept_beside_it() -> None:
    assert written_between(PAGE.read_text("utf-8"))[1] == markdown(read_results(TRIES))
