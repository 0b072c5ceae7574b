"""Labels asked by usefulness against labels at random, on phantoms: accuracy by number of labels.

    python -m benchmarks.active_learning [--seeds 5] [--bundle RUN/bundle]

A pool of unlabeled phantoms, a test set of other patients, frozen features and a linear head, which
is fitted again after each batch of labels. Orders: 'entropy' as `review` and `worklist` ask,
'diverse' (the least margins, of them those that are farthest apart) and 'random' (mean of some
draws). The figure is the area under the accuracy curve, over the range of labels: 1 is right
from the first label on; the interval is Student's t over the seeds, of the difference to 'random'.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.common import OUTPUT, machine
from braintumor_ray.decode.preprocess import Preprocessing
from braintumor_ray.phantom.dataset import patient_slices

ORDERS = ("entropy", "diverse", "random")
SIZE, FILTERS, GRID = 96, 48, 4
DRAWS = 5  # of 'random' for each seed
CANDIDATES = 4  # times the batch, among which 'diverse' chooses


def phantoms(first, count, seed):
    """One slice of each patient: squares (n, S, S) and labels (n,)."""
    preprocessing = Preprocessing(SIZE, "area", (0.0,) * 3, (1.0,) * 3)
    drawn = [patient_slices(first + n, seed=seed, slices=(3, 3))[1] for n in range(count)]
    squares = [preprocessing.square(item.image)[0] for item in drawn]
    return np.stack(squares), np.array([item.class_name for item in drawn])


def random_features(squares):
    """A frozen random convolution, pooled over a grid: (n, FILTERS * GRID * GRID)."""
    import torch
    from torch.nn import functional

    torch.manual_seed(0)
    filters = torch.randn(FILTERS, 1, 7, 7)
    filters -= filters.mean(dim=(2, 3), keepdim=True)
    images = torch.from_numpy(squares).float().unsqueeze(1) / 255
    maps = functional.relu(functional.conv2d(images, filters, stride=2, padding=3))
    return functional.adaptive_avg_pool2d(maps, GRID).flatten(1).numpy()


def bundle_features(squares, location):
    """What the network of a bundle sees: (n, C)."""
    from braintumor_ray.predict.predictor import Predictor

    predictor = Predictor.from_bundle(location)
    views = np.stack([predictor.bundle.preprocessing.square(image)[0] for image in squares])
    return predictor.forward(views, explain=False).pooled


def fitted(features, labels):
    head = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=300))
    return head.fit(features, labels)


def asked(order, head, features, free, batch, rng):
    """The next scans to label, among those that are free."""
    if order == "random":
        return rng.choice(free, batch, replace=False)
    probabilities = np.clip(head.predict_proba(features[free]), 1e-12, 1)
    if order == "entropy":
        entropy = -(probabilities * np.log(probabilities)).sum(axis=1)
        return free[np.argsort(-entropy, kind="stable")[:batch]]
    highest = np.sort(probabilities, axis=1)
    least = np.argsort(highest[:, -1] - highest[:, -2], kind="stable")[: CANDIDATES * batch]
    return farthest(features, free[least], batch)


def farthest(features, candidates, count):
    """Farthest-first among candidates, from the first on."""
    scaled = StandardScaler().fit_transform(features[candidates])
    chosen = [0]
    distance = np.linalg.norm(scaled - scaled[0], axis=1)
    while len(chosen) < count:
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(scaled - scaled[chosen[-1]], axis=1))
    return candidates[chosen]


def curve(order, pool, test, settings, rng):
    """Test accuracy after each batch of labels, from the same first labels for each order."""
    features, labels = pool
    known = list(first_labels(labels, settings.first, np.random.default_rng(settings.seed)))
    found = []
    while True:
        head = fitted(features[known], labels[known])
        found.append(float((head.predict(test[0]) == test[1]).mean()))
        if len(known) + settings.batch > settings.most:
            return found
        free = np.setdiff1d(np.arange(len(labels)), known)
        known += list(asked(order, head, features, free, settings.batch, rng))


def first_labels(labels, count, rng):
    """Some scans at random, each class among them."""
    order = rng.permutation(len(labels))
    one = [next(i for i in order if labels[i] == name) for name in np.unique(labels)]
    return [*one, *[i for i in order if i not in one][: count - len(one)]]


def run_seed(seed, settings):
    """The curves of one seed, by order."""
    settings.seed = seed
    squares, labels = phantoms(0, settings.pool + settings.test, seed)
    features = (
        bundle_features(squares, settings.bundle) if settings.bundle else random_features(squares)
    )
    cut = settings.pool
    pool, test = (features[:cut], labels[:cut]), (features[cut:], labels[cut:])
    curves = {}
    for order in ORDERS:
        draws = DRAWS if order == "random" else 1
        rngs = [np.random.default_rng((seed, draw)) for draw in range(draws)]
        runs = [curve(order, pool, test, settings, rng) for rng in rngs]
        curves[order] = np.mean(runs, axis=0).tolist()
    return curves


def area(values):
    """Area under a curve by trapezoids, over its width."""
    values = np.asarray(values)
    return float((values[:-1] + values[1:]).mean() / 2)


def compared(curves):
    """Areas by order, and the difference to random with its 95% interval over the seeds."""
    areas = {order: [area(found[order]) for found in curves] for order in ORDERS}
    table = {}
    for order in ORDERS:
        gain = np.subtract(areas[order], areas["random"])
        entry = {"area": float(np.mean(areas[order])), "gain": float(gain.mean())}
        if order != "random" and len(curves) > 1:
            half = float(stats.t.ppf(0.975, len(gain) - 1) * stats.sem(gain))
            entry |= {"low": entry["gain"] - half, "high": entry["gain"] + half}
        table[order] = entry | {"by_seed": [round(value, 4) for value in areas[order]]}
    return table


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--pool", type=int, default=240)
    parser.add_argument("--test", type=int, default=160)
    parser.add_argument("--first", type=int, default=12)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--most", type=int, default=140)
    parser.add_argument("--bundle", help="features of its network; else random convolutions")
    settings = parser.parse_args()
    curves = []
    for seed in range(settings.seeds):
        curves.append(run_seed(seed, settings))
        ends = {order: [found[0], found[-1]] for order, found in curves[-1].items()}
        print(f"seed {seed}: accuracy with the first and the last labels {ends}", flush=True)
    table = compared(curves)
    for order, row in table.items():
        interval = f" ({row['low']:+.4f} to {row['high']:+.4f})" if "low" in row else ""
        print(f"{order:<8} area {row['area']:.4f}, against random {row['gain']:+.4f}{interval}")
    counts = list(range(settings.first, settings.most + 1, settings.batch))
    found = {"machine": machine(), "labels": counts, "curves": curves, "orders": table}
    path = Path(OUTPUT) / "active_learning.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(found, indent=1), encoding="utf-8")
    print(path)


if __name__ == "__main__":
    main()
