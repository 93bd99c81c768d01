"""Names of end users: what an app sends as ``user`` or ``safety_identifier``, in the one form in which it is kept.

A name that looks the same is the same user, however it was typed or composed. Its case is kept, since apps name users by
ids in which case counts (Firebase's, for one), and look them up by what the ledger says. Limits go further: names that
differ in case, width or style only share them, as Unicode's rules for identifiers would have it (UAX 31, NFKC_Casefold).
Otherwise, a user who may choose a name has as many limits as the name has spellings.
"""

from __future__ import annotations

import re
import unicodedata

# Unicode 16: Default_Ignorable_Code_Point. Nobody sees them: joiners, soft hyphens, fillers, variation selectors, tags.
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff"
    "\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]+"
)
_BLANKS = re.compile(r"[\s\u2800]+")


def kept_name(name: str | None) -> str | None:
    """The name as rows and reports have it; None for one that names nobody: blank, invisible, or not there.

    Applied again, it changes nothing.
    """
    if not name or (name.isascii() and name.isalnum()):
        return name or None  # an id, as nearly all are
    visible = unicodedata.normalize("NFC", _INVISIBLE.sub("", name))
    return _BLANKS.sub(" ", visible).strip(" ") or None


def limited_name(name: str) -> str:
    """What names have in common that share their limits, of a name as it is kept."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    return kept_name(folded) or name
