"""Probes: how well frozen features classify.

N = images; D = features; K = classes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from lpvit.data.labels import class_numbers
from lpvit.errors import LpvitError

NEIGHBOURS = 20
TEMPERATURE = 0.07  # of the neighbours' votes (Wu et al., 2018; Caron et al., 2021, DINO)
DECAYS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of the linear classifier; the best on a fifth of the images is taken
_ITERATIONS = 200


@dataclass(frozen=True)
class Probe:
    """What `lpvit.probe` measures.

    Attributes:
        images: Images classified.
        knn: Those that their 20 nearest neighbours classify correctly, in %.
        linear: Those that a linear classifier does, in %.
    """

    images: int
    knn: float
    linear: float


def probe_features(features: Tensor, labels: Tensor, others: Tensor, their_labels: Tensor) -> Probe:
    """Classifies features by others with labels.

    Args:
        features: (N, D), to learn from.
        labels: (N,), integers from 0.
        others: (M, D), to classify.
        their_labels: (M,).

    Raises:
        LpvitError: The labels have another form, there is one class, or M has classes that N has not.
    """
    classes = int(labels.max()) + 1
    labels = class_numbers(labels, len(features), classes)
    if (unknown := their_labels[their_labels >= classes]).numel():
        raise LpvitError(f"validation: has class {int(unknown[0])}, of which there is no image to learn from")
    their_labels = class_numbers(their_labels, len(others), classes)
    votes = nearest_votes(features, labels, others, classes)
    scores = linear_scores(features.double(), labels, others.double(), classes)
    knn, linear = (100 * float((each.argmax(dim=1) == their_labels).double().mean()) for each in (votes, scores))
    return Probe(len(others), knn, linear)


def nearest_votes(features: Tensor, labels: Tensor, others: Tensor, classes: int) -> Tensor:
    """Votes of the nearest features by cosine c, each with the weight exp(c / 0.07).

    Returns:
        (M, K).
    """
    known, asked = (functional.normalize(each, dim=1) for each in (features, others))
    votes = []
    for part in asked.split(1024):
        cosines, nearest = (part @ known.T).topk(min(NEIGHBOURS, len(known)), dim=1)
        each = functional.one_hot(labels[nearest], classes) * ((cosines - 1) / TEMPERATURE).exp()[..., None]
        votes.append(each.sum(dim=1))
    return torch.cat(votes)


def linear_scores(features: Tensor, labels: Tensor, others: Tensor, classes: int) -> Tensor:
    """Logits of logistic regression on standardised features.

    Returns:
        (M, K).
    """
    deviation, mean = torch.std_mean(features, dim=0)
    known, asked = ((each - mean) / deviation.clamp_min(1e-6) for each in (features, others))
    order = torch.randperm(len(known), generator=torch.Generator().manual_seed(0))
    held_out, rest = order[: len(order) // 5], order[len(order) // 5 :]
    decay = DECAYS[0]
    if len(held_out):
        hits = []
        for candidate in DECAYS:
            weight = _logistic_regression(known[rest], labels[rest], classes, candidate)
            hits.append(int((_with_one(known[held_out]) @ weight).argmax(dim=1).eq(labels[held_out]).sum()))
        decay = DECAYS[hits.index(max(hits))]
    return _with_one(asked) @ _logistic_regression(known, labels, classes, decay)


def _logistic_regression(features: Tensor, labels: Tensor, classes: int, decay: float) -> Tensor:
    """Weights (D + 1, K) of the least cross-entropy + decay / 2 times their squared norm, without that of the bias."""
    with torch.inference_mode(False), torch.enable_grad():
        inputs, targets = _with_one(features), labels.clone()
        weight = inputs.new_zeros(inputs.shape[1], classes, requires_grad=True)
        optimizer = torch.optim.LBFGS([weight], max_iter=_ITERATIONS, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = functional.cross_entropy(inputs @ weight, targets) + decay / 2 * weight[:-1].square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
    return weight.detach()


def _with_one(features: Tensor) -> Tensor:
    return torch.cat([features, features.new_ones(len(features), 1)], dim=1)
