"""What Prefect shows of steps that take long."""

from __future__ import annotations

import pytest

import zoopress_flows.watching as watching
from zoopress.progress import Reporter


def test_only_a_step_that_takes_long_is_shown_and_each_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [0.0]
    told: list[tuple[str, float]] = []
    monkeypatch.setattr(watching.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(
        watching, "create_progress_artifact", lambda p, key, text: told.append((key, p)) or "id"
    )
    monkeypatch.setattr(
        watching, "update_progress_artifact", lambda i, p, text: told.append((i, p))
    )
    reporter = Reporter([watching.ProgressArtifact("Mini LM × small").tell])
    for _ in range(2):
        with reporter.step("stage 1/1") as progress:
            for second in range(1, 20):
                clock[0] += 1
                progress("a weight", second / 20)
    shown = [("progress-mini-lm-small", 50.0), ("id", 75.0)]
    assert told == shown * 2


def test_a_server_that_does_not_answer_is_no_reason_to_stop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*given: object) -> None:
        raise ConnectionError("nobody there")

    clock = [0.0]
    monkeypatch.setattr(watching.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(watching, "create_progress_artifact", refuse)
    shown = watching.ProgressArtifact("x")
    clock[0] = 60
    shown.tell({"event": "progress", "text": "a", "fraction": 0.5})
