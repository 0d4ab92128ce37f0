"""Compiles the one piece of C, ``server/fanout.c``, into the package. Without a compiler the package is built all the
same: what the C does is done in Python then, only slower.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from packaging.tags import platform_tags

SOURCE = "server/fanout.c"
LIBRARY = "server/fanout.native"
"""Not called ``.so``: Python would take it for a module."""

FLAGS = ("-O2", "-Wall", "-Wextra", "-shared", "-fPIC")
SECONDS = 60


class FanoutHook(BuildHookInterface[Any]):
    """Runs before a wheel is put together, also the one of an editable installation."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and say that the wheel is for this kind of machine only."""
        source, library = Path(self.root, SOURCE), Path(self.root, LIBRARY)
        try:
            # Beside the packages and not in them: whoever lists those meanwhile finds nothing strange.
            compile_into(library, source, scratch=Path(self.root))
        except (OSError, subprocess.SubprocessError) as error:
            # One that is left of an earlier build may be of another source.
            with suppress(OSError):
                library.unlink()
            self.app.display_warning(f"{SOURCE} is not compiled, so fan-outs are slower: {error}")
            return
        build_data["artifacts"].append(f"/{LIBRARY}")
        build_data["pure_python"] = False
        # It uses nothing of Python, so one wheel serves all of them.
        build_data["tag"] = f"py3-none-{platform_tag()}"


def platform_tag() -> str:
    """This machine, as installers call it. Not one of many Linuxes: the library wants the C library that is here."""
    return next(tag for tag in platform_tags() if "manylinux" not in tag and "musllinux" not in tag)


def find_compiler() -> str | None:
    """The C compiler: ``$CC``, with its arguments if it has some, or the system's."""
    return os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")


def compile_into(library: Path, source: Path, scratch: Path) -> None:
    """Make a shared library of one source.

    Args:
        scratch: a directory on the library's file system.

    Raises:
        OSError: there is no compiler.
        subprocess.SubprocessError: it failed; its words are on standard error.
    """
    compiler = find_compiler()
    if compiler is None:
        raise FileNotFoundError("there is no C compiler")
    # Moved into place when it is whole: a server that runs from here goes on with the file that it has opened.
    with tempfile.TemporaryDirectory(dir=scratch, prefix=".build-") as directory:
        fresh = Path(directory, library.name)
        command = [*compiler.split(), *FLAGS, "-o", str(fresh), str(source)]
        subprocess.run(command, timeout=SECONDS, check=True)  # noqa: S603 — whoever builds has named the compiler
        fresh.replace(library)
