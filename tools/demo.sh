#!/usr/bin/env bash
# make demo: the shipped model on scenes made now; then synthetic data -> index -> train -> score -> pictures, and both
# models beside each other. Settings come from the Makefile's variables.
set -euo pipefail
cd "$(dirname "$0")/.."
data=${DEMO_DATA:-data/nuscenes-synthetic} out=${DEMO_OUT:-work_dirs/demo} config=${DEMO_CONFIG:-configs/demo.py}
version=v1.0-mini fresh="$out/shipped/data" seed=${SEED:-0}
started=$SECONDS
step() { printf '\n[%s] %s\n' "$1" "$2"; }
shipped() { # TOOL ROOT OUT ...: run a tool on the shipped model and the scenes below ROOT
    python "tools/$1.py" demo --out "$3" "${@:4}" --cfg-options {test_dataloader.dataset,test_evaluator.0}.data_root="$2"
}

step 1/7 "the shipped model, on scenes that are made now"
have_weights=$(python -c 'import bevstack.weights; print(*bevstack.weights.shipped())')
if [[ " $have_weights " == *" demo "* ]]; then
    seed=$(python -c "import bevstack.weights; print(bevstack.weights.unseen_seed('demo', $seed))")
    # shellcheck disable=SC2086 - two words or none
    python tools/create_synthetic.py --like demo --root "$fresh" --version "$version" --train-scenes 0 \
        --val-scenes "${DEMO_FRESH_SCENES:-3}" --frames "${DEMO_FRESH_FRAMES:-10}" ${SEED:+--seed $SEED}
    python tools/create_data.py nuscenes --root "$fresh" --version "$version"
    shipped visualize "$fresh" "$out/shipped/vis" --format both
    shipped test "$fresh" "$out/shipped"
    echo "look at $out/shipped/vis/: a picture a moment, a GIF and an MP4 a scene ($((SECONDS - started)) s so far)"
else
    echo "no weights come with this version"
fi

step 2/7 "synthetic data in $data"
arguments="--train-scenes ${TRAIN_SCENES:-100} --val-scenes ${VAL_SCENES:-16} --seed $seed ${SYNTHETIC_ARGUMENTS:-}"
before_data=$SECONDS
if [ "$(cat "$data/.created-with" 2>/dev/null)" = "$arguments" ]; then
    echo "already there: $arguments"
else
    # shellcheck disable=SC2086 - the arguments are meant to be split
    python tools/create_synthetic.py --root "$data" --version "$version" $arguments
    printf '%s' "$arguments" >"$data/.created-with"
fi

step 3/7 "index"
python tools/create_data.py nuscenes --root "$data" --version "$version"

after_data=$SECONDS
step 4/7 "training from nothing, $config"
python tools/train.py "$config" --work-dir "$out" --cfg-options "randomness.seed=$seed"

step 5/7 "scoring unseen scenes"
python tools/test.py "$config" "$(cat "$out/last_checkpoint")" --out "$out"
after_test=$SECONDS

step 6/7 "pictures"
python tools/visualize.py "$config" "$(cat "$out/last_checkpoint")" --out "$out/vis" --max-samples "${DEMO_PICTURES:-40}"

step 7/7 "the shipped model on the same scenes"
if [[ " $have_weights " == *" demo "* ]]; then
    shipped test "$data" "$out/shipped/same"
else
    echo "no weights come with this version"
fi
printf '\ndata took %s s, training and scoring %s s\n' $((after_data - before_data)) $((after_test - after_data))
python tools/compare_metrics.py "from nothing=$out/metrics.json" "shipped=$out/shipped/same/metrics.json"
printf '  metrics   %s\n  results   %s\n  pictures  %s\n' "$out/metrics.json" "$out/results_nusc.json" "$out/vis/"
