"""The flows that can be deployed, and how to serve them: a schedule without a worker."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

import zoopress_flows.quiet  # noqa: F401  # isort: skip

from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.runner import Runner
from prefect.schedules import Cron, Interval, Schedule

from zoopress.errors import InputError, ZoopressError
from zoopress_flows.living import end_the_dead
from zoopress_flows.repositories import repository_name


@dataclass(frozen=True)
class Deployable:
    """A flow that prefect.yaml deploys and `zoopress flows serve` serves.

    Attributes:
        name: of its deployment, and of the flow itself.
        entrypoint: a module path, so that an installed package works in any folder.
        tags: of its runs.
        scheduled: whether a schedule is given to it.
        alone: whether a run is cancelled that would start while another is under way.
    """

    name: str
    entrypoint: str
    tags: tuple[str, ...] = ("zoopress",)
    scheduled: bool = False
    alone: bool = False

    def served_as(self, repository: str) -> str:
        """Return the name of its deployment for a repository, its own on a shared server."""
        return f"{self.name}-{repository}" if repository else self.name

    def load(self) -> Any:
        """Import the flow."""
        module, _, function = self.entrypoint.rpartition(".")
        return getattr(import_module(module), function)


DEPLOYABLES = (
    Deployable("nightly", "zoopress_flows.nightly.nightly_flow", scheduled=True, alone=True),
    Deployable("zoo", "zoopress_flows.zoo.zoo_flow"),
    Deployable("compress", "zoopress_flows.compress.compress_flow"),
    Deployable("publish", "zoopress_flows.publish.publish_flow"),
)


def schedule(cron: str | None, interval_seconds: float | None, timezone: str) -> Schedule:
    """Return a schedule of Prefect's.

    Raises:
        InputError: if it is none, or there is no such time zone.
    """
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

    from pydantic import ValidationError

    try:
        ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise InputError(
            f"There is no time zone {timezone!r}; name one as Europe/Berlin or UTC."
        ) from error
    try:
        if interval_seconds is not None:
            return Interval(timedelta(seconds=interval_seconds), timezone=timezone)
        made = Cron(cron or "", timezone=timezone)
        next_run(made)
    except (ValidationError, ValueError) as error:
        raise InputError(
            f"{cron!r} is no cron schedule of five fields: minute, hour, day of the month, month, "
            "day of the week. Every night at three is '0 3 * * *'."
        ) from error
    return made


def next_run(when: Schedule) -> datetime:
    """Return when a schedule fires next."""
    from prefect.server.schemas.schedules import CronSchedule, IntervalSchedule

    zone = when.timezone
    shape: CronSchedule | IntervalSchedule
    if when.interval is not None:
        shape = IntervalSchedule(interval=when.interval, timezone=zone)
    else:
        shape = CronSchedule(cron=when.cron or "", timezone=zone)
    [date] = asyncio.run(shape.get_dates(1))
    return date


def deployments(when: Schedule, parameters: dict[str, Any], repository: str = "") -> list[Any]:
    """Return deployments of all flows, to be served.

    Args:
        when: the schedule of those that are scheduled.
        parameters: of those that are scheduled.
        repository: in their names, so that those of another repository are others.
    """
    from prefect.types.entrypoint import EntrypointType

    made = []
    for item in DEPLOYABLES:
        alone = ConcurrencyLimitConfig(
            limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW
        )
        made.append(
            item.load().to_deployment(
                name=item.served_as(repository),
                schedule=when if item.scheduled else None,
                parameters=parameters if item.scheduled else {},
                tags=[*item.tags, *([repository] if repository else [])],
                concurrency_limit=alone if item.alone else None,
                entrypoint_type=EntrypointType.MODULE_PATH,
            )
        )
    return made


class _Runner(Runner):
    """Ends on SIGTERM and on SIGINT alike: runs are ended, deployments paused.

    Prefect's own begins to do so on SIGTERM, but does not wait for it.
    """

    async def start(self, run_once: bool = False, webserver: bool | None = None) -> None:
        """Serve until a signal ends it."""
        self._serving = asyncio.current_task()
        signal.signal(signal.SIGINT, self.handle_sigterm)
        await super().start(run_once, webserver)

    def handle_sigterm(self, *args: Any, **kwargs: Any) -> None:
        """Cancel the task that serves; what it leaves open is closed on its way out."""
        if self._serving is not None:
            self._serving.get_loop().call_soon_threadsafe(self._serving.cancel)


def serve(repository: Path, when: Schedule, parameters: dict[str, Any], limit: int) -> None:
    """Serve all flows until it is interrupted; runs under way are ended then, and are resumable.

    Args:
        repository: the folder in which they run.
        when: the schedule of the nightly refresh.
        parameters: of the nightly refresh.
        limit: how many runs at once.
    """
    os.chdir(repository)
    runner = _Runner(limit=limit)
    with suppress(Exception):  # it is asked again when the next run begins
        end_the_dead()
    for deployment in deployments(when, parameters, repository_name(repository)):
        runner.add_deployment(deployment)
    with suppress(asyncio.CancelledError):
        asyncio.run(runner.start())


def check_server() -> str:
    """Return the address of the Prefect server.

    Raises:
        ZoopressError: if none is set, or it does not answer.
    """
    import httpx
    from prefect.settings import PREFECT_API_URL

    address = PREFECT_API_URL.value()
    start = (
        "Start one with `prefect server start --background`, and set "
        "PREFECT_API_URL=http://127.0.0.1:4200/api."
    )
    if not address:
        raise ZoopressError(f"Schedules need a Prefect server, and none is set. {start}")
    try:
        httpx.get(f"{address}/health", timeout=10).raise_for_status()
    except httpx.HTTPError as error:
        raise ZoopressError(
            f"The Prefect server at {address} does not answer ({type(error).__name__}). {start}"
        ) from error
    return str(address)
