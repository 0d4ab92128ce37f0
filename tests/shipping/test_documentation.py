"""Every command that the documentation tells people to type exists, and is run by a test or by CI."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from server.cli import cli
from tests.processes import ROOT

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "clients" / "javascript" / "README.md"]

COVERED = {
    "fixnado serve": "tests/server/test_cli.py::test_serve_never_makes_the_demo_accounts",
    "fixnado demo": "tests/server/test_cli.py::test_demo_traffic_makes_the_feed_live",
    "fixnado migrate": "tests/server/test_cli.py::test_migrate_says_what_it_applies_and_nothing_else",
    "fixnado user add": "tests/server/test_cli.py::test_migrate_and_user_add",
    "fixnado user disable": "tests/server/test_key_commands.py::test_account_is_disabled_and_enabled_by_its_address",
    "fixnado keys rotate": "tests/server/test_key_commands.py::test_keys_are_rotated_by_two_commands",
    "fixnado epochs renew": "tests/server/test_cli.py::test_epochs_are_renewed_only_when_every_node_is_stopped",
    "fixnado events replay": "tests/server/test_exporter_aws.py::"
    "test_events_reach_the_queue_and_the_bus_and_can_be_told_again",
    "fixnado bench": "tests/server/test_cli.py::test_bench_is_handed_over_to_the_benchmarks",
    "python -m benchmarks": "tests/server/test_cli.py::test_bench_is_handed_over_to_the_benchmarks",
    "python -m benchmarks.capacity": "tests/benchmarks/test_capacity.py::test_the_document_shows_what_the_model_says",
    "fixnado zones import": "tests/server/test_cli.py::test_zones_are_imported_from_a_file_or_the_unfit_ones_are_named",
    "fixnado settings": "tests/server/test_cli.py::test_settings_lists_every_setting",
    "fixnado watch": "tests/server/test_cli.py::test_watch_shows_the_feed",
    "cp": "tests/shipping/test_documentation.py::test_what_is_copied_is_there",
    "docker compose up": "tests/shipping/test_compose.py::test_a_service_is_pinned_bounded_and_healthy",
    "sqlite3": "tests/acceptance/test_restore.py::test_a_restored_backup_under_new_epochs_resumes_nobody_wrongly",
    "node --test": "Makefile",
    ".ci/run": ".github/workflows/ci.yml",
    "make lint": ".ci/run",
    "make test": ".ci/run",
    "make run": "tests/shipping/test_documentation.py::test_make_does_what_the_documentation_says",
    "make help": "tests/shipping/test_documentation.py::test_make_does_what_the_documentation_says",
    "make bench": "tests/shipping/test_documentation.py::test_make_does_what_the_documentation_says",
    "make soak": "tests/shipping/test_documentation.py::test_make_does_what_the_documentation_says",
    "make specs": "tests/server/test_specs.py::test_the_checked_in_files_are_current",
    "make lock": "tests/shipping/test_documentation.py::test_make_does_what_the_documentation_says",
}
"""What runs each command: a test, or a file of CI that has it."""

PROGRAMS = ("fixnado", "make", "docker", "cp", "sqlite3", "node", ".ci/run", ".venv/bin/fixnado")


def commands(document: Path) -> Iterator[str]:
    """Lines of shell blocks, and inline code that begins like a command."""
    text = document.read_text()
    for block in re.findall(r"^```(?:sh|shell|bash|console)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        yield from (line.split("  #")[0].strip() for line in block.splitlines() if line.strip() and line[0] != "#")
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    for code in re.findall(r"`([^`\n]+)`", prose):
        if code.split()[0] in PROGRAMS and (len(code.split()) > 1 or code.startswith(".ci/")):
            yield code


TOLD = sorted({(str(document.relative_to(ROOT)), line) for document in DOCUMENTS for line in commands(document)})


def words(command: str) -> list[str]:
    parts = shlex.split(command)
    if parts[0] == ".venv/bin/fixnado":
        parts[0] = "fixnado"
    return parts


def test_there_is_something_to_check() -> None:
    told = {line for _, line in TOLD}
    assert {"make run", "make test", "fixnado migrate", "fixnado epochs renew"} <= told
    assert len(TOLD) > 12


@pytest.mark.parametrize(("document", "command"), TOLD)
def test_a_command_in_the_documentation_is_run_somewhere(document: str, command: str) -> None:
    parts = words(command)
    fitting = [name for name in COVERED if parts[: len(name.split())] == name.split()]
    assert fitting, f"{document} tells people to type {command!r}, and nothing here runs it"
    proof = COVERED[max(fitting, key=len)]
    file, _, test = proof.partition("::")
    source = (ROOT / file).read_text()
    if not test:
        assert " ".join(parts[:2]) in source or parts[0] in source
        return
    names = {node.name for node in ast.parse(source).body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    assert test in names, f"{file} has no {test}"


@pytest.mark.parametrize("command", sorted({line for _, line in TOLD if words(line)[0] == "fixnado"}))
def test_options_of_fixnado_in_the_documentation_exist(command: str) -> None:
    parts = words(re.sub(r"[\[\]|…]", " ", command))[1:]
    node: Any = typer.main.get_command(cli)
    while parts and hasattr(node, "commands"):
        assert parts[0] in node.commands, command
        node, parts = node.commands[parts[0]], parts[1:]
    options = {option for parameter in node.params for option in parameter.opts}
    assert {part.split("=")[0] for part in parts if part.startswith("--")} <= options


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run"], ".venv/bin/fixnado demo"),
        (["run", "ARGS=--traffic 30"], ".venv/bin/fixnado demo --traffic 30"),
        (["test", "ARGS=tests/server"], ".venv/bin/pytest tests/server"),
        (["bench", "ARGS=p1 --quick"], ".venv/bin/fixnado bench p1 --quick"),
        (["soak"], ".venv/bin/pytest -m soak"),
        (["lint"], ".ci/lint"),
        (["specs"], ".venv/bin/python -m server specs"),
        (["lock"], ".ci/lock"),
        (["help"], "grep"),
    ],
)
def test_make_does_what_the_documentation_says(arguments: list[str], expected: str) -> None:
    """Without doing it: this very run is inside one of them."""
    done = subprocess.run(["make", "-n", *arguments], cwd=ROOT, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout


def test_what_is_copied_is_there() -> None:
    for _, line in TOLD:
        if line.startswith("cp "):
            assert (ROOT / shlex.split(line)[1]).is_file(), line


def test_links_between_documents_lead_somewhere() -> None:
    for document in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text()):
            if "://" not in target:
                assert (document.parent / target).exists(), f"{document.name}: {target}"
