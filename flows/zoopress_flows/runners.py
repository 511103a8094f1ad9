"""Task runners, chosen by a word: threads of this process, a Dask cluster or a Ray cluster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from zoopress.errors import InputError, ZoopressError, nearest
from zoopress.optional import import_failure
from zoopress_flows.attempts import PrefectFailedError

KINDS = ("threads", "dask", "ray")


def make_runner(wanted: str | None, workers: int) -> Any:
    """Return a Prefect task runner.

    Args:
        wanted: "threads", "dask", "ray", or "dask=ADDRESS", "ray=ADDRESS" of a cluster that is
            there; None for threads.
        workers: how many jobs run at once; of a cluster that is there, it has a say of its own.

    Raises:
        InputError: if there is no such runner.
        ZoopressError: if its library is not installed.
    """
    kind, _, address = (wanted or "threads").partition("=")
    if kind not in KINDS or (kind == "threads" and address):
        raise InputError(f"There is no runner {wanted!r}.{nearest(kind, KINDS)}")
    try:
        return {"threads": _threads, "dask": _dask, "ray": _ray}[kind](address, workers)
    except ImportError as error:
        purpose = f"The runner {kind!r} needs prefect-{kind}"
        install = f"pip install 'zoopress[{kind}]'"
        raise ZoopressError(import_failure(error, f"prefect_{kind}", purpose, install)) from error


@contextmanager
def started_runner(wanted: str | None, workers: int) -> Iterator[Any]:
    """Start a task runner, and end it; see `make_runner`.

    Raises:
        ZoopressError: if a cluster does not start, or does not answer. The work is never done
            somewhere else than where the user chose.
    """
    kind, _, address = (wanted or "threads").partition("=")
    runner = make_runner(wanted, workers)
    try:
        started = runner.__enter__()
        if kind == "dask":
            _ = started.client  # it connects when it is first asked for
    except Exception as error:
        if kind == "threads":
            raise PrefectFailedError(f"{type(error).__name__}: {error}") from error
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        what = f"at {address} cannot be reached" if address else "could not be started"
        scheme = {"dask": "tcp://HOST:8786", "ray": "ray://HOST:10001"}[kind]
        raise ZoopressError(
            f"The {kind.capitalize()} cluster {what} ({reason}); nothing was computed. See that it "
            f"runs and that its address is right, as {kind}={scheme}; or choose another --runner."
        ) from error
    done = False
    try:
        yield started
        done = True
    finally:
        try:
            runner.__exit__(None, None, None)
        except Exception as error:
            if done:  # else what went wrong before is of more interest
                raise PrefectFailedError(f"{type(error).__name__}: {error}") from error


def _threads(address: str, workers: int) -> Any:
    from prefect.task_runners import ThreadPoolTaskRunner

    # One more, so that what is done can be delivered while all others are busy, or hang.
    return ThreadPoolTaskRunner(max_workers=workers + 1)


def _dask(address: str, workers: int) -> Any:
    from prefect_dask import DaskTaskRunner

    if address:
        return DaskTaskRunner(address=address)
    # A process each: jobs share torch's threads and random state with all else in a process. The
    # memory that jobs claim is our own budget's concern, so Dask's nanny does not pause workers.
    cluster = {
        "n_workers": workers,
        "threads_per_worker": 1,
        "memory_limit": None,
        "dashboard_address": None,
    }
    return DaskTaskRunner(cluster_kwargs=cluster)


def _ray(address: str, workers: int) -> Any:
    from prefect_ray import RayTaskRunner

    if address:
        return RayTaskRunner(address=address)
    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
    return RayTaskRunner(init_kwargs={"num_cpus": workers, **quiet})
