"""``dare bench load`` and ``dare bench query`` as they are run, with few rows."""

import json
import sys
from typing import Any

import pytest

from dare_core.cli.main import main

pytestmark = pytest.mark.bench


def figures(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> dict[str, Any]:
    """What ``dare bench … --json`` prints."""
    monkeypatch.setattr(sys, "argv", ["dare", "bench", *arguments, "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    printed: dict[str, Any] = json.loads(capsys.readouterr().out)
    return printed


def test_a_load_is_measured_beside_a_bare_copy(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = figures(capsys, monkeypatch, "load", "--rows", "1000", "--repeats", "1")
    assert measured["load_vs_copy"] > 0


def test_every_text_of_a_run_is_accounted_for_and_no_join_sees_the_future(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = figures(capsys, monkeypatch, "query", "--rows", "2000", "--interactions", "1000")
    assert (measured["unaccounted"], measured["asof_wrong"]) == (0, 0)
    assert measured["recall_at_10"] > 0.9
