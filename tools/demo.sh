#!/usr/bin/env bash
# make demo: synthetic data -> index -> train -> score -> pictures. Settings come from the Makefile's variables.
set -euo pipefail
cd "$(dirname "$0")/.."
data=${DEMO_DATA:-data/nuscenes-synthetic} out=${DEMO_OUT:-work_dirs/demo} config=${DEMO_CONFIG:-configs/demo.py}
version=v1.0-mini
arguments="--train-scenes ${TRAIN_SCENES:-100} --val-scenes ${VAL_SCENES:-16} --seed ${SEED:-0} ${SYNTHETIC_ARGUMENTS:-}"
started=$SECONDS
step() { printf '\n[%s] %s\n' "$1" "$2"; }

step 1/5 "synthetic data in $data"
if [ "$(cat "$data/.created-with" 2>/dev/null)" = "$arguments" ]; then
    echo "already there: $arguments"
else
    # shellcheck disable=SC2086 - the arguments are meant to be split
    python tools/create_synthetic.py --root "$data" --version "$version" $arguments
    printf '%s' "$arguments" >"$data/.created-with"
fi

step 2/5 "index"
python tools/create_data.py nuscenes --root "$data" --version "$version"

after_data=$SECONDS
step 3/5 "training, $config"
python tools/train.py "$config" --work-dir "$out" --cfg-options "randomness.seed=${SEED:-0}"

step 4/5 "scoring unseen scenes"
python tools/test.py "$config" "$(cat "$out/last_checkpoint")" --out "$out"
after_test=$SECONDS

step 5/5 "pictures"
python tools/visualize.py "$config" "$(cat "$out/last_checkpoint")" --out "$out/vis" --max-samples "${DEMO_PICTURES:-40}"

printf '\n'
python - "$out" $((after_data - started)) $((after_test - after_data)) <<'SUMMARY'
import json
import sys
from pathlib import Path

out, data_seconds, learn_seconds = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
metrics = json.loads((out / "metrics.json").read_text())
print(f"data took {data_seconds} s, training and scoring {learn_seconds} s. On scenes the model never saw:")
for key in ("NDS", "mAP", "mAP_present", "AP/car", "iou/drivable_area", "iou/vehicle", "train_seconds"):
    if key in metrics:
        print(f"  {key:<18} {metrics[key]:.3f}")
print(f"  metrics   {out / 'metrics.json'}\n  results   {out / 'results_nusc.json'}\n  pictures  {out / 'vis'}/")
SUMMARY
