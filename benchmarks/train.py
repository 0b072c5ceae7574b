"""Training epochs against a hand-written loop, guided against plain, frozen against all.

    python benchmarks/train.py [--count 640] [--rounds 3] [--tiny] [--output DIR]

Both sides: one process that trains, the same network, batch, augmentation, precision and torch
threads, decoded scans in memory. The peer is what one would write by hand: a Dataset, a DataLoader
with worker processes, the usual loop. Rounds alternate between the two; medians are compared.
Limits: an epoch at least 0.95 of the loop's scans/s; the frozen stage at least 2x a loop that
back-propagates through the backbone; a guided epoch at most 1.1 of the plain one, masks unpacked
and warped included; the second epoch decodes nothing (the files are gone by then).
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import common
from braintumor_ray.catalog.build import load_catalog
from braintumor_ray.decode.preprocess import Preprocessing
from braintumor_ray.local_ray import ray_session
from braintumor_ray.models.classifier import Classifier, normalize
from braintumor_ray.models.depthwise import accelerate_depthwise
from braintumor_ray.models.device import use_bf16
from braintumor_ray.models.freezing import set_trainable, train_mode
from braintumor_ray.recipes.loader import load_recipe
from braintumor_ray.recipes.schema import Recipe
from braintumor_ray.training.augment import Augmenter
from braintumor_ray.training.guidance import GuidanceLoss, pack_mask
from braintumor_ray.training.loop import StepSettings, TrainableNetwork, train_epoch
from braintumor_ray.training.options import TrainOptions, Workers
from braintumor_ray.training.recipe_network import architecture_of
from braintumor_ray.training.run import train
from braintumor_ray.training.worker import GuidedCells, ToBatch

LIMITS = {"epoch": 0.95, "guided": 1 / 1.1, "frozen": 2.0}


def main() -> None:
    options = parse()
    if options.tiny:
        options.count, options.rounds, options.epochs, options.size = 64, 1, 2, 64
        options.backbone = "small-cnn"  # needs no timm, which costs each process seconds
    with tempfile.TemporaryDirectory() as work, ray_session(1):
        folder, kind = scans(options.count, Path(work))
        figures = measure(options, folder, Path(work))
    show(options, figures | {"kind": kind})


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=640, help="scans, 9 of 10 are trained on")
    parser.add_argument("--backbone", default="mobilenetv2_100")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3, help="per round; the first is left out")
    parser.add_argument("--loader-workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--tiny", action="store_true", help="seconds only: does it still run?")
    parser.add_argument("--output", default=common.OUTPUT)
    return parser.parse_args()


def scans(count: int, work: Path) -> tuple[Path, str]:
    """A copy of some scans, by class, that may be deleted."""
    files, kind = common.scan_files(count, work)
    folder = work / "scans"
    for number, path in enumerate(files):
        target = folder / path.parent.name / f"{number}{path.suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    return folder, kind


def recipe_for(options: argparse.Namespace, name: str, epochs: int, train: str) -> Recipe:
    stage = f"[{{name='{name}',epochs={epochs},train='{train}'}}]"
    plain = ["model.neck=none", "model.gate=false"] if options.backbone == "small-cnn" else []
    return load_recipe(
        "best",
        [
            f"stages={stage}",
            f"model.backbone={options.backbone}",
            *plain,
            f"data.image_size={options.size}",
            "data.fractions={train=0.9,val=0.05,test=0.05}",
            # Lesions drawn into healthy scans are more scans, which the loop by hand has not.
            "lesions={draw=0.0,transplant=0.0,heal=0.0,repeat=1}",
            "optimizer.average=0.99" if train == "all" else "optimizer.clip_norm=1.0",
        ],
    )


def measure(options: argparse.Namespace, folder: Path, work: Path) -> dict:
    catalog = load_catalog(folder)
    ours: list[float] = []
    theirs: list[float] = []
    images = labels = None
    for number in range(options.rounds):
        recipe = recipe_for(options, f"round{number}", options.epochs, "all")
        run = TrainOptions(
            recipe, work / f"run{number}", "none", Workers(1), cache=str(work / "cache")
        )
        trained = train(catalog, run, lambda line: None)
        if folder.exists():  # from here on nothing can be decoded
            images, labels = in_memory(trained, work)
            shutil.rmtree(folder)
        ours += [entry["train_scans_per_s"] for entry in trained.history[1:]]
        theirs += hand_written(options, recipe, images, labels)
    epoch = {"ours": ours, "loop": theirs}
    return {
        "epoch": epoch,
        "guided": guided(options, images, labels),
        "frozen": frozen(options, images, labels),
        "scans": len(images),
    }


def in_memory(trained, work: Path) -> tuple[np.ndarray, np.ndarray]:
    """The same decoded training scans, for the loop by hand."""
    import pyarrow.parquet as pq

    catalog = load_catalog(f"{trained.location}/catalog.parquet").to_pylist()
    names = trained.bundle.fields.class_names
    wanted = {r["scan_id"]: names.index(r["class_name"]) for r in catalog if r["split"] == "train"}
    size = trained.bundle.preprocessing.image_size
    rows = [
        row
        for path in (work / "cache").rglob("*.parquet")
        for row in pq.read_table(path, columns=["scan_id", "image"]).to_pylist()
    ]
    kept = [row for row in rows if row["scan_id"] in wanted]
    images = np.stack([np.frombuffer(r["image"], np.uint8).reshape(size, size) for r in kept])
    return images, np.array([wanted[r["scan_id"]] for r in kept])


class InMemory(Dataset):
    """What one would write: decoded scans, augmented one by one."""

    def __init__(self, images, labels, recipe: Recipe) -> None:
        self.images, self.labels, self.recipe, self.epoch = images, labels, recipe, 0

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index):
        augment = Augmenter(self.recipe.augment, self.recipe.seed, self.epoch)
        image = torch.from_numpy(augment(self.images[index], index))
        return image, int(self.labels[index])


def hand_written(options, recipe: Recipe, images, labels) -> list[float]:
    """Scans/s of each epoch but the first of a plain loop."""
    torch.set_num_threads(os.cpu_count() or 1)
    model, preprocessing = network(options, recipe)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.99), use_buffers=True
    )
    bf16 = use_bf16(torch.device("cpu"), "auto")
    data = InMemory(images, labels, recipe)
    loader = DataLoader(
        data,
        recipe.data.batch_size,
        shuffle=True,
        num_workers=options.loader_workers,
        persistent_workers=options.loader_workers > 0,
    )
    speeds = []
    for _ in range(options.epochs):
        model.train()
        started = time.perf_counter()
        for batch, targets in loader:
            x = normalize(batch, preprocessing)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
                logits = model(x)
            loss = nn.functional.cross_entropy(logits.float(), targets, label_smoothing=0.05)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            average.update_parameters(model)
        speeds.append(len(data) / (time.perf_counter() - started))
    return speeds[1:]


def network(options, recipe: Recipe) -> tuple[Classifier, Preprocessing]:
    torch.manual_seed(0)
    model = Classifier(architecture_of(recipe, 4))
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    model = model.to(memory_format=torch.channels_last)
    return model, Preprocessing(options.size, recipe.data.interpolation, mean, std)


def guided(options, images, labels) -> dict:
    """The same scans, network and loss with guidance by a disk in each, and without; no Ray."""
    torch.set_num_threads(os.cpu_count() or 1)
    recipe = recipe_for(options, "guided", 1, "all")
    model, preprocessing = network(options, recipe)
    accelerate_depthwise(model)
    set_trainable(model, "all")
    train_mode(model)
    plain = StepSettings(
        preprocessing, torch.ones(4), bf16=use_bf16(torch.device("cpu"), "auto"), clip_norm=1.0
    )
    positive = (0, 1, 3)
    guide = replace(plain, guidance=GuidanceLoss(recipe.guidance, positive), positive=positive)
    cells = GuidedCells(model.map_shape[1:], positive)
    count = min(len(images), 8 * 32)
    rows = scan_rows(images[:count], labels[:count])
    augmenter = Augmenter(recipe.augment, recipe.seed, 0)
    sides = {
        "guided": (guide, ToBatch(options.size, augmenter, cells), TrainableNetwork(model, True)),
        "plain": (plain, ToBatch(options.size, augmenter), TrainableNetwork(model)),
    }
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    times = common.interleaved(
        {
            name: lambda settings=settings, collate=collate, net=net: train_epoch(
                net, optimizer, map(collate, slices(rows)), settings
            )
            for name, (settings, collate, net) in sides.items()
        },
        max(3, options.rounds),
    )
    return {name: [count / one for one in seconds] for name, seconds in times.items()}


def scan_rows(images, labels) -> pa.Table:
    """Decoded scans as a worker gets them; a disk is the tumor of those that have one."""
    size = images.shape[1]
    y, x = np.mgrid[:size, :size] / size - 0.45
    disk = pack_mask(x**2 + y**2 < 0.01)
    return pa.table(
        {
            "scan_id": pa.array(range(len(images)), pa.int64()),
            "copy": pa.array([0] * len(images), pa.int64()),
            "label": pa.array(labels, pa.int64()),
            "image": [image.tobytes() for image in images],
            "mask": [None if label == 2 else disk for label in labels],
        }
    )


def slices(rows: pa.Table, size: int = 32) -> Iterator[pa.Table]:
    for start in range(0, rows.num_rows, size):
        yield rows.slice(start, size)


def frozen(options, images, labels) -> dict:
    """The head's training: without gradients through the backbone, and with them; no Ray."""
    torch.set_num_threads(os.cpu_count() or 1)
    recipe = recipe_for(options, "frozen", 1, "head")
    model, preprocessing = network(options, recipe)
    bf16 = use_bf16(torch.device("cpu"), "auto")
    settings = StepSettings(preprocessing, torch.ones(4), bf16=bf16)
    count = min(len(images), 8 * 32)
    ours, naive = [], []
    for _ in range(options.rounds):
        set_trainable(model, "head")
        train_mode(model)
        ours.append(timed(TrainableNetwork(model), model, settings, images[:count], labels[:count]))
        set_trainable(model, "all")  # gradients are computed all the way, the head alone is stepped
        naive.append(
            timed(TrainableNetwork(model), model, settings, images[:count], labels[:count])
        )
    return {"ours": ours, "backpropagating": naive}


