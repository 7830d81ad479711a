#!/usr/bin/env bash
# From published data to the bundles that ship: smear-detector, wbc-classifier, smear.
#
#   recipes/shipped-bundles.sh DATA WORK
#
# DATA holds the folders bccd, txl_pbc and pbc; WORK receives datasets, runs and packed bundles. A stage whose result is
# there is not run again, so a stopped run goes on where it was.
set -euo pipefail
DATA=$(realpath "$1")
mkdir -p "$2"
WORK=$(realpath "$2")
RECIPES=$(realpath "$(dirname "$0")")
cd "$WORK"

have() { [ -e "$1" ]; }

# -- data ---------------------------------------------------------------------------------------------------------------
# BCCD does not box every red cell, so it is complete for white cells and platelets only. The 575 px images of TXL-PBC
# come from another source under unclear terms: they are left out of training, and serve as an unseen domain.
have bccd/dataset.json || cytolens import "$DATA/bccd" --format voc --out bccd --name bccd \
  --complete-for WBC,Platelets --licence "BCCD: MIT" || [ $? = 1 ]
have txl/dataset.json || cytolens import "$DATA/txl_pbc" --format yolo --out txl --name txl-pbc \
  --where "width_px < 500" --licence "TXL-PBC boxes: MIT, PBC images: CC BY 4.0" || [ $? = 1 ]
have pbc/dataset.json || cytolens import "$DATA/pbc" --format image_folder --out pbc --name pbc \
  --licence "PBC: CC BY 4.0" || [ $? = 1 ]
have rendered/dataset.json || python - <<'PY'
from dataclasses import replace

from cytolens.prepare.synthetic import SyntheticSettings, write_synthetic

# Erythroblasts and lysed cells stay out: the detector's labels have no word for them.
mix = {name: share for name, share in SyntheticSettings().mix.items() if name not in ("erythroblast", "lysed cell")}
dataset = write_synthetic("rendered", 120, 5000, SyntheticSettings(mix=mix), name="rendered", jpeg_quality=95)
replace(dataset, images=dataset.images.with_columns(split="train"), licence="rendered by Cytolens").write("rendered")
PY

# -- detector: from COCO under strong augmentation, then closer to the fields as they are ---------------------------------
have runs/smear-detector-first/bundle/exam/expected.parquet || cytolens train detect \
  --data bccd --data txl --data rendered --recipe "$RECIPES/smear-detector-first.toml" \
  ${DETECTOR_WEIGHTS:+--set "weights=$DETECTOR_WEIGHTS"} --out runs/smear-detector-first --resume
have runs/smear-detector/bundle/exam/expected.parquet || cytolens train detect \
  --data bccd --data txl --data rendered --recipe "$RECIPES/smear-detector.toml" \
  --set "weights=runs/smear-detector-first/weights.safetensors" --out runs/smear-detector --resume

# -- classifier: on crops where the detector finds the cells ------------------------------------------------------------
have found/pbc/run.json || cytolens predict pbc --bundle runs/smear-detector --format cells --out found/pbc || [ $? = 1 ]
have runs/wbc-classifier-first/bundle/exam/expected.parquet || cytolens train classify \
  --data pbc --boxes found/pbc --recipe "$RECIPES/wbc-classifier-first.toml" --out runs/wbc-classifier-first --resume
have runs/wbc-classifier/bundle/exam/expected.parquet || cytolens train classify \
  --data pbc --boxes found/pbc --recipe "$RECIPES/wbc-classifier.toml" \
  --set "weights=runs/wbc-classifier-first/weights.safetensors" --out runs/wbc-classifier --resume

# -- what they are worth: scores on parts that no training and no threshold has seen --------------------------------------
have bccd-all/dataset.json || cytolens import "$DATA/bccd" --format voc --out bccd-all --name bccd || [ $? = 1 ]
have raabin/dataset.json || cytolens import "$DATA/txl_pbc" --format yolo --out raabin --name raabin \
  --where "width_px = 575" || [ $? = 1 ]
have pbc-val/dataset.json || cytolens import "$DATA/pbc" --format image_folder --split val --out pbc-val --name pbc || [ $? = 1 ]
have bccd-subtypes/dataset.json || cytolens import "$DATA/bccd/wbc_subtypes.csv" --format csv_boxes \
  --images "$DATA/bccd/JPEGImages" --out bccd-subtypes || [ $? = 1 ]

# found BUNDLE DATASET: its findings there.
found() {
  have "found/$(basename "$1")/$2/run.json" || cytolens predict "$2" --bundle "$1" --format cells \
    --out "found/$(basename "$1")/$2" || [ $? = 1 ]
}
# scored NAME BUNDLE DATASET TASK [OPTION…]: the figures as JSON, and the report.
scored() {
  local name=$1 bundle=$2 data=$3 task=$4
  shift 4
  found "$bundle" "$data"
  mkdir -p scores
  have "scores/$name.json" || cytolens evaluate --truth "$data" --found "found/$(basename "$bundle")/$data" \
    --task "$task" --missing ok --report "scores/$name.html" --json "$@" > "scores/$name.json.part" || [ $? = 1 ]
  have "scores/$name.json" || mv "scores/$name.json.part" "scores/$name.json"
}
EIGHT="neutrophil,eosinophil,basophil,lymphocyte,monocyte,immature granulocyte,erythroblast,platelet"

have plain/smear/bundle.json || {
  cytolens bundles pack runs/smear-detector --out plain/smear-detector --without-weights
  cytolens bundles pack runs/wbc-classifier --out plain/wbc-classifier --without-weights
  cytolens bundles pack plain/smear-detector plain/wbc-classifier --out plain/smear
}
scored detector-bccd plain/smear-detector bccd-all detection --split val
scored detector-txl plain/smear-detector txl detection --split val
scored detector-raabin plain/smear-detector raabin detection --split val
scored classifier-pbc plain/smear pbc-val classification
scored classifier-pbc-coarse plain/smear pbc-val classification --level "$EIGHT"
scored classifier-whole plain/wbc-classifier pbc-val classification
scored pipeline-subtypes plain/smear bccd-subtypes classification

# -- the bundles to give away -------------------------------------------------------------------------------------------
cytolens bundles pack runs/smear-detector --out shipped/smear-detector --without-weights \
  --description "White cells, red cells and platelets in fields of stained blood." \
  --card "$RECIPES/cards/smear-detector.md" \
  --scores "BCCD, validation part=scores/detector-bccd.json" \
  --scores "TXL-PBC, PBC half, validation part=scores/detector-txl.json" \
  --scores "Raabin half of TXL-PBC, validation part, not seen in training=scores/detector-raabin.json"
cytolens bundles pack runs/wbc-classifier --out shipped/wbc-classifier --without-weights \
  --description "Eleven kinds of blood cells and their parents." --card "$RECIPES/cards/wbc-classifier.md" \
  --scores "PBC, validation part, cells as the detector finds them=scores/classifier-pbc.json" \
  --scores "the same in eight kinds=scores/classifier-pbc-coarse.json" \
  --scores "the same, whole images=scores/classifier-whole.json"
cytolens bundles pack shipped/smear-detector shipped/wbc-classifier --out shipped/smear \
  --description "Finds the cells of a blood smear and names the white ones." --card "$RECIPES/cards/smear.md" \
  --scores "BCCD's white cells, a laboratory not seen by the classifier=scores/pipeline-subtypes.json"
echo "shipped bundles: $WORK/shipped"
