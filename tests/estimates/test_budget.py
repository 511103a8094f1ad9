"""Memory claims that share one budget, from threads and from processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from zoopress.estimates.budget import MemoryBudget, machine_memory

HOLD = """
import sys, time
from pathlib import Path
from zoopress.estimates.budget import MemoryBudget
with MemoryBudget(100, Path(sys.argv[1])).claim(int(sys.argv[2])):
    print("held", flush=True)
    time.sleep(60)
"""


def hold(folder: Path, size: int) -> subprocess.Popen[str]:
    """Start a process that holds a claim, and wait until it does."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), str(size)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


@settings(max_examples=15)
@given(st.lists(st.one_of(st.none(), st.integers(1, 150)), min_size=1, max_size=8))
def test_claims_never_exceed_the_budget_and_all_get_their_turn(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int | None]
) -> None:
    budget = MemoryBudget(100, tmp_path_factory.mktemp("budget"))
    held: list[int] = []
    seen: list[list[int]] = []
    guard = threading.Lock()

    def work(size: int | None) -> None:
        with budget.claim(size):
            with guard:
                held.append(100 if size is None else size)
                seen.append(list(held))
            time.sleep(0.002)
            with guard:
                held.remove(100 if size is None else size)

    threads = [threading.Thread(target=work, args=(size,)) for size in sizes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(seen) == len(sizes)
    assert all(sum(at_once) <= 100 or len(at_once) == 1 for at_once in seen)


def test_another_processs_claim_counts_until_it_is_killed(tmp_path: Path) -> None:
    other = hold(tmp_path, 80)
    waited: list[float] = []

    def wait() -> None:
        if not waited:
            os.kill(other.pid, signal.SIGKILL)
        waited.append(time.monotonic())

    with MemoryBudget(100, tmp_path).claim(20, wait):
        assert not waited  # it fits beside the other
    with MemoryBudget(100, tmp_path).claim(30, wait):
        assert waited
    other.communicate()


def test_who_wants_the_machine_alone_waits_for_others_and_keeps_them_out(tmp_path: Path) -> None:
    budget = MemoryBudget(100, tmp_path)
    entered = threading.Event()

    def small() -> None:
        with MemoryBudget(1000, tmp_path).claim(1):
            entered.set()

    with budget.claim(None):
        thread = threading.Thread(target=small)
        thread.start()
        assert not entered.wait(0.3)
    assert entered.wait(10)
    thread.join()


def test_who_gives_up_waiting_stands_in_nobodys_way(tmp_path: Path) -> None:
    class GivenUpError(Exception):
        pass

    def give_up() -> None:
        raise GivenUpError

    budget = MemoryBudget(100, tmp_path)
    with budget.claim(60):
        with pytest.raises(GivenUpError), budget.claim(None, give_up):
            pass
        with budget.claim(40, give_up):
            pass


def test_a_ledger_that_was_cut_off_is_begun_anew(tmp_path: Path) -> None:
    (tmp_path / "ledger.json").write_text('[{"proc')
    with MemoryBudget(100, tmp_path).claim(50):
        pass
    assert (tmp_path / "ledger.json").read_text() == "[]"


def test_the_machine_has_memory() -> None:
    assert 2**28 < machine_memory() < 2**50