def timed(network, model, settings, images, labels) -> float:
    optimizer = torch.optim.Adam(model.head.parameters(), lr=1e-4)
    started = time.perf_counter()
    train_epoch(network, optimizer, batches(images, labels), settings)
    return len(images) / (time.perf_counter() - started)


def batches(images, labels, size: int = 32) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for start in range(0, len(images), size):
        part = slice(start, start + size)
        yield torch.from_numpy(images[part]), torch.from_numpy(labels[part])


def show(options, figures: dict) -> None:
    rates, checks = {}, []
    for name, limit in LIMITS.items():
        rates[name] = {side: common.spread(values) for side, values in figures[name].items()}
        ours, peer = (one["median"] for one in rates[name].values())
        checks.append((f"{name}: {' / '.join(rates[name])}", ours / peer, ">=", limit))
    precision = "bf16" if use_bf16(torch.device("cpu"), "auto") else "fp32"
    about = {"backbone": options.backbone, "size": options.size, "precision": precision}
    found = {"machine": common.machine(), **about, **figures, "rates": rates, "checks": checks}
    known = common.write_json(options.output, "train", found)
    title = f"Training {options.backbone}, {options.size} px, {precision}: {common.cpu_name()}"
    common.bars(known.with_suffix(".png"), title, rates, "scans/s, median and quartiles")
    rows = [
        {
            "stage": name,
            "side": side,
            "scans/s": f"{one['median']:.1f}",
            "quartiles": f"{one['q1']:.1f} to {one['q3']:.1f}",
        }
        for name, sides in rates.items()
        for side, one in sides.items()
    ]
    print(common.table(rows))
    print(common.checks_table(checks))
    print(f"{figures['scans']} {figures['kind']}, {about}, {found['machine']}")
    print(f"written: {known}, {known.with_suffix('.png')}")


if __name__ == "__main__":
    main()
