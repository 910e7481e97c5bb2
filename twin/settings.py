"""What can be configured, read once at start: flags > environment `CIMTWIN_…` > TOML file (`--config`) > defaults.

`load` reports every mistake at once (`InvalidSettings`), each with its source and field. Secrets appear neither in
`repr` nor in error texts. A secret may also be given as a file: `CIMTWIN_API_TOKEN_FILE=/run/secrets/token`.
"""

from __future__ import annotations

import difflib
import ipaddress
import itertools
import math
import os
import re
import tomllib
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, NamedTuple

from twin.model import Problem, Refused


class InvalidSettings(Refused):
    """Settings with mistakes; the command ends with 2."""


class Address(NamedTuple):
    """A host and TCP port to listen on; port 0 chooses a free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        return is_loopback(self.host)

    @property
    def reachable_host(self) -> str:
        """A host under which this machine reaches a server that listens here."""
        return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)

    @classmethod
    def parse(cls, text: str) -> Address:
        """`host:port`, IPv6 in brackets; ValueError for anything else."""
        host, colon, port = text.strip().rpartition(":")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        elif ":" in host:
            raise ValueError("an IPv6 address needs brackets, e.g. [::1]:8000")
        if not colon or not host or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
            raise ValueError("must be host:port, e.g. 127.0.0.1:8000")
        return cls(host, int(port))


MIB: Final = 1024 * 1024
HTTP: Final = Address("127.0.0.1", 8000)
MQTT_LISTEN: Final = Address("127.0.0.1", 1883)


@dataclass(frozen=True, repr=False)
class Settings:
    """Every setting, checked. No `database_url` or `mqtt_url` means the embedded server. Sizes in bytes, times in the
    unit that the name ends with; retention 0 keeps for ever."""

    database_url: str | None = None
    mqtt_url: str | None = None
    http: Address = HTTP
    mqtt_listen: Address = MQTT_LISTEN
    data_dir: Path = field(default_factory=lambda: Path("data"))
    api_token: str | None = None
    mqtt_user: str | None = None
    mqtt_password: str | None = None
    mqtt_sync_always: bool = False  # the embedded broker: sync the disk before each acknowledgement, 8 times slower
    kinds: Path | None = None
    notify: Path | None = None  # the first notification plan
    default_tenant: str = "default"
    mqtt_reader: str = "own"
    max_message_bytes: int = MIB
    max_model_bytes: int = 256 * MIB  # of a model sent over HTTP
    inbox_messages: int = 65535  # keep: MQTT 5's largest Receive Maximum, so a full window always fits
    inbox_bytes: int = 256 * MIB
    batch_messages: int = 10_000
    batch_ms: float = 5
    lateness_h: float = 24
    checkpoint_s: float = 30
    retention_days: float = 0
    retention_minutes_days: float = 0
    retention_waveforms_days: float = 0
    retention_deliveries_days: float = 400
    ws_queue: int = 1000
    replays: int = 4  # at once
    shelve_h: float = 168  # the longest shelf; a week outlasts a spare part, and is not yet forgotten
    operators: int = 1  # on duty
    flood_alerts: int = 10  # more in ten minutes for each operator is a flood (ISA-18.2, EEMUA 191)
    flood_over: int = 5  # fewer than so many end it
    log_level: str = "info"
    log_json: bool = False

    def __repr__(self) -> str:
        shown = ", ".join(f"{f.name}={_shown(f.name, getattr(self, f.name))}" for f in fields(self))
        return f"Settings({shown})"


SECRETS: Final = frozenset({"api_token", "mqtt_password"})
URLS: Final = {
    "database_url": ("postgresql", "postgres"),
    "mqtt_url": ("mqtt", "mqtts"),
}
LOG_LEVELS: Final = ("debug", "info", "warning", "error")
MQTT_READERS: Final = ("own", "paho")
_WORDS: Final = {"log_level": LOG_LEVELS, "mqtt_reader": MQTT_READERS}

# smallest and largest value of the numbers
_BOUNDS: Final[dict[str, tuple[float, float]]] = {
    "max_message_bytes": (1, 64 * MIB),
    "max_model_bytes": (1, 2048 * MIB),
    "inbox_messages": (1, 65535),
    "inbox_bytes": (MIB, 64 * 1024 * MIB),
    "batch_messages": (1, 1_000_000),
    "batch_ms": (0, 60_000),
    "lateness_h": (0, 24 * 366),
    "checkpoint_s": (0.01, 86_400),
    "retention_days": (0, 36_600),
    "retention_minutes_days": (0, 36_600),
    "retention_waveforms_days": (0, 36_600),
    "retention_deliveries_days": (0, 36_600),
    "ws_queue": (1, 1_000_000),
    "replays": (0, 100),
    "shelve_h": (0.01, 24 * 366),
    "operators": (1, 10_000),
    "flood_alerts": (1, 1_000_000),
    "flood_over": (1, 1_000_000),
}
_KIND: Final = {f.name: str(f.type) for f in fields(Settings)}
_VARIABLES: Final = {
    f"CIMTWIN_{name.upper()}": name for name in _KIND if name not in ("mqtt_user", "mqtt_password")
} | {"CIMTWIN_MQTT_LISTEN_USER": "mqtt_user", "CIMTWIN_MQTT_LISTEN_PASSWORD": "mqtt_password"}
_FILE_VARIABLES: Final = {
    f"{variable}_FILE": name for variable, name in _VARIABLES.items() if name in SECRETS or name in URLS
}
_TOML_KEYS: Final = {variable.removeprefix("CIMTWIN_").lower(): name for variable, name in _VARIABLES.items()} | {
    name: name for name in _KIND
}
_OTHER_VARIABLES: Final = frozenset({"CIMTWIN_CONFIG"})
# the test suite's and the bench's own, and secrets that a notification plan names
_OTHER_PREFIXES: Final = ("CIMTWIN_TEST_", "CIMTWIN_BENCH_", "CIMTWIN_NOTIFY_")


def variable_of(name: str) -> str:
    """The environment variable of a field."""
    return next(variable for variable, owner in _VARIABLES.items() if owner == name)


def load(
    flags: Mapping[str, object] | None = None,
    environ: Mapping[str, str] | None = None,
    config: Path | None = None,
) -> Settings:
    """The settings from all sources. `flags` has field names as keys, `None` for flags not given. The TOML file is
    `config`, else `CIMTWIN_CONFIG`. Raises InvalidSettings with every mistake."""
    environ = os.environ if environ is None else environ
    if config is None and environ.get("CIMTWIN_CONFIG"):
        config = Path(environ["CIMTWIN_CONFIG"])
    problems: list[Problem] = []
    values: dict[str, Any] = {}
    if config is not None:
        values |= _from_toml(config, problems)
    values |= _from_environ(environ, problems)
    for name, raw in (flags or {}).items():
        if raw is not None:
            if name not in _KIND:
                raise TypeError(f"no such setting: {name}")  # a bug in the caller, not a user's mistake
            _take(values, problems, f"--{name.replace('_', '-')}", name, raw)
    minutes, raw = (float(values.get(name, 0)) for name in ("retention_minutes_days", "retention_days"))
    if minutes and not 0 < raw <= minutes:
        # Hours and days are made from minutes: a late reading would make them again from what is left.
        text = "must be at least CIMTWIN_RETENTION_DAYS, which must be set, too"
        problems.append(Problem("settings", "CIMTWIN_RETENTION_MINUTES_DAYS", text))
    if problems:
        raise InvalidSettings(problems, "settings")
    return Settings(**values)


def _from_toml(path: Path, problems: list[Problem]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    try:
        text = path.read_bytes().decode("utf-8-sig")
        table = tomllib.loads(text)
    except OSError as error:
        problems.append(Problem(str(path), "", error.strerror or "cannot be read"))
        return values
    except UnicodeDecodeError as error:
        problems.append(Problem(str(path), "", f"is not UTF-8 (byte {error.start})"))
        return values
    except tomllib.TOMLDecodeError as error:
        problems.append(Problem(str(path), "", f"is not TOML: {error}"))
        return values
    for key, raw in table.items():
        found = re.search(rf"^\s*\[*\s*[\"']?{re.escape(key)}\b", text, re.MULTILINE)
        place = f"{path}, line {text.count(chr(10), 0, found.end()) + 1}" if found else str(path)
        name = _TOML_KEYS.get(key)
        if name is None:
            problems.append(Problem(place, key, f"there is no such setting{_meant(key, _TOML_KEYS)}"))
        else:
            _take(values, problems, place, name, raw, key)
    return values


def _from_environ(environ: Mapping[str, str], problems: list[Problem]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    known = [*_VARIABLES, *_FILE_VARIABLES, *_OTHER_VARIABLES]
    for variable in sorted(environ):
        raw = environ[variable]
        if variable in _FILE_VARIABLES and raw:
            name = _FILE_VARIABLES[variable]
            if environ.get(variable_of(name)):
                problems.append(Problem("environment", variable, f"{variable_of(name)} is set too; give one of them"))
                continue
            try:
                raw = Path(raw).read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                problems.append(Problem("environment", variable, f"its file cannot be read: {type(error).__name__}"))
                continue
            _take(values, problems, "environment", name, raw, variable)
        elif variable in _VARIABLES:
            if raw:  # compose files pass unset variables as empty ones
                _take(values, problems, "environment", _VARIABLES[variable], raw, variable)
        elif variable.upper().startswith("CIMTWIN_") and not (
            variable in known or variable.startswith(_OTHER_PREFIXES)
        ):
            meant = _meant(variable.upper(), known)
            if meant:
                problems.append(Problem("environment", variable, f"there is no such setting{meant}"))
    return values


def _meant(word: str, known: Any) -> str:
    near = difflib.get_close_matches(word, list(known), 1, 0.8)
    return f"; did you mean {near[0]}?" if near else ""


def _take(values: dict[str, Any], problems: list[Problem], place: str, name: str, raw: object, key: str = "") -> None:
    try:
        values[name] = _parse(name, raw)
    except ValueError as error:
        problems.append(Problem(place, "" if place.startswith("--") else key or name, str(error)))


def _parse(name: str, raw: object) -> object:
    """The value of field `name`; ValueError says what it must be, without repeating a secret."""
    kind = _KIND[name]
    if kind == "bool":
        return _bool(raw)
    if kind in ("int", "float"):
        return _number(name, raw, kind == "int")
    if kind == "Address" and isinstance(raw, Address):
        return raw
    if isinstance(raw, Path) and "Path" in kind:
        return raw
    if not isinstance(raw, str):
        raise ValueError(f"must be a text, not {_type_word(raw)}")
    if not raw.strip():
        raise ValueError("must not be empty")
    if kind == "Address":
        return Address.parse(raw)
    if "Path" in kind:
        return Path(raw).expanduser()
    if name in URLS:
        _check_url(name, raw)
    if name in _WORDS:
        raw = raw.lower()
        if raw not in _WORDS[name]:
            raise ValueError(f"must be one of {', '.join(_WORDS[name])}")
    if name == "default_tenant" and (set("/+# ") & set(raw) or raw == "gateway"):
        raise ValueError("must be a tenant's id: without / + # and spaces")
    return raw


def _bool(raw: object) -> bool:
    if isinstance(raw, bool):
        return raw
    words = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    if isinstance(raw, str) and raw.strip().lower() in words:
        return words[raw.strip().lower()]
    raise ValueError(f"must be true or false, not {_value_word(raw)}")


def _number(name: str, raw: object, is_whole: bool) -> int | float:
    word = "a whole number" if is_whole else "a number"
    if isinstance(raw, bool) or not isinstance(raw, int | float | str):
        raise ValueError(f"must be {word}, not {_type_word(raw)}")
    try:
        value = int(raw) if is_whole and isinstance(raw, str) else float(raw)
    except (ValueError, OverflowError):
        raise ValueError(f"must be {word}, not {_value_word(raw)}") from None
    if not math.isfinite(value) or (is_whole and value != int(value)):
        raise ValueError(f"must be {word}, not {_value_word(raw)}")
    low, high = _BOUNDS[name]
    if not low <= value <= high:
        raise ValueError(f"must be between {low:.12g} and {high:.12g}, not {value:.12g}")
    return int(value) if is_whole else value


def _type_word(raw: object) -> str:
    words = {bool: "true or false", int: "a number", float: "a number", str: "a text", list: "a list", dict: "a table"}
    return words.get(type(raw), type(raw).__name__)


def _value_word(raw: object) -> str:
    return f"{raw!r:.60}" if isinstance(raw, str | int | float) else _type_word(raw)


def _check_url(name: str, url: str) -> None:
    schemes = URLS[name]
    if name == "database_url" and "://" not in url:
        if "=" in url:  # libpq's keyword form
            return
        raise ValueError("must be a URL such as postgresql://user:password@host:5432/database")
    example = "postgresql://user:password@host:5432/database" if name == "database_url" else "mqtt://host:1883"
    if _is_badly_encoded(url):
        raise ValueError(
            "has a user or password with a character that must be encoded: percent-encode the password"
            " (@ is %40, / is %2F, % is %25) / 用户名或口令含有须编码的字符，请对口令做百分号编码"
        )
    try:
        parts = urllib.parse.urlsplit(url)
        if name == "mqtt_url":  # libpq allows several hosts, so only here
            _ = parts.port
    except ValueError:
        raise ValueError(f"must be a URL such as {example}") from None
    if parts.scheme not in schemes or (name == "mqtt_url" and not parts.hostname):
        raise ValueError(f"must be a URL such as {example} (schemes: {', '.join(schemes)})")


def _is_badly_encoded(url: str) -> bool:
    """Whether user or password stand in a URL as they are instead of percent-encoded: the drivers would take a part of
    them for the host, or repeat them in their complaint."""
    rest = url.partition("://")[2]
    if re.search(r"%(?![0-9A-Fa-f]{2})|%00", rest):
        return True
    authority, path, more = re.fullmatch(r"([^/?#]*)([^?#]*)(.*)", rest, re.DOTALL).groups()  # type: ignore[union-attr]
    if "@" in path or authority.count("@") > 1:
        return True
    # A password with ? or # ends the authority: what is left of it is no port, and the host follows behind.
    return "@" not in authority and not path and "@" in more and re.search(r":(?![0-9]+(,|$))", authority) is not None


def _shown(name: str, value: object) -> str:
    if value is None:
        return "None"
    if name in SECRETS:
        return "'***'"
    if name in URLS:
        return repr(redacted(str(value)))
    return repr(str(value)) if isinstance(value, Address | Path) else repr(value)


def redacted(url: str) -> str:
    """A database or broker URL without its password, for logs and screens."""
    if "://" in url:
        scheme, _, rest = url.partition("://")
        # up to the last @, so that a password with / or @ in it cannot show either
        rest = re.sub(r"^([^:/?#]*):.*@", r"\1:***@", rest)
        return f"{scheme}://" + re.sub(r"([?&](?:ssl)?password=)[^&]*", r"\1***", rest)
    return re.sub(r"((?:ssl)?password\s*=\s*)('(?:[^'\\]|\\.)*'|\S+)", r"\1***", url)


def is_loopback(host: str) -> bool:
    """Whether `host` is this machine by name or number; any other name counts as outside."""
    if host.lower() in ("localhost", "localhost.localdomain") or host.startswith("/"):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


# ---- refusing to start where that would be unsafe --------------------------------------------------------------------

TOKEN_LENGTH: Final = 16
PASSWORD_LENGTH: Final = 8
DIFFERENT: Final = 6  # characters that a secret has at least
_RUNS: Final = ("01234567890", "abcdefghijklmnopqrstuvwxyza", "qwertyuiop", "asdfghjkl", "zxcvbnm")
_DEFAULTS: Final = """
password passwd pass p@ssw0rd passw0rd admin administrator root guest user test demo default secret token public example
letmein qwerty changeme change-me change_me changeit replaceme replace-me todo cimtwin postgres postgresql mosquitto
mqtt nats emqx abc123 123456 12345678 123456789 1234567890 111111 000000
"""
_DEFAULT_WORDS: Final = frozenset(_DEFAULTS.split())


def is_default_password(password: str, user: str = "") -> bool:
    """Whether this is a password that anyone would try first: empty, the user's name, a well-known word (also
    repeated or with digits after it), or one character repeated."""
    word = password.strip().lower()
    stem = word.rstrip("0123456789!@#._-")
    repeated = re.fullmatch(r"(.+?)[-_. ]*(?:\1[-_. ]*)+", word)
    return (
        not word
        or word == user.strip().lower()
        or word in _DEFAULT_WORDS
        or stem in _DEFAULT_WORDS
        or len(set(word)) < 2
        or (repeated is not None and repeated[1] in _DEFAULT_WORDS)
    )


def is_monotonous(secret: str) -> bool:
    """Whether this has few different characters, or is mostly a run of digits, of the alphabet or of the keyboard,
    forwards or backwards."""
    word = secret.strip().lower()
    if len(set(word)) < DIFFERENT:
        return True
    pairs = [first + second for first, second in itertools.pairwise(word)]
    steps = sum(any(pair in run or pair[::-1] in run for run in _RUNS) for pair in pairs)
    return steps * 4 >= len(pairs) * 3


def safety_problems(settings: Settings) -> list[str]:
    """Why the service must not start with these settings, one line each in Chinese and English; empty if it may.
    Nothing is asked of loopback addresses."""
    problems: list[str] = []
    if not settings.http.is_loopback:
        problems += _token_problems(settings)
    if settings.mqtt_url is None and not settings.mqtt_listen.is_loopback:
        problems += _broker_problems(settings)
    for name, url in (("database_url", settings.database_url), ("mqtt_url", settings.mqtt_url)):
        if url is None:
            continue
        hosts, user, password = _target(url)
        if (
            password is not None
            and any(not is_loopback(host) for host in hosts)
            and is_default_password(password, user)
        ):
            problems.append(
                f"{variable_of(name)} 指向本机以外的服务器，却使用默认口令，请更换 / "
                f"{variable_of(name)} names a server outside this machine with a default password: change it"
            )
    return problems


def _token_problems(settings: Settings) -> list[str]:
    where = settings.http
    token = settings.api_token
    if token is None:
        return [
            f"HTTP 监听 {where}，不是本机回环地址，必须设置 CIMTWIN_API_TOKEN / "
            f"HTTP listens on {where}, not on loopback: set CIMTWIN_API_TOKEN"
        ]
    if len(token) < TOKEN_LENGTH or is_default_password(token):
        return [
            f"HTTP 监听 {where}，CIMTWIN_API_TOKEN 太短（少于 {TOKEN_LENGTH} 个字符）或为默认值 / "
            f"HTTP listens on {where}: CIMTWIN_API_TOKEN is shorter than {TOKEN_LENGTH} characters or a default"
        ]
    if is_monotonous(token):
        return [
            f"HTTP 监听 {where}，CIMTWIN_API_TOKEN 容易猜到（不同字符少于 {DIFFERENT} 个，或为连续的数字、字母） / "
            f"HTTP listens on {where}: CIMTWIN_API_TOKEN is easy to guess (fewer than {DIFFERENT} different "
            "characters, or a run of digits or letters)"
        ]
    return []


def _broker_problems(settings: Settings) -> list[str]:
    where = settings.mqtt_listen
    if not settings.mqtt_user or settings.mqtt_password is None:
        return [
            f"内置 MQTT 监听 {where}，不是本机回环地址，必须设置 CIMTWIN_MQTT_LISTEN_USER 和 "
            f"CIMTWIN_MQTT_LISTEN_PASSWORD / the embedded broker listens on {where}, not on loopback: set "
            "CIMTWIN_MQTT_LISTEN_USER and CIMTWIN_MQTT_LISTEN_PASSWORD"
        ]
    if is_default_password(settings.mqtt_password, settings.mqtt_user):
        return [
            f"内置 MQTT 监听 {where}，CIMTWIN_MQTT_LISTEN_PASSWORD 是默认口令，请更换 / "
            f"the embedded broker listens on {where} with a default CIMTWIN_MQTT_LISTEN_PASSWORD: change it"
        ]
    if len(settings.mqtt_password) < PASSWORD_LENGTH or is_monotonous(settings.mqtt_password):
        return [
            f"内置 MQTT 监听 {where}，CIMTWIN_MQTT_LISTEN_PASSWORD 太短（少于 {PASSWORD_LENGTH} 个字符）或容易猜到"
            f"（不同字符少于 {DIFFERENT} 个，或为连续的数字、字母） / "
            f"the embedded broker listens on {where}: CIMTWIN_MQTT_LISTEN_PASSWORD is shorter than {PASSWORD_LENGTH} "
            f"characters or easy to guess (fewer than {DIFFERENT} different characters, or a run of digits or letters)"
        ]
    return []


def _target(url: str) -> tuple[list[str], str, str | None]:
    """Hosts, user and password (None = none given) of a database or broker URL."""
    if "://" not in url:
        found = {m[1]: m[2].strip("'") for m in re.finditer(r"(\w+)\s*=\s*('(?:[^'\\]|\\.)*'|\S+)", url)}
        hosts = found.get("hostaddr", found.get("host", "localhost")).split(",")
        return hosts, found.get("user", ""), found.get("password")
    parts = urllib.parse.urlsplit(url)
    credentials, _, named = parts.netloc.rpartition("@")
    user, colon, password = credentials.partition(":")
    query = urllib.parse.parse_qs(parts.query)
    hosts = [re.sub(r":[0-9]*$", "", host).strip("[]") or "localhost" for host in named.split(",")]
    for key in ("host", "hostaddr"):
        if key in query:
            hosts = query[key][0].split(",")
    if "password" in query:
        return hosts, query.get("user", [urllib.parse.unquote(user)])[0], query["password"][0]
    return hosts, urllib.parse.unquote(user), urllib.parse.unquote(password) if colon else None
