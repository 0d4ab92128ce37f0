from __future__ import annotations

import re
from ipaddress import ip_network
from pathlib import Path

import pytest
from pydantic import ValidationError

from server.settings import Settings, SettingsError, masked, variable


def load(**environ: str) -> Settings:
    return Settings.load({f"FIXNADO_{name}": value for name, value in environ.items()}, env_file=None)


def refusal(**environ: str) -> str:
    with pytest.raises(SettingsError) as caught:
        load(**environ)
    return str(caught.value)


def test_an_empty_environment_gives_the_embedded_server() -> None:
    settings = Settings.load({}, env_file=None)
    assert settings.database_url == "sqlite+aiosqlite:///var/fixnado.db"
    assert settings.embedded
    assert settings.redis_url is None
    assert (settings.host, settings.port, settings.workers) == ("127.0.0.1", 8000, 1)


def test_every_default_is_within_its_own_bounds() -> None:
    typed = {row.name: row.default for row in Settings.describe()}
    assert Settings.load(typed, env_file=None) == Settings()


def test_values_are_read_from_the_environment() -> None:
    settings = load(PORT=" 9001 ", LINGER_SECONDS="0.5", LOG_FORMAT="json")
    assert (settings.port, settings.linger_seconds, settings.log_format) == (9001, 0.5, "json")


def test_variables_of_other_programs_do_not_matter() -> None:
    assert Settings.load({"PORT": "1", "PATH": "/bin"}, env_file=None) == Settings()


def test_an_empty_value_counts_as_unset() -> None:
    assert load(REDIS_URL="", PORT=" ") == Settings()


def test_lists_are_separated_by_commas() -> None:
    settings = load(
        ALLOWED_ORIGINS="https://App.example.org, http://localhost:3000,", TRUSTED_PROXIES="10.0.0.0/8, ::1"
    )
    assert settings.allowed_origins == ("https://app.example.org", "http://localhost:3000")
    assert settings.trusted_proxies == (ip_network("10.0.0.0/8"), ip_network("::1/128"))


def test_the_file_counts_where_the_environment_is_silent(tmp_path: Path) -> None:
    file = tmp_path / ".env.local"
    file.write_text("# local\n\nexport FIXNADO_PORT='9002'\nFIXNADO_HOST=0.0.0.0\nOTHER=1\n")
    settings = Settings.load({"FIXNADO_HOST": "::1"}, env_file=file)
    assert (settings.port, settings.host) == (9002, "::1")


def test_a_broken_line_in_the_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / ".env.local"
    file.write_text("FIXNADO_PORT=1\nwhat is this\n")
    with pytest.raises(SettingsError, match=r"\.env\.local, line 2: expected NAME=value"):
        Settings.load({}, env_file=file)


def test_the_example_file_shows_every_setting_with_its_default(tmp_path: Path) -> None:
    example = Path(__file__).parents[2] / ".env.local.example"
    names = re.findall(r"^#(FIXNADO_\w+)=", example.read_text(), flags=re.MULTILINE)
    assert names == [row.name for row in Settings.describe()]
    file = tmp_path / ".env.local"
    file.write_text(re.sub(r"^#FIXNADO_", "FIXNADO_", example.read_text(), flags=re.MULTILINE))
    assert Settings.load({}, env_file=file) == Settings()


def test_options_of_the_command_line_win() -> None:
    settings = Settings.load({"FIXNADO_PORT": "1", "FIXNADO_HOST": "::1"}, None, {"port": 2, "host": None})
    assert (settings.port, settings.host) == (2, "::1")


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("PORT", "http", "FIXNADO_PORT='http': must be a whole number from 0 to 65535"),
        ("PORT", "65536", "FIXNADO_PORT='65536': must be a whole number from 0 to 65535"),
        ("HEARTBEAT_SECONDS", "nan", "FIXNADO_HEARTBEAT_SECONDS='nan': must be a number from 0.05 to 300"),
        ("DATABASE_TLS", "maybe", "FIXNADO_DATABASE_TLS='maybe': must be one of required, off"),
        ("LOG_FORMAT", "xml", "FIXNADO_LOG_FORMAT='xml': must be one of auto, json, console"),
        (
            "TRUSTED_PROXIES",
            "10.0.0.1/8",
            (
                "FIXNADO_TRUSTED_PROXIES='10.0.0.1/8': "
                "must be IP addresses or networks such as 10.0.0.0/8, separated by commas"
            ),
        ),
        ("HOST", "a b", "FIXNADO_HOST='a b': must be a host name or an IP address"),
    ],
)
def test_a_wrong_value_is_one_line_with_name_value_and_what_is_allowed(name: str, value: str, line: str) -> None:
    assert refusal(**{name: value}) == line


