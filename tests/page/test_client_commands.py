from __future__ import annotations

import re
from pathlib import Path

from domain.catalogue import COMMANDS
from domain.commands import Mode

SOURCE = Path(__file__).parents[2] / "clients" / "javascript" / "src" / "commands.js"


def listed(name: str) -> set[str]:
    """The strings of one of the client's sets."""
    found = re.search(rf"export const {name} = new Set\(\[(.*?)\]\)", SOURCE.read_text(), re.DOTALL)
    assert found, f"{SOURCE} has no {name}"
    return set(re.findall(r"'([a-z_.]+)'", found[1]))


def named(*modes: Mode) -> set[str]:
    return {command.name for command in COMMANDS.values() if command.mode in modes}


def test_the_client_gives_a_key_to_exactly_the_commands_that_take_one() -> None:
    assert listed("KEYED") == named(Mode.KEYED)


def test_the_client_repeats_or_drops_every_other_command_knowingly() -> None:
    assert listed("REPEATABLE") | listed("MOMENTARY") == named(Mode.READ, Mode.WRITE) | {"channel.presence"}
    assert listed("MOMENTARY") <= named(Mode.WRITE)
