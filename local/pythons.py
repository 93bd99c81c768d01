"""Finds another Python on this machine: ``python -m local.pythons 3.13`` prints where it is."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path


def find_python(version: str, uv: str) -> Path | None:
    """The interpreter of that version: one that uv knows, or one that pyenv has installed and not switched on."""
    found = _said([uv, "python", "find", "--no-project", "--no-python-downloads", version])
    if found and _said([found, "-c", "print(1)"]):
        return Path(found)
    if shutil.which("pyenv") and (root := _said(["pyenv", "root"])):
        for interpreter in sorted(Path(root).glob(f"versions/{version}.*/bin/python"), reverse=True):
            return interpreter
    return None


def _said(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


if __name__ == "__main__":
    if (python := find_python(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "uv")) is None:
        sys.exit(1)
    print(python)
