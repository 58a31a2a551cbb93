# Sourced by small.sh and study.sh: the datasets, and a budget of minutes on each.
datasets() { # one line each: name, steps of the VQ-VAE, of policies, of Q, and flags
    local folder=${DATASETS_DIR:-}
    local hopper=$folder/hopper-medium-expert-sb3-v0.hdf5 lift=$folder/lift_scripted_low_dim.hdf5
    [ ! -f "$hopper" ] ||
        echo "hopper 15000 15000 10000 --env-id hopper-medium-expert-v2 --dataset-path $hopper --final-eval-episodes 50"
    [ ! -f "$lift" ] || echo "lift-20 3000 3000 3000 --dataset-path $lift --dataset-filter valid --final-eval-episodes 25"
    [ ! -f "$folder/door-human-v0.hdf5" ] ||
        echo "door 3000 3000 3000 --env-id door-human-v0 --dataset-path $folder/door-human-v0.hdf5 --final-eval-episodes 50"
    [ ! -f "$lift" ] || echo "lift-200 3000 3000 3000 --dataset-path $lift --final-eval-episodes 25"
    echo "demo 3000 3000 3000"
}
