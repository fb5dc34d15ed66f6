"""Commands that ask whether knowledge helps."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from dare_core.cli.options import Json, SampleDomain, settings_of
from dare_core.cli.terminal import console, progress, result_table, stderr
from dare_core.config.domains import load_domain
from dare_core.config.settings import Settings
from dare_core.errors import InputError
from dare_core.storage.atomic import require_writable

app = typer.Typer()


@app.command()
def evaluate(
    domain: Annotated[str, typer.Option(help="a file of config/ with a section [evaluation]")] = "movies",
    seeds: Annotated[int, typer.Option(min=2, help="trainings of the click model on each arm and split")] = 20,
    control: Annotated[bool, typer.Option(help="also ask the made-up shop, whose customers' tastes are known")] = True,
    arms: Annotated[
        str | None,
        typer.Option(
            help="of none,attributes,shuffled,strict,relaxed,int8,nightly some; default: all that are to be had"
        ),
    ] = None,
    search: Annotated[
        bool, typer.Option("--search", help="compare forms of vectors and trainings, on what lies before all tests")
    ] = False,
    chart: Annotated[Path | None, typer.Option(help="draw the differences into this SVG or PNG file")] = None,
    as_json: Json = False,
) -> None:
    """Measure whether the features help: a click model with and without knowledge, strict, relaxed and in int8."""
    from dare_core.evaluation import run
    from dare_core.evaluation.arms import choose_arms

    names = [] if arms is None else choose_arms(settings_of(), [name.strip() for name in arms.split(",")])
    if chart is not None:
        require_writable(chart)
        if chart.suffix not in (".svg", ".png"):
            raise InputError(f"--chart {chart}: its name must end in .svg or .png")
        if names and "none" not in names:
            raise InputError("--chart draws differences to the arm none; add it to --arms")
    if search:
        _search(domain, as_json)
        return
    with _evaluated(domain) as settings, _steps() as on_progress:
        result = run.evaluate(settings, domain, seeds, control, on_progress, names)
    if chart is not None:
        from dare_core.reports.evaluation_charts import draw_evaluation

        draw_evaluation(result, chart)
    if as_json:
        print(json.dumps(result))
    else:
        _show(result)


def _search(domain: str, as_json: bool) -> None:
    from dare_core.evaluation.search import search

    with _evaluated(domain) as settings, _steps() as on_progress:
        found = search(settings, domain, on_progress=on_progress)
    if as_json:
        print(json.dumps(found))
        return
    rows = [
        (one["form"], *(f"{value:g}" for value in one["training"].values()), f"{one['auc']:.4f}")
        for one in found["candidates"]
    ]
    columns = ("form", *found["candidates"][0]["training"], "AUC on the validation part")
    console.print(result_table("strict texts, the best first", columns, rows))
    print(f"The best, for config/{domain}.toml:", *found["lines"], sep="\n")


def _show(result: Mapping[str, Any]) -> None:
    """What `dare evaluate` found, for a reader."""
    from dare_core.evaluation.arms import LABELS
    from dare_core.evaluation.run import DIFFERENCES

    rows = [
        (LABELS[arm], f"{of_arm['auc']:.4f}", f"{of_arm['log_loss']:.4f}", _interval(of_arm["auc_over_none"]))
        for arm, of_arm in result["arms"].items()
    ]
    title = f"{result['click_model']}, {len(result['splits'])} splits, {result['seeds']} seeds, form {result['form']}"
    console.print(result_table(title, ("arm", "AUC", "LogLoss", "AUC over no knowledge"), rows))
    differences = [
        (
            key,
            f"{LABELS[first]} - {LABELS[second]}",
            _interval([result[key], result[f"{key}_low"], result[f"{key}_high"]]),
        )
        for key, (first, second) in DIFFERENCES.items()
        if result[key] is not None
    ]
    console.print(result_table("differences of AUC, 95% intervals", ("figure", "arms", "difference"), differences))
    helped = [
        (name, of["examples"], f"{of['auc']:.4f}", *(_interval(of.get(f"over_{arm}")) for arm in ("none", "shuffled")))
        for name, of in result["slices"].items()
    ]
    console.print(result_table("where", ("test examples", "count", "AUC", "over none", "over shuffled"), helped))
    if result["smallest_effect"] is not None:
        smallest = f"{result['smallest_effect']:.4f}"
        console.print(f"The smallest gain over shuffled texts that could have been told from zero: {smallest}.")
    console.print(
        f"Test examples with a text of the item: {result['item_coverage']:.0%}, of the user: "
        f"{result['user_coverage']:.0%}, nightly {result['user_coverage_nightly']:.0%}."
    )
    found = result["matching"]
    if found is not None and found["users"]:
        console.print(
            f"Recall at {found['k']} of what {found['users']} users went on to like: "
            f"features.match {found['match']:.3f}, popularity {found['popularity']:.3f}, "
            f"item-kNN {found['item_knn']:.3f}."
        )
    if result["shop_oracle_share"] is not None:
        console.print(f"In the shop, knowledge reaches {result['shop_oracle_share']:.0%} of what true tastes gain.")


@app.command("compare-texts")
def compare_texts(
    domain: Annotated[str, typer.Option(help="a file of config/ with a section [evaluation]")] = "movies",
    html: Annotated[Path | None, typer.Option(help="write a page with plots and samples")] = None,
    as_json: Json = False,
) -> None:
    """Compare relaxed texts with strict ones of the same prompts, of those that `dare evaluate` wrote."""
    from dare_core.evaluation import run
    from dare_core.evaluation.arms import LABELS

    if html is not None:
        require_writable(html)
    with _evaluated(domain) as settings:
        figures, compared = run.compare_texts(settings, domain)
    if html is not None:
        from dare_core.reports.comparison import write_comparison

        write_comparison(html, domain, figures, compared)
    if as_json:
        print(json.dumps(figures))
        return
    for name, arms in figures.items():
        columns = ("arm", *next(iter(arms.values())))
        rows = [(LABELS[arm], *of_arm.values()) for arm, of_arm in arms.items()]
        console.print(result_table(name, columns, rows))


@contextmanager
def _evaluated(domain: str) -> Iterator[Settings]:
    """Settings, with the warehouse served; films that are not there yet are imported, into the embedded one alone."""
    from dare_core.sources.bundled import prepare
    from dare_core.warehouse.connection import connect
    from dare_core.warehouse.server import serving

    settings = settings_of()
    load_domain(settings, domain)
    with serving(settings) as url:
        if settings.warehouse_url is None and domain == SampleDomain.movies:
            prepare(settings, connect(url))
        yield settings


@contextmanager
def _steps() -> Iterator[Callable[[str, int, int], None]]:
    """A line on standard error for each step that begins, and how far it is on a terminal."""
    with progress("evaluating") as on_progress:
        last = ""

        def told(what: str, done: int, wanted: int) -> None:
            nonlocal last
            if what != last:
                stderr.print(f"{what}: {wanted}")
                last = what
            on_progress(done, wanted)

        yield told


def _interval(values: Sequence[float | None] | None) -> str:
    """A difference and its interval; nothing where an arm was left out."""
    found = [value for value in values or () if value is not None]
    return "{:+.4f} [{:+.4f}, {:+.4f}]".format(*found) if found else ""