@pytest.mark.parametrize(
    "origin", ["*", "null", "app.example.org", "https://a.example/", "https://a.example/x", "ftp://a", "https://u@a"]
)
def test_what_is_not_an_origin_is_refused(origin: str) -> None:
    assert refusal(ALLOWED_ORIGINS=f"https://good.example,{origin}").startswith("FIXNADO_ALLOWED_ORIGINS=")


@pytest.mark.parametrize("url", ["postgresql://h/d", "mysql://u@h/d", "mysql+asyncmy://u@h", "sqlite+aiosqlite://"])
def test_a_database_that_is_not_supported_is_refused(url: str) -> None:
    assert "must be sqlite+aiosqlite:///PATH or mysql+asyncmy://" in refusal(DATABASE_URL=url)


def test_a_misspelt_name_is_refused_with_the_likely_one() -> None:
    assert refusal(MAX_SOCKET_PER_USER="3").endswith("no such setting; did you mean FIXNADO_MAX_SOCKETS_PER_USER?")


def test_more_than_one_process_needs_redis() -> None:
    assert "FIXNADO_WORKERS=2: more than one process needs FIXNADO_REDIS_URL" in refusal(WORKERS="2")
    assert load(WORKERS="2", REDIS_URL="redis://cache:6379/0").workers == 2


def test_a_drain_longer_than_the_deadline_is_refused() -> None:
    assert refusal(DRAIN_SECONDS="21") == (
        "FIXNADO_DRAIN_SECONDS=21: must not be more than FIXNADO_SHUTDOWN_DEADLINE_SECONDS=20"
    )


def test_passwords_are_in_no_message_and_no_representation() -> None:
    assert "hunter2" not in refusal(DATABASE_URL="postgres://u:hunter2@h/d")
    assert "hunter2" not in refusal(REDIS_URL="hunter2")
    settings = load(DATABASE_URL="mysql+asyncmy://u:hunter2@h/d", REDIS_URL="redis://:hunter2@h:1/0")
    assert "hunter2" not in f"{settings!r} {settings}"
    with pytest.raises(ValidationError) as caught:
        Settings(database_url="postgres://u:hunter2@h/d")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("mysql+asyncmy://u:p@ss/w@h/d", "mysql+asyncmy://u:***@h/d"),
        ("redis://h:1/0?password=p", "redis://h:1/0?***"),
        ("sqlite+aiosqlite:///var/a.db", "sqlite+aiosqlite:///var/a.db"),
        ("secret", "***"),
        ('{"private_key": "hunter2", "token_uri": "https://oauth2.example/token"}', "***"),
    ],
)
def test_a_url_is_shown_without_its_secrets(url: str, shown: str) -> None:
    assert masked(url) == shown


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        Settings().port = 1  # type: ignore[misc] # the model is frozen, as this shows


def test_every_setting_is_described_with_its_unit() -> None:
    rows = {row.name: row for row in Settings.describe()}
    assert sorted(rows) == sorted(variable(field) for field in Settings.model_fields)
    assert next(iter(rows)) == "FIXNADO_HOST"
    assert all(row.meaning.endswith(".") for row in rows.values())
    assert rows["FIXNADO_LINGER_SECONDS"].unit == "s"
    assert rows["FIXNADO_COMMANDS_PER_SECOND"].unit == "1/s"
    assert rows["FIXNADO_MAX_FRAME_BYTES"].unit == "bytes"
    assert rows["FIXNADO_PORT"].unit == ""


def test_browsers_find_the_server_where_it_says() -> None:
    assert Settings().base_url == "http://127.0.0.1:8000"
    assert Settings(host="::1").base_url == "http://[::1]:8000"
    assert Settings(public_url="https://live.example.org/").base_url == "https://live.example.org"
