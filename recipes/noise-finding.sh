#!/usr/bin/env bash
# How well wrong annotations are found: 2 % of PBC's labels are changed and 2 % of BCCD's boxes moved (seeded), models that
# never saw the clean annotations are cross-validated on the result, and `cytolens noise` ranks what they object to.
#
#   recipes/noise-finding.sh DATA WORK
#
# DATA holds the folders bccd and pbc; WORK receives everything. A stage whose result is there is not run again.
set -euo pipefail
DATA=$(realpath "$1")
mkdir -p "$2"
WORK=$(realpath "$2")
cd "$WORK"
FOLDS="0 1 2"

have() { [ -e "$1" ]; }
# ended COMMAND…: one that may end with 1, for it found something.
ended() { "$@" >/dev/null || [ $? = 1 ]; }

# -- the data, with duplicates in one fold, and spoilt --------------------------------------------------------------------
have pbc/dataset.json || ended cytolens import "$DATA/pbc" --format image_folder --split train --out pbc --name pbc
have pbc-grouped/dataset.json || ended cytolens duplicates pbc --out pbc-grouped
have pbc-folds/dataset.json || ended cytolens split pbc-grouped --folds 3 --seed 7 --out pbc-folds
have found/detector/run.json || ended cytolens predict pbc --bundle smear-detector --format cells --out found/detector
have bccd/dataset.json || ended cytolens import "$DATA/bccd" --format voc --split train --out bccd --name bccd \
  --complete-for WBC,Platelets
have bccd-folds/dataset.json || ended cytolens split bccd --folds 3 --seed 7 --out bccd-folds
have bccd-spoilt/dataset.json || python - <<'PY'
from dataclasses import replace

import numpy as np
import polars as pl

from cytolens import Dataset
from cytolens.cells import Cells
from cytolens.evaluate import read_found
from cytolens.prepare.crops import relocated

# 2 % of the cells whose label is a kind of its own get another such label, each with the same chance.
clean = relocated(Dataset.read("pbc-folds"), read_found("found/detector")[0])
leaves, random = clean.labels.leaves, np.random.default_rng(2026)
names = clean.cells.label_names()
eligible = [row for row, name in enumerate(names) if name in leaves]
for row in random.choice(eligible, round(0.02 * len(eligible)), replace=False):
    names[row] = str(random.choice([leaf for leaf in leaves if leaf != names[row]]))
frame = clean.cells.frame.with_columns(pl.Series("label", names, clean.cells.frame.schema["label"]))
replace(clean, cells=Cells(frame, clean.labels)).write("pbc-spoilt")

# 2 % of the boxes move by a quarter of their size in both directions.
clean = Dataset.read("bccd-folds")
boxes, random = clean.cells.boxes().copy(), np.random.default_rng(2026)
moved = random.choice(len(boxes), round(0.02 * len(boxes)), replace=False)
size = boxes[moved, 2:] - boxes[moved, :2]
boxes[moved] += np.tile(0.25 * size * random.choice([-1, 1], size.shape), 2).astype(np.float32)
replace(clean, cells=clean.cells.with_boxes(boxes)).write("bccd-spoilt")
PY

# -- cross-validation ----------------------------------------------------------------------------------------------------
for fold in $FOLDS; do
  have "runs/pbc-$fold/bundle/exam/expected.parquet" || cytolens train classify --data pbc-spoilt --out "runs/pbc-$fold" \
    --resume --set weights=efficientnet-lite0-imagenet --set "fold=$fold" --set split= --set input.side_px=128 \
    --set optimise.epochs=7 --set optimise.closing_epochs=0 --set optimise.average_decay=0.99
  have "found/pbc-$fold/run.json" || ended cytolens predict pbc-spoilt --where "fold = $fold" --boxes pbc-spoilt \
    --bundle "runs/pbc-$fold" --format cells --out "found/pbc-$fold"
