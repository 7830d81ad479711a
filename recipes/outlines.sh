#!/usr/bin/env bash
# From published data to the bundles that outline: wbc-outline, smear-outlines (with the shipped detector and classifier)
# and nuclei, and what each is worth.
#
#   recipes/outlines.sh DATA WORK
#
# DATA holds bccd (with its masks) and dsb2018. A stage whose result is there is not run again.
set -euo pipefail
DATA=$(realpath "$1")
mkdir -p "$2"
WORK=$(realpath "$2")
RECIPES=$(realpath "$(dirname "$0")")
SHIPPED=$(python -c "from cytolens.bundle import _SHIPPED; print(_SHIPPED)")
cd "$WORK"

have() { [ -e "$1" ]; }

# -- white cells and their nuclei ---------------------------------------------------------------------------------------
have outlines/dataset.json || python "$RECIPES/bccd-outlines.py" "$DATA" outlines
have runs/wbc-outline/bundle/exam/expected.parquet || cytolens train outline --data outlines \
  --recipe "$RECIPES/wbc-outline.toml" --out runs/wbc-outline --resume
mkdir -p plain scores shipped
have plain/smear-outlines/bundle.json || {
  cytolens bundles pack runs/wbc-outline --out plain/wbc-outline --without-weights
  cp -r "$SHIPPED/smear-detector" "$SHIPPED/wbc-classifier" plain/
  cytolens bundles pack plain/smear-detector plain/wbc-classifier plain/wbc-outline --out plain/smear-outlines
}
have found/white/run.json || cytolens predict outlines --where "split = 'val'" --bundle plain/smear-outlines \
  --format cells,overlay,morphometry --out found/white
have scores/white.json || {
  cytolens evaluate --truth outlines --split val --found found/white --task segmentation \
    --report scores/white.html --json > scores/white.json.part || [ $? = 1 ]
  mv scores/white.json.part scores/white.json
}

# -- nuclei -------------------------------------------------------------------------------------------------------------
# The set names no plates: images of one kind, size and colour stay on one side.
have dsb/dataset.json || cytolens import "$DATA/dsb2018" --format rle_csv --out dsb --name dsb2018 \
  --licence "CC0 1.0" || [ $? = 1 ]
have dsb-parts/dataset.json || cytolens split dsb --group-by look --shares train=0.8,val=0.2 --seed 1 --out dsb-parts
have runs/nuclei-first/bundle/exam/expected.parquet || cytolens train outline --data dsb-parts \
  --recipe "$RECIPES/nuclei-first.toml" --out runs/nuclei-first --resume
have runs/nuclei/bundle/exam/expected.parquet || cytolens train outline --data dsb-parts \
  --recipe "$RECIPES/nuclei.toml" --set "weights=runs/nuclei-first/weights.safetensors" --out runs/nuclei --resume
have found/nuclei/run.json || cytolens predict dsb-parts --where "split = 'val'" --bundle runs/nuclei \
  --format cells,overlay --out found/nuclei
have scores/nuclei.json || {
  cytolens evaluate --truth dsb-parts --split val --found found/nuclei --task segmentation \
    --report scores/nuclei.html --json > scores/nuclei.json.part || [ $? = 1 ]
  mv scores/nuclei.json.part scores/nuclei.json
}

# -- the bundles to give away -------------------------------------------------------------------------------------------
cytolens bundles pack runs/wbc-outline --out shipped/wbc-outline --without-weights \
  --description "The outlines of a white cell and of its nucleus, in the box of the cell." \
  --card "$RECIPES/cards/wbc-outline.md" \
  --licence "BCCD images and boxes: MIT; masks: MIT" \
  --scores "BCCD, validation part, in the boxes of the shipped detector=scores/white.json"
cp -r "$SHIPPED/smear-detector" "$SHIPPED/wbc-classifier" shipped/
cytolens bundles pack shipped/smear-detector shipped/wbc-classifier shipped/wbc-outline --out shipped/smear-outlines \
  --description "Finds and names the cells of a blood smear, and outlines the white ones and their nuclei." \
  --card "$RECIPES/cards/smear-outlines.md"
cytolens bundles pack runs/nuclei --out shipped/nuclei --without-weights \
  --description "The outlines of nuclei in fluorescence, histology and bright-field images." \
  --card "$RECIPES/cards/nuclei.md" --scores "DSB2018, validation part, grouped by look=scores/nuclei.json"
echo "bundles: $WORK/shipped"
