"""Images of ten textures in random tints, which a contrastive task learns to tell apart within seconds.

A texture is a sine wave of one of five orientations and two frequencies, with a random phase. An image is a random
colour with the wave in it and noise: to a random network the colour is all, and the texture next to nothing.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 48
ORIENTATIONS = 5  # over half a turn
FREQUENCIES = (0.1, 0.2)  # waves a pixel


def write_texture_images(folder: Path, num: int, seed: int = 0) -> Path:
    """Writes images as PNG files, one folder a class.

    Args:
        folder: Where the classes' folders are made.
        num: How many images in all.
        seed: Of what is random in them.

    Returns:
        The folder.
    """
    random = np.random.default_rng(seed)
    down, right = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    for number in range(num):
        label = number % (ORIENTATIONS * len(FREQUENCIES))
        angle = np.pi * (label % ORIENTATIONS) / ORIENTATIONS + random.normal(0, 0.06)
        frequency = FREQUENCIES[label // ORIENTATIONS] * np.exp(random.normal(0, 0.05))
        phase = random.uniform(0, 2 * np.pi)
        wave = np.sin(2 * np.pi * frequency * (np.cos(angle) * right + np.sin(angle) * down) + phase)
        tint, strength = random.uniform(40, 215, 3), random.uniform(0.7, 1, 3)
        image = tint + 30 * wave[..., None] * strength + random.normal(0, 12, (SIDE, SIDE, 3))
        file = folder / f"texture{label}" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(file, compress_level=1)
    return folder
