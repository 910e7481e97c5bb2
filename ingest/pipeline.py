"""The one pipeline: collect, decide, commit, acknowledge, publish. Everything that changes the twin passes here.

Messages come from an inbox; operators' commands have a lane of their own, served between two batches. A batch that the
database refuses for its content is split until the bad message is a refusal; one refused because the database is away
is kept, unacknowledged, and tried again until it is back.

One thread, the pipeline's, does all of it, one batch after the other. A large outcome it lets a second thread write,
and meanwhile decodes what comes in. What makes that as safe as standing still:

- While the second thread writes, the pipeline's does nothing but take messages from the inbox and decode them.
  Decoding reads the catalogue and changes nothing that others see; the second thread touches the connection and where
  the database stands, never what decisions rest on. So of all else, too, there is only one user at a time.
- Whatever follows a commit (applying, acknowledging, publishing, commands, ticks, deciding the next batch) waits for
  its end, as if it had been written in place; its errors come out where it was handed over.
- Messages taken ahead are the beginning of the next batch, in order, with nothing before them. Until then they are as
  those in the inbox: unacknowledged, waiting as far as the clock is concerned (`waiting_since`), and the broker's
  again when the service ends.
- What they were decoded to is dropped, and they are decoded again, if the catalogue changed in between.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Final, Protocol, TypeVar

from alerts.rules import RuleSet
from ingest.codecs import Decoded
from ingest.inbox import Inbox
from ingest.judgement import Decision, Judgement, Snapshot
from ingest.messages import Messages
from twin.model import (
    SECOND,
    AlertEvent,
    Counts,
    Ints,
    Micros,
    Outcome,
    RawMessage,
    Readings,
    Reason,
    Refusal,
    Refused,
    StoreRefused,
    StoreUnavailable,
)
from twin.state import SensorState
from twin.store.catalog import current_rules, load_facts, refresh, upsert_sensors
from twin.store.dirty import Dirty
from twin.store.writer import Committed, DatabaseInUse, Standing, Writer

log = logging.getLogger(__name__)

T = TypeVar("T")
TICK_S: Final = 1.0
COMMAND_PATIENCE_S: Final = 3.0
SLOW_S: Final = 5.0  # a database that has not answered for so long is not ready
COMMANDS: Final = 1000  # operators' commands waiting at the most; one more is refused
FIRST_MESSAGES: Final = 500  # in a first batch, when nobody knows yet how many readings a message has
BATCH_READINGS: Final = 50_000  # more in one commit gain little and make all wait longer
AHEAD_FROM: Final = 1000  # readings in an outcome from which on handing it over pays: some 2 ms of writing
AHEAD_FROM_BLOCKS: Final = 50  # the same of waveforms
SENT_S: Final = 0.05  # decoding waits so long at the most until a batch is sent: the two would wait for each other
AHEAD_GOES: Final = 10  # a batch's messages are decoded in so many goes: the commit's end waits for one
AHEAD_BYTES: Final = 16 << 20  # taken ahead at the most, or one go
CROWD: Final = 500  # where so many messages came during a commit, some 40,000 a second, a batch waits for
COMPANY: Final = 2500  # so many, which make its fixed cost, 1.5 ms of CPU, small,
COMPANY_S: Final = 0.02  # but no longer than that


class Source(Protocol):
    """Where messages come from, and who is told that they are safe."""

    is_connected: bool

    def acknowledge(self, messages: Sequence[RawMessage]) -> None: ...


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A snapshot to write, the sensor state that goes with it, the batches whose earlier snapshots are to be kept, and
    the newest event times of those that late readings changed."""

    snapshot: Snapshot
    state: SensorState
    keep: list[int]
    changed: dict[int, Ints]


Publish = Callable[[list[AlertEvent], Readings], None]


class _Scribe:
    """A thread that does one piece of work at a time for the pipeline's."""

    def __init__(self) -> None:
        self._work: SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def submit(self, work: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="commit", daemon=True)
            self._thread.start()
        self._work.put((work, future))
        return future

    def stop(self) -> None:
        if self._thread is not None:
            self._work.put(None)

    def _run(self) -> None:
        while (item := self._work.get()) is not None:
            work, future = item
            try:
                future.set_result(work())
            except BaseException as error:  # noqa: BLE001 - goes to the one who waits
                future.set_exception(error)


