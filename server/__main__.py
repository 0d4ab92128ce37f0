"""``python -m server`` is ``fixnado``."""

from __future__ import annotations

import gc


def main() -> None:
    """Entry point of the command line."""
    # What is imported stays. Looking for garbage among it meanwhile was a quarter of the time that importing takes.
    gc.disable()
    from server import cli

    gc.freeze()
    gc.enable()
    cli.main()


if __name__ == "__main__":
    main()
