"""Pictures that are no brain scans, the same for the same seed: uint8 gray (H, W).

Textures and scenes as photographs have them, crops of the two photographs that come with
scikit-learn, charts, pages of text, gradients, noise, and nearly or wholly black pictures.
"""

import io

import cv2
import numpy as np

WORDS = [
    "the",
    "scan",
    "was",
    "read",
    "as",
    "normal",
    "and",
    "no",
    "further",
    "action",
    "is",
    "needed",
    "before",
    "next",
    "week",
]


def foreign_images(seed: int, n: int) -> list[tuple[str, np.ndarray]]:
    """`n` pictures, the kinds in turn, each with its kind; sides 160 to 640 pixels."""
    rng = np.random.default_rng(seed)
    kinds = list(_MAKERS.items())
    found = []
    for i in range(n):
        kind, make = kinds[i % len(kinds)]
        size = int(rng.integers(160, 640)), int(rng.integers(160, 640))
        found.append((kind, make(rng, size)))
    return found


def texture(rng, size, power=None):
    """1/f noise, the spectrum of natural scenes."""
    height, width = size
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)
    power = rng.uniform(0.8, 1.8) if power is None else power
    amplitude = 1 / np.maximum(np.hypot(fy, fx), 1 / max(size)) ** power
    phase = np.exp(2j * np.pi * rng.random(amplitude.shape))
    return _full_range(np.fft.irfft2(amplitude * phase, s=size))


def scene(rng, size):
    """A landscape with a bright sky, textured ground and some objects."""
    height, width = size
    horizon = int(height * rng.uniform(0.3, 0.7))
    picture = texture(rng, size, 1.2).astype(float) * 0.5 + 30
    picture[:horizon] = np.linspace(230, 170, horizon)[:, None] + rng.normal(0, 3, (horizon, width))
    for _ in range(rng.integers(2, 8)):
        x, y = int(rng.integers(0, width)), int(rng.integers(horizon // 2, height))
        w, h = int(rng.integers(10, width // 3)), int(rng.integers(10, height // 2))
        cv2.rectangle(picture, (x, y - h), (x + w, y), float(rng.integers(20, 230)), -1)
    return cv2.GaussianBlur(picture, (3, 3), 0).clip(0, 255).astype(np.uint8)


def photograph(rng, size):
    """A crop of a photograph, at some scale."""
    from sklearn.datasets import load_sample_images

    image = load_sample_images().images[int(rng.integers(2))]
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    height, width = (int(side * rng.uniform(0.3, 1)) for side in gray.shape)
    y = int(rng.integers(0, gray.shape[0] - height + 1))
    x = int(rng.integers(0, gray.shape[1] - width + 1))
    return cv2.resize(gray[y : y + height, x : x + width], size[::-1])


def chart(rng, size):
    """A line, bar, pie or scatter chart, as a report has them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(size[1] / 100, size[0] / 100), dpi=100)
    axes = figure.subplots()
    kind = int(rng.integers(4))
    if kind == 0:
        axes.plot(rng.normal(size=(30, 3)).cumsum(axis=0), label=["a", "b", "c"])
        axes.legend()
    elif kind == 1:
        axes.bar(np.arange(8), rng.random(8))
    elif kind == 2:
        axes.pie(rng.random(5) + 0.1, labels=list("abcde"))
    else:
        axes.scatter(*rng.normal(size=(2, 80)), c=rng.random(80))
    axes.set_title(" ".join(rng.choice(WORDS, 3)))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return cv2.imdecode(np.frombuffer(buffer.getvalue(), np.uint8), cv2.IMREAD_GRAYSCALE)


def text_page(rng, size):
    """Dark words on white paper, or the other way round."""
    picture = np.full(size, 250, np.uint8)
    scale = float(rng.uniform(0.4, 1.0))
    for y in range(25, size[0], int(32 * scale) + 4):
        line = " ".join(rng.choice(WORDS, 12))
        cv2.putText(picture, line, (10, y), cv2.FONT_HERSHEY_SIMPLEX, scale, 20, 1, cv2.LINE_AA)
    return 255 - picture if rng.random() < 0.3 else picture


def gradient(rng, size):
    """Linear or radial, from one gray level to another."""
    y, x = np.mgrid[-1 : 1 : size[0] * 1j, -1 : 1 : size[1] * 1j]
    angle = rng.uniform(0, 2 * np.pi)
    ramp = np.hypot(x, y) if rng.random() < 0.4 else x * np.cos(angle) + y * np.sin(angle)
    ramp = ramp if rng.random() < 0.5 else -ramp
    return (_full_range(ramp) * rng.uniform(0.4, 1.0)).astype(np.uint8)


def noise(rng, size):
    """Uniform, Gaussian, or salt and pepper; sometimes smoothed."""
    kind = int(rng.integers(4))
    if kind == 0:
        return rng.integers(0, 256, size).astype(np.uint8)
    if kind == 1:
        return rng.normal(rng.uniform(60, 190), 40, size).clip(0, 255).astype(np.uint8)
    if kind == 2:
        return np.where(rng.random(size) < 0.1, 255, 0).astype(np.uint8)
    return _full_range(cv2.GaussianBlur(rng.random(size), (0, 0), float(rng.uniform(2, 12))))


def black(rng, size):
    """Black, nearly black, or one gray level all over."""
    kind = int(rng.integers(3))
    if kind == 0:
        return np.zeros(size, np.uint8)
    if kind == 1:
        return rng.integers(0, 6, size).astype(np.uint8)
    return np.full(size, int(rng.integers(1, 256)), np.uint8)


def shapes(rng, size):
    """A few filled shapes on an even ground, as icons and drawings have them."""
    picture = np.full(size, int(rng.choice((0, 30, 128, 255))), np.uint8)
    for _ in range(rng.integers(1, 7)):
        center = int(rng.integers(0, size[1])), int(rng.integers(0, size[0]))
        shade = int(rng.integers(0, 256))
        if rng.random() < 0.5:
            cv2.circle(picture, center, int(rng.integers(10, min(size) // 3)), shade, -1)
        else:
            other = int(rng.integers(0, size[1])), int(rng.integers(0, size[0]))
            cv2.rectangle(picture, center, other, shade, -1)
    return picture


_MAKERS = {
    "texture": texture,
    "scene": scene,
    "photograph": photograph,
    "chart": chart,
    "text_page": text_page,
    "gradient": gradient,
    "noise": noise,
    "black": black,
    "shapes": shapes,
}


def _full_range(values):
    low, high = values.min(), values.max()
    return (255 * (values - low) / max(high - low, 1e-9)).astype(np.uint8)
