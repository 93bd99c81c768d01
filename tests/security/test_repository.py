"""What lies in the repository: no secret, and no dependency that is not pinned to its bytes."""

from __future__ import annotations

import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent

# The shapes of keys that open something, by those who give them out.
SHAPES = {
    "AWS": r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    "private key": r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----\s+[A-Za-z0-9+/]{20}",
    "OpenAI, Anthropic, Naru and their like": r"\bsk-[A-Za-z0-9_-]{24,}",
    "CLOVA Studio": r"\bnv-[A-Za-z0-9]{24,}",
    "GitHub": r"\b(?:gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{30,})",
    "Google": r"\bAIza[A-Za-z0-9_-]{35}",
    "Slack": r"\bxox[abpr]-[A-Za-z0-9-]{10,}",
    "JSON web token": r"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}",
    "a URL with a password": r"\bhttps?://[^/\s:@\"'{}]+:[^/\s:@\"'{}]{6,}@[a-z0-9.-]+",
}
# Nobody's: written by a person, as the digits of a keyboard or as one letter again and again.
_NOBODYS = re.compile(r"01234567|example|(.)\1{7}", re.IGNORECASE)


def secrets_in(text: str) -> Iterator[tuple[str, str]]:
    """What looks like a key, and whose."""
    for kind, shape in SHAPES.items():
        for match in re.finditer(shape, text):
            if not _NOBODYS.search(match[0]):
                yield kind, match[0]


def files() -> list[Path]:
    """What is, or would be, committed."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    return [path for name in listed.stdout.decode().split("\0") if name and (path := ROOT / name).is_file()]


@pytest.mark.parametrize(
    "secret",
    [
        "AKIA" + "Q7RZ4M2T9XKD3VLP",
        "sk-proj-" + "a8Kd0sPqL2vN5xYbC7eR9tUw",
        "sk-ant-api03-" + "a8Kd0sPqL2vN5xYbC7eR9tUw",
        "nv-" + "3f9c1e7ab2d84650a8Kd0sPqL2vN5x",
        "ghp_" + "a8Kd0sPqL2vN5xYbC7eR9tUwa8Kd0sPqL2vN",
        "https://user:" + "hunter2hunter" + "@db.internal",
        "-----BEGIN RSA PRIVATE KEY-----\n" + "MIIEowIBAAKCAQEAxyzqrst",
    ],
)
def test_the_scan_knows_a_secret_when_it_sees_one(secret: str) -> None:
    assert list(secrets_in(f"key = '{secret}'"))


def test_no_secret_is_in_the_repository() -> None:
    looked_at = files()
    assert ROOT / "template.yaml" in looked_at
    found = []
    for path in looked_at:
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{path.relative_to(ROOT)}: {kind}: {secret[:12]}…" for kind, secret in secrets_in(text)]
    assert found == []


def test_what_goes_into_the_layer_is_pinned_to_its_bytes() -> None:
    """A release that is replaced under its name, or a package of the same name elsewhere, does not install."""
    text = (ROOT / "layers" / "gateway" / "requirements.txt").read_text(encoding="utf-8")
    requirements = [each for each in re.split(r"\n(?=[A-Za-z])", text) if re.match(r"[A-Za-z]", each)]
    assert len(requirements) > 5
    for requirement in requirements:
        assert re.match(r"[A-Za-z0-9_.-]+==\S+", requirement), requirement
        assert "--hash=sha256:" in requirement, requirement


def test_every_package_comes_from_one_index() -> None:
    """The lock names no git repository, no URL and no second index, which could answer first for a name of ours."""
    lock = tomllib.loads((ROOT / "uv.lock").read_text(encoding="utf-8"))
    sources = {next(iter(package["source"].items())) for package in lock["package"]}
    registries = {value for kind, value in sources if kind == "registry"}
    assert len(registries) == 1
    assert {kind for kind, _ in sources} <= {"registry", "editable", "virtual"}
