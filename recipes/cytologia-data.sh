#!/usr/bin/env bash
# A small data set in the layout of the Cytologia challenge, from PBC (whose images TXL-PBC shares): images, train.csv, test.csv.
#
#   recipes/cytologia-data.sh DATA OUT [IMAGES_PER_LABEL]
#
# Train comes from the train part, test from the validation part. Boxes are where the shipped detector finds the one named
# cell. test-truth.csv holds what a challenge would keep to itself.
set -euo pipefail
DATA=$(realpath "$1")
mkdir -p "$2"
OUT=$(realpath "$2")
MOST=${3:-24}
cytolens import "$DATA/pbc" --format image_folder --out "$OUT/.pbc" --name pbc >/dev/null || [ $? = 1 ]
python - "$DATA" "$OUT" "$MOST" <<'PY'
import csv
import shutil
import sys
from pathlib import Path

import numpy as np
import polars as pl

from cytolens import Bundle, Dataset, formats
from cytolens.images import Images
from cytolens.predict.fields import predict_images
from cytolens.predict.pipeline import Predictor
from cytolens.prepare.crops import relocated

data, out, most = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
# The challenge's words for PBC's codes; cells that are only "neutrophil" or "immature granulocyte" have none there.
WORDS = {
    "SNE": "PNN", "LY": "LY", "MO": "MO", "EO": "EO", "BA": "BA", "ERB": "Er", "PMY": "PM", "MY": "M", "MMY": "MM",
    "PLATELET": "Thromb",
}  # fmt: skip
pbc = Dataset.read(out / ".pbc")
random = np.random.default_rng(42)
detector = Predictor(Bundle.load("smear-detector"))
(out / "images").mkdir(exist_ok=True)
for part, share in (("train", 1.0), ("val", 0.5)):
    one = pbc.part(part)
    chosen = []
    for code in WORDS:
        ids = one.cells.frame.filter(pl.col("label") == code)["image_id"].to_list()
        chosen += list(random.choice(ids, min(len(ids), round(share * most)), replace=False))
    some = one.of_images(Images(one.images.frame.filter(pl.col("image_id").is_in(chosen))))
    placed = relocated(some, predict_images(detector, some.images.rows()).cells)
    rows = []
    for cell in placed.cells.frame.iter_rows(named=True):
        image = placed.images.row(cell["image_id"])
        if cell["x_max"] - cell["x_min"] >= image["width_px"] - 1:
            continue  # not found: it has no box
        name = Path(cell["image_id"]).name
        shutil.copyfile(image["path"], out / "images" / name)
        rows.append([name, *(round(cell[edge]) for edge in ("x_min", "y_min", "x_max", "y_max")), WORDS[cell["label"]]])
    rows.sort()
    file = out / ("train.csv" if part == "train" else "test-truth.csv")
    with file.open("w", newline="") as stream:
        csv.writer(stream).writerows([["NAME", "x1", "y1", "x2", "y2", "class"], *rows])
    if part == "val":
        with (out / "test.csv").open("w", newline="") as stream:
            csv.writer(stream).writerows([["trustii_id", "NAME"], *([7001 + i, row[0]] for i, row in enumerate(rows))])
    print(f"{file}: {len(rows)} boxes")
PY
rm -rf "$OUT/.pbc"
