"""Every import is paid for at cold start: what functions/chat may import, by name.

A list and not a time: a machine's mood does not fail it, and whoever adds to it has to say so here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from samtranslator.yaml_helper import yaml_parse

REPOSITORY = Path(__file__).parent.parent.parent
# What the layer's requirements and Lambda's runtime bring. The rest of a developer's environment is hidden: httpx, for
# one, imports rich and h2 where it finds them, and on Lambda it does not.
INSTALLED_ON_LAMBDA = {
    "annotated_types", "anyio", "aws_lambda_powertools", "awslambdaric", "boto3", "botocore", "certifi", "dateutil", "h11",
    "httpcore", "httpx", "idna", "jmespath", "naru", "pydantic", "pydantic_core", "s3transfer", "six", "sniffio",
    "typing_extensions", "typing_inspection", "tzdata", "urllib3",
}  # fmt: skip
# Of the standard library, what costs more than ten milliseconds and is not needed to answer.
NOT_OF_THE_STANDARD_LIBRARY = {"multiprocessing", "sqlite3", "unittest", "xmlrpc", "pdb", "pydoc", "doctest", "tkinter"}
# Of Powertools, the parts; with validation or the tracer it would cost hundreds of milliseconds.
POWERTOOLS = {
    "event_handler", "exceptions", "logging", "metrics", "middleware_factory", "package_logger", "shared", "tracing",
    "utilities", "warnings",
}  # fmt: skip
# Imported by the first request that needs it, and by nobody who only starts.
RARE = {"naru.cli", "naru.sweeper", "naru.admin_api", "naru.api_keys", "naru.key_store", "naru.meter_store", "naru.aws_prices"}  # fmt: skip

_LIST = """
import json, sys
from importlib.abc import MetaPathFinder

class OnlyLambda(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in sys.stdlib_module_names and top not in ALLOWED and not top.startswith("_sysconfigdata"):
            raise ModuleNotFoundError(f"No module named {name!r} on Lambda", name=name)

ALLOWED = {*json.loads(sys.argv[1]), "app"}
before = set(sys.modules)
sys.meta_path.insert(0, OnlyLambda())
import app
assert callable(app.lambda_handler)
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def modules_of(function: str) -> set[str]:
    """What a fresh process imports before it asks for its first event."""
    folders = (REPOSITORY / "functions" / function, REPOSITORY / "layers/gateway")
    template = yaml_parse((REPOSITORY / "template.yaml").read_text(encoding="utf-8"))
    own = template["Resources"][f"{function.title().replace('_', '')}Function"]["Properties"].get("Environment", {})
    shared = template["Globals"]["Function"]["Environment"]["Variables"]
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join(map(str, folders)),
        "PYTHONDONTWRITEBYTECODE": "1",
        "AWS_DEFAULT_REGION": "ap-northeast-2",
        "AWS_ACCESS_KEY_ID": "none",
        "AWS_SECRET_ACCESS_KEY": "none",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        **{name: _deployed(value, template) for name, value in (shared | own.get("Variables", {})).items()},
    }
    done = subprocess.run(
        [sys.executable, "-c", _LIST, json.dumps(sorted(INSTALLED_ON_LAMBDA))],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def _deployed(value: Any, template: dict[str, Any]) -> str:
    """What a variable is when nothing is configured; the names of resources do not matter."""
    if isinstance(value, dict):
        parameter = template["Parameters"].get(value.get("Ref"), {"Default": "anything"})
        return str(parameter["Default"])
    return str(value)


@pytest.fixture(scope="module")
def chat() -> set[str]:
    """The modules of functions/chat."""
    return modules_of("chat")


def test_chat_imports_no_package_that_is_not_on_the_list(chat: set[str]) -> None:
    """A package that is missing from the list is hidden, so whoever needs it fails; what is left over is not needed."""
    packages = {name.partition(".")[0] for name in chat} - sys.stdlib_module_names - {"app", "__mp_main__"}
    packages = {name for name in packages if not name.startswith("_sysconfigdata")}
    assert packages <= ON_THE_PATH, f"new on the path of every cold start: {sorted(packages - ON_THE_PATH)}"


def test_the_list_names_nothing_that_is_not_imported(chat: set[str]) -> None:
    """So that a package that was got rid of cannot come back unseen."""
    packages = {name.partition(".")[0] for name in chat}
    assert packages >= ON_THE_PATH, f"not imported any more, so take it off the list: {sorted(ON_THE_PATH - packages)}"


def test_chat_imports_nothing_slow_of_the_standard_library(chat: set[str]) -> None:
    assert not NOT_OF_THE_STANDARD_LIBRARY & chat


def test_chat_imports_the_parts_of_powertools_on_the_list(chat: set[str]) -> None:
    parts = {name.split(".")[1] for name in chat if name.startswith("aws_lambda_powertools.")}
    assert parts <= POWERTOOLS
    assert not {name for name in chat if name.startswith(("aws_lambda_powertools.event_handler.openapi.models", "aws_lambda_powertools.utilities.parser"))}  # fmt: skip


def test_chat_does_not_import_what_other_functions_are_for(chat: set[str]) -> None:
    assert not RARE & chat


# What functions/chat may import, beside the standard library.
ON_THE_PATH = INSTALLED_ON_LAMBDA - {
    "awslambdaric",
    "boto3",
    "dateutil",
    "s3transfer",
    "six",
    "urllib3",
    "sniffio",
    "tzdata",
}  # those are imported when they are needed
