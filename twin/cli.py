"""The command `cimtwin`. Thin: each command gathers settings and calls what does the work.

Exit codes: 0 done, 1 failed, 2 wrong usage or bad input. Errors are lines on stderr, without a traceback.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import psycopg
import typer

from twin import logs
from twin.embedded import EmbeddedFailed
from twin.mistakes import said
from twin.model import Conflict, NotFound, Refused, StoreRefused, StoreUnavailable
from twin.settings import Settings, load, safety_problems
from twin.store.writer import DatabaseInUse

app = typer.Typer(
    help="城市生命线监测与数字孪生后端 / the open digital-twin and monitoring backend of a city's pipes",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Config = Annotated[Path | None, typer.Option("--config", help="TOML 配置文件 / settings file")]
DataDirOption = Annotated[Path | None, typer.Option("--data-dir", help="数据目录 / data folder (./data)")]
DatabaseOption = Annotated[
    str | None,
    typer.Option(
        "--database-url",
        help="数据库,不写则内置;口令请用环境变量 / database, none: embedded; passwords belong in the environment",
    ),
]
MqttOption = Annotated[
    str | None,
    typer.Option("--mqtt-url", help="MQTT 服务器地址,不写则用内置服务器 / broker; none: embedded"),
]


class Scenario(StrEnum):
    """What the demo shows."""

    DISTRICT = "district"
    STORM = "storm"


class Usage(Exception):  # noqa: N818
    """Wrong usage or bad input: exit code 2."""


@contextmanager
def plain_errors() -> Iterator[None]:
    """Expected failures as one readable line each, and the exit code that goes with them."""
    try:
        yield
    except Refused as refused:
        for line in [said(p) for p in refused.problems] or [refused.what]:
            typer.echo(f"cimtwin: {line}", err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        raise typer.Exit(0) from None
    except Usage as usage:
        typer.echo(f"cimtwin: {usage}", err=True)
        raise typer.Exit(2) from None
    except (
        EmbeddedFailed,
        DatabaseInUse,
        StoreUnavailable,
        StoreRefused,
        NotFound,
        Conflict,
        psycopg.Error,
        OSError,
    ) as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        typer.echo(f"cimtwin: {text}", err=True)
        raise typer.Exit(1) from None


def settings_of(config: Path | None = None, is_quiet: bool = True, **flags: Any) -> Settings:
    """The settings of a command; one that does its work and ends (`is_quiet`) logs only what is wrong."""
    settings = load(flags, config=config)
    level = "warning" if is_quiet and settings.log_level.lower() == "info" else settings.log_level
    logs.configure(level, settings.log_json)
    return settings


@app.command()
def serve(
    config: Config = None,
    data_dir: DataDirOption = None,
    database_url: DatabaseOption = None,
    mqtt_url: MqttOption = None,
    http: Annotated[str | None, typer.Option(help="HTTP 监听地址 / listen on (127.0.0.1:8000)")] = None,
    mqtt_listen: Annotated[
        str | None, typer.Option(help="内置 MQTT 监听地址 / the embedded broker's address (127.0.0.1:1883)")
    ] = None,
) -> None:
    """运行服务 / run the service: broker connection, pipeline, alert engine, HTTP, WebSocket."""
    with plain_errors():
        settings = settings_of(
            config,
            is_quiet=False,
            data_dir=data_dir,
            database_url=database_url,
            mqtt_url=mqtt_url,
            http=http,
            mqtt_listen=mqtt_listen,
        )
        refuse_unsafe(settings)
        from twin.app import serve as run

        run(settings, lambda service: announce(service.http_url, service.mqtt_url))


@app.command()
def demo(
    config: Config = None,
    data_dir: DataDirOption = None,
    http: Annotated[str | None, typer.Option(help="HTTP 监听地址 / listen on (127.0.0.1:8000)")] = None,
    mqtt_listen: Annotated[
        str | None, typer.Option(help="内置 MQTT 监听地址 / the embedded broker's address (127.0.0.1:1883)")
    ] = None,
    duration: Annotated[float | None, typer.Option(help="运行多少秒后结束 / end after so many seconds")] = None,
    speed: Annotated[float, typer.Option(min=0.1, max=3600, help="比记录快多少倍 / times faster than recorded")] = 60.0,
    scenario: Annotated[
        Scenario, typer.Option(help="storm: 一场雨中水泵跳闸 / rain, and a pump that trips")
    ] = Scenario.DISTRICT,
) -> None:
    """演示城市:一天真实内涝与模拟设备 / the service with a demo city: a real flood day and simulated devices."""
    with plain_errors():
        flags = {"data_dir": data_dir, "http": http, "mqtt_listen": mqtt_listen}
        settings = load(flags, config=config)
        if data_dir is None and settings.data_dir == Settings().data_dir:
            settings = load({**flags, "data_dir": settings.data_dir / "demo"}, config=config)
        refuse_unsafe(settings)
        from twin.demo.run import fresh_folder, run

        fresh_folder(settings.data_dir)
        log = settings.data_dir / "cimtwin.log"
        logs.configure(settings.log_level, settings.log_json, log)
        run(settings, duration, speed, scenario.value)


def refuse_unsafe(settings: Settings) -> None:
    problems = safety_problems(settings)
    if problems:
        raise Usage("\ncimtwin: ".join(problems))


def announce(http_url: str, mqtt_url: str) -> None:
    """Say where things are, on stderr, without passwords."""
    broker = mqtt_url.rpartition("@")[2].removeprefix("mqtt://").removeprefix("mqtts://")
    typer.echo(f"cimtwin: HTTP {http_url}  API {http_url}/docs  MQTT {broker}", err=True)


@app.command()
def migrate(config: Config = None, data_dir: DataDirOption = None, database_url: DatabaseOption = None) -> None:
    """把数据库升级到当前版本 / bring the database to this version's schema."""
    with plain_errors():
        from twin.embedded import database_url_for_command
        from twin.store.migrate import migrate as run

        with database_url_for_command(settings_of(config, data_dir=data_dir, database_url=database_url)) as dsn:
            done = run(dsn)
        typer.echo(f"cimtwin: {', '.join(done) if done else 'up to date / 已是最新'}")


