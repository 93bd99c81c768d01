"""Runs a module as a process that cannot outlive its parent: ``python -P child.py <module> [arguments]``.

The parent holds the other end of this process's standard input and writes nothing to it. However the parent ends,
`kill -9` included, the pipe ends with it, and this process follows at once.
"""

import os
import runpy
import sys
import threading


def _follow_parent() -> None:
    while os.read(0, 1024):
        pass
    os._exit(0)


if __name__ == "__main__":
    threading.Thread(target=_follow_parent, name="follow-parent", daemon=True).start()
    module = sys.argv[1]
    del sys.argv[1]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
