"""``make build``: sam build, then the check that the artifact is complete.

The emulator runs functions with the developer's own packages, so a requirement that is missing from the layer stays
hidden there. Here every handler is imported by Lambda's Python with nothing but its artifact and boto3.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from samtranslator.yaml_helper import yaml_parse

from local.pythons import find_python

ROOT = Path(__file__).parent.parent
BUILD, CHECK = ROOT / ".aws-sam/build", ROOT / ".aws-sam/check"
MACHINE = {"x86_64": "x86_64", "AMD64": "x86_64", "aarch64": "arm64", "arm64": "arm64"}[platform.machine()]
LAMBDA_PYTHON = "3.13"

_IMPORT = """
import os, sys
sys.path[:0] = sys.argv[1:]
os.environ |= {"AWS_DEFAULT_REGION": "ap-northeast-2", "AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none"}
import app
assert callable(app.lambda_handler)
where = {name: module.__file__ for name, module in sys.modules.items() if getattr(module, "__file__", None)}
print(sum(path.startswith(sys.argv[2]) for path in where.values()), "modules of the layer in use")
"""


def main() -> int:
    """Builds, checks and says how large the layer is."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--uv", required=True)
    parser.add_argument("--sam", required=True)
    options = parser.parse_args()
    python = find_python(LAMBDA_PYTHON, options.uv)
    if python is None:
        advice = f"{options.uv} python install {LAMBDA_PYTHON}"
        print(
            f"make build needs Python {LAMBDA_PYTHON}, the one that Lambda runs. To have it: {advice}", file=sys.stderr
        )
        return 1
    _sam_build(options.sam, BUILD, python)
    checked = BUILD
    if MACHINE != "arm64":
        _sam_build(options.sam, CHECK, python, "--parameter-overrides", f"Architecture={MACHINE}")
        checked = CHECK
    template = yaml_parse((ROOT / "template.yaml").read_text())
    with TemporaryDirectory() as folder:
        clean = Path(folder)
        subprocess.run([options.uv, "venv", "--quiet", "--python", str(python), str(clean / "venv")], check=True)
        interpreter = str(clean / "venv/bin/python")
        subprocess.run([options.uv, "pip", "install", "--quiet", "--python", interpreter, "boto3"], check=True)
        for name, resource in template["Resources"].items():
            if resource["Type"] == "AWS::Serverless::Function":
                _import_handler(interpreter, checked, name, resource, template)
    size = sum(file.stat().st_size for file in (BUILD / "GatewayLayer").rglob("*") if file.is_file())
    print(f"layer: {size / 1e6:.1f} MB, {_zipped_bytes(BUILD / 'GatewayLayer') / 1e6:.1f} MB zipped")
    return 0


def _sam_build(sam: str, target: Path, python: Path, *options: str) -> None:
    environment = os.environ | {"PATH": f"{python.parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        [str(Path(sam).absolute()), "build", "--build-dir", str(target), *options],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{done.stdout}\n{done.stderr}\nsam build failed")
    _compile(target, python)


def _compile(build: Path, python: Path) -> None:
    """Adds bytecode: where Lambda mounts the code nothing can be written, so each cold start would compile it all again.

    Unchecked, since neither the times of the files nor the files themselves change after this.
    """
    for folder in build.iterdir():
        inside, mounted = (folder / "python", "/opt/python") if (folder / "python").is_dir() else (folder, "/var/task")
        if inside.is_dir():
            options = ("-q", "--invalidation-mode", "unchecked-hash", "-s", str(inside), "-p", mounted)
            subprocess.run([str(python), "-m", "compileall", *options, str(inside)], check=True)


def _value(value: Any, template: dict[str, Any]) -> str:
    """A variable of the form that it has when it is deployed with the defaults, as settings check that."""
    name = value.get("Ref") if isinstance(value, dict) else None
    if name in template.get("Parameters", {}):
        return str(template["Parameters"][name].get("Default", ""))
    match template["Resources"].get(name, {}).get("Type"):
        case "AWS::SNS::Topic":
            return f"arn:aws:sns:ap-northeast-2:000000000000:{name}"
        case "AWS::SQS::Queue":
            return f"https://sqs.ap-northeast-2.amazonaws.com/000000000000/{name}"
        case _:
            return str(value)


def _import_handler(
    interpreter: str, build: Path, name: str, resource: dict[str, Any], template: dict[str, Any]
) -> None:
    """Imports a handler in a process that sees only its artifact; a missing package ends the build."""
    variables = {
        "NARU_LEDGER_TABLE": "ledger",
        "NARU_METER_TABLE": "meter",
        "NARU_PROVIDER_KEYS_SECRET": "keys",
        "NARU_IDEMPOTENCY_TABLE": "idempotency",
        "NARU_HEALTH_TABLE": "health",
        "NARU_ANSWERS_BUCKET": "answers",
        **{
            key: _value(value, template)
            for key, value in resource["Properties"].get("Environment", {}).get("Variables", {}).items()
        },
    }
    done = subprocess.run(
        [interpreter, "-I", "-c", _IMPORT, str(build / name), str(build / "GatewayLayer/python")],
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{name} cannot be imported from its artifact:\n{done.stderr}")
    print(f"{name}: imported from its artifact, {done.stdout.strip()}")


def _zipped_bytes(folder: Path) -> int:
    with TemporaryDirectory() as target:
        archive = Path(target) / "layer.zip"
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as out:
            for file in folder.rglob("*"):
                out.write(file, file.relative_to(folder))
        return archive.stat().st_size


if __name__ == "__main__":
    sys.exit(main())