@app.command("import")
def import_(
    files: Annotated[
        list[Path],
        typer.Argument(help="模型、测点表、规则、历史读数 / models, sensor lists, rules, recorded readings"),
    ],
    config: Config = None,
    data_dir: DataDirOption = None,
    database_url: DatabaseOption = None,
    tenant: Annotated[
        str | None, typer.Option(help="未写权属单位的测点、设施归属 / tenant of sensors and assets that name none")
    ] = None,
    crs: Annotated[
        str, typer.Option(help="模型的坐标系,文件未写时用 / the model's CRS where its file names none (EPSG:4547)")
    ] = "",
    model: Annotated[str, typer.Option(help="模型名,缺省用文件名 / the model's name; default: the file's")] = "",
) -> None:
    """导入文件,每个文件要么全部成功要么不变 / import files, each all or nothing."""
    with plain_errors():
        from twin.embedded import database_url_for_command
        from twin.importing import import_files

        settings = settings_of(config, data_dir=data_dir, database_url=database_url)
        with database_url_for_command(settings) as dsn:
            for line in import_files(dsn, files, settings, tenant, crs, model, show_progress):
                typer.echo(f"cimtwin: {line}")


@contextmanager
def show_progress(name: str) -> Iterator[Callable[[str, float], None]]:
    """Whom to tell how far the work on a file is: a bar on stderr, where that is a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(name, total=1.0)
        yield lambda what, share: bar.update(task, completed=share, description=f"{name}: {what}")


exports = typer.Typer(help="导出数据库内容 / what the database holds, as files", no_args_is_help=True)
app.add_typer(exports, name="export")


@exports.command("models")
def export_models(
    name: Annotated[str, typer.Argument(help="模型名 / the model's name")],
    format_: Annotated[
        str,
        typer.Option(
            "--format",
            help="source 为原文件 / source: its own files; cityjson, cityjsonl, geojson, csv, survey, tiles",
        ),
    ] = "source",
    out: Annotated[Path | None, typer.Option(help="写入的文件或目录 / the file or folder to write")] = None,
    as_of: Annotated[str | None, typer.Option(help="当时的版本 / as it was then (2026-07-01T00:00:00Z)")] = None,
    version: Annotated[int | None, typer.Option(help="第几版 / this version")] = None,
    config: Config = None,
    data_dir: DataDirOption = None,
    database_url: DatabaseOption = None,
) -> None:
    """导出一个模型 / one model: its own files as they were imported, or in another format."""
    with plain_errors():
        from twin.embedded import database_url_for_command
        from twin.exporting_models import export_model

        settings = settings_of(config, data_dir=data_dir, database_url=database_url)
        with database_url_for_command(settings) as dsn:
            typer.echo(f"cimtwin: {export_model(dsn, name, format_, out, as_of, version)}")


@app.command()
def publish(
    files: Annotated[list[Path], typer.Argument(help="历史读数 / recorded readings")],
    speed: Annotated[
        float, typer.Option(help="比记录快多少倍,0 为尽快 / times faster than recorded; 0: at once")
    ] = 1.0,
    now: Annotated[bool, typer.Option("--now", help="时间平移到现在 / shift the times to now")] = False,
    tenant: Annotated[
        str | None,
        typer.Option(help="设备的权属单位,缺省查数据库 / the devices' tenant; default: as the database says"),
    ] = None,
    config: Config = None,
    data_dir: DataDirOption = None,
    mqtt_url: MqttOption = None,
) -> None:
    """按设备的方式经 MQTT 重新发布历史读数 / publish recorded readings over MQTT as their devices would."""
    with plain_errors():
        from twin.republish import republish

        settings = settings_of(config, data_dir=data_dir, mqtt_url=mqtt_url)
        if not 0 <= speed < float("inf"):
            raise Usage("--speed: must be 0 or more")
        contents = [(str(file), read(file)) for file in files]
        typer.echo(f"cimtwin: {republish(settings, contents, speed=speed, is_now=now, tenant=tenant)}")


@app.command()
def judge(
    rules: Annotated[Path, typer.Option(help="规则 / rules (TOML)")],
    readings: Annotated[Path, typer.Option(help="历史读数 / recorded readings (CSV)")],
    sensors: Annotated[Path | None, typer.Option(help="测点表 / sensor list (CSV)")] = None,
    out: Annotated[Path | None, typer.Option(help="结果,缺省标准输出 / one line a reading; default: stdout")] = None,
    events: Annotated[Path | None, typer.Option(help="报警事件 / alert events (JSON lines)")] = None,
    config: Config = None,
) -> None:
    """用生产引擎对历史读数文件执行规则,不用数据库 / judge a file of recorded readings with the production engine."""
    with plain_errors():
        from twin.judging import judge_files

        settings = settings_of(config)
        listed = (str(sensors), read(sensors)) if sensors else None
        lines, told = judge_files(settings, (str(rules), read(rules)), (str(readings), read(readings)), listed)
        if out is None:
            sys.stdout.write(lines)
        else:
            out.write_text(lines, encoding="utf-8")
        if events is not None:
            events.write_text(told, encoding="utf-8")


@app.command()
def replay(
    from_: Annotated[str, typer.Option("--from", help="起始时刻(含) / from, included: 2023-12-18T00:00:00Z")],
    to: Annotated[str, typer.Option(help="结束时刻(不含) / to, excluded")],
    speed: Annotated[float, typer.Option(help="比记录快多少倍,0 为尽快 / times faster than recorded; 0: at once")] = 0,
    sensor: Annotated[
        list[str] | None, typer.Option(help="只放这些测点 / only these sensors (device/property)")
    ] = None,
    area: Annotated[str | None, typer.Option(help="范围 / minlon,minlat,maxlon,maxlat")] = None,
    rules: Annotated[Path | None, typer.Option(help="换用这些规则 / these rules instead (TOML)")] = None,
    received_before: Annotated[
        str | None, typer.Option(help="只用此前已收到的数据 / only what had come by then")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="报警事件写入文件,缺省标准输出 / alert events (JSON lines); default: stdout")
    ] = None,
    config: Config = None,
    data_dir: DataDirOption = None,
    database_url: DatabaseOption = None,
) -> None:
    """回放已入库的读数与报警事件,只读 / play stored readings and alert events again, changing nothing."""
    with plain_errors():
        from twin.embedded import database_url_for_command
        from twin.replaying import in_terminal

        settings = settings_of(config, data_dir=data_dir, database_url=database_url)
        named = None if rules is None else (str(rules), read(rules))
        with database_url_for_command(settings) as dsn:
            typer.echo(
                f"cimtwin: {in_terminal(settings, dsn, (from_, to), speed, sensor, area, named, received_before, out)}",
                err=True,
            )


From = Annotated[str | None, typer.Option("--from", help="起始时刻(含) / from, included: 2023-12-18T00:00:00Z")]
To = Annotated[str | None, typer.Option("--to", help="结束时刻(不含) / to, excluded")]
OnlySensors = Annotated[list[str] | None, typer.Option("--sensor", help="只要这些测点 / only these (device/property)")]
Out = Annotated[Path, typer.Option("--out", help="文件 / file: .csv, .jsonl, .parquet")]


@exports.command("readings")
def export_readings(
    out: Out,
    from_: From = None,
    to: To = None,
    sensor: OnlySensors = None,
    config: Config = None,
    data_dir: DataDirOption = None,
    database_url: DatabaseOption = None,
) -> None:
    """导出读数,数值为指标的单位 / readings by time, values in the kind's unit."""
    with plain_errors():
        from twin.embedded import database_url_for_command
        from twin.exporting import export_readings as run

        settings = settings_of(config, data_dir=data_dir, database_url=database_url)
        with database_url_for_command(settings) as dsn:
            typer.echo(f"cimtwin: {run(settings, dsn, from_, to, sensor or (), out)}")


