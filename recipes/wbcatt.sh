#!/usr/bin/env bash
# From PBC and WBCAtt to the bundle wbc-attributes.
#
#   recipes/wbcatt.sh DATA WORK
#
# DATA holds the folders pbc and wbcatt; WORK receives datasets, the run and the packed bundle. A stage whose result is
# there is not run again, so a stopped run goes on where it was.
set -euo pipefail
DATA=$(realpath "$1")
mkdir -p "$2"
WORK=$(realpath "$2")
RECIPES=$(realpath "$(dirname "$0")")
cd "$WORK"

have() { [ -e "$1" ]; }

have data/dataset.json || python "$RECIPES/wbcatt-data.py" "$DATA" data --split train
have val/dataset.json || python "$RECIPES/wbcatt-data.py" "$DATA" val --split val
have found/run.json || cytolens predict data --bundle smear-detector --format cells --out found || [ $? = 1 ]
have wbc-attributes/bundle/exam/expected.parquet || cytolens train classify --data data --boxes found \
  --recipe "$RECIPES/wbcatt.toml" ${THREADS:+--set "hardware.threads=$THREADS"} --out wbc-attributes --resume

# -- what it is worth: the validation part, which neither training nor tuning has seen --------------------------------------
have plain/alone/bundle.json || cytolens bundles pack smear-detector wbc-attributes --out plain/alone --without-weights
have found-val/run.json || cytolens predict val --bundle plain/alone --format cells --out found-val || [ $? = 1 ]
mkdir -p scores
for task in attributes classification; do
  more=()
  [ $task = attributes ] && more=(--class-only-from data)
  have scores/$task.json || cytolens evaluate --truth val --found found-val --task $task "${more[@]}" \
    --report scores/$task.html --json > scores/$task.json.part || [ $? = 1 ]
  have scores/$task.json || mv scores/$task.json.part scores/$task.json
done

cytolens bundles pack wbc-attributes --out shipped/wbc-attributes --without-weights \
  --description "Eleven attributes of mature white cells, and their kind." --card "$RECIPES/cards/wbc-attributes.md" \
  --scores "WBCAtt, validation part, cells as the detector finds them=scores/attributes.json" \
  --scores "the names given beside=scores/classification.json"
cytolens bundles pack smear-detector wbc-classifier shipped/wbc-attributes --out shipped/smear-attributes \
  --description "Finds the cells of a blood smear, names the white ones, and describes the mature ones." \
  --card "$RECIPES/cards/smear-attributes.md"
echo "shipped bundles: $WORK/shipped/wbc-attributes, $WORK/shipped/smear-attributes"
