"""Where the binary is."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from pathlib import Path


def find_binary() -> str:
    """The path of the `tierline` binary.

    `TIERLINE_BINARY` goes before the one that was installed with this package,
    which goes before any on `PATH`.

    Raises:
        FileNotFoundError: There is none.
    """
    named = os.environ.get("TIERLINE_BINARY")
    if named:
        return named
    folders = [sysconfig.get_path("scripts"), str(Path(sys.prefix) / "bin")]
    if sys.platform != "win32":
        folders.append(sysconfig.get_path("scripts", scheme="posix_user"))
    for folder in folders:
        candidate = Path(folder) / "tierline"
        # A script of the same name would be this package itself.
        if candidate.is_file() and os.access(candidate, os.X_OK):
            return str(candidate)
    found = shutil.which("tierline")
    if found:
        return found
    raise FileNotFoundError(
        f"no `tierline` binary in {', '.join(folders)} or on PATH; install the package again, or set TIERLINE_BINARY"
    )
