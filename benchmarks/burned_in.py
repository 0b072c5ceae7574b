"""Burned-in text: how much planted text is found, and how many pictures without any are flagged.

    python benchmarks/burned_in.py [--scans FOLDER] [--count N] [--plants N] [--seed S] [--sheet F]

Text is planted with OpenCV's and Pillow's letters, in heights of 7 to 28 pixels at a longest side
of 512, in a corner or across the middle, and stored as JPEG. `--sheet` has the flagged pictures:
look at them, some public pictures do carry text.
"""

import argparse
import random
from collections import defaultdict
from pathlib import Path

import sys  # isort: skip

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from braintumor_ray.decode.burned_in import text_lines
from braintumor_ray.phantom.dataset import patient_slices

WORDS = ["DOE^JANE", "19700101", "ID 4711-0815", "Smith, John M", "F 054Y", "2021-03-14 10:22"]
HEIGHTS, LEVELS = (7, 10, 14, 20, 28), (255, 220, 160, 110, 0)
CASES = [("corner", level) for level in LEVELS[:-1]] + [("middle", level) for level in LEVELS]
TILE = 320


def pictures(folder, count, rng):
    """Name and picture: of a folder, else of phantoms."""
    if folder is None:
        slices = [each for number in range(count) for each in patient_slices(number)]
        for number, each in enumerate(slices[:count]):
            yield f"phantom {number}", np.ascontiguousarray(each.image)
        return
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    for path in rng.sample(paths, min(count, len(paths))):
        yield str(path.relative_to(folder)), cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)


def with_text(gray, text, height, level, place, font, rng):
    """A picture with planted text, and its box (left, top, right, bottom)."""
    picture = Image.fromarray(gray)
    letters = ImageFont.load_default(size=1.4 * height)
    scale = cv2.getFontScaleFromHeight(cv2.FONT_HERSHEY_SIMPLEX, height, 1)
    if font == "opencv":
        width = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)[0][0]
    else:
        left, top, right, _ = ImageDraw.Draw(picture).textbbox((0, 0), text, font=letters)
        width = right - left
    x, y = _place(gray.shape, width, height, place, rng)
    box = (x, y, x + width, y + height)
    if font == "opencv":
        made = gray.copy()
        cv2.putText(made, text, (x, y + height), cv2.FONT_HERSHEY_SIMPLEX, scale, level, 1,
                    cv2.LINE_AA)  # fmt: skip
        return made, box
    ImageDraw.Draw(picture).text((x, y - top), text, fill=level, font=letters)
    return np.asarray(picture), box


def _place(shape, width, height, place, rng):
    if place == "corner":
        return (rng.choice([4, max(4, int(shape[1] - width) - 4)]),
                rng.choice([4, shape[0] - height - 8]))  # fmt: skip
    return int((shape[1] - width) / 2), int(shape[0] * rng.uniform(0.3, 0.7))


def is_found(picture, box):
    left, top, right, bottom = box
    return any(
        line.left < right and line.right > left and line.top < bottom and line.bottom > top
        for line in text_lines(picture)
    )


def planted(found, plants, rng):
    """Found and planted by kind of text; pictures that are flagged without it are not used."""
    counts = defaultdict(lambda: [0, 0])
    clean = [gray for _, gray, lines in found if not lines]
    for number in range(plants):
        gray = rng.choice(clean)
        (place, level), height = rng.choice(CASES), rng.choice(HEIGHTS)
        font = ("opencv", "pillow")[number % 2]
        pixels = max(6, round(height * max(gray.shape) / 512))
        made, box = with_text(gray, rng.choice(WORDS), pixels, level, place, font, rng)
        stored = cv2.imencode(".jpg", made, [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
        seen = is_found(cv2.imdecode(stored, cv2.IMREAD_GRAYSCALE), box)
        for kind in ("all", f"{place}, level {level}", f"height {height}", font):
            counts[kind][0] += seen
            counts[kind][1] += 1
    return counts


def sheet(flagged, path):
    tiles = []
    for _, gray, lines in flagged:
        drawn = cv2.cvtColor(gray, cv2.COLOR_GRAY2BGR)
        for line in lines:
            cv2.rectangle(drawn, (line.left, line.top), (line.right, line.bottom), (0, 0, 255), 1)
        scale = TILE / max(gray.shape)
        drawn = cv2.resize(drawn, None, fx=scale, fy=scale)[:TILE, :TILE]
        tile = np.zeros((TILE, TILE, 3), np.uint8)
        tile[: drawn.shape[0], : drawn.shape[1]] = drawn
        tiles.append(tile)
    tiles += [np.zeros((TILE, TILE, 3), np.uint8)] * (-len(tiles) % 6)
    rows = [np.hstack(tiles[at : at + 6]) for at in range(0, len(tiles), 6)]
    cv2.imwrite(str(path), np.vstack(rows))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--scans", type=Path, help="of JPEG or PNG; else phantoms")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--plants", type=int, default=200)
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng = random.Random(given.seed)
    found = [
        (name, gray, text_lines(gray)) for name, gray in pictures(given.scans, given.count, rng)
    ]
    flagged = [each for each in found if each[2]]
    print(f"flagged as they are: {len(flagged)} of {len(found)}")
    for name, _, _ in flagged:
        print(f"  {name}")
    if given.sheet and flagged:
        sheet(flagged, given.sheet)
    for kind, (seen, of) in sorted(planted(found, given.plants, rng).items()):
        print(f"{kind:22} {seen:4} of {of:4} found ({seen / of:.2f})")


if __name__ == "__main__":
    main()
