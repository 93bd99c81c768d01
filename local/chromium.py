"""Where the browser is. Playwright looks for a build of its own; here the system's is used, Debian's ``chromium``."""

from __future__ import annotations

import os
import shutil

NAMES = ("chromium", "chromium-browser", "google-chrome")
ADVICE = "there is no Chromium on this machine: apt-get install chromium fonts-noto-cjk, or set NARU_CHROMIUM"
# No sandbox: containers often forbid it, and every page is one of ours. The rest keeps it from asking for updates.
ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-sync")


def find_chromium() -> str | None:
    """The browser's path, NARU_CHROMIUM before what the machine offers."""
    return os.environ.get("NARU_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