@exports.command("alerts")
def export_alerts(
    out: Out,
    from_: From = None,
    to: To = None,
    sensor: OnlySensors = None,
    config: Config = None,
    data_dir: DataDirOption = None,
    database_url: DatabaseOption = None,
) -> None:
    """导出在此期间未结束的报警 / alerts open at any time within the span, the newest first."""
    with plain_errors():
        from twin.embedded import database_url_for_command
        from twin.exporting import export_alerts as run

        settings = settings_of(config, data_dir=data_dir, database_url=database_url)
        with database_url_for_command(settings) as dsn:
            typer.echo(f"cimtwin: {run(settings, dsn, from_, to, sensor or (), out)}")


@app.command()
def backtest(
    rules: Annotated[Path, typer.Option(help="规则 / rules (TOML)")],
    from_: Annotated[str, typer.Option("--from", help="起始时刻(含) / from, included: 2023-12-18T00:00:00Z")],
    to: Annotated[str, typer.Option(help="结束时刻(不含) / to, excluded")],
    sensor: OnlySensors = None,
    shown: Annotated[int, typer.Option(min=0, help="每个列表至多几条 / alerts in each list at most")] = 1000,
    out: Annotated[Path | None, typer.Option(help="结果(JSON),缺省标准输出 / answer (JSON); default: stdout")] = None,
    config: Config = None,
    data_dir: DataDirOption = None,
    database_url: DatabaseOption = None,
) -> None:
    """这些规则在已入库的读数上会给出哪些报警,只读 / what other rules would have given of stored readings."""
    with plain_errors():
        from twin.backtests import in_terminal
        from twin.embedded import database_url_for_command

        settings = settings_of(config, data_dir=data_dir, database_url=database_url)
        named = str(rules), read(rules)
        with database_url_for_command(settings) as dsn:
            typer.echo(f"cimtwin: {in_terminal(settings, dsn, (from_, to), named, sensor, shown, out)}", err=True)


