"""Training images per second against a plain PyTorch loop.

The peer is the shortest loop that trains the same network on the same fields: one process, no
augmentation beyond scaling, torchvision's reader, float32. Cytolens trains with its whole recipe
(mosaic, stain, blur, running average) as `cytolens train` does it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl
import torch

SIDE, BATCH = 416, 16


def plain_loop(files: list[str], epochs: int) -> float:
    """Images per second of the plain loop."""
    from torchvision.io import ImageReadMode, read_image
    from torchvision.transforms.v2.functional import resize

    from cytolens.models.yolox import Yolox
    from cytolens.train.detection_loss import Truth, detection_losses

    network = Yolox(size="nano", classes=3).train()
    optimiser = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9, nesterov=True)
    none = torch.zeros(0, 4)
    truth = Truth(
        torch.tensor([[50.0, 50, 120, 120]] * 12),
        torch.zeros(12, dtype=torch.long),
        none,
        torch.zeros(3, dtype=torch.bool),
    )
    started = time.perf_counter()
    count = 0
    for _ in range(epochs):
        for at in range(0, len(files) - BATCH + 1, BATCH):
            batch = torch.stack(
                [resize(read_image(f, ImageReadMode.RGB), [SIDE, SIDE]) for f in files[at : at + BATCH]]
            )
            losses = detection_losses(network(batch.float()), [truth] * BATCH, (SIDE, SIDE))
            optimiser.zero_grad()
            losses.total.backward()
            optimiser.step()
            count += BATCH
    return count / (time.perf_counter() - started)


def cytolens_train(dataset: Path, epochs: int) -> float:
    """Images per second of `cytolens train`, from the run's own history, without the first epoch."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            str(Path(sys.executable).with_name("cytolens")),
            "train",
            "detect",
            "--data",
            str(dataset),
            "--out",
            f"{folder}/run",
        ]
        changes = [
            f"optimise.epochs={epochs}",
            "optimise.closing_epochs=0",
            "multi_scale=0",
            f"input.side_px={SIDE}",
            f"optimise.batch={BATCH}",
        ]
        for change in changes:
            command += ["--set", change]
        done = subprocess.run([*command, "--json"], check=True, capture_output=True, text=True)
        assert json.loads(done.stdout)["epochs"] == epochs
        history = pl.read_parquet(f"{folder}/run/history.parquet")
    return float(np.median(history["images_per_s"].to_list()[1:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", type=Path, help="a dataset with boxes")
    parser.add_argument("--epochs", type=int, default=4)
    options = parser.parse_args()
    from cytolens import Dataset

    torch.set_num_threads(os.cpu_count() or 1)
    dataset = Dataset.read(options.dataset)
    ours = cytolens_train(options.dataset, options.epochs)
    plain = plain_loop([str(path) for path in dataset.images.frame["path"]], max(1, options.epochs // 2))
    print(f"{len(dataset.images)} images, side {SIDE}, batch {BATCH}, {os.cpu_count()} cores")
    print(f"cytolens train:  {ours:6.1f} images/s")
    print(f"plain loop:      {plain:6.1f} images/s")
    print(f"ratio cytolens / plain: {ours / plain:.2f}")


if __name__ == "__main__":
    main()