done
for fold in $FOLDS; do
  have "runs/bccd-$fold/bundle/exam/expected.parquet" || cytolens train detect --data bccd-spoilt --out "runs/bccd-$fold" \
    --resume --set "weights=${DETECTOR_WEIGHTS:-yolox-nano-coco}" --set "fold=$fold" --set split= --set augment.mosaic=0 \
    --set optimise.epochs=25 --set optimise.closing_epochs=4 --set optimise.average_decay=0.99 \
    --set optimise.average_ramp=50 --set optimise.learning_rate=0.004 --set believed_from=0.3 --set believed_cost=0.5
  have "found/bccd-$fold/run.json" || ended cytolens predict bccd-spoilt --where "fold = $fold" \
    --bundle "runs/bccd-$fold" --format cells --out "found/bccd-$fold"
done

# -- what is found ---------------------------------------------------------------------------------------------------------
ended cytolens noise pbc-spoilt $(for fold in $FOLDS; do echo --found "found/pbc-$fold"; done) --out doubts-pbc
ended cytolens noise bccd-spoilt $(for fold in $FOLDS; do echo --found "found/bccd-$fold"; done) --out doubts-bccd
python - <<'PY'
import polars as pl

from cytolens import Dataset

clean, spoilt = Dataset.read("pbc-folds"), Dataset.read("pbc-spoilt")
before = dict(zip(clean.cells.frame["cell_id"].to_list(), clean.cells.label_names(), strict=True))
after = dict(zip(spoilt.cells.frame["cell_id"].to_list(), spoilt.cells.label_names(), strict=True))
flipped = {cell for cell, name in after.items() if before[cell] != name}
parents = {name: next(iter(spoilt.labels.ancestors(name)), None) for name in spoilt.labels.names}
siblings = {c for c in flipped if parents[before[c]] is not None and parents[before[c]] == parents[after[c]]}
ranking = pl.read_csv("doubts-pbc/doubts.csv").filter(pl.col("kind") == "label")["cell_id"].to_list()
for share in (0.02, 0.04, 0.08):
    top = set(ranking[: round(share * len(after))])
    told = [f"{len(part & top)} of {len(part)} ({len(part & top) / len(part):.3f})" for part in
            (flipped, flipped - siblings, siblings)]
    print(f"PBC, top {share:.0%}: flips {told[0]}; between other kinds {told[1]}; between siblings {told[2]}")

clean, spoilt = Dataset.read("bccd-folds"), Dataset.read("bccd-spoilt")
shifted = clean.cells.frame.select("cell_id", "x_min").join(
    spoilt.cells.frame.select("cell_id", "label", moved="x_min"), on="cell_id"
).filter((pl.col("x_min") - pl.col("moved")).abs() > 0.01)
doubts = pl.read_csv("doubts-bccd/doubts.csv")
print("BCCD doubts:", dict(doubts.group_by("kind").len().sort("kind").iter_rows()), f"of {len(spoilt.cells)} boxes")
own = doubts.filter(pl.col("kind").is_in(["box", "not found", "label"])).sort("suspicion", descending=True)
wanted = set(shifted["cell_id"])
for label in (None, "WBC", "RBC", "Platelets"):
    truth = wanted if label is None else set(shifted.filter(pl.col("label") == label)["cell_id"])
    if not truth:
        continue
    for kinds in (["box"], ["box", "not found", "label"]):
        rows = own.filter(pl.col("kind").is_in(kinds))
        rows = rows if label is None else rows.filter(pl.col("label") == label)
        found = set(rows["cell_id"])
        first = set(rows["cell_id"].head(2 * len(truth)))
        print(
            f"BCCD, {label or 'all'}, {' + '.join(kinds)}: recall {len(found & truth) / len(truth):.3f} "
            f"({len(found & truth)} of {len(truth)}), precision {len(found & truth) / max(1, len(found)):.3f}; "
            f"first {len(first)}: recall {len(first & truth) / len(truth):.3f}, "
            f"precision {len(first & truth) / max(1, len(first)):.3f}"
        )
PY
