"""The metrics of samples that were asked for captions, beside those of :mod:`evaluation.measure.metrics`."""

import functools

import numpy as np

from evaluation.measure.captions import MOST_COMPARED_WITHIN, Captions, Match, distance_within, variance_within
from evaluation.measure.metric import Metric, TooFewSamplesError, metric, one_image
from evaluation.measure.moments import finite

# Of the shares of samples by what the classifier finds of their captions.
_caption_share = functools.partial(
    Metric,
    library="torchvision",
    features="classifier",
    against="captions",
    whole=True,
    resolution=one_image,
)


@metric(
    _caption_share(
        "caption_accuracy",
        "Caption accuracy",
        "Share of the samples in which a classifier, trained on the real training images alone, finds every attribute "
        "as the caption says; for the real test images, as their own caption says.",
        better="higher",
        words="caption accuracy",
    )
)
def caption_accuracy(captions: Captions) -> float:
    """The share of samples with every attribute right."""
    return float(np.mean(captions.right))


@metric(
    _caption_share(
        "caption_accuracy_new",
        "Caption accuracy, new combinations",
        "Caption accuracy over the samples whose caption combines attributes as no training image does.",
        better="higher",
    )
)
def caption_accuracy_new(captions: Captions) -> float:
    """The same share among samples of combinations that the training part never held.

    Raises:
        TooFewSamplesError: there are none.
    """
    return _share_among_new(captions.right, captions)


@metric(
    _caption_share(
        "caption_partly_right",
        "Partly right",
        "Share of the samples in which the classifier finds some attributes as the caption says, but not all.",
        better="lower",
    )
)
def caption_partly_right(captions: Captions) -> float:
    """The share of samples with an attribute right and another wrong."""
    any_right = (captions.found == captions.asked).any(axis=1)
    return float(np.mean(any_right & ~captions.right))


@metric(
    _caption_share(
        "caption_swapped",
        "Swapped",
        "Share of the samples in which the classifier finds all that the caption names, but in other places: the error "
        "of binding. Taken where all attributes have the same values.",
        better="lower",
    )
)
def caption_swapped(exchangeable_captions: Captions) -> float:
    """The share of samples whose values are the caption's in another order."""
    return float(np.mean(exchangeable_captions.swapped))


@metric(
    _caption_share(
        "caption_swapped_new",
        "Swapped, new combinations",
        "The same over the samples whose caption combines attributes as no training image does.",
        better="lower",
    )
)
def caption_swapped_new(exchangeable_captions: Captions) -> float:
    """The same share among samples of combinations that the training part never held.

    Raises:
        TooFewSamplesError: there are none.
    """
    return _share_among_new(exchangeable_captions.swapped, exchangeable_captions)


def _share_among_new(counted: np.ndarray, captions: Captions) -> float:
    if not captions.is_new.any():
        raise TooFewSamplesError("captions of new combinations: no sample was asked for one.")
    return float(np.mean(counted[captions.is_new]))


@metric(
    Metric(
        "caption_variance",
        "Variance within a caption",
        "Variance over the samples of one caption, per pixel, of images decoded to [-1, 1], unbiased; its mean over "
        "the captions with two samples or more. A method that answers a caption with one image has 0; read it beside "
        "the teacher's.",
        library="numpy",
        features="pixels",
        against="captions",
        whole=True,
    )
)
def caption_variance(images: np.ndarray, caption_indices: np.ndarray) -> float:
    """What :func:`~evaluation.measure.captions.variance_within` gives of samples, (N, H, W, C).

    Raises:
        TooFewSamplesError: no caption has two samples.
    """
    variance = variance_within(caption_indices, images)
    if variance is None:
        raise TooFewSamplesError("variance within a caption: no caption has two samples.")
    return variance


@metric(
    Metric(
        "caption_diversity",
        "Diversity within a caption",
        "Mean Euclidean distance, in the features, between two images of one caption: of the first "
        f"{MOST_COMPARED_WITHIN} of each, over all sampling seeds together; its mean over the captions with two images "
        "or more. A method that answers a caption with one image has 0; read it beside the teacher's.",
        library="scipy",
        against="captions",
        whole=True,
    )
)
def caption_diversity(all_seeds: tuple[np.ndarray, np.ndarray]) -> float:
    """What :func:`~evaluation.measure.captions.distance_within` gives of features, (N, D), and captions, (N,).

    Raises:
        TooFewSamplesError: no caption has two samples.
    """
    features, caption_indices = all_seeds
    distance = distance_within(caption_indices, features)
    if distance is None:
        raise TooFewSamplesError("diversity within a caption: no caption has two samples.")
    return distance


# Of what a CLIP says of images and their captions.
_text_score = functools.partial(Metric, better="higher", library="transformers", against="captions", whole=True)


@metric(
    _text_score(
        "clip_score",
        "CLIP score",
        "Mean over the samples of 100 max(cos, 0), of the cosine between the embeddings of sample and caption by the "
        "CLIP that evaluation.text_scores names; for the real test images, with their own captions.",
        words="the CLIP score",
        features="clip_score",
    )
)
def clip_score(clip_score_match: Match) -> float:
    """Hessel et al. 2021 (arXiv 2104.08718), eq. 1, with w = 100."""
    return finite(float(np.mean(100 * np.maximum(clip_score_match.cosines, 0))), "clip_score")


@metric(
    _text_score(
        "pick_score",
        "PickScore",
        "Mean over the samples of the logit, CLIP's learnt scale times the cosine, by the PickScore model that "
        "evaluation.text_scores names; for the real test images, with their own captions.",
        words="PickScore",
        features="pick_score",
    )
)
def pick_score(pick_score_match: Match) -> float:
    """Kirstain et al. 2023 (arXiv 2305.01569), sec. 3: s(x, y) = E_text(x) · E_image(y) · T, of unit embeddings."""
    return finite(float(np.mean(pick_score_match.logit_scale * pick_score_match.cosines)), "pick_score")
