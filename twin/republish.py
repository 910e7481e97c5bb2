"""`cimtwin publish`: recorded readings over MQTT, as their devices would have sent them."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Sequence

import psycopg
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ingest.mqtt import Publisher
from ingest.publisher import Progress as Sent
from ingest.publisher import publish, read_files
from twin.embedded import DataDir, database_url_for_command, running_broker_url
from twin.model import Micros, iso
from twin.settings import Settings


def republish(
    settings: Settings, files: Sequence[tuple[str, bytes]], *, speed: float, is_now: bool, tenant: str | None
) -> str:
    """Publish all files' readings together in time order; a line that says what was sent. Raises `InvalidReadings`,
    ConnectionError, TimeoutError."""
    recorded = read_files(files)
    url = settings.mqtt_url or running_broker_url(settings) or f"mqtt://{settings.mqtt_listen}"
    tenants = {} if tenant is not None else _tenants(settings)
    now: Micros | None = time.time_ns() // 1000 if is_now else None
    publisher = Publisher(url)
    publisher.connect()
    started = time.monotonic()
    try:
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            disable=not sys.stderr.isatty(),
            transient=True,
        ) as bar:
            task = bar.add_task("MQTT", total=None)

            def report(sent: Sent) -> None:
                bar.update(task, completed=sent.readings, total=sent.total, description=iso(sent.observed_at) or "")

            done = publish(
                recorded,
                publisher,
                tenant=tenant or settings.default_tenant,
                tenants=tenants,
                speed=speed,
                now=now,
                report=report,
            )
    finally:
        publisher.close()
    seconds = time.monotonic() - started
    return (
        f"{done.readings} readings in {done.messages} messages acknowledged in {seconds:.1f} s"
        f" / {done.messages} 条消息({done.readings} 条读数)已确认,用时 {seconds:.1f} 秒"
    )


def _tenants(settings: Settings) -> dict[str, str]:
    """Whose the devices are, where a database is at hand to ask."""
    if settings.database_url is None and DataDir(settings.data_dir).owner() is None:
        return {}
    with contextlib.suppress(psycopg.Error), database_url_for_command(settings) as dsn, psycopg.connect(dsn) as c:
        return dict(c.execute("select id, tenant from devices").fetchall())
    return {}
