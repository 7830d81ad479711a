#!/usr/bin/env bash
# What each choice of the classifier's recipe is worth: short trainings that differ in one thing each, scored at home (PBC
# val) and in a laboratory never trained on (BCCD's subtype boxes, through the whole pipeline).
#
#   recipes/ablation.sh DATA WORK [VARIANT…]
#
# WORK is the folder that shipped-bundles.sh filled. Figures go to WORK/ablation/<variant>.txt; a variant that has one is
# not run again.
set -euo pipefail
DATA=$(realpath "$1")
WORK=$(realpath "$2")
RECIPES=$(realpath "$(dirname "$0")")
shift 2
cd "$WORK"
mkdir -p ablation

declare -A CHANGE=(
  [base]=""
  [from-scratch]="weights=none"
  [no-field-normalisation]="input.stain.background=false"
  [density-2]="input.stain.density=2.0"
  [no-stain-augmentation]="augment.colour.stain=0 augment.colour.weak=0 augment.colour.gamma=0 augment.colour.white_balance=0"
  [strong-stain-augmentation]="augment.colour.stain=1.6 augment.colour.weakest=0.2 augment.colour.white_balance=1.5"
  [no-blur-noise-jpeg]="augment.colour.blur=0 augment.colour.resample=0 augment.colour.sharpen=0 augment.colour.noise=0 augment.colour.jpeg=0"
  [no-scale]="augment.scale=[1.0,1.0] augment.aspect=0 augment.translate=0 whole_share=0"
  [group-norm]="norm=group"
  [mixup]="mixup=0.4"
  [rendered-cells]=""
  [annotated-images]="whole_share=0"
)
EPOCHS="--set optimise.epochs=2 --set optimise.average_decay=0.99"

have() { [ -e "$1" ]; }
have pbc-val/dataset.json || cytolens import "$DATA/pbc" --format image_folder --split val --out pbc-val >/dev/null || [ $? = 1 ]
have bccd-subtypes/dataset.json || cytolens import "$DATA/bccd/wbc_subtypes.csv" --format csv_boxes \
  --images "$DATA/bccd/JPEGImages" --out bccd-subtypes >/dev/null || [ $? = 1 ]

for name in "${@:-${!CHANGE[@]}}"; do
  have "ablation/$name.txt" && continue
  sets=()
  for change in ${CHANGE[$name]}; do
    [ "$change" = "weights=none" ] && continue
    sets+=(--set "$change")
  done
  data=(--data pbc --boxes found/pbc)
  recipe="$RECIPES/wbc-classifier-first.toml"
  [ "$name" = rendered-cells ] && data+=(--data rendered-cells)
  [ "$name" = annotated-images ] && data=(--data pbc)
  [ "$name" = from-scratch ] && grep -v '^weights' "$recipe" >ablation/from-scratch.toml && recipe=ablation/from-scratch.toml
  cytolens train classify "${data[@]}" --recipe "$recipe" $EPOCHS "${sets[@]}" --out "ablation/run-$name" --resume
  rm -rf ablation/packed
  cytolens bundles pack "runs/smear-detector" "ablation/run-$name" --out ablation/packed/smear >/dev/null
  cytolens predict pbc-val --bundle ablation/packed/smear --format cells --out ablation/found-home >/dev/null || true
  cytolens predict bccd-subtypes --bundle ablation/packed/smear --format cells --out ablation/found-away >/dev/null || true
  python - "$name" <<'PY' | tee "ablation/$name.txt"
import sys
from cytolens import Dataset, evaluate
from cytolens.evaluate import EvaluateSettings, read_found

quick = EvaluateSettings(bootstrap=200)
home, away = Dataset.read("pbc-val"), Dataset.read("bccd-subtypes")
(found_home, images_home), (found_away, images_away) = read_found("ablation/found-home"), read_found("ablation/found-away")
coarse = quick.model_copy(update={"level": ("NEUTROPHIL", "EO", "BA", "LY", "MO", "IG", "ERB", "PLATELET")})
fine = evaluate(home, found_home, found_images=images_home, task="classification", settings=quick).figures
wide = evaluate(home, found_home, found_images=images_home, task="classification", settings=coarse).figures
there = evaluate(away, found_away, found_images=images_away, task="classification", settings=quick).figures
low, high = there["accuracy_interval"]
print(
    f"{sys.argv[1]:28} home {fine['accuracy']:.4f} / {fine['macro_f1']:.4f}, 8 classes {wide['accuracy']:.4f}; "
    f"away {there['accuracy']:.3f} ({low:.3f} to {high:.3f})"
)
PY
done
