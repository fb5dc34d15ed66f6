"""Great Expectations, kept in one folder: runs a checkpoint over a frame and renders every run's result as HTML.

Parts of a run are checked without: a run's pages are of the sums over its parts.

The folder, local or a URL, holds ``index.html``, a page per suite and run under ``validations/<suite>/<run>/``, and
under ``results/`` the JSON results from which the index is built. Nothing is written elsewhere, and nothing is sent
anywhere.

Processes of one host take turns in a local folder. Nobody keeps hosts from checking at once in a folder that they
share: results and pages of a run are its own, and the index may lack a run until the next check, which builds it anew.
"""

import logging
import os
import threading
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dare_core.storage.atomic import alone
from dare_core.storage.locations import Location, Stored, files_below, is_folder, matching, remove_folder

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped]
    from great_expectations.core import ExpectationSuiteValidationResult
    from great_expectations.data_context import AbstractDataContext
    from great_expectations.expectations.expectation import Expectation

#: Runs that the index lists, newest first; it is rebuilt with every run and reads each listed run's result.
_LISTED_RUNS: Final = 200
#: Folders of pages and of results, each with one per suite, and in that one per run.
_PAGES: Final = "validations"
_RESULTS: Final = "results"
_WHOLE_FILES: Final = {"class_name": "WholeFiles", "module_name": "dare_core.quality.whole_files"}
#: Great Expectations keeps one current project per process.
_one_project = threading.Lock()


def import_great_expectations() -> Any:
    """The module ``great_expectations``, its telemetry off. Takes seconds the first time."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"  # read when it is imported, and on by default
    logging.getLogger("great_expectations").setLevel(logging.WARNING)  # its import alone says dozens of things
    import great_expectations

    return great_expectations


def check(
    suite: str,
    frame: "pd.DataFrame",
    expectations: "Sequence[Expectation]",
    docs_dir: Location,
    run_id: str,
    index_columns: Sequence[str],
) -> "ExpectationSuiteValidationResult":
    """Check a frame, store the result as that of the suite and run (replacing an earlier one) and render it.

    Args:
        suite: its name, which names a folder.
        frame: what is checked.
        expectations: the suite's.
        docs_dir: the folder.
        run_id: of the pipeline.
        index_columns: columns that name a failing row, in the result and in the HTML. Great Expectations writes their
            values into the page as they are: they must hold no markup.

    Returns:
        Complete results: ``unexpected_index_list`` holds every failing row.
    """
    gx = import_great_expectations()
    from great_expectations.core.run_identifier import RunIdentifier

    with _alone_in(docs_dir):
        context = _context(docs_dir)
        _remove(docs_dir, suite, run_id)
        definition = context.validation_definitions.add(_definition(context, suite, expectations))
        checkpoint = gx.Checkpoint(
            name=suite,
            validation_definitions=[definition],
            actions=[gx.checkpoint.UpdateDataDocsAction(name="data_docs")],
            result_format=_complete(index_columns),
        )
        outcome = context.checkpoints.add(checkpoint).run(
            batch_parameters={"dataframe": frame},
            run_id=RunIdentifier(run_name=run_id, run_time=datetime.now(UTC)),  # else it looks for one in the name
        )
        [result] = outcome.run_results.values()
    return result


def expire(docs_dir: Location, before: float, but: Collection[str] = ()) -> int:
    """Remove the results and pages of runs that nothing was written to since; the next check builds the index anew.

    Args:
        docs_dir: the folder.
        before: in seconds since 1970.
        but: runs whose results stay.

    Returns:
        Results removed, each with its page.
    """
    if not is_folder(docs_dir):
        return 0
    removed = 0
    with _alone_in(docs_dir):
        for (suite, run_id), files in _files_by_run(docs_dir).items():
            if run_id not in but and all(file.written < before for file in files):
                _remove(docs_dir, suite, run_id)
                removed += sum(file.path.suffix == ".json" for file in files)
    return removed


def _files_by_run(docs_dir: Location) -> dict[tuple[str, str], list[Stored]]:
    """Results and pages by suite and run."""
    found = defaultdict(list)
    for suite in (*matching(docs_dir / _RESULTS), *matching(docs_dir / _PAGES)):
        for file in files_below(suite):
            run = file.path.parts[len(suite.parts)]
            found[suite.name, run].append(file)
    return found


def _remove(docs_dir: Location, suite: str, run_id: str) -> None:
    """Remove what there is of a suite and run."""
    for folder in (_PAGES, _RESULTS):  # what breaks off leaves the result, by which the page is found the next time
        remove_folder(docs_dir / folder / suite / run_id)


def newest_page(docs_dir: Location, suite: str, run_id: str) -> str | None:
    """The page on a suite and run, as its path below the folder; None where there is none."""
    files = files_below(docs_dir / _PAGES / suite / run_id)  # sorted by the moment of the check, which names a folder
    pages = [file.path for file in files if file.path.suffix == ".html"]
    return "/".join(pages[-1].parts[len(docs_dir.parts) :]) if pages else None


def check_part(
    suite: str, frame: "pd.DataFrame", expectations: "Sequence[Expectation]", index_columns: Sequence[str]
) -> "ExpectationSuiteValidationResult":
    """Check a part of a run as :func:`check` does, and write nothing: the run's pages are of the sums."""
    with _one_project:
        context = _context(None)
        definition = context.validation_definitions.add(_definition(context, suite, expectations))
        return definition.run(batch_parameters={"dataframe": frame}, result_format=_complete(index_columns))


