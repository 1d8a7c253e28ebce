"""The stages on their own: what they refuse."""

import argparse

import numpy as np
import pytest

from diffusion.errors import UserError
from suite.stages.measuring import check_resolution


def test_samples_of_another_resolution_are_refused(tmp_path):
    """The extractor would resize them in silence."""
    (tmp_path / "teacher").mkdir()
    np.savez(tmp_path / "teacher" / "seed-0.npz", arr_0=np.zeros((4, 8, 8, 1), np.uint8))
    arguments = argparse.Namespace(samples=tmp_path / "mine.npz", teacher_samples=tmp_path / "teacher")
    check_resolution(arguments, {0: np.zeros((2, 8, 8, 3), np.uint8)})
    with pytest.raises(UserError, match=r"mine\.npz: pictures of 16×8 pixels; the experiment's have 8×8"):
        check_resolution(arguments, {0: np.zeros((2, 16, 8, 1), np.uint8)})
