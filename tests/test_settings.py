"""Settings: where they come from, what is refused, what is never shown."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from twin.settings import Address, InvalidSettings, Settings, is_default_password, load, redacted, safety_problems

LONG = "k7Yw2mQx9RtB4vLs"


def problems_of(
    flags: dict[str, object] | None = None, environ: dict[str, str] | None = None, config: Path | None = None
) -> list[str]:
    with pytest.raises(InvalidSettings) as refused:
        load(flags, environ or {}, config)
    return [str(problem) for problem in refused.value.problems]


def toml(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "城市 cimtwin.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_defaults_are_those_of_the_contract() -> None:
    settings = load({}, {})
    assert str(settings.http) == "127.0.0.1:8000"
    assert str(settings.mqtt_listen) == "127.0.0.1:1883"
    assert settings.data_dir == Path("data")
    assert settings.database_url is None
    assert settings.mqtt_url is None
    assert settings.max_message_bytes == 1024 * 1024
    assert settings.lateness_h == 24
    assert settings.default_tenant == "default"
    assert settings == Settings()


def test_flags_beat_environment_and_environment_beats_the_file(tmp_path: Path) -> None:
    config = toml(tmp_path, 'http = "127.0.0.1:1"\nlog_level = "warning"\nws_queue = 7\n')
    environ = {"CIMTWIN_HTTP": "127.0.0.1:2", "CIMTWIN_LOG_LEVEL": "DEBUG"}
    settings = load({"http": "127.0.0.1:3", "log_level": None}, environ, config)
    assert settings.http.port == 3
    assert settings.log_level == "debug"
    assert settings.ws_queue == 7


def test_the_config_file_may_be_named_by_the_environment(tmp_path: Path) -> None:
    config = toml(tmp_path, "batch_ms = 2.5\n")
    assert load({}, {"CIMTWIN_CONFIG": str(config)}).batch_ms == 2.5


def test_every_field_can_be_given_by_environment_and_by_file(tmp_path: Path) -> None:
    examples: dict[str, tuple[str, object]] = {
        "database_url": ("postgresql://u:p@h:5432/d", "postgresql://u:p@h:5432/d"),
        "mqtt_url": ("mqtts://u:p@h:8883", "mqtts://u:p@h:8883"),
        "http": ("[::1]:0", Address("::1", 0)),
        "mqtt_listen": ("0.0.0.0:1884", Address("0.0.0.0", 1884)),
        "data_dir": ("/srv/城市 数据", Path("/srv/城市 数据")),
        "api_token": (LONG, LONG),
        "mqtt_user": ("water", "water"),
        "mqtt_password": ("口令 #1", "口令 #1"),
        "kinds": ("kinds.toml", Path("kinds.toml")),
        "notify": ("notify.toml", Path("notify.toml")),
        "default_tenant": ("water", "water"),
        "inbox_bytes": ("2097152", 2 * 1024 * 1024),
        "log_level": ("error", "error"),
        "mqtt_reader": ("paho", "paho"),
        "log_json": ("yes", True),
        "mqtt_sync_always": ("1", True),
        "retention_minutes_days": ("0", 0),
    }
    odd = {"mqtt_user": "CIMTWIN_MQTT_LISTEN_USER", "mqtt_password": "CIMTWIN_MQTT_LISTEN_PASSWORD"}
    for field in dataclasses.fields(Settings):
        text, value = examples.get(field.name, ("12", 12))
        variable = odd.get(field.name, f"CIMTWIN_{field.name.upper()}")
        assert getattr(load({}, {variable: text}), field.name) == value, variable
        quoted = '"' + text + '"' if isinstance(value, str | Path | Address) else str(value).lower()
        assert getattr(load({}, {}, toml(tmp_path, f"{field.name} = {quoted}\n")), field.name) == value, field.name


def test_minutes_are_not_dropped_before_the_readings_they_come_from() -> None:
    for environ in (
        {"CIMTWIN_RETENTION_MINUTES_DAYS": "30"},
        {"CIMTWIN_RETENTION_DAYS": "40", "CIMTWIN_RETENTION_MINUTES_DAYS": "30"},
    ):
        with pytest.raises(InvalidSettings, match="CIMTWIN_RETENTION_DAYS"):
            load({}, environ)
    settings = load({}, {"CIMTWIN_RETENTION_DAYS": "30", "CIMTWIN_RETENTION_MINUTES_DAYS": "400"})
    assert settings.retention_minutes_days == 400


def test_a_misspelt_variable_is_refused_by_name_and_a_stranger_is_ignored() -> None:
    assert problems_of(environ={"CIMTWIN_DATABSE_URL": "x"}) == [
        "environment, CIMTWIN_DATABSE_URL: there is no such setting; did you mean CIMTWIN_DATABASE_URL?"
    ]
    assert problems_of(environ={"cimtwin_http": "x"}) == [
        "environment, cimtwin_http: there is no such setting; did you mean CIMTWIN_HTTP?"
    ]
    load({}, {"CIMTWIN_WEATHER": "fine", "CIMTWIN_TEST_DATABASE_URL": "x", "HTTP": "x", "CIMTWIN_API_TOKEN": ""})


def test_an_unknown_key_of_the_file_is_refused_with_its_line(tmp_path: Path) -> None:
    config = toml(tmp_path, '# own\nhttp = "127.0.0.1:1"\nbach_ms = 3\n[database]\nurl = "x"\n')
    assert problems_of(config=config) == [
        f"{config}, line 3, bach_ms: there is no such setting; did you mean batch_ms?",
        f"{config}, line 4, database: there is no such setting; did you mean database_url?",
    ]


def test_every_mistake_is_told_at_once_with_field_and_source(tmp_path: Path) -> None:
    config = toml(tmp_path, 'ws_queue = "many"\nlog_json = 3\ninbox_messages = 65536\n')
    environ = {"CIMTWIN_HTTP": "8000", "CIMTWIN_BATCH_MS": "nan", "CIMTWIN_MQTT_URL": "http://x"}
    found = problems_of({"lateness_h": "-1"}, environ, config)
    assert found == [
        f"{config}, line 1, ws_queue: must be a whole number, not 'many'",
        f"{config}, line 2, log_json: must be true or false, not 3",
        f"{config}, line 3, inbox_messages: must be between 1 and 65535, not 65536",
        "environment, CIMTWIN_BATCH_MS: must be a number, not 'nan'",
        "environment, CIMTWIN_HTTP: must be host:port, e.g. 127.0.0.1:8000",
        "environment, CIMTWIN_MQTT_URL: must be a URL such as mqtt://host:1883 (schemes: mqtt, mqtts)",
        "--lateness-h: must be between 0 and 8784, not -1",
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"http = ", "is not TOML"), (b"\xff\xfe", "is not UTF-8"), (None, "No such file")],
    ids=["truncated", "binary", "absent"],
)
def test_an_unreadable_file_gives_one_line(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "c.toml"
    if content is not None:
        path.write_bytes(content)
    (problem,) = problems_of(config=path)
    assert problem.startswith(str(path))
    assert said in problem


@pytest.mark.parametrize("text", ["", ":8000", "localhost", "h:65536", "h:-1", "::1:80", "h:8 0", "h:８"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"host:port|brackets"):
        Address.parse(text)


def test_a_secret_may_come_from_a_file_but_not_twice(tmp_path: Path) -> None:
    secret = tmp_path / "token"
    secret.write_text(LONG + "\n")
    assert load({}, {"CIMTWIN_API_TOKEN_FILE": str(secret)}).api_token == LONG
    (problem,) = problems_of(environ={"CIMTWIN_API_TOKEN_FILE": str(secret), "CIMTWIN_API_TOKEN": "x"})
    assert "give one of them" in problem
    (problem,) = problems_of(environ={"CIMTWIN_API_TOKEN_FILE": str(tmp_path / "none")})
    assert "cannot be read" in problem


def test_secrets_are_neither_in_repr_nor_in_errors(tmp_path: Path) -> None:
    settings = Settings(
        database_url=f"postgresql://u:{LONG}@h/d?password={LONG}",
        mqtt_url=f"mqtt://u:a/{LONG}@b@h:1883",
        api_token=LONG,
        mqtt_password=LONG,
    )
    assert LONG not in repr(settings)
    assert LONG not in str(settings)
    assert "postgresql://u:***@h/d" in repr(settings)
    assert LONG not in repr(Settings(database_url=f"host=h password='{LONG} x' user=u"))
    for variable in ("CIMTWIN_DATABASE_URL", "CIMTWIN_MQTT_URL"):
        assert LONG not in "".join(problems_of(environ={variable: f"ftp://u:{LONG}@h"}))
    assert LONG not in "".join(problems_of(config=toml(tmp_path, f'api_token = ["{LONG}"]')))


@pytest.mark.parametrize("variable", ["CIMTWIN_DATABASE_URL", "CIMTWIN_MQTT_URL"])
@pytest.mark.parametrize(
    "password", ["se@cret", "se/cret", "sec%ret", "secret%", "sec%zzret", "sec%00ret", "se/c@ret", "sec?ret", "sec#ret"]
)
def test_a_password_that_is_not_percent_encoded_is_refused_without_showing_it(variable: str, password: str) -> None:
    scheme = "mqtt" if "MQTT" in variable else "postgresql"
    (problem,) = problems_of(environ={variable: f"{scheme}://user:{password}@host:1883"})
    assert "percent-encode the password" in problem
    assert "百分号编码" in problem
    assert "sec" not in problem.replace(variable, "")
    assert "ret" not in problem.replace(variable, "")


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:p%40%2F%25@h:5432/d?application_name=a@b",
        "postgresql://h:5432?application_name=a@b",
        "postgresql://u:p@h1:1,h2:2/d",
        "postgresql://h1:1,h2:2?user=a@b",
        "postgresql:///d?host=/run/postgresql&user=a@b",
        "postgresql://u:a:b@[::1]:5432/d",
        "host=h password='a@b/%'",
    ],
)
def test_what_is_well_encoded_is_taken(url: str) -> None:
    assert load({}, {"CIMTWIN_DATABASE_URL": url}).database_url == url


def test_a_redacted_url_stays_readable() -> None:
    assert redacted("mqtt://water:secret@broker.example:1883") == "mqtt://water:***@broker.example:1883"
    assert redacted("postgresql://h:5432/d") == "postgresql://h:5432/d"


def test_loopback_asks_for_nothing() -> None:
    assert safety_problems(Settings()) == []
    for host in ("localhost", "127.3.2.1", "::1"):
        assert safety_problems(Settings(http=Address(host, 1), mqtt_listen=Address(host, 1))) == []
    assert safety_problems(Settings(database_url="postgresql://postgres:postgres@localhost/d")) == []
    assert safety_problems(Settings(database_url="postgresql:///d?host=/run/postgresql&password=postgres")) == []
    assert safety_problems(Settings(database_url="host=/run/postgresql password=postgres")) == []


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "twin.example"])
@pytest.mark.parametrize("token", [None, "short", "changeme", "changeme-changeme", "a" * 40, "password12345678",
                                   "1234567890123456", "abcdefghijklmnop", "6543210987654321", "0123456789abcdef",
                                   "abababababababab", "qwertyuiopasdfghjkl", "abcdeabcdeabcdeabcde"])  # fmt: skip
def test_http_beyond_loopback_needs_a_real_token(host: str, token: str | None) -> None:
    (problem,) = safety_problems(Settings(http=Address(host, 8000), api_token=token))
    assert "CIMTWIN_API_TOKEN" in problem
    assert " / " in problem
    assert "\n" not in problem
    assert safety_problems(Settings(http=Address(host, 8000), api_token=LONG)) == []


@pytest.mark.parametrize(
    ("user", "password"),
    [
        (None, None),
        ("water", None),
        (None, LONG),
        ("water", "water"),
        ("water", "admin"),
        ("w", "CimTwin2026"),
        ("w", ""),
        ("w", "k7Yw2mQ"),
        ("w", "11221122"),
        ("w", "23456789"),
        ("w", "zxcvbnm,"),
    ],
)
def test_the_embedded_broker_beyond_loopback_needs_real_credentials(user: str | None, password: str | None) -> None:
    listen = Address("0.0.0.0", 1883)
    (problem,) = safety_problems(Settings(mqtt_listen=listen, mqtt_user=user, mqtt_password=password))
    assert "CIMTWIN_MQTT_LISTEN_PASSWORD" in problem
    assert safety_problems(Settings(mqtt_listen=listen, mqtt_user="water", mqtt_password=LONG)) == []
    assert safety_problems(Settings(mqtt_listen=listen, mqtt_url="mqtt://127.0.0.1:1883")) == []


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://cimtwin:cimtwin@db/cimtwin",
        "postgresql://cimtwin:%70assword@db/cimtwin",
        "postgresql://u:postgres@127.0.0.1,db.example:5432/d",
        "postgresql://u@localhost/d?hostaddr=10.0.0.1&password=admin",
        "host=db user=me password='me'",
    ],
)
def test_a_database_elsewhere_with_a_default_password_is_refused(url: str) -> None:
    (problem,) = safety_problems(Settings(database_url=url))
    assert "CIMTWIN_DATABASE_URL" in problem
    assert safety_problems(Settings(database_url=f"postgresql://cimtwin:{LONG}@db/d?application_name=a@b")) == []


def test_a_broker_elsewhere_with_a_default_password_is_refused() -> None:
    (problem,) = safety_problems(Settings(mqtt_url="mqtt://cimtwin:mosquitto@broker:1883"))
    assert "CIMTWIN_MQTT_URL" in problem
    assert safety_problems(Settings(mqtt_url=f"mqtt://cimtwin:{LONG}@broker:1883")) == []
    assert safety_problems(Settings(mqtt_url="mqtts://broker")) == []


def test_a_real_password_is_not_taken_for_a_default() -> None:
    for password in (LONG, "correct horse battery staple", "管网-7731-监测", "p4ss-the-salt-please"):
        assert not is_default_password(password, "water")
