"""Raw outputs of detection heads to boxes, in numpy: the same rules as the heads' own ``predict``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

LOWEST_THRESHOLD = 0.01
_HEADING, _VELOCITY = [6, 7], [8, 9]


@dataclass(frozen=True)
class Boxes:
    """R boxes, best first.

    Args:
        boxes: (R, 9) x, y, z of the bottom's centre, length, width, height in metres, yaw in radians, velocity (x, y)
            in m/s, in the BEV frame.
        scores: (R,).
        labels: (R,) index of the class.
        names: (R,) names of the classes.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]


def decoded(raw: Mapping[str, np.ndarray], head: Mapping[str, Any]) -> Boxes:
    """Boxes of one sample.

    Args:
        raw: the head's outputs by their names, of a batch of one.
        head: what the file says of the head.
    """
    boxes, scores, labels = (_dense if head["boxes"] == "dense" else _query)(raw, head)
    boxes[:, 2] -= boxes[:, 5] / 2
    return Boxes(boxes, scores, labels, tuple(head["classes"][label] for label in labels))


def _query(raw: Mapping[str, np.ndarray], head: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    logits, codes = raw["logits"][-1, 0], raw["boxes"][-1, 0]
    scores, index = _best(sigmoid(logits).ravel(), head["max_num"])
    labels, boxes = index % logits.shape[1], _boxes_of_codes(codes[index // logits.shape[1]])
    keep = np.ones(len(scores), bool)
    if head["post_center_range_m"] is not None:
        limits = np.array(head["post_center_range_m"], np.float32)
        keep &= (boxes[:, :3] >= limits[:3]).all(1) & (boxes[:, :3] <= limits[3:]).all(1)
    if head["score_threshold"] is not None:
        keep &= _passing(scores, head["score_threshold"])
    return boxes[keep], scores[keep], labels[keep]


def _dense(raw: Mapping[str, np.ndarray], head: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    scores = _peaks(sigmoid(raw["heatmap"][0]))
    if head["quality_power"] is not None:
        power = head["quality_power"]
        scores = scores ** (1 - power) * sigmoid(raw["quality"][0]) ** power
    rows, columns = scores.shape[1:]
    best, index = _best(scores.ravel(), 4 * head["max_num"])
    kept = best > head["score_threshold"]
    best, index = best[kept], index[kept]
    labels, cells = index // (rows * columns), index % (rows * columns)
    at_cells = {name: value[0].reshape(value.shape[1], -1)[:, cells].T for name, value in raw.items()}
    code = _code_at(at_cells, head)
    grid = head["grid"]
    low = np.array([grid["x_range_m"][0], grid["y_range_m"][0]], np.float32)
    high = np.array([grid["x_range_m"][1], grid["y_range_m"][1]], np.float32)
    place = np.stack([cells % columns, cells // columns], axis=1) + np.float32(0.5) + code[:, :2]
    place = low + place * (high - low) / np.array([columns, rows], np.float32)
    size = code[:, 3:6].clip(-5, 5)
    code = np.concatenate([place, size[:, :2], code[:, 2:3], size[:, 2:], code[:, 6:]], axis=1)
    keep = _apart(place, labels, np.array(head["nms_radii_m"], np.float32)[labels])[: head["max_num"]]
    return _boxes_of_codes(code)[keep], tempered(best[keep], head["temperature"]), labels[keep]


def tempered(probability: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities of any shape whose logits are divided by a temperature; as they are where it is 1."""
    if temperature == 1:
        return probability
    within = probability.astype(np.float64).clip(1e-6, 1 - 1e-6)
    return sigmoid(np.log(within / (1 - within)) / temperature)


def _code_at(at_cells: Mapping[str, np.ndarray], head: Mapping[str, Any]) -> np.ndarray:
    """(D, 10) values of a box code, offset first, of what the head says at D cells."""
    box = at_cells["box"]
    code = np.zeros((len(box), 10), np.float32)
    code[:, head["regressed"]] = box
    if head["heading_bins"]:
        bins = head["heading_bins"]
        logits, residuals = at_cells["heading"][:, :bins], at_cells["heading"][:, bins:]
        best = logits.argmax(1)
        yaw = 2 * np.pi * (best + residuals[np.arange(len(best)), best]) / bins
        code[:, _HEADING] = np.stack([np.sin(yaw), np.cos(yaw)], axis=1)
    if head["moving"]:
        probability = sigmoid(at_cells["motion"][:, :1])
        share = probability if head["velocity"] == "expected" else probability > 0.5
        code[:, _VELOCITY] = at_cells["motion"][:, 1:] * share
    return code


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Probabilities of logits, float32, without overflow."""
    return (0.5 * (np.tanh(0.5 * logits.astype(np.float64)) + 1)).astype(np.float32)


def _best(scores: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    """The best of (n,) scores, best first, and where they stand."""
    index = np.argsort(-scores, kind="stable")[:number]
    return scores[index], index


def _peaks(scores: np.ndarray) -> np.ndarray:
    """(K, Y, X) scores where none of the eight cells around is higher, 0 elsewhere."""
    rows, columns = scores.shape[1:]
    padded = np.pad(scores, ((0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    highest = scores
    for row in range(3):
        for column in range(3):
            highest = np.maximum(highest, padded[:, row : row + rows, column : column + columns])
    return scores * (scores == highest)


def _boxes_of_codes(code: np.ndarray) -> np.ndarray:
    """(R, 10) codes to (R, 9) boxes, z at the centre."""
    x, y, length, width, z, height, sin, cos, vx, vy = code.T
    return np.stack([x, y, z, np.exp(length), np.exp(width), np.exp(height), np.arctan2(sin, cos), vx, vy], axis=1)


def _apart(places: np.ndarray, labels: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """Indices of those of (D, 2) places, best first, that no better one of their class is nearer to than its radius."""
    alive = np.ones(len(places), bool)
    for index in range(len(places)):
        if alive[index]:
            near = np.hypot(*(places[index + 1 :] - places[index]).T) < radii[index]
            alive[index + 1 :] &= ~(near & (labels[index + 1 :] == labels[index]))
    return np.flatnonzero(alive)


def _passing(scores: np.ndarray, threshold: float) -> np.ndarray:
    """(R,) bool: which scores pass; the threshold falls until one does."""
    passing = scores > threshold
    while not passing.any():
        threshold *= 0.9
        if threshold < LOWEST_THRESHOLD:
            return np.ones_like(passing)
        passing = scores >= threshold
    return passing
