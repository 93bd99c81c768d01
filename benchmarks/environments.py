"""Environments of the contestants' own, made by uv: what is measured must not share packages with what measures it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from local.template import REPOSITORY

LITELLM = ("litellm[proxy]",)
FLOOR = ("fastapi", "httpx", "uvicorn")
MANGUM = ("awslambdaric==4.2.2", "boto3==1.43.106", "botocore==1.43.106", "fastapi", "mangum")
# Lambda's runtime brings boto3 and awslambdaric; the layer brings the rest.
LAMBDA = (
    "awslambdaric==4.2.2",
    "boto3==1.43.106",
    "botocore==1.43.106",
    *("-r", str(REPOSITORY / "layers/gateway/requirements.txt")),
)


def python_with(name: str, requirements: tuple[str, ...]) -> Path:
    """The interpreter of an environment with the newest releases that fit, in bytecode; made anew if asked otherwise.

    Raises subprocess.CalledProcessError when a package cannot be had.
    """
    folder = REPOSITORY / f".venv-bench-{name}"
    python, made_of = folder / "bin/python", folder / "made-of.txt"
    wanted = f"{sys.version}\n{requirements}\n{_content_of_files(requirements)}"
    if made_of.exists() and made_of.read_text(encoding="utf-8") == wanted:
        return python
    uv = find_uv()
    subprocess.run([uv, "venv", "--quiet", "--clear", "--python", _base_python(), str(folder)], check=True)
    install = ("pip", "install", "--quiet", "--compile-bytecode", "--python", str(python))
    subprocess.run([uv, *install, *requirements], check=True)
    made_of.write_text(wanted, encoding="utf-8")
    return python


def version_of(python: Path, package: str) -> str:
    """The release of a package in an environment."""
    code = f"from importlib.metadata import version; print(version({package!r}))"
    done = subprocess.run([str(python), "-c", code], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def find_uv() -> str:
    """The uv that runs this, or the one that the Makefile would take. Raises FileNotFoundError."""
    own = REPOSITORY / ".tools/bin/uv"
    if found := os.environ.get("UV") or shutil.which("uv") or (str(own) if own.exists() else None):
        return found
    raise FileNotFoundError("uv is not here: run the benchmarks by `make bench`")


def _base_python() -> str:
    code = "import json, sys; print(json.dumps(sys._base_executable))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return str(json.loads(done.stdout))


def _content_of_files(requirements: tuple[str, ...]) -> str:
    files = [path for path in map(Path, requirements) if path.is_absolute()]
    return "\n".join(file.read_text(encoding="utf-8") for file in files)
