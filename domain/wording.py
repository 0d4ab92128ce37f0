"""What notifications say: one short plain text per kind and language, safe to put anywhere.

A text is fixed; only the words in it vary, and words that people have chosen (names) are made harmless first: they can
neither break a line, nor turn the direction of writing, nor pass for a link, so nobody writes to others in our name.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

LONGEST_WORD = 60
"""Characters of a name that are shown."""

DEFAULT_LANGUAGE: Final = "en"


@dataclass(frozen=True, slots=True)
class Wording:
    """A title of one line and a text of a sentence or two."""

    title: str
    text: str


WORDINGS: Mapping[str, Mapping[str, Wording]] = {
    "en": {
        "offer": Wording("A job is offered to you", "{service} in {zone}. Open Fixnado to answer before it is gone."),
        "message": Wording("A message about your booking", "{sender} has written to you. Open Fixnado to read it."),
    },
}
"""By language (BCP 47), then by kind. Each language has all kinds; a test compares."""


def worded(kind: str, language: str, **words: str) -> Wording:
    """The texts of a kind in a language, or in English where we do not speak it."""
    wording = WORDINGS.get(language, WORDINGS[DEFAULT_LANGUAGE])[kind]
    harmless = {name: harmless_word(word) for name, word in words.items()}
    return Wording(wording.title.format(**harmless), wording.text.format(**harmless))


def harmless_word(word: str) -> str:
    """Somebody's own choice of a name, on one line, without controls and without anything that becomes a link."""
    plain = one_line(word)
    unlinked = re.sub(r"[/\\@:]|\.(?=\w)|(?<=\w)\.", " ", plain)
    short = " ".join(unlinked.split())
    return short if len(short) <= LONGEST_WORD else f"{short[: LONGEST_WORD - 1]}…"


def one_line(text: str) -> str:
    """Text without line breaks, control characters and marks that turn the direction of writing (Unicode Cc, Cf,
    Zl, Zp).
    """
    kept = (" " if unicodedata.category(char) in {"Cc", "Zl", "Zp"} else char for char in text)
    return " ".join("".join(char for char in kept if unicodedata.category(char) not in {"Cf", "Cs", "Co"}).split())
