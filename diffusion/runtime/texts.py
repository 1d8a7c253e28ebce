"""One form for texts that say the same."""

import unicodedata


def normalised(text: str) -> str:
    """A text in Unicode's composed form, with single spaces between words and none at its ends."""
    return " ".join(unicodedata.normalize("NFC", text).split())
