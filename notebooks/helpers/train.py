"""Trains a small model to tell two spirals apart, and says how well it did.

    python helpers/train.py RATE [STEPS]

It keeps a checkpoint, in the folder that CHECKPOINTS names or the current one, and goes on from there when it is
started again. Its result goes as JSON to the file that FLOW_RESULT names.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np

FEATURES = 300
PRINT_EVERY = 50


def spirals(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """`count` noisy points on each of two spirals: (2·count, 2) positions and (2·count,) labels."""
    radius = np.sqrt(rng.uniform(0.02, 1.0, (2, count)))
    angle = 3.5 * np.pi * radius + np.array([[0.0], [np.pi]])
    points = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
    points += rng.normal(0.0, 0.06, points.shape)
    return points.reshape(-1, 2), np.repeat([0.0, 1.0], count)


def train(rate: float, steps: int) -> dict[str, float | list[float]]:
    """Logistic regression on random Fourier features (Rahimi and Recht, 2007), by gradient descent."""
    checkpoint = Path(os.environ.get("CHECKPOINTS", ".")) / "checkpoint.npz"
    rng = np.random.default_rng(0)
    frequencies, phases = rng.normal(0.0, 4.0, (2, FEATURES)), rng.uniform(0.0, 2.0 * np.pi, FEATURES)
    (inputs, labels), (new_inputs, new_labels) = (
        (np.cos(points @ frequencies + phases), labels) for points, labels in (spirals(rng, 500), spirals(rng, 500))
    )
    weights, losses = np.zeros(FEATURES), []
    if checkpoint.exists():
        with np.load(checkpoint) as saved:
            weights, losses = saved["weights"], saved["losses"].tolist()
        print(f"going on after step {len(losses)}", flush=True)
    while len(losses) < steps:
        logits = inputs @ weights
        losses.append(float(np.mean(np.logaddexp(0.0, logits) - labels * logits)))
        weights -= rate * inputs.T @ (1.0 / (1.0 + np.exp(-logits)) - labels) / len(labels)
        if len(losses) % PRINT_EVERY == 0:
            np.savez(checkpoint, weights=weights, losses=losses)
            print(f"step {len(losses):4d}  loss {losses[-1]:.4f}", flush=True)
    accuracy = float(np.mean((new_inputs @ weights > 0.0) == (new_labels > 0.5)))
    return {"rate": rate, "accuracy": accuracy, "losses": losses}


if __name__ == "__main__":
    result = train(rate=float(sys.argv[1]), steps=int(sys.argv[2]) if len(sys.argv) > 2 else 200)
    if "FLOW_RESULT" in os.environ:
        Path(os.environ["FLOW_RESULT"]).write_text(json.dumps(result))
