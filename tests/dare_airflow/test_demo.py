import io

import pytest
from rich.console import Console

from dare_airflow.client import TaskState
from dare_airflow.demo import RunFigures, _Progress, stage_state


def states(*of_tasks: str | None) -> list[TaskState]:
    return [TaskState("generate", index, state, 1) for index, state in enumerate(of_tasks)]


@pytest.mark.parametrize(
    ("tasks", "words"),
    [
        ([], ""),
        (states(None), ""),
        (states("running"), "running"),
        (states("success", "success"), "success"),
        (states("success", "running", None), "1/3 success, 1/3 running"),
    ],
)
def test_a_stage_says_how_many_of_its_tasks_are_in_which_state(tasks: list[TaskState], words: str) -> None:
    assert stage_state(tasks) == words


def test_figures_of_a_run_that_wrote_nothing_are_zero() -> None:
    nothing = RunFigures(texts=0, new_tokens=0, steps=0, seconds=0.0, relaxed=0)
    assert (nothing.tokens_per_second, nothing.tokens_per_step, nothing.relaxed_token_rate) == (0, 0, 0)


def test_away_from_a_terminal_progress_is_one_line_per_change() -> None:
    output = io.StringIO()
    with _Progress(Console(file=output), ("plan", "generate")) as progress:
        for tasks in (states(None), states("running"), states("running"), states("success")):
            progress.show(tasks)
    assert [line.split("s  ")[1] for line in output.getvalue().splitlines()] == [
        "generate: running",
        "generate: success",
    ]
