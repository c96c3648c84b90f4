#!/usr/bin/env bash
# make results: a world that nothing was trained or tuned on -> scores of trained weights, what image motion tells
# -> docs/results.md. Nothing is trained. Settings come from the Makefile's variables.
set -euo pipefail
cd "$(dirname "$0")/.."
data=${RESULTS_DATA:-data/nuscenes-results} sweeps=${RESULTS_SWEEPS:-data/nuscenes-results-sweeps}
seed=${RESULTS_SEED:-20770} scenes=${RESULTS_SCENES:-16} size=${RESULTS_IMAGE_SIZE:-448x252}
started=$SECONDS
step() { printf '\n[%s] %s\n' "$1" "$2"; }

made() { # folder, arguments of create_synthetic: makes the set unless it was made by the same
    if [ "$(cat "$1/.created-with" 2>/dev/null)" != "${*:2}" ]; then
        python tools/create_synthetic.py --root "$1" "${@:2}"
        python tools/create_data.py nuscenes --root "$1" --version v1.0-mini
        printf '%s' "${*:2}" >"$1/.created-with"
    fi
}

step 1/3 "scenes of seed $seed"
made "$data" --train-scenes 0 --val-scenes "$scenes" --seed "$seed" --image-size "$size"
made "$sweeps" --train-scenes 0 --val-scenes "${RESULTS_SWEEP_SCENES:-8}" --frames 10 --sweeps --seed "$seed" \
    --image-size "$size"

step 2/3 "what image motion tells"
python tools/motion_oracle.py --root "$sweeps" --json docs/benchmarks/results/motion.json

step 3/3 "trained weights"
# each: NAME=CONFIG:CHECKPOINT
for model in ${RESULTS_MODELS:-demo=configs/demo.py:work_dirs/demo}; do
    name=${model%%=*} files=${model#*=}
    python tools/results.py "${files%%:*}" "${files#*:}" --name "$name" --data-root "$data"
done
printf '\nmade in %s s: docs/results.md\n' $((SECONDS - started))
