"""The service: builds, starts, watches and stops everything, in order."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import psycopg
import uvicorn

from alerts.engine import EngineState, effective_on
from alerts.holds import HELD
from alerts.lifecycle import AlertBook, listed, subject_of
from alerts.packs import default_text
from alerts.rules import Rule, RuleSet, parse_rules
from alerts.scopes import Fitted
from ingest.commands import Commands
from ingest.inbox import Inbox
from ingest.judgement import Judgement, Snapshot
from ingest.mqtt import PahoSource
from ingest.pipeline import Pipeline
from ingest.source import WireSource
from twin.apart import Apart
from twin.api import create_app
from twin.api.alerts import alert_json
from twin.backtests import Backtests
from twin.catalog import Catalog
from twin.embedded import DataDir, EmbeddedBroker, EmbeddedPostgres
from twin.following import Follower
from twin.incident_desk import Desk
from twin.live import Live
from twin.model import DAY, HOUR, SECOND, Alert, AlertEvent, Micros, Readings, StoreUnavailable
from twin.model_imports import ModelImports
from twin.notifying import Notifier
from twin.reach import Reach
from twin.replays import Replays
from twin.sensors import sensors_from_json
from twin.settings import Address, Settings
from twin.state import SensorState
from twin.store import holds
from twin.store.catalog import current_rules, load_facts, refresh, save_rules
from twin.store.migrate import migrate
from twin.store.reader import Reader
from twin.store.upkeep import Upkeep
from twin.store.writer import QUARANTINE_BYTES, DatabaseInUse, Writer
from twin.tilesets import Tilesets
from twin.units import Kind, load_kinds

log = logging.getLogger(__name__)

WAIT_FOR_DATABASE_S: Final = 30.0
WAIT_FOR_LOCK_S: Final = 3.0
WAIT_FOR_NETWORKS_S: Final = 120.0
BUSY_AFTER: Final = 50_000  # µs a message waits
BUSY_SHARE: Final = 0.25  # of a core that this process takes: some 40,000 messages/s
BUSY_LOOK_S: Final = 0.1
AGGREGATE_EVERY_S: Final = 300.0
AGGREGATE_READINGS: Final = 1_000_000  # that have come since make it due, too: while they are in the server's memory
PARTITIONS_EVERY_S: Final = 3600.0
COLLECT_AFTER: Final = 50_000  # containers made and not yet gone; some 10 MB of what may be garbage


def now() -> Micros:
    """The wall clock, µs."""
    return time.time_ns() // 1000


class Service:
    """Everything that runs, and what HTTP and WebSocket see of it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.clock: Callable[[], Micros] = now
        self.kinds: dict[str, Kind] = load_kinds(settings.kinds)
        self.started_at = now()
        self.http_url = ""
        self.mqtt_url = ""
        self._data_dir = DataDir(settings.data_dir)
        self._postgres: EmbeddedPostgres | None = None
        self._broker: EmbeddedBroker | None = None
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self._upkeep_failures = 0
        self.followers: list[Follower] = []  # of the alert events, after their commit
        self.database_url = ""
        self._seen_busy = (time.monotonic(), time.process_time())
        self._takes_much = False

    # Starting

    def start(self) -> None:
        """Start servers, database, pipeline and source. Raises what `cimtwin.cli` turns into one line."""
        settings = self.settings
        self._data_dir.make()
        self._data_dir.lock(http=str(settings.http))
        self.socket = bind(settings.http)
        if settings.database_url is None:
            self._postgres = EmbeddedPostgres(settings.data_dir)
            self.database_url = self._postgres.start()
        else:
            self.database_url = settings.database_url
        if settings.mqtt_url is None:
            self._broker = EmbeddedBroker(
                settings.data_dir,
                settings.mqtt_listen,
                settings.mqtt_user,
                settings.mqtt_password,
                is_synced_always=settings.mqtt_sync_always,
            )
            self.mqtt_url = self._broker.start()
        else:
            self.mqtt_url = settings.mqtt_url
        self._wait_for_database(lambda: migrate(self.database_url))
        self.reader = Reader(self.database_url)
        self.reach = Reach(self.database_url)
        self.reach.start()
        self.live = Live(self)
        self.replays = Replays(self, settings.replays)
        self.backtests = Backtests(self)
        self.apart = Apart()
        self.model_imports = ModelImports(settings.data_dir / "spool", self.apart)
        self.model_imports.sweep()
        self.tilesets = Tilesets(settings.data_dir / "tiles", self.apart)
        self.tilesets.sweep()
        self._build()
        _calm_the_collector()
        for follower in self.followers:
            follower.start()
        self.notifier.start()
        self.source.start()
        self.pipeline.start()
        self._spawn("upkeep", self._keep_up)
        self._spawn("replays", self._watch_replays)
        if self._postgres is not None or self._broker is not None:
            self._spawn("watch", self._watch_servers)

    def _wait_for_database(self, work: Callable[[], Any]) -> Any:
        begun = time.monotonic()
        while True:
            try:
                return work()
            except DatabaseInUse:
                # What was killed a moment ago may still hold the lock.
                if time.monotonic() > begun + WAIT_FOR_LOCK_S:
                    raise
                self._stopping.wait(0.2)
            except (psycopg.OperationalError, StoreUnavailable) as error:
                if time.monotonic() > begun + WAIT_FOR_DATABASE_S:
                    raise StoreUnavailable(f"database: {str(error).splitlines()[0]}") from error
                self._stopping.wait(0.5)

    def _build(self) -> None:
        """Load what is known, and bring the engine to the present."""
        settings = self.settings
        writer = Writer(self.database_url, self._data_dir.path.name)
        standing = self._wait_for_database(writer.connect)  # also takes the lock that makes it the only one
        self._upkeep = Upkeep(self.database_url)
        catalog = Catalog(self.kinds)
        writer.transact(lambda c: int(refresh(c, catalog)))
        rules, version = self._load_rules(writer)
        writer.transact(lambda c: load_facts(c, catalog, rules.attributes))
        # What stands open is taken up by the same networks that it was told of.
        if rules.follows_networks and not self.reach.ready(WAIT_FOR_NETWORKS_S):
            log.warning("the networks are not loaded yet: rules along them begin anew when they are")
        self.judgement = judgement = Judgement(
            catalog,
            rules,
            version,
            lateness=round(settings.lateness_h * HOUR),
            default_tenant=settings.default_tenant,
            max_bytes=settings.max_message_bytes,
            started_at=self.started_at,
            reach=self.reach,
        )
        inbox = Inbox(settings.inbox_messages, settings.inbox_bytes)
        self.pipeline = pipeline = Pipeline(
            judgement,
            writer,
            inbox,
            self._publish,
            self.clock,
            self.parse_rules,
            batch_messages=settings.batch_messages,
            linger_s=settings.batch_ms / 1000,
            checkpoint_s=settings.checkpoint_s,
        )
        pipeline.take_up(standing)
        judgement.book = AlertBook(writer.open_alerts())
        self._load_holds(judgement, writer)
        self._recover(judgement, writer, standing.batch)
        pipeline.dirty.note(self._upkeep.changed_since_refresh(), standing.batch)
        pipeline.close_orphans(None, "the rule is gone or no longer looks at this sensor / 规则已删除或不再监视该测点")
        pipeline.settle_holds()
        self.commands = Commands(
            pipeline, self.parse_rules, alert_json, lambda objects: sensors_from_json(objects, self.kinds)
        )
        self.notifier = Notifier(self.database_url, lambda: self.clock(), lambda: self.mqtt_url)
        self.notifier.begin(_named(settings.notify))
        self.followers.append(self.notifier.follower)
        self.source = pipeline.source = self._make_source(inbox, standing.instance)
        self.desk = Desk(
            self.database_url,
            self.reach,
            catalog,
            lambda: self.rules,
            self.clock,
            self.live.publish_incidents,
            operators=settings.operators,
            flood_alerts=settings.flood_alerts,
            flood_over=settings.flood_over,
        )
        self.live.standing = lambda: (self.desk.open_incidents(), self.desk.flood())
        self.followers.append(self.desk.follower)

    def _make_source(self, inbox: Inbox, instance: str) -> WireSource | PahoSource:
        # Fixed by the database, so that the broker knows this service again, and another beside it is another client.
        client_id = f"cimtwin-{instance}"
        tries_v5 = self._broker is None  # the embedded one speaks 3.1.1
        if self.settings.mqtt_reader == "paho":
            return PahoSource(self.mqtt_url, client_id, inbox, self.clock, tries_v5)
        # One byte more than what is decoded, so that it is seen to be too large; and what quarantine keeps.
        keep = max(self.settings.max_message_bytes + 1, QUARANTINE_BYTES)
        return WireSource(self.mqtt_url, client_id, inbox, self.clock, tries_v5, keep)

    def parse_rules(self, text: str) -> RuleSet:
        return parse_rules(text, self.kinds)

    def _load_rules(self, writer: Writer) -> tuple[RuleSet, int]:
        """The rule set in force; the default pack where there is none yet."""
        found: list[tuple[int, str] | None] = []

        def load(connection: Any) -> int:
            current = current_rules(connection)
            if current is None:
                text = default_text()
                current = save_rules(connection, text, "default"), text
            found.append(current)
            return 0

        writer.transact(load)
        assert found[-1] is not None
        version, text = found[-1]
        return self.parse_rules(text), version

    def _load_holds(self, judgement: Judgement, writer: Writer) -> None:
        """What holds alerts back, before anything is judged or told."""
        chatters = judgement.rules.chatters
        span = max((chatter.within for chatter in chatters.values()), default=0)

        def load(connection: Any) -> int:
            judgement.holds.put(holds.standing(connection, self.clock()))
            for alert in holds.raised(connection, list(chatters), span) if chatters else ():
                judgement.holds.note_raise(alert.rule, subject_of(alert), alert)
            return 0

        writer.transact(load)
        judgement.holds.refit(judgement.rules.inhibits, chatters, judgement.book.open.values())

    def _recover(self, judgement: Judgement, writer: Writer, batch: int) -> None:
        upkeep = self._upkeep
        size = len(judgement.catalog)
        for number, taken_at, observed_at, engine in upkeep.load_checkpoints():
            judgement.snapshots.append(Snapshot(number, taken_at, observed_at, EngineState.from_bytes(engine)))
        if not judgement.snapshots:
            # A database that no service ran on: it may hold imported history, which is not judged.
            judgement.state = SensorState.of(size)
            judgement.state.apply(upkeep.newest_of_all(size), is_heard=False)
            return
        judgement.state = upkeep.load_latest(size)
        newest = judgement.snapshots[-1]
        judgement.engine.restore(newest.engine)
        tail = writer.batch_readings(newest.batch + 1, batch)
        judgement.state.apply(tail)
        judgement.recover(tail, writer)
        judgement.state.apply(writer.imported(newest.batch + 1, batch), is_heard=False)

    def _publish(self, events: list[AlertEvent], readings: Readings) -> None:
        self.live.publish(events, readings)
        if events:
            for follower in self.followers:
                follower.wake()

    def _spawn(self, name: str, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    # Watching

    def _watch_servers(self) -> None:
        """Restart the embedded servers when they die."""
        while not self._stopping.wait(0.5):
            for server in (self._postgres, self._broker):
                if server is None:
                    continue
                try:
                    if server.ensure():
                        log.warning("%s died and was started again", server.word)
                except Exception:
                    log.exception("%s could not be started again", server.word)

    def _watch_replays(self) -> None:
        while not self._stopping.wait(0.5):
            self.replays.look()

    def _keep_up(self) -> None:
        """Write checkpoints, refresh aggregates, make and drop partitions."""
        next_refresh = time.monotonic() + AGGREGATE_EVERY_S
        next_partitions = 0.0
        while not self._stopping.wait(0.2):
            try:
                self._save_checkpoint()
                if time.monotonic() >= next_partitions:
                    next_partitions = time.monotonic() + PARTITIONS_EVERY_S
                    self._look_after_partitions()
                if time.monotonic() >= next_refresh or self.pipeline.dirty.readings >= AGGREGATE_READINGS:
                    next_refresh = time.monotonic() + AGGREGATE_EVERY_S
                    self.refresh_aggregates()
            except Exception as error:  # noqa: BLE001 - whatever it is, the next round tries again
                self._upkeep_failures += 1
                log.warning("upkeep: %s", error)
                self._upkeep.close()
                self._stopping.wait(2)

    def _save_checkpoint(self) -> None:
        waiting = self.pipeline.checkpoints
        if not waiting:
            return
        checkpoint = waiting.popleft()
        snapshot = checkpoint.snapshot
        try:
            self._upkeep.save_checkpoint(
                snapshot.batch,
                snapshot.taken_at,
                snapshot.observed_at,
                snapshot.engine.to_bytes(),
                checkpoint.state,
                checkpoint.keep,
                checkpoint.changed,
            )
        except Exception:
            # What is newer supersedes it, but for what it had to say of older snapshots.
            newer = waiting.popleft() if waiting else checkpoint
            waiting.append(replace(newer, changed=checkpoint.changed | newer.changed))
            raise
        for earlier in self.judgement.snapshots:
            if earlier.batch < snapshot.batch:  # the newest is asked for most, and may have to be written yet
                earlier.pack()

    def refresh_aggregates(self) -> None:
        """Bring the aggregates up to the newest commit."""
        begun = self.pipeline.dirty.begin()
        if begun is None:
            return
        is_done = False
        try:
            days = self.settings.retention_days
            keep_from = None if not days else (now() - round(days * DAY)) // DAY * DAY
            self._upkeep.refresh_aggregates(*begun, keep_from)
            is_done = True
        finally:
            self.pipeline.dirty.end(is_done)

    def _look_after_partitions(self) -> None:
        settings = self.settings
        keep = {
            "readings": settings.retention_days,
            "waveform_blocks": settings.retention_waveforms_days,
            "readings_1m": settings.retention_minutes_days,
            "deliveries": settings.retention_deliveries_days,
        }
        for name in self._upkeep.look_after_partitions(now(), keep):
            log.info("retention dropped %s", name)

    # Stopping

    def stop(self) -> None:
        """Stop in the reverse order; what is not committed stays with the broker."""
        self._stopping.set()
        if hasattr(self, "replays"):
            self.replays.end()
        if hasattr(self, "backtests"):
            self.backtests.end()
        if hasattr(self, "apart"):
            self.apart.end()
        if hasattr(self, "source"):
            self.source.stop()
        if hasattr(self, "pipeline"):
            self.pipeline.stop()
        for follower in self.followers:
            follower.stop()
        if hasattr(self, "reach"):
            self.reach.stop()
        if hasattr(self, "notifier"):
            self.notifier.stop()
        for thread in self._threads:
            thread.join(15)
        if hasattr(self, "pipeline"):
            with contextlib.suppress(Exception):
                self._save_checkpoint()
            self.pipeline.writer.close()
            self._upkeep.close()
        if self._broker is not None:
            self._broker.stop()
        if self._postgres is not None:
            self._postgres.stop()
        if hasattr(self, "socket"):
            self.socket.close()
        self._data_dir.release()

    # What HTTP and WebSocket see

    @property
    def catalog(self) -> Catalog:
        return self.judgement.catalog

    @property
    def state(self) -> SensorState:
        return self.judgement.state

    @property
    def rules(self) -> RuleSet:
        return self.judgement.rules

    @property
    def rules_version(self) -> int:
        return self.judgement.rules_version

    @property
    def epoch(self) -> str:
        return self.pipeline.epoch

    @property
    def seq(self) -> int:
        return self.pipeline.seq

    @property
    def fitted(self) -> Fitted:
        """The rules in force over the catalogue."""
        return self.judgement.engine.fitted

    def rules_on(self, sensor: int) -> list[Rule]:
        """The rules in force that look at a sensor, with the values that they have there."""
        engine = self.judgement.engine
        places = set(engine.rules_on(sensor))
        alone = effective_on(engine.rules, self.catalog, sensor)
        there = (variant for variant, sensors in alone.parts if len(sensors))
        return [alone.rules[variant] for variant in there if int(alone.public[variant]) in places]

    def dirty(self, sensor: int) -> tuple[Micros, Micros] | None:
        return self.pipeline.dirty.span(sensor)

    def open_alerts(self) -> list[Alert]:
        """Worst and newest first, with the values of now."""
        return self.snapshot()[1]

    def snapshot(self) -> tuple[int, list[Alert]]:
        """The number of the last alert event and the open alerts as of it."""
        with self.pipeline.standing:
            seq, standing = self.pipeline.seq, list(self.judgement.book.open.values())
        return seq, self._current(listed(standing))

    def alert(self, alert_id: str) -> Alert | None:
        """An open alert, with the values of now."""
        return next(iter(self.alerts([alert_id])), None)

    def alerts(self, ids: Iterable[str]) -> list[Alert]:
        """Those of these alerts that are open, with the values of now."""
        standing = self.judgement.book.open
        return self._current([alert for alert in map(standing.get, ids) if alert is not None])

    def _current(self, alerts: Sequence[Alert]) -> list[Alert]:
        result = list(alerts)
        number = {rule.id: n for n, rule in enumerate(self.judgement.rules.rules)}
        places = [
            place
            for place, alert in enumerate(result)
            if alert.state.is_active and alert.sensor_index >= 0 and alert.rule in number
        ]
        now_ = self.judgement.engine.extremes_of(
            [number[result[place].rule] for place in places], [result[place].sensor_index for place in places]
        )
        for place, (value, peak, _) in zip(places, now_, strict=True):
            if value == value:
                current = result[place] = result[place].copy()
                current.value, current.peak_value = value, peak
        return result

    def readiness(self) -> dict[str, bool]:
        pipeline = self.pipeline
        return {
            "database": pipeline.is_answered,
            "broker": self.source.is_connected,
            "pipeline": pipeline.is_running,
        }

    @property
    def is_busy(self) -> bool:
        """Whether live work takes so much of the machine, or messages wait so long, that replays should hold back."""
        wall, cpu = self._seen_busy
        passed = time.monotonic() - wall
        if passed > BUSY_LOOK_S:
            self._seen_busy = time.monotonic(), time.process_time()
            self._takes_much = (self._seen_busy[1] - cpu) / passed > BUSY_SHARE
        oldest = self.pipeline.waiting_since()
        return self._takes_much or (oldest is not None and self.clock() - oldest > BUSY_AFTER)

    def stats(self) -> dict[str, int | float | str]:
        pipeline, counts = self.pipeline, self.pipeline.counts
        inbox = pipeline.inbox
        result: dict[str, int | float | str] = {
            "messages_received": counts.messages,
            "readings_received": counts.received,
            "readings_stored": counts.stored,
            "readings_duplicate": counts.duplicate,
            "readings_quarantined": counts.quarantined,
            "alert_events": pipeline.seq,
            "epoch": pipeline.epoch,
            "seq": pipeline.seq,
            "batch": pipeline.batch,
            "lag_s": round(pipeline.lag if not len(inbox) else max(pipeline.lag, 0.001), 6),
            "ws_clients": len(self.live),
            "replays": self.replays.running,
            "inbox_messages": len(inbox),
            "inbox_bytes": inbox.size,
            "inbox_waits": inbox.waits,
            "pipeline_failures": pipeline.failures,
            "rule_failures": sum(self.judgement.engine.failures.values()),
            "upkeep_failures": self._upkeep_failures,
            "mqtt_failures": self.source.failures,
            "database_stalls": pipeline.stalls,
            "sensors": len(self.catalog),
            "alerts_open": len(self.judgement.book.open),
            "alerts_active": len(self.judgement.book.active),
            "alerts_held": sum(not HELD.isdisjoint(alert.flags) for alert in list(self.judgement.book.open.values())),
            "holds": len(self.judgement.holds.standing),
            "incidents_open": self.desk.open_count,
            "alerts_10min": self.desk.rate,
            "flood": int(self.desk.is_flooded),
            "rules_version": self.rules_version,
            "watches_without_limit": len(self.fitted.lacking),
            "uptime_s": round((now() - self.started_at) / SECOND, 3),
        }
        result |= self.notifier.stats()
        result |= self._hearing()
        return result

    def _hearing(self) -> dict[str, int | float | str]:
        """By domain, how many sensors report, are silent, or never reported: no data never looks normal."""
        catalog, state = self.catalog, self.state
        heard = state.heard_at[: len(catalog)]
        interval = catalog.interval_us[: len(heard)]
        silent = (heard > 0) & (interval > 0) & (now() - heard > 3 * interval)
        words = {"never": heard == 0, "silent": silent, "reporting": (heard > 0) & ~silent}
        result: dict[str, int | float | str] = {"sensors_never_heard": int((heard == 0).sum())}
        domain = catalog.domain[: len(heard)]
        for word, mask in words.items():
            for number, n in enumerate(np.bincount(domain[mask], minlength=len(catalog.domains)).tolist()):
                if n:
                    result[f"sensors_{word}_{catalog.domains[number]}"] = n
        return result


def serve(
    settings: Settings, on_ready: Callable[[Service], None] | None = None, duration_s: float | None = None
) -> None:
    """Run the service until SIGTERM or SIGINT (or for `duration_s`)."""
    service = Service(settings)
    try:
        # Until the event loop takes the signals over, a polite end has to undo what was started so far.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        service.start()
        asyncio.run(_serve_http(service, on_ready, duration_s))
    finally:
        service.stop()


def _calm_the_collector() -> None:
    """Let Python look for cycles in what is new only, and less often. What was built so far stays; messages, of which
    tens of thousands wait at a time, are in no cycles, and looking at each again and again took a tenth of all CPU."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER)


def bind(address: Address) -> socket.socket:
    """The HTTP address, taken before any server is started and listened at only once there is somebody to answer.
    OSError naming it where it is taken already."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    # Named as TCP: of others asyncio does not switch off Nagle's algorithm, and an answer's body, sent after its head,
    # would wait for the client's delayed acknowledgement, 40 ms.
    taken = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind((address.host, address.port))
    except OSError as error:
        taken.close()
        raise OSError(f"HTTP {address}: {error.strerror or error} / 地址已被占用或不可用") from error
    return taken


async def _serve_http(service: Service, on_ready: Callable[[Service], None] | None, duration_s: float | None) -> None:
    settings = service.settings
    config = uvicorn.Config(
        create_app(service),
        host=settings.http.host,
        port=settings.http.port,
        log_config=None,
        access_log=False,
        ws="websockets-sansio",
        ws_max_size=1 << 16,
        ws_per_message_deflate=False,  # each frame would be compressed again for each client
        timeout_graceful_shutdown=3,
        lifespan="on",
        server_header=False,
    )
    server = _Server(config)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.end)
    running = asyncio.create_task(server.serve([service.socket]))
    watching = asyncio.create_task(_end_with(service, server))
    while not server.started and not running.done():
        await asyncio.sleep(0.01)
    if server.started:
        host, port = service.socket.getsockname()[:2]
        service.http_url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        service._data_dir.lock(http=service.http_url.removeprefix("http://"), mqtt=_without_password(service.mqtt_url))
        if on_ready is not None:
            on_ready(service)
        if duration_s is not None:
            loop.call_later(duration_s, server.end)
    await running
    watching.cancel()
    if not service.pipeline.is_running:
        raise PipelineEnded("the pipeline ended, see the log / 处理流程已终止,见日志")


async def _end_with(service: Service, server: _Server) -> None:
    """End the server when the pipeline ends: a service that only looks alive helps nobody."""
    while service.pipeline.is_running:
        await asyncio.sleep(0.5)
    server.end()


class PipelineEnded(OSError):  # noqa: N818
    """The pipeline met a bug that it could not survive."""


class _Server(uvicorn.Server):
    """uvicorn under our own signals: theirs would be raised once more after the end."""

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield

    def end(self) -> None:
        self.should_exit = True


def _named(file: Path | None) -> tuple[str, bytes] | None:
    """A file's name and content. OSError where it cannot be read."""
    return None if file is None else (str(file), file.read_bytes())


def _without_password(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"
