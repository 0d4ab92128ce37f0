"""The table of docs/security.md names tests that are there, for every statement."""

from __future__ import annotations

import ast
import re

from tests.processes import ROOT


def test_every_statement_has_tests_that_are_there() -> None:
    document = (ROOT / "docs" / "security.md").read_text()
    rows = re.findall(r"^\| (\d+) \| .+? \| (.+) \|$", document, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 28))
    for number, probes in rows:
        named = re.findall(r"`(tests/\S+?)::(\w+)`", probes)
        assert named, number
        for file, name in named:
            tree = ast.parse((ROOT / file).read_text())
            tests = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
            assert name in tests, f"{file} has no {name}"