@app.command("check-rules")
def check_rules(
    files: Annotated[
        list[Path] | None,
        typer.Argument(help="规则文件、测试文件,缺省为默认规则包 / rules, files of tests; none: the default pack"),
    ] = None,
    test: Annotated[
        bool, typer.Option("--test", help="运行 [[test]]:给定读数,核对报警 / run the [[test]] tables")
    ] = False,
    config: Config = None,
) -> None:
    """检查规则文件,列出所有错误;--test 运行规则测试 / check rules files, listing every mistake; run their tests."""
    with plain_errors():
        from twin.checking import check_files

        settings = settings_of(config)
        found = check_files(settings, [(str(file), read(file)) for file in files or ()], test)
        for line in found.said:
            typer.echo(f"cimtwin: {line}")
        for line in found.wrong:
            typer.echo(f"cimtwin: {line}", err=True)
        if found.mistakes or found.failed:
            raise typer.Exit(2 if found.mistakes else 1)


@app.command("check-notify")
def check_notify(files: Annotated[list[Path], typer.Argument(help="通知方案 / notification plans (TOML)")]) -> None:
    """检查通知方案,列出所有错误 / check notification plans, listing every mistake."""
    with plain_errors():
        from alerts.notify.plan import InvalidPlan, parse_plan

        mistakes = 0
        for file in files:
            try:
                plan = parse_plan(read(file))
            except InvalidPlan as refused:
                mistakes += len(refused.problems)
                for problem in refused.problems:
                    typer.echo(f"cimtwin: {file}, {said(problem)}", err=True)
            else:
                typer.echo(
                    f"cimtwin: {file}: {len(plan.receivers)} receivers / 个接收端, {len(plan.routes)} routes / 条路由"
                )
        if mistakes:
            raise typer.Exit(2)


def read(file: Path) -> bytes:
    """A file's bytes; a usage error, naming it, where there is none."""
    try:
        return file.read_bytes()
    except OSError as error:
        raise Usage(f"{file}: {error.strerror}") from None


def main() -> None:
    sys.exit(app())
