"""The wheel has everything that a running server needs: it serves without the checkout."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from hatch_build import LIBRARY, find_compiler
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


def test_it_is_for_this_machine_because_of_what_is_compiled(wheel: Path) -> None:
    compiled = LIBRARY in zipfile.ZipFile(wheel).namelist()
    assert compiled == (find_compiler() is not None)
    assert wheel.name.endswith("-py3-none-any.whl") != compiled


def test_without_a_working_compiler_there_is_a_wheel_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("server", "channels", "domain", "persistence", "clients/javascript/src"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / LIBRARY).write_bytes(b"of an earlier build")
    monkeypatch.setenv("CC", "false")
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(tmp_path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    wheel = tmp_path / done.stdout.split()[-1]
    assert wheel.name.endswith("-py3-none-any.whl")
    assert LIBRARY not in zipfile.ZipFile(wheel).namelist()
    assert "fan-outs are slower" in done.stdout + done.stderr


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
