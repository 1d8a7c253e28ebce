"""The Fréchet distance and KID as clean-fid takes them (Parmar et al. 2022, arXiv 2104.11222)."""

import inspect
import warnings

import cleanfid.fid
import numpy as np
import scipy.linalg

from diffusion.runtime.errors import UserError
from diffusion.runtime.packages import version_of
from evaluation.measure.metrics import KID_SEED
from evaluation.measure.moments import Moments, checked, finite, moments


class NoMatrixRootError(UserError):
    """clean-fid gets no real square root of the product of two covariances."""


def cleanfid_frechet_distance(a: np.ndarray | Moments, b: np.ndarray | Moments) -> float:
    """Fréchet distance between two sets of features (N, D), or their moments.

    clean-fid takes its moments by the same NumPy functions as torch-fidelity, and then another matrix square root.

    Raises:
        NonFiniteError: a feature, or the distance, is NaN or infinite.
        NoMatrixRootError: clean-fid finds no real matrix square root, which happens with too few samples; or the
            installed SciPy no longer has the function that it calls.
    """
    if "disp" not in inspect.signature(scipy.linalg.sqrtm).parameters:
        raise NoMatrixRootError(
            f"clean-fid {version_of('clean-fid')} calls scipy.linalg.sqrtm(…, disp=False), which SciPy "
            f"{version_of('scipy')} does not take. Its Fréchet distance needs 'scipy<1.18'; nothing else does."
        )
    one, two = (x if isinstance(x, Moments) else moments(x, warn=False) for x in (a, b))
    try:
        with warnings.catch_warnings():
            # SciPy's note on singular matrices: the value is checked below.
            warnings.filterwarnings("ignore", message="Matrix is singular")
            value = cleanfid.fid.frechet_distance(
                *(x.statistics[name] for x in (one, two) for name in ("mu", "sigma")),
            )
    except ValueError as error:
        raise NoMatrixRootError(
            f"clean-fid finds no real matrix square root in {len(one.statistics['mu'])} dimensions ({error}). Take "
            f"more samples than that in each set."
        ) from error
    return finite(value, "cleanfid_frechet_distance")


def cleanfid_kid(a: np.ndarray, b: np.ndarray, seed: int = KID_SEED) -> float:
    """Kernel distance between two sets of features (N, D): the mean over 100 random subsets.

    Raises:
        NonFiniteError: a feature, or the value, is NaN or infinite.
    """
    a, b = checked(a, "clean-fid features"), checked(b, "clean-fid features")
    # clean-fid draws from NumPy's global generator, which belongs to the caller.
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    try:
        return finite(cleanfid.fid.kernel_distance(a, b), "cleanfid_kid")
    finally:
        np.random.set_state(before)  # noqa: NPY002