class _Ahead:
    """Messages taken in and decoded while a commit was under way: the beginning of the next batch.

    Bound: a batch's messages; AHEAD_BYTES and one go more."""

    def __init__(self) -> None:
        self.messages = Messages()
        self.decoded: list[tuple[int, Decoded]] = []
        self.bytes = 0
        self.changes = -1  # of the catalogue that it was decoded by

    def add(self, messages: Messages, decode: Callable[[Messages], Decoded], changes: int) -> None:
        """Decode some more. What cannot be decoded is looked at again with its batch, where errors are met."""
        self.messages.extend(messages)
        self.bytes += messages.bytes
        if changes != self.changes:
            self.decoded.clear()
        self.changes = changes
        try:
            self.decoded.append((len(messages), decode(messages)))
        except Exception:
            log.exception("%d messages could not be decoded ahead", len(messages))

    def of(self, messages: Messages, changes: int) -> Decoded | None:
        """What these messages were decoded to; None unless they are all of those taken ahead, and it still holds."""
        is_whole = messages is self.messages and sum(size for size, _ in self.decoded) == len(messages)
        if not (is_whole and messages and changes == self.changes):
            return None
        self.join()
        return self.decoded[0][1]

    def join(self) -> None:
        """Make one of what was decoded in several goes, by sensor."""
        if self.decoded:
            size = sum(size for size, _ in self.decoded)
            self.decoded[:] = [(size, Decoded.join(self.decoded).by_sensor())]


