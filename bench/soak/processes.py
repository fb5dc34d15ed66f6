"""The processes of the soak: how they are started, asked, and how they answer."""

import json
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

from bench.soak.tally import Tally
from dare_core.config.settings import Settings, load_settings
from dare_core.errors import DareError


def program(name: str) -> list[str]:
    """The command that starts one of them."""
    return [sys.executable, "-m", f"bench.soak.{name}"]


def kept(settings: Settings) -> dict[str, Any]:
    """Settings as a process is told them; the warehouse's URL goes beside."""
    return settings.model_dump(mode="json", exclude={"warehouse_url"}, exclude_defaults=True)


def keep_asking(
    ask: Callable[[Mapping[str, Any]], dict[str, Any]],
    question: Mapping[str, Any],
    failure: str,
    ended: threading.Event,
    tally: Tally,
    note: Callable[[Tally, dict[str, Any]], None],
) -> None:
    """Ask a process over and over, and note its answers and what it complains of."""
    while not ended.is_set():
        try:
            said = ask(question)
        except DareError as error:
            tally.error(failure, error)
            return
        if "error" in said:
            tally.error(failure, said["error"])
        else:
            note(tally, said)


def answer_questions(answer: Callable[[Settings, str], Callable[[], dict[str, Any]]]) -> None:
    """The program of a process that is asked: sets itself up by the first question, then answers one line to each.

    Args:
        answer: makes the answering function of settings and the warehouse's URL.
    """
    answers: Callable[[], dict[str, Any]] | None = None
    for line in sys.stdin:
        question = json.loads(line)
        try:
            if answers is None:
                answers = answer(load_settings(**question["settings"], warehouse_url=question["url"]), question["url"])
            said = answers()
        except Exception as error:  # noqa: BLE001  the asker counts it
            said = {"error": repr(error)}
        print(json.dumps(said), flush=True)
