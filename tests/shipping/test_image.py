"""The Dockerfile, as far as it can be judged without an engine: by its text, and by doing its steps outside one."""

from __future__ import annotations

import asyncio
import fnmatch
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from server.settings import Settings
from tests.acceptance.demo import Demo
from tests.acceptance.test_production import metrics
from tests.processes import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text()
STAGES = [part.strip() for part in re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)][1:]


def instructions(stage: str) -> list[tuple[str, str]]:
    """Name and arguments, in order; continued lines joined, comments gone."""
    lines = "\n".join(line for line in stage.splitlines()[1:] if not line.startswith("#"))
    joined = re.sub(r"\\\n\s*", "", lines)
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def context() -> list[str]:
    """Files of the checkout that .dockerignore lets into the build."""
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert patterns[0] == "*", "nothing goes in but what is named"
    named = [pattern[1:] for pattern in patterns if pattern.startswith("!")]
    assert all((ROOT / name).exists() for name in named)
    found = []
    for name in named:
        files = [ROOT / name] if (ROOT / name).is_file() else sorted((ROOT / name).rglob("*"))
        found += [str(file.relative_to(ROOT)) for file in files if file.is_file()]
    excluded = [f"{pattern.replace('**/', '*')}*" for pattern in patterns[1:] if not pattern.startswith("!")]
    return [file for file in found if not any(fnmatch.fnmatch(file, pattern) for pattern in excluded)]


def test_both_stages_are_of_one_pinned_image() -> None:
    (pin,) = re.findall(r"^ARG PYTHON_IMAGE=(\S+)$", DOCKERFILE, re.MULTILINE)
    assert re.fullmatch(r"python:\d+\.\d+\.\d+-slim-\w+", pin)
    assert [stage.split()[0] for stage in STAGES] == ["${PYTHON_IMAGE}", "${PYTHON_IMAGE}"]


def test_it_installs_locked_packages_and_checks_them() -> None:
    build = " ".join(rest for name, rest in instructions(STAGES[0]) if name == "RUN")
    assert "--require-hashes -r requirements.lock" in build
    assert "--no-deps --no-index dist/*.whl" in build
    assert build.endswith("check")
    copied = [rest for name, rest in instructions(STAGES[0]) if name == "COPY"]
    assert copied[0].startswith("requirements.lock"), "the layer of the packages changes only with the lock file"


def test_it_runs_as_nobody_and_stops_in_order() -> None:
    final = dict(instructions(STAGES[1]))
    assert final["USER"].isdecimal()
    assert int(final["USER"]) >= 10_000
    assert final["STOPSIGNAL"] == "SIGTERM"
    # The exec form: a shell in between would not pass the signal on.
    assert (final["ENTRYPOINT"], final["CMD"]) == ('["fixnado"]', '["serve"]')
    assert "/health/live" in final["HEALTHCHECK"]
    names = [name for name, _ in instructions(STAGES[1])]
    assert names.index("USER") > names.index("COPY")
    for setting in re.findall(r"FIXNADO_(\w+)", STAGES[1]):
        assert setting.lower() in Settings.model_fields


def test_no_secret_and_no_test_goes_into_the_build() -> None:
    files = context()
    named = {"pyproject.toml", "hatch_build.py", "requirements.lock", "LICENSE", "clients/javascript/src/index.js"}
    assert {*named, "server/fanout.c"} <= set(files)
    assert "server/fanout.native" not in files, "it is compiled in the image, for the image"
    for file in files:
        assert not file.startswith(("tests/", ".git", "var/", ".env")), file
        assert not file.endswith((".pem", ".key", ".db")), file


@pytest.mark.soak
@pytest.mark.timeout(600)
async def test_its_steps_make_a_server_that_runs_by_itself(tmp_path: Path) -> None:
    """What RUN says, with other directories: the packages come from the index, so this takes minutes."""
    build, venv = tmp_path / "build", tmp_path / "venv"
    for file in context():
        (build / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, build / file)
    environment = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    binaries = f"{Path(sys.executable).parent}:{environment['PATH']}"
    for name, rest in instructions(STAGES[0]):
        if name == "RUN" and not rest.startswith("apt-get"):
            step = rest.replace("/opt/venv", str(venv)).replace("pip --python", f"{sys.executable} -m pip --python")
            run = partial(subprocess.run, check=True, cwd=build, env=environment | {"PATH": binaries})
            await asyncio.to_thread(run, ["sh", "-ec", step])
    assert not (venv / "bin" / "pip").exists()
    shutil.rmtree(build)
    demo = Demo(tmp_path, program=(str(venv / "bin" / "fixnado"),), packages=tmp_path / "nothing")
    with demo:
        assert (await metrics(demo.base))["fixnado_sequencer_leading"] >= 0
