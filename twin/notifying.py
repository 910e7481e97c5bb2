"""Telling people: a follower of the alert events decides who is told what, in the transaction in which it notes how far
it got; a thread sends what is written down, and notes how it went.

At least once: a delivery is waiting until its receiver has taken it and that is committed. What a crash leaves between
the two goes out again under the same id. Buffers: at most `WORKERS` receivers are being sent to at a time, each
`AT_ONCE` deliveries at most with `ALERTS_AT_ONCE` alerts in them; everything else waits in the database.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import queue
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import psycopg

from alerts.holds import HELD
from alerts.notify import alertmanager
from alerts.notify.calls import Answer
from alerts.notify.desk import (
    MOST_ALERTS,
    TOGETHER,
    Facts,
    Standing,
    decide,
    delivery,
    first_due,
    group_of,
    news,
    routes_of,
)
from alerts.notify.notice import Notice, joined, worst_first
from alerts.notify.plan import (
    EMPTY,
    ENVIRONMENT,
    InvalidPlan,
    Plan,
    Receiver,
    masked_text,
    parse_json,
    parse_plan,
    secret_at,
    secret_places,
    to_toml,
)
from twin.following import Follower
from twin.live import alerts_json
from twin.model import LEVELS, MINUTE, SECOND, AlertEvent, AlertState, Conflict, Micros, NotFound, Problem
from twin.sending import NoVariable, deliver, resolved
from twin.store import notify as store
from twin.store.database import Connection
from twin.telling import Outgoing, Watched

log = logging.getLogger(__name__)

NAME: Final = "notify"
WORKERS: Final = 32  # chats of a whole city hang together when the way out is cut
AT_ONCE: Final = 50
ALERTS_AT_ONCE: Final = 1000  # in them; some 6 MB
RESULTS: Final = 500  # noted in one transaction
LOOK_S: Final = 1.0
PAUSE_S: Final = 2.0  # after an error of the database
LONGEST: Final = 10 * MINUTE  # between two attempts
LONGEST_PAUSE: Final = MINUTE  # that a receiver which does not answer is left alone
JOIN_FROM: Final = 4  # deliveries that wait for a receiver with a limit become one message
STOP_S: Final = 3.0
TEST_S: Final = 15.0  # how long a test waits for its outcome


@dataclass
class _Line:
    """How sending to one receiver goes."""

    is_busy: bool = False
    failures: int = 0
    paused_until: Micros = 0
    sent: deque[Micros] | None = None


@dataclass(frozen=True)
class _Result:
    receiver: str
    ids: tuple[str, ...]
    answer: Answer | None  # None: the worker is done with this receiver
    at: Micros
    attempts: int = 0


@dataclass
class Numbers:
    """Since the start, but for what is waiting, held and dead, which is as it stands."""

    sent: int = 0
    failed: int = 0
    unrouted: int = 0
    waiting: int = 0
    held: int = 0
    dead: int = 0


class Notifier:
    """Keeps the plan, decides deliveries (`follower`) and sends them. Nothing is contacted that the plan does not name;
    without a plan nothing is written down either."""

    def __init__(self, dsn: str, clock: Callable[[], Micros], mqtt_url: Callable[[], str]) -> None:
        self._dsn = dsn
        self._clock = clock
        self._mqtt_url = mqtt_url
        self.follower = Follower(dsn, NAME, self.take)
        self.numbers = Numbers()
        self.version = 0
        self.plan: Plan = EMPTY
        self._plan_lock = threading.Lock()
        self._refreshed: dict[str, Micros] = {}
        self._lines: defaultdict[str, _Line] = defaultdict(_Line)
        self._results: queue.SimpleQueue[_Result] = queue.SimpleQueue()
        self._unwritten: list[_Result] = []
        self._is_due = threading.Event()
        self._has_more = threading.Event()  # deliveries that may be sent
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="notify sender", daemon=True)

    # Starting and stopping

    def begin(self, initial: tuple[str, bytes] | None) -> None:
        """Load the plan; where there is none yet, `initial` (name, text) becomes the first. Raises `InvalidPlan`."""
        with store.connect(self._dsn) as connection:
            self._current(connection)
            if initial is not None and self.version == 0:
                name, text = initial
                try:
                    self.put(text, f"file {name}"[:200])
                except InvalidPlan as refused:
                    problems = [Problem(f"{name}, {p.place}", p.field, p.text) for p in refused.problems]
                    raise InvalidPlan(problems, name) from None

    def start(self) -> None:
        """Start sending. The follower is started with the others."""
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._is_due.set()
        if self._thread.is_alive():
            self._thread.join(STOP_S + 5)

    # The plan

    def _current(self, connection: Connection) -> Plan:
        """The newest plan of the database."""
        version = store.plan_version(connection)
        if version != self.version:
            with self._plan_lock:
                text, secrets = store.load_plan(connection, version)
                self.plan, self.version = parse_plan(text, kept_table(secrets)) if version else EMPTY, version
        return self.plan

    def check(self, text: bytes, is_json: bool = False) -> Plan:
        """The plan of a text; `***` in it is what the plan in force has there. Raises `InvalidPlan`."""
        parse = parse_json if is_json else parse_plan
        plan = parse(text, self.plan.table)
        problems = []
        for receiver in plan.receivers.values():
            try:
                resolved(receiver)
            except NoVariable as missing:
                problems.append(Problem(f"receiver.{receiver.name}", "", str(missing)))
        if problems:
            raise InvalidPlan(problems, "notification plan")
        return plan

    def put(self, text: bytes, by: str | None, is_json: bool = False, instead_of: int | None = None) -> int:
        """Make a plan the one in force; its version. Raises `InvalidPlan`, and `Overtaken` where the one in force is
        not `instead_of`."""
        plan = self.check(text, is_json)
        written = to_toml(plan.table) if is_json else text.decode("utf-8-sig")
        with store.connect(self._dsn) as connection, connection.transaction():
            version = store.save_plan(connection, masked_text(written, plan.table), secrets_of(plan), by, instead_of)
        with store.connect(self._dsn) as connection:
            self._current(connection)
        self.wake()
        return version

    def text(self) -> str:
        """The plan in force as TOML, without its secrets."""
        with store.connect(self._dsn) as connection:
            return store.load_plan(connection, self.version)[0]

    # Deciding

    def take(self, connection: Connection, events: list[AlertEvent]) -> Callable[[], None] | None:
        """Decide, in a follower's transaction, what these events and the time that passed give to tell."""
        plan = self._current(connection)
        at = self._clock()
        if not plan.routes:
            if self.version:
                store.forget(connection, at)
            return None
        refreshed = self._refresh(connection, plan, at)
        if not events and not store.is_anything_due(connection, at):
            return self._sender_is_due if refreshed else None
        ids = list(dict.fromkeys(event.alert_id for event in events))
        watched = store.watched(connection, ids, at, at + TOGETHER)
        facts = self._facts(connection, {*ids, *watched})
        begun = {event.alert_id for event in events if event.transition == "raised"}
        for id_ in ids:
            self._note(plan, watched, facts, id_, id_ in begun, at)
        keys = {w.group for w in watched.values()}
        for id_ in watched.keys() & facts.keys():
            route = next(iter(routes_of(plan, facts[id_], max(1, facts[id_].alert.level))), None)
            keys.add(group_of(route, facts[id_]))
        held = store.held(connection, at, list(watched), sorted(keys))
        missing = {id_ for row in held for id_ in row.alerts} - facts.keys()
        if missing:
            facts |= self._facts(connection, missing)
        reached = store.reached(connection, [*watched, *missing])
        pending = [w.alert for w in watched.values() if w.due_at is not None]
        standing = Standing(facts, reached, held, store.groups(connection, sorted(keys), pending))
        decision = decide(plan, list(watched.values()), standing, at)
        store.save_deliveries(connection, [due.delivery() for due in decision.due], decision.lapsed, at)
        store.save_watched(connection, decision.watched, decision.finished)
        store.save_groups(connection, decision.groups, at)
        self.numbers.unrouted += decision.unrouted
        is_due = refreshed or any(due.state == "waiting" for due in decision.due)
        return self._sender_is_due if is_due else None

    def _note(
        self, plan: Plan, watched: dict[str, Watched], facts: Mapping[str, Facts], id_: str, begins: bool, at: Micros
    ) -> None:
        """Note that something happened to an alert."""
        known = facts.get(id_)
        if known is None:
            return
        if id_ not in watched:
            # One that stood before there was a plan is taken up when it asks for attention.
            if not begins and known.alert.state is not AlertState.ACTIVE_UNACKNOWLEDGED:
                return
            watched[id_] = Watched(id_)
        w = watched[id_]
        if news(w, known.alert) is not None:
            w.changed_at = at if w.changed_at is None else w.changed_at
            due = first_due(plan, known, at)
            w.due_at = due if w.due_at is None else min(w.due_at, due)

    def _facts(self, connection: Connection, ids: Iterable[str]) -> dict[str, Facts]:
        known = store.alerts(connection, ids)
        incidents = store.incidents(connection, list(known))
        shown = alerts_json([one.alert for one in known.values()])
        return {
            id_: Facts(one.alert, seen, one.kind, one.tags, one.area, incidents.get(id_))
            for (id_, one), seen in zip(known.items(), shown, strict=True)
        }

    def _refresh(self, connection: Connection, plan: Plan, at: Micros) -> bool:
        """Tell Alertmanagers again of what is active, before they take it for resolved."""
        did = False
        for receiver in plan.receivers.values():
            if receiver.type != "alertmanager":
                continue
            last = self._refreshed.get(receiver.name)
            if last is not None and at - last < alertmanager.resend_of(receiver):
                continue
            self._refreshed[receiver.name] = at
            if last is None and not store.standing_at(connection, receiver.name, HELD):
                continue
            known = store.alerts(connection, store.standing_at(connection, receiver.name, HELD))
            shown = alerts_json([one.alert for one in known.values()])
            notices = [
                _refreshing(shown[first : first + MOST_ALERTS], at, plan.zone)
                for first in range(0, len(shown), MOST_ALERTS)
            ]
            several = [delivery(receiver.name, notice, "waiting", at) for notice in notices]
            store.save_refreshes(connection, receiver.name, several, at)
            did = did or bool(several)
        return did

    def _sender_is_due(self) -> None:
        self._has_more.set()
        self._is_due.set()

    def wake(self) -> None:
        """There may be something to decide and to send."""
        self.follower.wake()
        self._sender_is_due()

    # What people ask for

    def test(self, receiver: str, key: str | None, route: str) -> dict[str, Any]:
        """Send a test message; how it went, or how it stands if that takes long. Raises `NotFound`."""
        with store.connect(self._dsn) as connection:
            self._current(connection)
            if receiver not in self.plan.receivers:
                raise NotFound(f"no receiver {receiver} / 没有接收端 {receiver}")
            at = self._clock()
            notice = Notice("test", LEVELS[0], f"test:{at}", at, (), 0, zone=self.plan.zone)
            made = delivery(receiver, notice, "waiting", at)
            given = store.once(
                connection, key, route, lambda: {"id": store.save_deliveries(connection, [made], [], at)[0]}
            )
            self._sender_is_due()
            deadline = time.monotonic() + TEST_S
            found = store.one(connection, given["id"])
            while found is not None and found["state"] == "waiting" and not found["attempts"]:
                if time.monotonic() > deadline:
                    break
                self._stopping.wait(0.05)
                found = store.one(connection, given["id"])
            return found or {}

    def retry(self, id_: str, by: str | None, key: str | None, route: str) -> dict[str, Any]:
        """Let a dead delivery go again. Raises `NotFound`, `Conflict`."""

        def work() -> dict[str, Any]:
            found = store.retry(connection, id_, by, self._clock())
            if found is None:
                raise NotFound(f"no delivery {id_} / 没有投递 {id_}")
            state, given = found
            if state != "dead":
                raise Conflict(f"the delivery is {state}; only a dead one can be tried again / 投递状态为 {state}")
            return given

        with store.connect(self._dsn) as connection:
            given = store.once(connection, key, route, work)
        self._sender_is_due()
        return given

    def stats(self) -> dict[str, int]:
        n = self.numbers
        return {
            "notify_sent": n.sent,
            "notify_failed": n.failed,
            "notify_dead": n.dead,
            "notify_waiting": n.waiting,
            "notify_held": n.held,
            "notify_unrouted": n.unrouted,
            "notify_failures": self.follower.failures,
            "notify_version": self.version,
        }

    # Sending

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                with store.connect(self._dsn) as connection:
                    self._send(connection)
            except Exception as error:
                known = isinstance(error, psycopg.Error)
                log.warning("notify sender: %s", error, exc_info=not known)
                self._stopping.wait(PAUSE_S)

    def _send(self, connection: Connection) -> None:
        self._current(connection)
        looked_at = 0.0
        while not self._stopping.is_set():
            self._is_due.clear()
            is_free = self._write_results(connection)
            now = time.monotonic()
            if is_free or self._has_more.is_set() or now >= looked_at + LOOK_S / (5 if self.numbers.waiting else 1):
                self._has_more.clear()
                self._hand_out(connection)
                self._count(connection)
                looked_at = now
            self._is_due.wait(LOOK_S / 5)
        deadline = time.monotonic() + STOP_S
        while any(line.is_busy for line in self._lines.values()) and time.monotonic() < deadline:
            with contextlib.suppress(queue.Empty):
                self._unwritten.append(self._results.get(timeout=0.1))
            self._write_results(connection)

    def _count(self, connection: Connection) -> None:
        found = store.numbers(connection)
        n = self.numbers
        n.waiting, n.held, n.dead = found.get("waiting", 0), found.get("held", 0), found.get("dead", 0)

    def _hand_out(self, connection: Connection) -> None:
        """Give workers what is due, for receivers that nobody is sending to."""
        at = self._clock()
        plan = self.plan
        not_now = [name for name, line in self._lines.items() if line.is_busy or line.paused_until > at]
        room = WORKERS - sum(line.is_busy for line in self._lines.values())
        if room <= 0:
            return
        due: defaultdict[str, list[Outgoing]] = defaultdict(list)
        for one in store.outgoing(connection, at, not_now, AT_ONCE, ALERTS_AT_ONCE):
            due[one.receiver].append(one)
        # Who answered last time first: they are done at once.
        order = sorted(due.items(), key=lambda item: (self._lines[item[0]].failures > 0, -_worst(item[1])))
        for name, several in order:
            receiver = plan.receivers.get(name)
            if receiver is None:
                text = f"no receiver {name} in plan version {self.version} / 方案中没有接收端 {name}"
                store.mark_failed(connection, [one.id for one in several], at, text, None, counts=False)
                self.numbers.failed += len(several)
                continue
            if room <= 0:
                break  # who is done first makes room
            batches = self._batches(connection, receiver, several, at)
            if not batches:
                continue
            room -= 1
            worker = threading.Thread(target=self._work, args=(receiver, batches), name=f"notify {name}", daemon=True)
            worker.start()
            self._lines[name].is_busy = True

    def _batches(
        self, connection: Connection, receiver: Receiver, several: list[Outgoing], at: Micros
    ) -> list[tuple[tuple[str, ...], Notice, int]]:
        """What goes out now, as messages: for a receiver with a limit no more than that, and many as one."""
        made: list[tuple[tuple[str, ...], Notice, int]] = [
            ((one.id,), Notice.from_json(one.content), one.attempts) for one in several
        ]
        if not receiver.per_minute:
            return made
        line = self._lines[receiver.name]
        if line.sent is None:
            line.sent = deque(store.sent_lately(connection, receiver.name, at - MINUTE))
        while line.sent and line.sent[0] <= at - MINUTE:
            line.sent.popleft()
        free = receiver.per_minute - len(line.sent)
        if free <= 0:
            line.paused_until = line.sent[0] + MINUTE
            return []
        tests = [one for one in made if one[1].kind == "test" or one[1].only]
        told = [one for one in made if one not in tests]
        if len(told) >= JOIN_FROM or len(told) > free:
            ids = tuple(id_ for ids, _, _ in told for id_ in ids)
            told = [(ids, joined([notice for _, notice, _ in told]), max(n for _, _, n in told))]
        made = [*told, *tests][:free]
        line.sent.extend([at] * len(made))
        return made

    def _work(self, receiver: Receiver, batches: Sequence[tuple[tuple[str, ...], Notice, int]]) -> None:
        """Send messages one after the other, until one does not arrive."""
        for ids, notice, attempts in batches:
            if self._stopping.is_set():
                break
            try:
                answer = deliver(receiver, notice, _message_id(ids), self._clock(), self._mqtt_url())
            except Exception as error:
                # Whatever a message holds: it fails alone and on record, and its receiver is not left busy for ever.
                log.exception("notify: %s", receiver.name)
                answer = Answer(False, True, f"{type(error).__name__}: {error}"[:500])
            self._results.put(_Result(receiver.name, ids, answer, self._clock(), attempts))
            self._is_due.set()
            if not answer.is_sent and answer.may_retry:
                break
        self._results.put(_Result(receiver.name, (), None, self._clock()))
        self._is_due.set()

    def _write_results(self, connection: Connection) -> bool:
        """Note how sendings went, all in one transaction; whether somebody became free to be sent to. What cannot be
        noted now is noted later; a repetition is harmless."""
        with contextlib.suppress(queue.Empty):
            while len(self._unwritten) < RESULTS:
                self._unwritten.append(self._results.get_nowait())
        if not self._unwritten:
            return False
        with connection.transaction():
            for result in self._unwritten:
                if result.answer is not None:
                    self._write(connection, result, result.answer)
        for result in self._unwritten:
            self._learn(result)
        is_free = any(result.answer is None for result in self._unwritten)
        self._unwritten.clear()
        return is_free

    def _write(self, connection: Connection, result: _Result, answer: Answer) -> None:
        receiver = self.plan.receivers.get(result.receiver)
        if answer.is_sent:
            store.mark_sent(connection, result.ids, result.at, answer.text)
            if self._lines[result.receiver].failures:
                store.hurry(connection, result.receiver, result.at)
            if answer.later:
                self._send_later(connection, result, answer.later)
            return
        attempts = result.attempts + 1
        is_last = not answer.may_retry or (receiver is not None and attempts >= receiver.attempts)
        pause = max(_backoff(receiver, result.ids[0], attempts), round(answer.wait_s * SECOND))
        store.mark_failed(connection, result.ids, result.at, answer.text, None if is_last else result.at + pause)
        log.warning("notify: %s: %s%s", result.receiver, answer.text, " (given up)" if is_last else "")
        if is_last and receiver is not None and receiver.fallback in self.plan.receivers:
            self._fall_back(connection, receiver, result)

    def _send_later(self, connection: Connection, result: _Result, recipients: tuple[str, ...]) -> None:
        """A mail arrived, but for some recipients the server asked to come again (greylisting, a full mailbox): for
        them it is a delivery of its own, which nothing of its group waits for."""
        at = result.at + _backoff(self.plan.receivers.get(result.receiver), result.ids[0], 1)
        for id_ in result.ids:
            found = store.one_content(connection, id_)
            notice = replace(Notice.from_json(found), only=recipients, group=f"{found['group']}|{id_}")
            reason = f"for those refused before / 补发给暂被拒收者: {', '.join(recipients)}"[:1000]
            store.save_deliveries(connection, [delivery(result.receiver, notice, "waiting", at, reason)], [], result.at)

    def _learn(self, result: _Result) -> None:
        """What a result says of its receiver: one that does not answer is left alone for a while."""
        line, answer = self._lines[result.receiver], result.answer
        if answer is None:
            line.is_busy = False
        elif answer.is_sent:
            line.failures, line.paused_until = 0, 0
            self.numbers.sent += len(result.ids)
        else:
            self.numbers.failed += 1
            if answer.may_retry:
                line.failures += 1
                pause = _backoff(self.plan.receivers.get(result.receiver), result.receiver, line.failures)
                wait = round(answer.wait_s * SECOND)
                line.paused_until = result.at + max(min(pause, LONGEST_PAUSE), wait)

    def _fall_back(self, connection: Connection, receiver: Receiver, result: _Result) -> None:
        """What a receiver would not take goes to another, once."""
        for id_ in result.ids:
            one = store.dead(connection, id_)
            if one is not None and one.instead_of is None and one.content["kind"] != "test":
                made = delivery(
                    receiver.fallback or "", Notice.from_json(one.content), "waiting", result.at,
                    f"instead of {receiver.name} / 代替 {receiver.name}", id_,
                )  # fmt: skip
                store.save_deliveries(connection, [made], [], result.at)