class Pipeline:
    """Runs `judgement` on what comes in, against `writer`'s database.

    Bounds: `inbox` (its own), commands 1,000 (one more fails with `StoreUnavailable`). Counters: `counts` (since the
    database began), `failures` (bugs met and survived), `stalls` (times the database was away).
    """

    def __init__(
        self,
        judgement: Judgement,
        writer: Writer,
        inbox: Inbox,
        publish: Publish,
        clock: Callable[[], Micros],
        parse_rules: Callable[[str], RuleSet],
        *,
        batch_messages: int = 10_000,
        linger_s: float = 0.005,
        checkpoint_s: float = 30.0,
    ) -> None:
        self.judgement = judgement
        self.writer = writer
        self.inbox = inbox
        self.publish = publish
        self.clock = clock
        self.parse_rules = parse_rules
        self.batch_messages = batch_messages
        self.linger_s = linger_s
        self.checkpoint_s = checkpoint_s
        self.source: Source | None = None
        self.dirty = Dirty()
        self.counts = Counts()
        self.batch = 0
        self.seq = 0
        self.epoch = ""
        self.lag_s = 0.0
        self.failures = 0
        self.stalls = 0
        self.is_connected = False
        self._asked: dict[int, float] = {}  # by thread, since when it has waited for the database
        # The newest snapshot not yet written, for the upkeep thread; an older one that it did not get to is superseded.
        self.checkpoints: deque[Checkpoint] = deque(maxlen=1)
        self.standing = threading.Lock()  # held while `seq` and the judgement's alerts move on together
        self._commands: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._scribe = _Scribe()
        self._most = min(batch_messages, FIRST_MESSAGES)  # messages that the next batch may have, by BATCH_READINGS
        self._ahead = _Ahead()  # filled while a commit is under way
        self._batch = _Ahead()  # what was taken ahead of the batch in hand
        self._next_tick = 0.0
        self._next_checkpoint = 0.0
        self._checkpointed_batch = -1
        self._has_orphans = False

    # Starting and stopping

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="pipeline", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End after the batch in hand; what is not committed stays unacknowledged with the broker."""
        self._stopping.set()
        self.inbox.wake()
        if self._thread is not None:
            self._thread.join(30)
        self._scribe.stop()
        while self._commands:
            self._commands.popleft()[1].set_exception(StoreUnavailable("the service is stopping / 服务正在停止"))

    @property
    def is_running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Run `work` on the pipeline's thread before the next batch."""
        future: Future[T] = Future()
        if len(self._commands) >= COMMANDS or self._stopping.is_set():
            future.set_exception(StoreUnavailable("too many commands are waiting / 等待处理的操作过多"))
            return future
        self._commands.append((work, future))
        self.inbox.wake()
        return future

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._serve_commands()
                messages = self._collect()
                if self._stopping.is_set():
                    break
                if messages:
                    self.handle(messages)
                self._tick_if_due()
                self._checkpoint_if_due()
            self._checkpoint_if_due(force=True)
        except Stopping:
            return
        except Exception:
            # What is committed and what is in memory may differ now: only a new start makes them one again.
            self.failures += 1
            log.critical("the pipeline cannot go on; the service ends, to be started anew", exc_info=True)

    def _collect(self) -> Messages:
        """The next batch: what was taken ahead with what came since, or what comes up to the next tick."""
        self._batch, self._ahead = self._ahead, _Ahead()
        ahead = self._batch
        if not ahead.messages:
            return self.inbox.take(self._most, self._until_tick(), self.linger_s, lambda: bool(self._commands))
        there = len(ahead.messages) + len(self.inbox)  # not what comes while these are decoded
        self._take_ahead(ahead, 0.0, 0.0, lambda: len(ahead.messages) >= there)
        if CROWD <= len(ahead.messages) < COMPANY:
            deadline = time.monotonic() + COMPANY_S
            self._take_ahead(
                ahead, COMPANY_S, COMPANY_S,
                lambda: len(ahead.messages) >= COMPANY or time.monotonic() >= deadline
                or bool(self._commands) or self._stopping.is_set(),
            )  # fmt: skip
        return ahead.messages

    def _take_ahead(self, ahead: _Ahead, wait_s: float, linger_s: float, is_over: Callable[[], bool]) -> None:
        """Take messages in and decode them, until `is_over`, none comes for `wait_s`, or it is a batch."""
        judgement, at_once = self.judgement, max(1, self._most // AHEAD_GOES)
        while not is_over() and ahead.bytes < AHEAD_BYTES:
            room = self._most - len(ahead.messages)
            messages = self.inbox.take(min(at_once, room), wait_s, linger_s, is_over) if room > 0 else None
            if not messages:
                return
            ahead.add(messages, judgement.decode, judgement.catalog.changes)

    @property
    def waiting(self) -> int:
        """How many messages have come and are in no batch yet."""
        return len(self.inbox) + len(self._ahead.messages)

    def waiting_since(self) -> Micros | None:
        """When the message that has waited longest came; None if none waits."""
        ahead = self._ahead.messages
        return ahead.runs[0][1] if ahead else self.inbox.oldest()

    def _until_tick(self) -> float:
        return max(0.0, self._next_tick - time.monotonic())

    # Messages

    def handle(self, messages: Messages, is_again: bool = False) -> None:
        """Take one batch to its end: committed, acknowledged, published. `is_again`: trust nothing about what is
        stored."""
        try:
            decision = self._with_database(lambda: self._decide(messages, is_again))
            committed = self._commit(decision)
        except StoreRefused as refused:
            if not is_again:
                # Most likely something is stored that we did not know of: ask about every reading, once.
                self._absorb_others_work()
                self.handle(messages, is_again=True)
            else:
                self._split(messages, str(refused))
            return
        except Stopping:
            return
        except Exception:
            self.failures += 1
            log.exception("a batch of %d messages failed", len(messages))
            self._split(messages, "internal error, see the log / 内部错误,见日志")
            return
        self._finish(decision, committed)
        if self.source is not None:
            self.source.acknowledge(messages)
        self.lag_s = max(0, self.clock() - messages.runs[0][1]) / SECOND

    def _decide(self, messages: Messages, asks_all: bool = False) -> Decision:
        judgement = self.judgement
        decoded = self._batch.of(messages, judgement.catalog.changes) or judgement.decode(messages)
        if judgement.needs_newer_catalog(decoded) and self.follow_catalog():
            decoded = judgement.decode(messages)
        missing = judgement.missing_statistics(decoded)
        if missing:
            self.writer.transact(lambda c: upsert_sensors(c, missing, judgement.catalog.kinds)[0])
            self.follow_catalog()
        return judgement.decide(messages, decoded, self.writer, self.clock(), asks_all)

    def _split(self, messages: Messages, why: str) -> None:
        """Find what cannot be committed by halves; a single message that cannot is quarantined whole."""
        if len(messages) > 1:
            middle = len(messages) // 2
            self.handle(messages[:middle])
            self.handle(messages[middle:])
            return
        message = messages[0]
        try:
            decision = self._with_database(lambda: self._decide(messages, True))
            committed = self._commit(decision)
        except Stopping:
            return
        except Exception:  # noqa: BLE001 - the second and last try of one message; handle() has logged the first
            log.error("message on %r refused: %s", message.topic, why)
            refusal = Refusal(
                message.topic, message.payload, Reason.REFUSED, why, None, None, (-1,), message.received_at,
                left_out=message.left_out,
            )  # fmt: skip
            counts = Counts(messages=1, received=1, quarantined=1)
            decision = Decision(Outcome(Readings.empty(), counts, refusals=[refusal]))
            try:
                committed = self._commit(decision)
            except Stopping:
                return
        self._finish(decision, committed)
        if self.source is not None:
            self.source.acknowledge(messages)

    def _finish(self, decision: Decision, committed: Committed) -> None:
        """Make a committed decision what stands, and show it."""
        outcome = decision.outcome
        counts = outcome.counts
        if counts.messages:
            self._most = max(1, min(self.batch_messages, BATCH_READINGS * counts.messages // max(1, counts.received)))
        has_others = committed.batch != self.batch + 1
        if has_others:
            self._absorb(self.batch + 1, committed.batch - 1)
        self.dirty.note(outcome.readings, committed.batch)
        self.batch = committed.batch
        with self.standing:
            self.judgement.apply(decision)
            if committed.events:
                self.seq = committed.events[-1].seq
        if decision.has_new_gateway:
            # Which gateway speaks for whom is kept by checkpoints only.
            self._next_checkpoint = min(self._next_checkpoint, time.monotonic() + 1)
        if not has_others:  # else the counts were read again, with these in them
            counts = self.counts
            counts.messages += outcome.counts.messages
            counts.received += outcome.counts.received
            counts.stored += outcome.counts.stored
            counts.duplicate += outcome.counts.duplicate
            counts.quarantined += outcome.counts.quarantined
        if committed.events or len(outcome.readings):
            self.publish(committed.events, outcome.readings)
        self._follow(committed.catalog_version, committed.rules_version)

    def _follow(self, catalog_version: int, rules_version: int) -> None:
        """Take over what others changed. What cannot be taken over is left, told in the log, and tried again later."""
        try:
            if catalog_version != self.judgement.catalog.version:
                self._with_database(self.follow_catalog)
            if rules_version != self.judgement.rules_version:
                self._with_database(self.follow_rules)
        except Refused as refused:
            log.error("the database holds what this service cannot take over: %s", refused)

    # The database

    def connect(self) -> None:
        """Connect, and learn where the database stands. Raises `StoreUnavailable` or `DatabaseInUse`."""
        self.take_up(self.writer.connect())

    def take_up(self, standing: Standing) -> None:
        """Go on from where the database stands. Raises `DatabaseInUse` if it went back in time under us."""
        if self.epoch and (standing.epoch != self.epoch or standing.batch < self.batch):
            # A backup was restored under us: what is in memory is of another history.
            log.critical("the database went back in time; the service must start anew")
            raise DatabaseInUse(
                "the database was restored while the service ran: restart it / 数据库已被恢复,请重启服务"
            )
        if not self.epoch:
            self.batch, self.seq, self.counts = standing.batch, standing.seq, standing.counts
        self.epoch = standing.epoch
        self.is_connected = True

    @property
    def is_answered(self) -> bool:
        """Whether the database answers us: connected, and nothing that we asked of it has waited for long. One that
        hangs keeps its connections."""
        oldest = min(list(self._asked.values()), default=None)
        return self.is_connected and (oldest is None or time.monotonic() - oldest < SLOW_S)

    @property
    def lag(self) -> float:
        """Seconds that the last batch took from its arrival to its end, or that the one at the database has waited."""
        waiting = time.monotonic() - min(list(self._asked.values()), default=math.inf)
        return max(self.lag_s, waiting)

    def _with_database(self, work: Callable[[], T]) -> T:
        """`work`, again and again while the database is away. `Stopping` if the service stops meanwhile."""
        me = threading.get_ident()
        if me in self._asked:  # within such work
            return self._persistently(work)
        self._asked[me] = time.monotonic()
        try:
            return self._persistently(work)
        finally:
            del self._asked[me]

    def _persistently(self, work: Callable[[], T]) -> T:
        pause = 0.1
        while True:
            try:
                if not self.is_connected:
                    self.connect()
                return work()
            except (StoreUnavailable, DatabaseInUse) as error:
                if self.is_connected:
                    self.stalls += 1
                    log.warning("the database is away: %s", error)
                self.is_connected = False
                if self._stopping.wait(pause):
                    raise Stopping from None
                pause = min(pause * 2, 2.0)

    def _commit(self, decision: Decision) -> Committed:
        # Before, so that nobody reads an aggregate that lacks a committed row; and after, with the number it got.
        self.dirty.note(decision.outcome.readings, self.batch)
        outcome = decision.outcome
        if len(outcome.readings) < AHEAD_FROM and len(outcome.waveforms) < AHEAD_FROM_BLOCKS:
            return self._with_database(lambda: self.writer.commit(outcome))
        sent = threading.Event()
        committing = self._scribe.submit(lambda: self._with_database(lambda: self.writer.commit(outcome, sent.set)))
        committing.add_done_callback(lambda _: self.inbox.wake())
        committing.add_done_callback(lambda _: sent.set())
        sent.wait(SENT_S)
        self._take_ahead(self._ahead, TICK_S, self.linger_s, lambda: committing.done() or self._stopping.is_set())
        if not committing.done():
            self._ahead.join()
        return committing.result()

    def commit(self, decision: Decision) -> list[AlertEvent]:
        """Commit and apply what a command decided; the events as numbered."""
        committed = self._commit(decision)
        self._finish(decision, committed)
        return committed.events

    def follow_catalog(self) -> bool:
        """Take over sensors that others changed in the database; whether there were any."""
        judgement = self.judgement
        changed = False

        def load(connection: Any) -> int:
            nonlocal changed
            changed = refresh(connection, judgement.catalog)
            if changed:
                load_facts(connection, judgement.catalog, judgement.rules.attributes)
            return 0

        self.writer.transact(load)
        if judgement.catalog.strange:
            strange = ", ".join(sorted(judgement.catalog.strange))
            log.error("sensors of kinds unknown here take no readings: %s (CIMTWIN_KINDS?)", strange)
        if changed:
            self._refit()
        return changed

    def _refit(self) -> None:
        self.judgement.refit()
        self._checkpointed_batch = -1
        self._has_orphans = True

    def follow_rules(self) -> None:
        """Take over a rule set that others put into the database."""
        found: list[tuple[int, str] | None] = []

        def load(connection: Any) -> int:
            found.append(current_rules(connection))
            return 0

        self.writer.transact(load)
        if found[0] is not None and found[0][0] != self.judgement.rules_version:
            version, text = found[0]
            self.use_rules(self.parse_rules(text), version)

    def use_rules(self, rules: RuleSet, version: int) -> None:
        """Judge by another rule set from the next batch on; alerts of rules that are gone are closed."""
        before, catalog = self.judgement.rules, self.judgement.catalog
        named, known = rules.attributes, catalog.attributes
        if named is not None and (known is None or not named <= known):
            self.writer.transact(lambda c: load_facts(c, catalog, rules.attributes))
        self.judgement.refit(rules, version)
        for problem in self.judgement.engine.fitted.problems[:10]:
            log.warning("rules: %s", problem)
        self._checkpointed_batch = -1
        self.close_orphans(before, "the rule was changed or removed / 规则已修改或删除")

    def close_orphans(self, before: RuleSet | None, why: str) -> None:
        """Close alerts that nothing stands behind any more."""
        docket = self.judgement.docket(self.clock())
        for alert in self.judgement.orphans(before):
            docket.close(alert, None, why, because_removed=True)
        if docket.events:
            self.commit(self.judgement.decision_of(docket))

    def settle_holds(self) -> None:
        """Bring the flags of all open alerts in line with what holds them back now. Once, before anything is told."""
        decision = self.judgement.decision_of(self.judgement.docket(self.clock()), self.clock())
        if decision.outcome.is_empty:
            self.judgement.apply(decision)
        else:
            self.commit(decision)

    def _absorb_others_work(self) -> None:
        """Take over what imports have committed since our last commit."""

        def look() -> None:
            standing = self.writer.standing()
            if standing.batch > self.batch:
                self._absorb(self.batch + 1, standing.batch)
                self.batch = standing.batch

        try:
            self._with_database(look)
        except Stopping:
            return

    def _absorb(self, first: int, last: int) -> None:
        """Readings that an import put into the database in batches `first` to `last`."""
        imported = self._with_database(lambda: self.writer.imported(first, last))
        standing = self._with_database(self.writer.standing)
        if int(imported.sensor.max(initial=-1)) >= len(self.judgement.catalog):
            self._with_database(self.follow_catalog)
        self.judgement.state.apply(imported, is_heard=False)
        self.dirty.note(imported, last)
        self.counts = standing.counts
        self._checkpointed_batch = -1

    # The passing of time

    def _tick_if_due(self) -> None:
        now = time.monotonic()
        if now < self._next_tick:
            return
        self._next_tick = now + TICK_S
        if self.judgement.has_other_networks:
            self._refit()
        if self._has_orphans:
            self._has_orphans = False
            self.close_orphans(None, "the rule no longer looks at this sensor / 规则不再监视该测点")
        # While we do not hear, or have not yet listened to what waits, nobody is silent.
        is_deaf = self.source is None or not self.source.is_connected or self.waiting > self._most
        try:
            # Never ahead of what has come already: during a stall everybody's messages wait in the inbox.
            oldest = self.waiting_since()
            at = self.clock() if oldest is None else min(self.clock(), oldest)
            decision = self.judgement.tick(at, is_deaf, self.writer)
            if not self.waiting:
                self.lag_s = 0.0
            if decision.outcome.is_empty:
                for update in decision.updates:
                    self.judgement.engine.apply(update)
                if not self._commands and not self.waiting:
                    self._with_database(self._look_around)
            else:
                self.commit(decision)
        except Stopping:
            return
        except Exception:
            self.failures += 1
            log.exception("a tick failed")

    def _look_around(self) -> None:
        """While nothing comes in, see what others changed."""
        standing = self.writer.standing()
        self._follow(standing.catalog_version, standing.rules_version)
        if standing.batch > self.batch:
            self._absorb(self.batch + 1, standing.batch)
            self.batch = standing.batch
        self.counts = standing.counts

    def _checkpoint_if_due(self, force: bool = False) -> None:
        now = time.monotonic()
        is_due = self._checkpointed_batch < 0 or (
            now >= self._next_checkpoint and self._checkpointed_batch < self.batch
        )
        if not (force or is_due) or self._checkpointed_batch == self.batch:
            return
        self._next_checkpoint = now + self.checkpoint_s
        self._checkpointed_batch = self.batch
        snapshot = self.judgement.snapshot(self.batch, self.clock())
        self.judgement.keep_snapshot(snapshot)
        kept = self.judgement.snapshots
        outdated, self.judgement.outdated = self.judgement.outdated, set()
        changed = {s.batch: s.observed_at.copy() for s in kept if s.batch in outdated}
        if self.checkpoints:
            changed = self.checkpoints.popleft().changed | changed
        self.checkpoints.append(
            Checkpoint(snapshot, self.judgement.state.copy(), [earlier.batch for earlier in kept], changed)
        )

    # Commands

    def _serve_commands(self) -> None:
        while self._commands:
            work, future = self._commands.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(self._for_people(work))
            except Stopping:
                future.set_exception(StoreUnavailable("the service is stopping / 服务正在停止"))
            except Exception as error:  # noqa: BLE001 - goes to the one who asked
                future.set_exception(error)

    def _for_people(self, work: Callable[[], T]) -> T:
        """`work`, tried again for a few seconds while the database is away: people wait for the answer. Commands can
        be begun again, as nothing of them stands before their one transaction."""
        deadline = time.monotonic() + COMMAND_PATIENCE_S
        while True:
            try:
                if not self.is_connected:
                    self.connect()
                return work()
            except (StoreUnavailable, DatabaseInUse) as error:
                self.is_connected = False
                if time.monotonic() > deadline:
                    raise StoreUnavailable(str(error)) from error
                if self._stopping.wait(0.1):
                    raise Stopping from None


class Stopping(Exception):  # noqa: N818
    """The service stops while something waits for the database."""
