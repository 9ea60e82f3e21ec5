"""Synthetic street scenes: structured frames for parity checks without real ones."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Frame = NDArray[np.uint8]  # (H, W, 3) BGR


def scenes(count: int, size: tuple[int, int], seed: int = 0) -> list[Frame]:
    """`count` frames of `size` (height, width); the same seed gives the same frames."""
    return [scene(size, seed + i) for i in range(count)]


def scene(size: tuple[int, int], seed: int = 0) -> Frame:
    """One frame (H, W, 3) uint8 BGR: sky, houses, trees, a road with cars, poles and signs."""
    height, width = size
    random = np.random.default_rng(seed)
    horizon = int(height * random.uniform(0.4, 0.5))
    frame = _sky_and_ground(height, width, horizon, random)
    _houses(frame, horizon, random)
    _trees(frame, horizon, random)
    _road(frame, horizon, random)
    _cars(frame, horizon, random)
    _poles(frame, horizon, random)
    return _light(frame, random)


def _color(random: np.random.Generator, low: int, high: int) -> tuple[int, int, int]:
    blue, green, red = random.integers(low, high, 3).tolist()
    return blue, green, red


def _sky_and_ground(height: int, width: int, horizon: int, random: np.random.Generator) -> Frame:
    frame = np.empty((height, width, 3), np.float32)
    fade = np.linspace(0, 1, horizon, dtype=np.float32)[:, None, None]
    frame[:horizon] = (1 - fade) * (235, 190, 150) + fade * (245, 235, 225)
    frame[horizon:] = _color(random, 70, 120)
    return frame.astype(np.uint8)


def _houses(frame: Frame, horizon: int, random: np.random.Generator) -> None:
    height, width = frame.shape[:2]
    left = 0
    while left < width:
        right = left + int(width * random.uniform(0.06, 0.18))
        top = int(horizon * random.uniform(0.15, 0.8))
        bottom = int(horizon * 1.12)
        cv2.rectangle(frame, (left, top), (right, bottom), _color(random, 40, 180), -1)
        step = max(8, height // 30)
        window = _color(random, 20, 220)
        for y in range(top + step, bottom - step, 2 * step):
            for x in range(left + step, right - step, 2 * step):
                cv2.rectangle(frame, (x, y), (x + step // 2, y + step), window, -1)
        left = right + int(width * random.uniform(0, 0.05))


def _trees(frame: Frame, horizon: int, random: np.random.Generator) -> None:
    height, width = frame.shape[:2]
    for _ in range(int(random.integers(3, 8))):
        x, y = int(random.integers(0, width)), int(horizon * random.uniform(0.6, 1))
        radius = int(height * random.uniform(0.04, 0.12))
        trunk = max(2, radius // 6)
        cv2.rectangle(frame, (x - trunk, y), (x + trunk, int(horizon * 1.1)), (35, 50, 70), -1)
        for _ in range(12):
            shift = random.normal(0, radius / 2, 2).astype(int)
            green = (30, int(random.integers(70, 150)), 50)
            cv2.circle(frame, (x + int(shift[0]), y + int(shift[1])), radius // 2, green, -1)


def _road(frame: Frame, horizon: int, random: np.random.Generator) -> None:
    height, width = frame.shape[:2]
    vanishing = int(width * random.uniform(0.4, 0.6))
    outline = [(vanishing - width // 40, horizon), (vanishing + width // 40, horizon)]
    road = np.array([*outline, (int(width * 0.95), height), (int(width * 0.05), height)])
    cv2.fillPoly(frame, [road], (88, 84, 82))
    for start in np.linspace(0.05, 0.85, 7):
        near, far = start + 0.08, start
        y = [int(horizon + (height - horizon) * t**1.5) for t in (far, near)]
        x = [int(vanishing + (width / 2 - vanishing) * t**1.5) for t in (far, near)]
        cv2.line(
            frame, (x[0], y[0]), (x[1], y[1]), (225, 225, 225), max(1, int(height * near / 90))
        )


def _cars(frame: Frame, horizon: int, random: np.random.Generator) -> None:
    height, width = frame.shape[:2]
    # Far ones first: nearer cars hide them.
    for depth in sorted(random.uniform(0.1, 0.7, int(random.integers(3, 7)))):
        long = int(width * 0.03 + width * 0.14 * depth)
        tall = int(long * 0.55)
        x = int(random.integers(0, max(1, width - long)))
        y = int(horizon + (height - horizon) * depth * 0.7)
        paint = _color(random, 10, 230)
        cv2.rectangle(frame, (x, y - tall // 2), (x + long, y), paint, -1)
        cv2.rectangle(
            frame, (x + long // 6, y - tall), (x + 5 * long // 6, y - tall // 2), paint, -1
        )
        glass = (x + long // 5, y - tall + tall // 10), (x + 4 * long // 5, y - tall // 2)
        cv2.rectangle(frame, *glass, (60, 50, 45), -1)
        for wheel in (x + long // 5, x + 4 * long // 5):
            cv2.circle(frame, (wheel, y), max(2, tall // 5), (20, 20, 20), -1)


def _poles(frame: Frame, horizon: int, random: np.random.Generator) -> None:
    height, width = frame.shape[:2]
    for _ in range(int(random.integers(3, 7))):
        x, top = int(random.integers(0, width)), int(height * random.uniform(0.1, 0.35))
        thick = max(1, height // 150)
        cv2.rectangle(frame, (x - thick, top), (x + thick, int(horizon * 1.25)), (90, 95, 95), -1)
        sign = _color(random, 0, 255)
        cv2.circle(frame, (x, top), max(4, height // 40), sign, -1)


def _light(frame: Frame, random: np.random.Generator) -> Frame:
    """Uneven light and soft edges, as a lens gives them."""
    height, width = frame.shape[:2]
    coarse = random.uniform(0.75, 1.2, (6, 12)).astype(np.float32)
    light = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)[..., None]
    lit = np.clip(frame * light, 0, 255).astype(np.uint8)
    return np.asarray(cv2.GaussianBlur(lit, (0, 0), max(0.6, height / 1000)), np.uint8)
