"""``python -m server`` is ``fixnado``."""

from server.cli import main

main()
