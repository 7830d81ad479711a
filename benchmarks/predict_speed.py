"""Milliseconds per field, from file to cells, against Ultralytics' YOLO11n on ONNX Runtime.

Both read the same files from disk, at the same input side, on the same cores. The peer detects only
(with random weights: speed does not depend on them); Cytolens detects and names.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
from pathlib import Path

from throwaway import environment, run_json

OURS = """
import json, sys, time
started = time.perf_counter()
from cytolens.bundle import Bundle
from cytolens.predict.fields import image_rows, predict_images
from cytolens.predict.pipeline import Predictor, PredictSettings
bundle, jobs, *files = sys.argv[1:]
predictor = Predictor(Bundle.load(bundle), PredictSettings(jobs=int(jobs)))
rows = image_rows(files)
predict_images(predictor, rows[:8])
ready = time.perf_counter()
cells = predict_images(predictor, rows).cells
done = time.perf_counter()
print(json.dumps({"start_s": ready - started, "ms": 1000 * (done - ready) / len(rows), "cells": len(cells)}))
"""

PEER = """
import json, os, sys, time
side, threads, *files = sys.argv[1:]
os.environ["YOLO_VERBOSE"] = "false"
started = time.perf_counter()
from ultralytics import YOLO, __version__
YOLO("yolo11n.yaml").export(format="onnx", imgsz=int(side), simplify=True, verbose=False)
model = YOLO("yolo11n.onnx", task="detect")
for file in files[:8]:
    model.predict(file, imgsz=int(side), conf=0.01, verbose=False, device="cpu")
ready = time.perf_counter()
for file in files:
    model.predict(file, imgsz=int(side), conf=0.01, verbose=False, device="cpu")
done = time.perf_counter()
print(json.dumps({"start_s": ready - started, "ms": 1000 * (done - ready) / len(files), "version": __version__}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path, help="folder with images")
    parser.add_argument("--bundle", default="smear")
    parser.add_argument("--side", type=int, default=416)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    files = sorted(str(path.resolve()) for path in options.images.iterdir() if path.suffix.lower() in (".jpg", ".png"))
    cores = os.cpu_count() or 1
    ours = [run_json(Path(sys.executable), OURS, options.bundle, str(cores), *files) for _ in range(options.repeat)]
    with (
        environment(["ultralytics", "onnx", "onnxslim", "onnxruntime"]) as python,
        tempfile.TemporaryDirectory() as folder,
    ):
        env = os.environ | {"OMP_NUM_THREADS": str(cores), "YOLO_CONFIG_DIR": folder}
        peers = [
            run_json(python, PEER, str(options.side), str(cores), *files, cwd=folder, env=env)
            for _ in range(options.repeat)
        ]
    best, other = min(ours, key=lambda r: r["ms"]), min(peers, key=lambda r: r["ms"])
    print(f"{len(files)} images, {cores} cores, {platform.machine()}, input side {options.side}")
    print(f"cytolens predict (detect and name):  {best['ms']:6.1f} ms per field, start {best['start_s']:.1f} s")
    print(f"ultralytics {other['version']} YOLO11n (detect): {other['ms']:6.1f} ms per field")
    print(f"ratio cytolens / peer: {best['ms'] / other['ms']:.2f}")


if __name__ == "__main__":
    main()
