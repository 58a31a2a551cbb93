# Sourced by small.sh, study.sh and ablation.sh: the datasets whose files lie in $DATASETS_DIR, then the demo.
if [ ! -d "${DATASETS_DIR:-/}" ]; then
    echo "error: DATASETS_DIR=$DATASETS_DIR is no folder; give its absolute path" >&2
    exit 2
fi

datasets() { # prints one line each: name and flags
    local folder=${DATASETS_DIR:-} name file flags
    while read -r name file flags; do
        [ ! -f "$folder/$file" ] || echo "$name --dataset-path $(printf %q "$folder/$file") $flags"
    done <<'LINES'
halfcheetah halfcheetah-medium-expert-sb3-v0.hdf5 --env-id halfcheetah-medium-expert-v2 --final-eval-episodes 50
cube-single cube-single-play-v0.npz --env-id cube-single-play-singletask-v0 --final-eval-episodes 50
scene scene-play-v0.npz --env-id scene-play-singletask-v0 --final-eval-episodes 50
square square_v15_scripted.hdf5 --final-eval-episodes 50
hopper hopper-medium-expert-sb3-v0.hdf5 --env-id hopper-medium-expert-v2 --final-eval-episodes 50
lift-20 lift_v15_scripted.hdf5 --dataset-filter valid --final-eval-episodes 50
door door-human-v0.hdf5 --env-id door-human-v0 --final-eval-episodes 50
lift-200 lift_v15_scripted.hdf5 --final-eval-episodes 50
LINES
    echo "demo"
}