def _refreshing(shown: Sequence[Mapping[str, Any]], at: Micros, zone: str) -> Notice:
    level = max((str(alert["level"]) for alert in shown), key=LEVELS.index)
    return Notice("refresh", level, "refresh", at, worst_first(shown), len(shown), zone=zone)


def _message_id(ids: Sequence[str]) -> str:
    """The id under which deliveries go out as one message. After a crash or an answer that was lost, others may go with
    them: that is another message, which a receiver that knows the first one's id must not drop."""
    return ids[0] if len(ids) == 1 else hashlib.blake2b("\0".join(ids).encode(), digest_size=10).hexdigest()


def _worst(several: Sequence[Outgoing]) -> int:
    return max(LEVELS.index(str(one.content["level"])) for one in several)


def _backoff(receiver: Receiver | None, salt: str, attempts: int) -> Micros:
    """The pause after so many failures: doubled each time, up to ten minutes, and a tenth more or less by delivery, so
    that what failed together does not come together again."""
    first = receiver.backoff if receiver is not None else 5 * SECOND
    pause = min(first << min(attempts - 1, 30), max(LONGEST, first))
    spread = hashlib.blake2b(salt.encode(), digest_size=2).digest()
    return round(pause * (0.9 + 0.2 * int.from_bytes(spread, "big") / 65535))


def secrets_of(plan: Plan) -> store.Secrets:
    """The secrets that a plan holds itself, with their places."""
    found = [(place, secret_at(plan.table, place)) for place in secret_places(plan.table)]
    return [(*place, value) for place, value in found if isinstance(value, str) and not value.startswith(ENVIRONMENT)]


def kept_table(secrets: store.Secrets) -> dict[str, Any]:
    """A document that has the secrets at their places, and nothing else."""
    receivers: dict[str, Any] = {}
    for receiver, key, inner, value in secrets:
        given = receivers.setdefault(receiver, {})
        if inner is None:
            given[key] = value
        else:
            given.setdefault(key, {})[inner] = value
    return {"receiver": receivers}
