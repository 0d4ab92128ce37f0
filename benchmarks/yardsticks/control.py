"""How a server under measurement is commanded: a line of JSON in, a line of JSON out. Standard library only.

It first says ``{"port": …}``. ``{"do": "publish", "turns": 100, "burst": 1, "size": 256}`` has it send ``burst``
messages of ``size`` bytes to everybody in each of 100 turns of its event loop; the answer holds ``started``, the
monotonic moment of the first.
"""

from __future__ import annotations

import asyncio
import json
import sys
import traceback
from collections.abc import Awaitable, Callable
from typing import Any

Handler = Callable[..., Awaitable[dict[str, Any]]]


def say(**facts: Any) -> None:
    """One line to whoever measures."""
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


async def obey(port: int, handlers: dict[str, Handler]) -> None:
    """Answer commands until standard input ends."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    say(port=port)
    while line := await reader.readline():
        command = json.loads(line)
        try:
            say(**await handlers[command.pop("do")](**command))
        except Exception:
            say(error=traceback.format_exc())


def message(size: int) -> str:
    """A text of that many bytes that looks like an event."""
    head = '{"jsonrpc":"2.0","method":"event","params":{"channel":"zone:camden","data":"'
    return head + "x" * (size - len(head) - 3) + '"}}'
