"""Frequency tables and the guess of a size, fitted to latents."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from service.codec.codec import rate_shape
from service.codec.context import ContextPredictor
from service.codec.entropy import EntropyCoder
from service.codec.steps import quantise
from service.codec.tables import ALPHABET, TOTAL, Counts, counts_from_weights, logistic_counts

PRIOR_WEIGHT = 4000
"""observations that the logistic counts for when a table is fitted to what occurred"""
GUESS_EVERY = 10
"""so many step indices apart the guess of a size is fitted"""
GUESS_RANGE = (0.03, 0.6)
"""bits a pixel that sizes are asked for"""

Latents = npt.NDArray[np.float32]


def fit_counts(predictor: ContextPredictor, latents: Latents, indices: list[int], rng: np.random.Generator) -> Counts:
    """Tables of what really occurred under each prediction, with the logistic as prior.

    Args:
        predictor: what predicts.
        latents: (N, C, h, w) normalised.
        indices: step indices, of which each latent is quantised with one.
        rng: chooses it.
    """
    coder = EntropyCoder(predictor)
    prior = logistic_counts()
    seen = np.zeros((prior.shape[0] * prior.shape[1], ALPHABET), np.int64)
    for latent in latents:
        index = int(rng.choice(indices))
        for table, letters in coder.letters(quantise(latent, index), index):
            np.add.at(seen, (table, letters), 1)
    weights = seen.reshape(prior.shape) * TOTAL + prior.astype(np.int64) * PRIOR_WEIGHT
    counts = [[counts_from_weights(row.tolist()) for row in table] for table in weights]
    return np.array(counts, np.int32)


def fit_rate_guess(coder: EntropyCoder, latents: Latents, pixels: int, indices: list[int]) -> dict[str, float]:
    """The power law between ``rate_shape`` and the ideal bits of these latents (N, C, h, w), each of so many pixels."""
    shapes, rates = [], []
    for latent in latents:
        shape = rate_shape(latent)
        for index in indices[::GUESS_EVERY]:
            bits = coder.ideal_bits(quantise(latent, index), index)
            if GUESS_RANGE[0] < bits / pixels < GUESS_RANGE[1]:
                shapes.append(shape[index])
                rates.append(bits / latent.size)
    if len(rates) < 2:
        return {}
    shape_logs, rate_logs = np.log(shapes), np.log(rates)
    slope = float(np.clip(np.polyfit(shape_logs, rate_logs, 1)[0], 0.5, 3))
    return {"rate": round(float(np.exp(np.mean(rate_logs - slope * shape_logs))), 3), "slope": round(slope, 3)}
