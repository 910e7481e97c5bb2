"""Back-tests: what other rules would have given of stored readings, beside the alerts that there were.

A back-test is a replay with other rules, as fast as possible and to nobody: the production engine, in a process of its
own with the lowest priority and a read-only connection. Bounds: `AT_ONCE` of them run at a time (one more is refused);
one that would raise more than `ALERTS_MOST` alerts ends there; an answer shows a bounded number of alerts, and counts
all. One whose client has gone is ended.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, Protocol

import orjson
from rich.console import Console
from rich.progress import Progress as ProgressLine

from alerts.comparing import Pair, compare
from ingest.replay import Replay
from twin.importing import parse_named_rules
from twin.live import alert_json
from twin.model import Alert, Conflict, Micros, NotFound, Problem, Refused, StoreUnavailable, iso
from twin.replay_worker import NICENESS, ReplayTape, Wanted, open_replay
from twin.replaying import indices, moment
from twin.settings import Settings
from twin.units import load_kinds

AT_ONCE: Final = 2
ALERTS_MOST: Final = 100_000
SHOWN: Final = 1000  # alerts in each list of an answer
KEPT: Final = 20  # back-tests that are over and still listed
TELL_S: Final = 0.2
KINDS: Final = ("added", "missing", "changed")

Tell = Callable[[Micros, int, int], None]  # how far it came, readings, alerts


@dataclass(frozen=True, slots=True)
class Asked:
    """What to test: `rules` (TOML) over [start, end) of event time; `sensors` by index, None for all; `shown`: how many
    alerts each list of the answer has at most."""

    rules: str
    start: Micros
    end: Micros
    sensors: tuple[int, ...] | None = None
    shown: int = SHOWN


def backtest(replay: Replay, shown: int, tell: Tell) -> dict[str, Any]:
    """Play a prepared replay to its end and say what came of it."""
    would = {alert.id: alert for alert in replay.judgement.book.open.values()}
    while replay.time < replay.end and len(would) <= ALERTS_MOST:
        told = replay.advance(replay.end)
        would |= {alert.id: alert for alert in told.alerts}
        tell(replay.time, replay.told, len(would))
    start, end = replay.start, replay.time
    there = [alert for alert in would.values() if _is_within(alert, start, end)]
    pairs = compare(there, [a for a in replay.recorded_alerts(end) if _is_within(a, start, end)], start)
    counts: dict[str, dict[str, int]] = {}
    for pair in pairs:
        by_rule = counts.setdefault(pair.rule, dict.fromkeys(("would", "was", "same", *KINDS), 0))
        by_rule["would"] += pair.would is not None
        by_rule["was"] += pair.was is not None
        by_rule[pair.kind] += 1
    total = {name: sum(by_rule[name] for by_rule in counts.values()) for name in ("would", "was", "same", *KINDS)}
    lists = {kind: [_shown(pair) for pair in pairs if pair.kind == kind][:shown] for kind in KINDS}
    rules = replay.judgement.rules.rules
    return {
        "from": iso(start),
        "to": iso(end),
        "complete": end >= replay.end,
        "readings": replay.told,
        "sensors": len(replay.sensors),
        "total": total,
        "by_rule": dict(sorted(counts.items())),
        "alerts": [alert_json(alert) for alert in sorted(there, key=lambda a: (a.raised_at, a.id))[:shown]],
        "differences": lists,
        "as_recorded": [rule.id for rule in rules if rule.detector == "offline" and rule.enabled],
    }


def _is_within(alert: Alert, start: Micros, end: Micros) -> bool:
    return alert.raised_at < end and (alert.cleared_at is None or alert.cleared_at >= start)


def _shown(pair: Pair) -> dict[str, Any]:
    sides = {"would": pair.would, "was": pair.was}
    return {
        "rule": pair.rule,
        "fields": list(pair.fields),
        **{name: None if alert is None else alert_json(alert) for name, alert in sides.items()},
    }


# In a process of its own


def work(pipe: Connection, dsn: str, kinds_file: Path | None, asked: Asked) -> None:
    """Do one back-test and tell of it: `("moved", time, readings, alerts)`, at the end `("done", answer)` or
    `("failed", why)`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the service, which then tells us
    os.nice(NICENESS)
    last = 0.0

    def tell(at: Micros, readings: int, alerts: int) -> None:
        nonlocal last
        if time.monotonic() >= last + TELL_S:
            last = time.monotonic()
            pipe.send(("moved", at, readings, alerts))

    wanted = Wanted(asked.start, asked.end, 0.0, asked.sensors, asked.rules)
    try:
        try:
            with closing(ReplayTape(dsn)) as tape:
                pipe.send(("done", backtest(open_replay(tape, kinds_file, wanted), asked.shown, tell)))
        except (StoreUnavailable, Refused) as error:
            pipe.send(("failed", str(error)))
    except (BrokenPipeError, ConnectionResetError):
        return  # the service has gone


# In the service


class Surroundings(Protocol):
    """What back-tests need of the service."""

    @property
    def settings(self) -> Any: ...

    @property
    def clock(self) -> Callable[[], Micros]: ...

    @property
    def database_url(self) -> str: ...


