"""Do refusals come from how many calls are in flight? Pure arithmetic, for the limits of calls and of batches alike.

Some providers refuse what is too much, others now and then whatever one does. A limit that falls with each refusal helps
with the first, and starves behind the second. So a cut is an experiment, as it is for latency: as many slots are given
up as calls were refused. If their number was the reason, next to nothing is refused after that, and the limit stays
down. If half of the share is refused as before, fewer calls did not help: that share is *usual*, the limit comes back,
and only what is refused beyond it counts from then on.

Shares are per mille. A third is never usual: who refuses so many is full, whatever the cause.
"""

from __future__ import annotations

import math
from typing import Final, Literal

Verdict = Literal["wait", "fine", "cut", "full", "not_load"]

PER_MILLE: Final = 1000
_USUAL_AT_MOST = 1 / 3
_FEW = 4
"""So many refusals are no chance."""
_EXPECTED = 4
_USUALLY_EXPECTED = 8
LEAST: Final = 24
"""Fewer calls say nothing."""
_FEW_TRIES = 8
_ROUNDS = 8
_NO_HELP = 0.5
_RISES, _FALLS = 0.1, 0.3
_NOTHING_PM = 5


def share_pm(refused: int, tries: int) -> int:
    """Of calls that were tried."""
    return round(PER_MILLE * refused / tries) if tries else 0


def is_full(*, tries: int, refused: int) -> bool:
    """Whether so much is refused, and not by chance, that it does not matter why."""
    usual = _USUAL_AT_MOST * tries
    return refused >= _FEW and refused > usual + 1.5 * math.sqrt(usual)


def verdict(limit: int, *, tries: int, refused: int, usual_pm: int, cut_pm: int) -> Verdict:
    """What the calls say that were tried with a limit.

    ``cut_pm`` is the share for which the limit was cut to what it is, 0 if that is not the question any more.
    """
    if is_full(tries=tries, refused=refused) or (limit == 1 and 0 < refused == tries):
        return "full"
    usual = usual_pm * tries / PER_MILLE
    if not cut_pm:
        # Looked at after every call, so by chance it must be far out.
        if refused > usual + (1 + 3 * math.sqrt(usual) if usual else 0):
            return "cut"
        if tries < max(LEAST, _enough(limit, _USUALLY_EXPECTED, usual_pm)):
            return "wait"
    elif tries < _FEW_TRIES:
        return "wait"
    elif limit == 1:
        # One call at a time is never too many of ours.
        return "not_load" if 0 < refused <= _USUAL_AT_MOST * tries else "fine" if not refused else "wait"
    elif tries < _enough(limit, _EXPECTED, cut_pm - usual_pm) and refused - usual < _EXPECTED:
        return "wait"
    elif (
        _NO_HELP * (cut_pm - usual_pm) <= share_pm(refused, tries) - usual_pm and 1 < refused <= _USUAL_AT_MOST * tries
    ):
        return "not_load"
    return "cut" if refused > usual + 2 * math.sqrt(usual) else "fine"


def _enough(limit: int, expected: int, pm: int) -> int:
    """So many calls that of this share as many as expected would be refused, as far as they do not take too long."""
    return min(max(LEAST, _ROUNDS * limit), -(-expected * PER_MILLE // pm) if pm > 0 else LEAST)


def learnt_pm(usual_pm: int, *, tries: int, refused: int) -> int:
    """The usual share after calls with nothing unusual: it rises slowly, since what is more may be load."""
    pm = share_pm(refused, tries)
    known = usual_pm + (pm - usual_pm) * (_RISES if pm > usual_pm else _FALLS)
    return 0 if known < _NOTHING_PM else round(known)


def excess(limit: int, *, tries: int, refused: int, usual_pm: int) -> int:
    """How many slots of a limit were too many; one at least."""
    return max(1, round(limit * (share_pm(refused, tries) - usual_pm) / PER_MILLE))
