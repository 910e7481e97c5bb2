"""What HTTP and WebSocket see of the service: the shape that `twin.app.Service` has."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from alerts.rules import Rule, RuleSet
from alerts.scopes import Fitted
from ingest.commands import Once
from twin.backtests import Asked
from twin.catalog import Catalog
from twin.incident_desk import Action
from twin.live import Live
from twin.model import Alert, AlertEvent, Hold, Micros, Sensor
from twin.model_imports import ModelImports
from twin.notifying import Notifier
from twin.replay_worker import Wanted
from twin.settings import Settings
from twin.state import SensorState
from twin.store.reader import Reader
from twin.tilesets import Tilesets
from twin.units import Kind


class RuleView(Protocol):
    """One rule; `raw` is its table as it was written."""

    @property
    def id(self) -> str: ...

    @property
    def raw(self) -> Mapping[str, Any]: ...


class RulesView(Protocol):
    """The rule set in force; `text` is its TOML."""

    @property
    def rules(self) -> Sequence[RuleView]: ...

    @property
    def text(self) -> str: ...

    def as_json(self) -> dict[str, Any]: ...


class ReplayView(Protocol):
    """One replay: as HTTP gives it, what can be asked of it, and where WebSocket clients join."""

    wanted: Wanted
    live: Live

    created_at: Micros

    @property
    def id(self) -> str: ...

    @property
    def is_over(self) -> bool: ...

    def status(self) -> dict[str, Any]: ...

    def control(self, action: str, argument: float | int | None = None) -> Future[Any]: ...

    async def ready(self) -> None: ...

    def watched(self) -> None: ...

    def snapshot(self) -> tuple[int, list[Alert]]: ...

    async def events_after(self, seq: int, limit: int) -> list[AlertEvent]: ...


class ReplaysView(Protocol):
    """The replays there are."""

    def start(self, wanted: Wanted, is_paused: bool) -> ReplayView: ...

    def answered(self, once: Once | None) -> bytes | None: ...

    def answer(self, once: Once | None, answer: bytes) -> bytes: ...

    def find(self, id_: str) -> ReplayView: ...

    def listed(self) -> Sequence[ReplayView]: ...


class BacktestView(Protocol):
    """One back-test; `answer` is done when it is over."""

    asked: Asked
    answer: Future[dict[str, Any]]
    created_at: Micros

    @property
    def id(self) -> str: ...

    def status(self) -> dict[str, Any]: ...

    def cancel(self) -> None: ...


class BacktestsView(Protocol):
    """The back-tests there are."""

    def start(self, asked: Asked) -> BacktestView: ...

    def find(self, id_: str) -> BacktestView: ...

    def listed(self) -> Sequence[BacktestView]: ...


class CommandsView(Protocol):
    """What people ask of the running system: carried out between two batches, committed when the future is done."""

    def act(
        self,
        alert_id: str,
        action: str,
        by: str | None,
        note: str | None,
        once: Once | None = None,
        *,
        to: str | None = None,
        until: Micros | None = None,
    ) -> Future[bytes]: ...

    def begin_hold(self, hold: Hold, once: Once | None = None) -> Future[bytes]: ...

    def end_hold(self, id_: str, by: str | None, note: str | None) -> Future[bytes]: ...

    def put_rules(
        self, text: str, by: str | None, note: str | None = None, instead_of: int | None = None
    ) -> Future[int]: ...

    def put_sensors(self, sensors: Sequence[Sensor], once: Once | None = None) -> Future[dict[str, int]]: ...

    def patch_sensor(self, sensor_id: str, changes: dict[str, Any], by: str | None) -> Future[Sensor]: ...

    def replace_device(
        self, device: str, hardware: str, since: Micros | None, by: str | None, once: Once | None = None
    ) -> Future[dict[str, Any]]: ...

    def redrive(self, ids: Sequence[int] | None, once: Once | None = None) -> Future[dict[str, int]]: ...


class DeskView(Protocol):
    """Incidents: those in memory, and what people do about them."""

    def act(self, action: Action) -> Future[bytes]: ...

    def incident_of(self, alert: str) -> str | None: ...

    def flood(self) -> dict[str, Any]: ...


class ServiceView(Protocol):
    """The service. Nothing here changes it but `commands` and `desk`."""

    @property
    def commands(self) -> CommandsView: ...

    live: Live
    reader: Reader
    clock: Callable[[], Micros]
    kinds: dict[str, Kind]
    settings: Settings
    started_at: Micros
    model_imports: ModelImports
    tilesets: Tilesets
    database_url: str
    notifier: Notifier

    @property
    def desk(self) -> DeskView: ...

    @property
    def replays(self) -> ReplaysView: ...

    @property
    def catalog(self) -> Catalog: ...

    @property
    def state(self) -> SensorState: ...

    @property
    def backtests(self) -> BacktestsView: ...

    @property
    def rules(self) -> RuleSet: ...

    @property
    def fitted(self) -> Fitted:
        """The rules in force over the catalogue."""
        ...

    @property
    def rules_version(self) -> int: ...

    @property
    def epoch(self) -> str: ...

    @property
    def seq(self) -> int: ...

    def snapshot(self) -> tuple[int, list[Alert]]:
        """The number of the last committed alert event and the open alerts as of it (worst, then newest first), in
        one step with respect to the pipeline."""
        ...

    def open_alerts(self) -> list[Alert]: ...

    def alert(self, alert_id: str) -> Alert | None:
        """An open alert with the values of now; None if it is not open (then the database has it, or nobody)."""
        ...

    def alerts(self, ids: Iterable[str]) -> list[Alert]:
        """Those of these alerts that are open, with the values of now."""
        ...

    def rules_on(self, sensor: int) -> Sequence[Rule]:
        """The rules in force that look at a sensor, with the values that they have there."""
        ...

    def dirty(self, sensor: int) -> tuple[Micros, Micros] | None:
        """First and last event time of a sensor changed since the aggregates were refreshed. What is committed shows
        here before it is acknowledged."""
        ...

    def stats(self) -> dict[str, int | float | str]: ...

    def readiness(self) -> dict[str, bool]: ...
