"""``python -m benchmarks.sampled FILE MODULE …``: runs a module, and looks a thousand times per second of CPU at what it does.

SIGUSR1 begins anew, SIGUSR2 ends and writes the file, which then appears whole: JSON with the CPU seconds in between and, for
each stack that was seen, how often. A stack is the paths of its frames' code, innermost first.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import FrameType

INTERVAL_S = 0.001


class _Samples:
    def __init__(self, file: Path) -> None:
        self._file = file
        self._seen: Counter[tuple[str, ...]] = Counter()

    def look(self, _: int, frame: FrameType | None) -> None:
        paths = []
        while frame is not None:
            paths.append(frame.f_code.co_filename)
            frame = frame.f_back
        self._seen[tuple(paths)] += 1

    def obey(self, signals: int) -> None:
        """What the numbers of signals say that come out of the pipe."""
        began_s = 0.0
        while said := os.read(signals, 1):
            if said[0] == signal.SIGUSR1:
                self._seen, began_s = Counter(), time.process_time()
                signal.setitimer(signal.ITIMER_PROF, INTERVAL_S, INTERVAL_S)
            elif said[0] == signal.SIGUSR2:
                self._write(time.process_time() - began_s)

    def _write(self, cpu_s: float) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)
        unready = self._file.with_suffix(".unready")
        unready.write_text(json.dumps({"cpu_s": cpu_s, "stacks": [*self._seen.items()]}), encoding="utf-8")
        unready.rename(self._file)


if __name__ == "__main__":
    samples = _Samples(Path(sys.argv[1]))
    # Python runs handlers in the main thread, between two lines of it; the pipe is told at once.
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, lambda *_: None)
    signal.signal(signal.SIGPROF, samples.look)
    threading.Thread(target=samples.obey, args=(reading,), name="samples", daemon=True).start()
    del sys.argv[:2]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
