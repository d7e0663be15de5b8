"""Names of accounts and keys: what is allowed, when two are the same, when two look the same.

An account's name is 1 to 64 letters and digits of any script with `. _ - @ +` between them, in NFC. Two names are the
same when their NFKC case-folded forms are; they look the same when their skeletons are (a small table of look-alikes
for Latin, Cyrillic, Greek and digits, accents ignored; it is no full UTS 39 table). Pure.
"""

from __future__ import annotations

import re
import unicodedata

from ..errors import ApiError

MAX_NAME_LENGTH = 64
_NAME = re.compile(r"[^\W_](?:[\w.@+-]{0,62}[^\W_])?")
_KEY_NAME = re.compile(r"[^\W_](?:[\w .@+:/()#-]{0,126}[\w.)])?")
# The second line stands under the first: what each character looks like. i, l and 1 are one class.
_LOOK_ALIKE = str.maketrans(
    "аеорсухіјѕһкмтвнгьԁԛԝӏпзαορντκιυχγωηεϲϳσıɩɑɡłøđħʟɴᴅᴍɪᴀ0135",
    "aeopcyxljshkmtbhrbdqwln3aopvtkluxywnecjollaglodhlndmlaoles",
)


def name_key(name: str) -> str:
    """Return the form under which a name is unique. Never raises: also for what was typed at a login."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


def skeleton(name: str) -> str:
    """Return the form under which look-alikes are the same."""
    bare = "".join(c for c in unicodedata.normalize("NFKD", name_key(name)) if not unicodedata.combining(c))
    return bare.translate(_LOOK_ALIKE).replace("rn", "m").replace("vv", "w").replace("i", "l")


def check_username(name: str) -> None:
    """Raise ApiError(invalid_value) unless an account may have this name."""
    if _NAME.fullmatch(name) is None or unicodedata.normalize("NFC", name) != name or ".." in name:
        raise ApiError(
            "invalid_value",
            f"A user name has 1 to {MAX_NAME_LENGTH} letters and digits, with . _ - @ + between them.",
            param="username",
        )


def check_key_name(name: str) -> None:
    """Raise ApiError(invalid_value) unless a key may have this name."""
    if _KEY_NAME.fullmatch(name) is None or unicodedata.normalize("NFC", name) != name:
        raise ApiError(
            "invalid_value", "A key's name has 1 to 128 letters, digits and simple punctuation.", param="name"
        )