def _definition(context: "AbstractDataContext", suite: str, expectations: "Sequence[Expectation]") -> Any:
    gx = import_great_expectations()
    return gx.ValidationDefinition(
        name=suite,
        data=context.data_sources.add_pandas("pandas")
        .add_dataframe_asset(suite)
        .add_batch_definition_whole_dataframe("all"),
        suite=context.suites.add(gx.ExpectationSuite(name=suite, expectations=list(expectations))),
    )


def _complete(index_columns: Sequence[str]) -> dict[str, Any]:
    return {"result_format": "COMPLETE", "unexpected_index_column_names": list(index_columns)}


def index(docs_dir: Location) -> Location:
    """The page that lists the runs."""
    return (docs_dir.resolve() if isinstance(docs_dir, Path) else docs_dir) / "index.html"


@contextmanager
def _alone_in(docs_dir: Location) -> Iterator[None]:
    """No other thread renders into ``docs_dir`` meanwhile; where that is local, no other process either."""
    with _one_project, alone(docs_dir / ".lock") if isinstance(docs_dir, Path) else nullcontext():
        yield


def _context(docs_dir: Location | None) -> "AbstractDataContext":
    """A project whose results and pages lie in a folder; without one, nowhere."""
    gx = import_great_expectations()
    from great_expectations.data_context.types.base import DataContextConfig

    memory = {"class_name": "InMemoryStoreBackend"}
    site = {
        "class_name": "SiteBuilder",
        "show_how_to_buttons": False,
        "store_backend": {**_WHOLE_FILES, "base_directory": str(docs_dir)},
        "site_index_builder": {"class_name": "DefaultSiteIndexBuilder", "validation_results_limit": _LISTED_RUNS},
        "site_section_builders": {
            # Left alone, runs whose name has "profiling" in it would go to another section.
            "validations": {"run_name_filter": {"matches_regex": ".*"}},
            "profiling": "None",
        },
    }
    results = {**_WHOLE_FILES, "base_directory": str(docs_dir / _RESULTS)} if docs_dir else memory
    config = DataContextConfig(
        config_version=4.0,
        analytics_enabled=False,
        progress_bars={"globally": False},
        stores={
            "expectations_store": {"class_name": "ExpectationsStore", "store_backend": memory},
            "validation_definition_store": {"class_name": "ValidationDefinitionStore", "store_backend": memory},
            "checkpoint_store": {"class_name": "CheckpointStore", "store_backend": memory},
            "results": {"class_name": "ValidationResultsStore", "store_backend": results},
        },
        expectations_store_name="expectations_store",
        checkpoint_store_name="checkpoint_store",
        validation_results_store_name="results",
        data_docs_sites={"knowledge": site} if docs_dir else {},
    )
    return gx.get_context(mode="ephemeral", project_config=config)
