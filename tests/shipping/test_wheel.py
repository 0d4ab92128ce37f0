"""The wheel has everything that a running server needs: it serves without the checkout."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.acceptance.client import CUSTOMER, Rest, signed_in
from tests.acceptance.demo import Demo, environment
from tests.processes import PROGRAM, ROOT

BUILD = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(directory)], cwd=ROOT, check=True, capture_output=True, text=True, timeout=60
    )
    return directory / done.stdout.split()[-1]


def test_every_file_of_the_packages_is_in_it(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for package in ("server", "channels", "domain", "persistence"):
        files = [file for file in (ROOT / package).rglob("*") if file.is_file() and "__pycache__" not in file.parts]
        assert {str(file.relative_to(ROOT)) for file in files} <= names
    client = ROOT / "clients" / "javascript" / "src"
    assert {f"server/client/{file.relative_to(client)}" for file in client.rglob("*.js")} <= names
    assert not [name for name in names if name.startswith(("tests/", "docs/", "clients/"))]


async def test_it_serves_the_page_the_client_and_the_job_without_the_checkout(wheel: Path, tmp_path: Path) -> None:
    installed = tmp_path / "installed"
    zipfile.ZipFile(wheel).extractall(installed)
    where = "import server.http as http; print(http.__file__, http.CLIENT)"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", where),
        cwd=tmp_path,
        env=environment() | {"PYTHONPATH": str(installed)},
        stdout=asyncio.subprocess.PIPE,
    )
    found, _ = await process.communicate()
    assert found.decode().split() == [str(installed / "server" / "http.py"), str(installed / "server" / "client")]
    with Demo(tmp_path, program=PROGRAM, packages=installed) as demo:
        async with Rest(demo.base) as rest:
            for path in ("/", "/console/app.js", "/client/index.js", "/openapi/fixnado.v1.json"):
                answer = await rest.get(path)
                assert (answer.status, len(answer.raw) > 100) == (200, True), path
        async with signed_in(demo.base, CUSTOMER) as customer:
            assert "services" in await customer.call("service.list")
