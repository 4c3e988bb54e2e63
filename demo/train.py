"""Trains a small neural network to tell two spirals apart, with numpy alone.

Prints one line an epoch. Where FLOW_RESULT names a file, the result goes there as JSON.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from pathlib import Path

import numpy as np

EPOCHS = 30
BATCH_SIZE = 32
LEARNING_RATE = 0.2
LAYER_SIZES = (2, 64, 64, 1)

Layers = list[list[np.ndarray]]


def spirals(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """`count` noisy points on each of two spirals: (2·count, 2) positions and (2·count, 1) labels."""
    radius = np.sqrt(rng.uniform(0.02, 1.0, (2, count)))
    angle = 3.5 * np.pi * radius + np.array([[0.0], [np.pi]])
    points = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
    points += rng.normal(0.0, 0.03, points.shape)
    labels = np.repeat([[0.0], [1.0]], count, axis=0)
    return points.reshape(-1, 2), labels


def initial_layers(rng: np.random.Generator) -> Layers:
    return [
        [rng.normal(0.0, np.sqrt(2.0 / fan_in), (fan_in, fan_out)), np.zeros(fan_out)]
        for fan_in, fan_out in itertools.pairwise(LAYER_SIZES)
    ]


def forward(layers: Layers, x: np.ndarray) -> list[np.ndarray]:
    """The input, each hidden layer's output, and last the logits."""
    outputs = [x]
    for weight, bias in layers[:-1]:
        outputs.append(np.maximum(outputs[-1] @ weight + bias, 0.0))
    weight, bias = layers[-1]
    return [*outputs, outputs[-1] @ weight + bias]


def loss_of(logits: np.ndarray, y: np.ndarray) -> float:
    """Mean binary cross-entropy, in the form that does not overflow."""
    return float(np.mean(np.maximum(logits, 0.0) - logits * y + np.log1p(np.exp(-np.abs(logits)))))


def gradients(layers: Layers, x: np.ndarray, y: np.ndarray) -> tuple[float, Layers]:
    outputs = forward(layers, x)
    logits = outputs[-1]
    delta = (1.0 / (1.0 + np.exp(-logits)) - y) / len(x)
    result: Layers = []
    for (weight, _), inputs in zip(reversed(layers), reversed(outputs[:-1]), strict=True):
        result.insert(0, [inputs.T @ delta, delta.sum(axis=0)])
        delta = (delta @ weight.T) * (inputs > 0.0)
    return loss_of(logits, y), result


def evaluate(layers: Layers, x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Loss and accuracy."""
    logits = forward(layers, x)[-1]
    return loss_of(logits, y), float(np.mean((logits > 0.0) == (y > 0.5)))


def main() -> None:
    started = time.perf_counter()
    rng = np.random.default_rng(0)
    x_train, y_train = spirals(rng, 4000)
    x_test, y_test = spirals(rng, 1000)
    layers = initial_layers(rng)
    for epoch in range(1, EPOCHS + 1):
        rate = LEARNING_RATE * 0.5 * (1.0 + np.cos(np.pi * (epoch - 1) / EPOCHS))
        order = rng.permutation(len(x_train))
        batches = [order[i : i + BATCH_SIZE] for i in range(0, len(order), BATCH_SIZE)]
        train_loss = 0.0
        for batch in batches:
            loss, slopes = gradients(layers, x_train[batch], y_train[batch])
            train_loss += loss / len(batches)
            for layer, layer_slopes in zip(layers, slopes, strict=True):
                for part, slope in zip(layer, layer_slopes, strict=True):
                    part -= rate * slope
        test_loss, accuracy = evaluate(layers, x_test, y_test)
        print(  # noqa: T201
            f"epoch {epoch:2d}/{EPOCHS}  loss {train_loss:.4f}  test loss {test_loss:.4f}  accuracy {accuracy:6.1%}",
            flush=True,
        )
    result = {
        "accuracy": round(accuracy, 4),
        "train_loss": round(train_loss, 4),
        "test_loss": round(test_loss, 4),
        "epochs": EPOCHS,
        "parameters": sum(part.size for layer in layers for part in layer),
        "seconds": round(time.perf_counter() - started, 2),
    }
    if "FLOW_RESULT" in os.environ:
        Path(os.environ["FLOW_RESULT"]).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
