"""Two of scikit-learn's handwritten digits beside each other, 8×16 grey, with sentences that say which stands where.

The classes are captions: six sentences for each of the 100 ordered pairs of digits. Evaluation asks for nothing that
training has seen: each pair has one sentence that only the test part uses, ten pairs are in the test part alone, and
its images are made of other digits (the test part of :mod:`diffusion.data.kinds.digits`).
"""

import hashlib
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pydantic

from diffusion.data.kinds import digits
from diffusion.data.store import Pictures, Splits

_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_WORDINGS = (
    "{a_left} to the left of {a_right}",
    "{a_right} to the right of {a_left}",
    "the digit {left}, then the digit {right}",
    "{left} on the left and {right} on the right",
    "two digits: {left} and {right}",
    "{right} on the right and {left} on the left",
)
# All ordered pairs, left and right digit; caption 6·(10·left + right) + wording is theirs.
_PAIRS = [(left, right) for left in range(10) for right in range(10)]
_NEVER_TRAINED = frozenset((left, (3 * left + 4) % 10) for left in range(10))


class Settings(digits.DigitSplit):
    """Which digits are for testing, and how many images are made of a pair."""

    attributes: ClassVar[tuple[str, ...]] = ("left", "right")

    kind: Literal["digit_pairs"]
    # Images of each pair: in the training part, of the 90 pairs that it has, and in the test part, of all 100.
    train_per_pair: int = pydantic.Field(default=160, ge=1)
    test_per_pair: int = pydantic.Field(default=16, ge=1)

    @pydantic.field_validator("flip")
    @classmethod
    def _unmirrored(cls, flip: bool) -> bool:
        if flip:
            raise ValueError("found true, expected false: of a mirrored image its caption is not true")
        return flip

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of its images."""
        return 1, 8, 16

    @property
    def num_pictures(self) -> int:
        """Images in both parts."""
        return (len(_PAIRS) - len(_NEVER_TRAINED)) * self.train_per_pair + len(_PAIRS) * self.test_per_pair


def prepare(settings: Settings) -> Splits:
    """Puts training digits beside training digits, and test digits beside test digits.

    Shapes (90 · train_per_pair, 8, 16, 1) and (100 · test_per_pair, 8, 16, 1), pair by pair. The attributes ``left``
    and ``right`` are the digits that a caption names.
    """
    single = digits.prepare(settings)
    trained = [pair for pair in _PAIRS if pair not in _NEVER_TRAINED]
    unseen = {pair: [_held_out_wording(pair)] for pair in _PAIRS}
    seen = {pair: [wording for wording in range(len(_WORDINGS)) if wording not in unseen[pair]] for pair in trained}
    seed = settings.split_seed
    return Splits(
        *_part(f"{seed}/train", single.train_images, single.train_labels, seen, settings.train_per_pair),
        *_part(f"{seed}/test", single.test_images, single.test_labels, unseen, settings.test_per_pair),
        class_names=tuple(_caption(pair, wording) for pair in _PAIRS for wording in range(len(_WORDINGS))),
        source=f"Two digits beside each other and sentences that name them. The digits: {single.source}",
        attributes={
            name: [pair[side] for pair in _PAIRS for _ in _WORDINGS] for side, name in enumerate(settings.attributes)
        },
    )


def _part(
    name: str, singles: Pictures, labels: np.ndarray, wordings: dict[tuple[int, int], list[int]], per_pair: int
) -> tuple[np.ndarray, np.ndarray]:
    """Images, uint8 (N, 8, 16, 1), and the numbers of their captions, int64 (N,).

    The digits are drawn with replacement by a hash of ``name``, pair and number; a pair's wordings come in turn, from
    one on that a hash names, too. Unlike a library's random generator, that gives the same images for ever.

    Args:
        name: of the part, with the seed: another name, other images.
        singles: uint8 (M, 8, 8, 1), the part's digits.
        labels: int64 (M,), which digit each of them is.
        wordings: the part's pairs, each with those of its wordings that the part uses.
        per_pair: images of each pair.
    """
    members = [np.flatnonzero(labels == digit) for digit in range(10)]
    lefts, rights, captions = [], [], []
    for (left, right), used in wordings.items():
        pair = f"{name}/{left}/{right}"
        first = _hashed(pair)
        for number in range(per_pair):
            lefts.append(members[left][_hashed(f"{pair}/{number}/left") % len(members[left])])
            rights.append(members[right][_hashed(f"{pair}/{number}/right") % len(members[right])])
            captions.append(_number((left, right), used[(first + number) % len(used)]))
    digit = singles[:]
    return np.concatenate([digit[lefts], digit[rights]], axis=2), np.array(captions, dtype=np.int64)


def _number(pair: tuple[int, int], wording: int) -> int:
    """Of a caption, from 0 to 599."""
    return len(_WORDINGS) * _PAIRS.index(pair) + wording


def _caption(pair: tuple[int, int], wording: int) -> str:
    left, right = (_NAMES[digit] for digit in pair)
    return _WORDINGS[wording].format(left=left, right=right, a_left=_with_article(left), a_right=_with_article(right))


def _with_article(name: str) -> str:
    return f"an {name}" if name == "eight" else f"a {name}"


def _held_out_wording(pair: tuple[int, int]) -> int:
    """The wording that the training part never uses: the one whose text has the smallest SHA-256."""
    return min(range(len(_WORDINGS)), key=lambda wording: hashlib.sha256(_caption(pair, wording).encode()).digest())


def _hashed(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest(), "big")


def tiny_settings(folder: Path) -> dict[str, Any]:
    """Settings for the contract tests; nothing has to be made in ``folder``."""
    return {"kind": "digit_pairs", "train_per_pair": 5, "test_per_pair": 1}
