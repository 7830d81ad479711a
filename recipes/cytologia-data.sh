#!/usr/bin/env bash
# A small data set in the layout of the Cytologia challenge, from PBC and TXL-PBC: images, train.csv, test.csv.
#
#   recipes/cytologia-data.sh DATA OUT [IMAGES_PER_CODE]
#
# DATA holds pbc and txl_pbc. Train comes from the train part, test from the validation part, with half as many images.
# Where TXL-PBC shares an image, the box is the one annotated there, and such images are taken first; on others it is
# where the shipped detector finds the one named cell. How many boxes came from each is printed. test-truth.csv holds
# what a challenge would keep to itself.
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
from cytolens.cells import BOX_COLUMNS
from cytolens.images import Images
from cytolens.predict.fields import predict_images
from cytolens.predict.pipeline import Predictor
from cytolens.prepare.crops import relocated

data, out, most = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
# The challenge's words for PBC's codes; its one neutrophil are PBC's segmented and band cells. Cells of no stage
# ("neutrophil", "immature granulocyte") are left out.
WORDS = {
    "SNE": "PNN", "BNE": "PNN", "LY": "LY", "MO": "MO", "EO": "EO", "BA": "BA", "ERB": "Er", "PMY": "PM", "MY": "M",
    "MMY": "MM", "PLATELET": "Thromb",
}  # fmt: skip


def annotated(folder: Path) -> dict[str, tuple[float, ...]]:
    """File name in PBC → edges of the white cell's box, for the images of TXL-PBC that show exactly one."""
    pairs = pl.read_csv(folder / "wbc_subtypes.csv").select(file="image", pbc="pbc_image")
    cells = formats.read(folder, "yolo", formats.ReadOptions(name="txl")).dataset.cells.frame
    white = cells.filter(pl.col("label").cast(pl.String) == "WBC").with_columns(
        file=pl.col("image_id").str.split("/").list.last()
    )
    shared = white.join(pairs, on="file").unique("pbc", keep="none")  # a name in both parts, or two boxes: not sure
    return {row["pbc"]: tuple(row[edge] for edge in BOX_COLUMNS) for row in shared.iter_rows(named=True)}


def drawn(ids: list[str], count: int) -> list[str]:
    """That many of the images, or all, annotated ones first."""
    sure = [one for one in ids if Path(one).name in boxes]
    chosen = list(random.choice(sure, min(len(sure), count), replace=False))
    rest = [one for one in ids if Path(one).name not in boxes]
    return chosen + list(random.choice(rest, min(len(rest), count - len(chosen)), replace=False))


pbc = Dataset.read(out / ".pbc")
boxes = annotated(data / "txl_pbc")
random = np.random.default_rng(42)
detector = Predictor(Bundle.load("smear-detector"))
(out / "images").mkdir(exist_ok=True)
for part, share in (("train", 1.0), ("val", 0.5)):
    one = pbc.part(part)
    chosen: list[str] = []
    for code in WORDS:
        ids = one.cells.frame.filter(pl.col("label") == code)["image_id"].to_list()
        chosen += drawn(ids, round(share * most))
    some = one.of_images(Images(one.images.frame.filter(pl.col("image_id").is_in(chosen))))
    placed = relocated(some, predict_images(detector, some.images.rows()).cells)
    rows, by_hand, lost = [], 0, 0
    for cell in placed.cells.frame.iter_rows(named=True):
        image = placed.images.row(cell["image_id"])
        name = Path(cell["image_id"]).name
        edges = boxes.get(name, tuple(cell[edge] for edge in BOX_COLUMNS))
        if name in boxes:
            by_hand += 1
        elif edges[2] - edges[0] >= image["width_px"] - 1:
            lost += 1  # not found: it has no box
            continue
        shutil.copyfile(image["path"], out / "images" / name)
        rows.append([name, *map(round, edges), WORDS[cell["label"]]])
    rows.sort()
    file = out / ("train.csv" if part == "train" else "test-truth.csv")
    with file.open("w", newline="") as stream:
        csv.writer(stream).writerows([["NAME", "x1", "y1", "x2", "y2", "class"], *rows])
    if part == "val":
        with (out / "test.csv").open("w", newline="") as stream:
            csv.writer(stream).writerows([["trustii_id", "NAME"], *([7001 + i, row[0]] for i, row in enumerate(rows))])
    found = len(rows) - by_hand
    print(f"{file.name}: {len(rows)} boxes, {by_hand} TXL-PBC's, {found} the detector's; {lost} not found and left out")
PY
rm -rf "$OUT/.pbc"