class Backtest:
    """One back-test as the service sees it; `answer` is done when it is over."""

    def __init__(self, service: Surroundings, asked: Asked) -> None:
        self.id = uuid.uuid4().hex[:12]
        self.asked = asked
        self.created_at = service.clock()
        self.answer: Future[dict[str, Any]] = Future()
        self.state = "running"
        self._at, self._readings, self._alerts = asked.start, 0, 0
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=work,
            args=(theirs, service.database_url, service.settings.kinds, asked),
            name=f"backtest-{self.id}",
            daemon=True,
        )
        self._process.start()
        theirs.close()
        threading.Thread(target=self._listen, name=f"backtest-{self.id}", daemon=True).start()

    def status(self) -> dict[str, Any]:
        """As HTTP gives it."""
        asked = self.asked
        return {
            "id": self.id,
            "state": self.state,
            "from": iso(asked.start),
            "to": iso(asked.end),
            "time": iso(self._at),
            "progress": round((self._at - asked.start) / max(1, asked.end - asked.start), 4),
            "readings": self._readings,
            "alerts": self._alerts,
            "created_at": iso(self.created_at),
        }

    def cancel(self) -> None:
        """End it; `answer` then raises `Conflict`, unless it is there already."""
        if self.state == "running":
            self.state = "cancelled"
            self._process.terminate()

    def _listen(self) -> None:
        why: Exception = StoreUnavailable("the back-test's process ended before it was done")
        try:
            while True:
                message = self._pipe.recv()
                if message[0] == "moved":
                    _, self._at, self._readings, self._alerts = message
                elif message[0] == "done":
                    self.state, self._at = "done", self.asked.end
                    self.answer.set_result(message[1])
                    return
                else:
                    why = StoreUnavailable(message[1])
        except (EOFError, OSError):
            if self.state == "cancelled":
                why = Conflict("the back-test was cancelled / 回测已取消")
            else:
                self.state = "failed"
            self.answer.set_exception(why)
        finally:
            self._pipe.close()
            self._process.join()


class Backtests:
    """Those of a running service."""

    def __init__(self, service: Surroundings) -> None:
        self._service = service
        self._lock = threading.Lock()
        self._all: dict[str, Backtest] = {}

    def start(self, asked: Asked) -> Backtest:
        """Begin one. Raises `Conflict` where as many run as may."""
        with self._lock:
            if sum(one.state == "running" for one in self._all.values()) >= AT_ONCE:
                raise Conflict(f"{AT_ONCE} back-tests are running: wait for one / 已有 {AT_ONCE} 个回测在运行,请稍候")
            over = [one.id for one in self._all.values() if one.state != "running"]
            for id_ in over[: max(0, len(over) - KEPT)]:
                del self._all[id_]
            one = Backtest(self._service, asked)
            self._all[one.id] = one
        return one

    def find(self, id_: str) -> Backtest:
        one = self._all.get(id_)
        if one is None:
            raise NotFound(f"no back-test {id_} / 没有回测 {id_}")
        return one

    def listed(self) -> list[Backtest]:
        """The newest first."""
        return sorted(self._all.values(), key=lambda one: (one.created_at, one.id), reverse=True)

    def end(self) -> None:
        for one in list(self._all.values()):
            one.cancel()


# From the command line


def in_terminal(
    settings: Settings,
    dsn: str,
    span: tuple[str, str],
    rules: tuple[str, bytes],
    sensors: Sequence[str] | None,
    shown: int,
    out: Path | None,
) -> str:
    """`cimtwin backtest`: the answer as JSON to `out` or stdout, a progress bar on stderr where that is a terminal;
    what it came to in a line. Raises `Refused` for a bad option or bad rules; then nothing is written."""
    start, end = (moment(f"--{name}", text) for name, text in zip(("from", "to"), span, strict=True))
    if start >= end:
        raise Refused([Problem("--from", "", "must be before --to / 必须早于 --to")])
    kinds = load_kinds(settings.kinds)
    text = parse_named_rules(rules[1], rules[0], kinds).text
    wanted = Wanted(start, end, 0.0, indices(dsn, kinds, sensors, None), text)
    console = Console(stderr=True)
    with closing(ReplayTape(dsn)) as tape, ProgressLine(
        console=console, disable=not console.is_terminal, transient=True
    ) as bar:  # fmt: skip
        line = bar.add_task("回测 back-test", total=end - start)
        found = backtest(
            open_replay(tape, settings.kinds, wanted), shown, lambda at, _r, _a: bar.update(line, completed=at - start)
        )
    answer = orjson.dumps(found, option=orjson.OPT_INDENT_2).decode() + "\n"
    if out is None:
        sys.stdout.write(answer)
    else:
        try:
            out.write_text(answer, encoding="utf-8")
        except OSError as error:
            raise Refused([Problem("--out", "", f"{out}: {error.strerror}")]) from None
    total = found["total"]
    return (
        f"{found['readings']} readings; {total['would']} alerts, recorded {total['was']}: {total['added']} added,"
        f" {total['missing']} missing, {total['changed']} changed / 新增 {total['added']},缺少 {total['missing']},"
        f"变化 {total['changed']}"
    )
