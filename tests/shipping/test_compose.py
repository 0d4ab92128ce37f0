"""compose.yaml, as far as it can be judged without an engine: what refers to what, what each service is allowed, and
whether the settings it gives are ones the server takes.
"""

from __future__ import annotations

import base64
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy.engine import make_url

from persistence.database import Database, DatabaseOptions
from server.settings import Settings
from tests.certificates import SecuredMariaDB
from tests.processes import ROOT

EXAMPLE = ROOT / "deploy" / "compose.env.example"
MASTER_KEY = "FIXNADO_MASTER_KEY"
SECRETS = {
    "MYSQL_ROOT_PASSWORD": "r00t",
    "MYSQL_PASSWORD": "s3cret",
    "REDIS_PASSWORD": "h1dden",
    MASTER_KEY: base64.b64encode(b"k" * 32).decode(),
}
ONE_SHOT = {"migrate", "certificates"}


def variables(text: str) -> dict[str, str]:
    lines = (line.partition("=") for line in text.splitlines() if line and not line.startswith("#"))
    return {name: value for name, _, value in lines}


@cache
def compose() -> dict[str, Any]:
    """The file with its variables put in, as `docker compose config` would."""
    given = variables(EXAMPLE.read_text()) | SECRETS

    def put_in(match: re.Match[str]) -> str:
        name, operator, rest = match["name"], match["operator"], match["rest"] or ""
        value = given.get(name, "")
        assert value or operator == ":-", f"{name} is not in {EXAMPLE.name}"
        assert operator in {":-", ":?"}, f"{name} has neither a default nor a message"
        return value or rest

    text = (ROOT / "compose.yaml").read_text()
    text = re.sub(r"(?<!\$)\$\{(?P<name>\w+)(?:(?P<operator>:[-?])(?P<rest>[^}]*))?\}", put_in, text)
    loaded: dict[str, Any] = yaml.safe_load(text.replace("$$", "$"))
    return loaded


def services() -> Mapping[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = compose()["services"]
    return found


@pytest.mark.skipif(shutil.which("docker") is None, reason="there is no docker here")
def test_docker_itself_takes_it(tmp_path: Path) -> None:
    if subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode != 0:
        pytest.skip("docker is here without its compose plugin")
    env_file = tmp_path / "env"
    env_file.write_text("".join(f"{name}={value}\n" for name, value in SECRETS.items()))
    config = ["docker", "compose", "--env-file", str(env_file), "-f", str(ROOT / "compose.yaml"), "config", "--quiet"]
    done = subprocess.run(config, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_it_is_two_nodes_a_load_balancer_a_database_and_redis() -> None:
    assert set(services()) == {"server-1", "server-2", "load-balancer", "mysql", "redis", *ONE_SHOT}
    first, second = services()["server-1"], services()["server-2"]
    assert {key: value for key, value in first.items() if key != "hostname"} == {
        key: value for key, value in second.items() if key != "hostname"
    }
    assert first["hostname"] != second["hostname"], "a node's name is in its logs and leases"


@pytest.mark.parametrize("name", sorted(yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]))
def test_a_service_is_pinned_bounded_and_healthy(name: str) -> None:
    service = services()[name]
    assert re.fullmatch(r"[a-z]+:\d+\.\d+\.\d+(-\w+)?", service["image"])
    limits = service["deploy"]["resources"]["limits"]
    assert float(limits["cpus"]) > 0
    assert re.fullmatch(r"\d+(m|g)", limits["memory"])
    health = service["healthcheck"]
    assert (health == {"disable": True}) if name in ONE_SHOT else len(health["test"]) >= 2
    assert not service.get("privileged")
    for other, condition in service.get("depends_on", {}).items():
        wanted = "service_completed_successfully" if other in ONE_SHOT else "service_healthy"
        assert condition == {"condition": wanted}, f"{name} waits for {other}"
        assert other in services()
    for volume in service.get("volumes", ()):
        source = volume.split(":")[0]
        assert (ROOT / source).exists() if source.startswith(".") else source in compose()["volumes"]
    for network in service.get("networks", ()):
        assert network in compose()["networks"]


def test_only_the_load_balancer_is_reached_from_outside() -> None:
    assert [name for name, service in services().items() if "ports" in service] == ["load-balancer"]
    assert compose()["networks"]["inside"]["internal"] is True
    assert [name for name, service in services().items() if "outside" in service.get("networks", ())] == [
        "load-balancer"
    ]


def test_no_secret_is_in_the_files() -> None:
    text = (ROOT / "compose.yaml").read_text()
    assert not re.search(r"PASSWORD: *\"?[^\"$\s?]", text)
    example = variables(EXAMPLE.read_text())
    assert {name for name in example if "PASSWORD" in name} | {MASTER_KEY} == set(SECRETS)
    assert MASTER_KEY in example
    assert not any(example[name] for name in SECRETS)
    assert ".env" in (ROOT / ".gitignore").read_text().splitlines()


@pytest.mark.parametrize("name", ["server-1", "migrate"])
def test_the_settings_are_ones_the_server_takes(name: str, tmp_path: Path) -> None:
    service = services()[name]
    environment = dict(service["environment"])
    assert environment["FIXNADO_DATABASE_CA_FILE"] == "/certificates/ca.pem"
    assert "certificates:/certificates:ro" in service["volumes"]
    # The file exists in the container only.
    (authority := tmp_path / "ca.pem").write_bytes(_authority(tmp_path))
    settings = Settings.load(environment | {"FIXNADO_DATABASE_CA_FILE": str(authority)}, env_file=None)
    assert settings.database_tls == "required"
    url = make_url(settings.database_url)
    mysql = services()["mysql"]["environment"]
    assert (url.host, url.username, url.password, url.database) == (
        "mysql",
        mysql["MYSQL_USER"],
        mysql["MYSQL_PASSWORD"],
        mysql["MYSQL_DATABASE"],
    )
    assert settings.redis_url == f"redis://:{services()['redis']['environment']['REDIS_PASSWORD']}@redis:6379/0"
    subnet = compose()["networks"]["inside"]["ipam"]["config"][0]["subnet"]
    assert list(map(str, settings.trusted_proxies)) == [subnet], "the proxy's word about clients counts"
    assert settings.shutdown_deadline_seconds < float(service["stop_grace_period"].removesuffix("s"))


def test_there_is_a_file_for_every_socket() -> None:
    most = int(Settings.model_fields["max_sockets"].default)
    assert services()["server-1"]["ulimits"]["nofile"] > 2 * most
    (maxconn,) = re.findall(r"^ +maxconn (\d+)$", (ROOT / "deploy" / "haproxy.cfg").read_text(), re.MULTILINE)
    assert services()["load-balancer"]["ulimits"]["nofile"] > 2 * int(maxconn) > 2 * 2 * most


def test_the_database_has_room_for_the_pools_and_insists_on_tls() -> None:
    options = dict(option.removeprefix("--").split("=") for option in services()["mysql"]["command"])
    nodes = [name for name in services() if name.startswith("server-")]
    pools = 2 * int(Settings.model_fields["database_pool_size"].default) * len(nodes)
    assert int(options["max-connections"]) > pools
    assert options["require-secure-transport"] == "ON"
    assert {options[f"ssl-{each}"] for each in ("ca", "cert", "key")} == {
        f"/certificates/{each}" for each in ("ca.pem", "server.pem", "server.key")
    }


def test_commands_inside_are_well_formed() -> None:
    for service in services().values():
        for command in (service.get("command", []), service.get("healthcheck", {}).get("test", [])):
            if len(command) > 1 and command[0] in {"sh", "CMD-SHELL"}:
                assert shlex.split(command[-1])
                subprocess.run(["sh", "-n", "-c", command[-1]], check=True)
            if len(command) > 2 and command[:2] == ["CMD", "python"]:
                compile(command[-1], "healthcheck", "exec")


# --- the certificates -------------------------------------------------------------------------------------------------


def make_certificates(directory: Path, name: str) -> None:
    program = ROOT / "deploy" / "certificates.py"
    subprocess.run([sys.executable, str(program), str(directory), name], check=True, timeout=30)


def _authority(directory: Path) -> bytes:
    make_certificates(directory / "made", "mysql")
    return (directory / "made" / "ca.pem").read_bytes()


async def test_its_certificates_are_ones_the_server_accepts() -> None:
    class Served(SecuredMariaDB):
        def start(self) -> None:
            make_certificates(self.directory, "localhost")
            super().start()

    with Served() as mysql:
        assert (mysql.directory / "server.key").stat().st_mode & 0o777 == 0o600
        before = mysql.ca_file.read_bytes()
        url = mysql.url("mysql").replace("127.0.0.1", "localhost")
        database = Database(url, DatabaseOptions(tls_ca_file=mysql.ca_file))
        await database.ping(5)
        await database.close()
        make_certificates(mysql.directory, "localhost")
        assert mysql.ca_file.read_bytes() == before, "a second start keeps what is there"


def test_the_certificates_are_for_the_name_the_server_asks_for() -> None:
    assert services()["certificates"]["entrypoint"] == ["python", "/certificates.py", "/certificates", "mysql", "999"]
    assert make_url(services()["server-1"]["environment"]["FIXNADO_DATABASE_URL"]).host == "mysql"
