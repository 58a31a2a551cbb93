#!/usr/bin/env bash
# Runs every script for a few steps, on one dataset of random actions per script, or on the demo. Of the paper's tables
# locomotion runs each algorithm once, the others SAQ-BC, SAQ-IQL and IQL; tests parse the commands of all.
# Takes minutes on two cores. Exits with 1 if a job fails.
#
#     benchmark/smoke.sh           # in a temporary folder, which stays if a job fails
#     benchmark/smoke.sh FOLDER    # in this one; a second call repeats only what failed
set -euo pipefail
cd "$(dirname "$0")/.."

folder=${1:-$(mktemp -d)}
if [ ! -d "$folder/data" ]; then
    rm -rf "$folder/part"
    python benchmark/smoke_data.py "$folder/part"
    mv "$folder/part" "$folder/data"
fi
export D4RL_DATASET_DIR=$folder/data/d4rl MINARI_DATASETS_PATH=$folder/data/minari
export ROBOMIMIC_DATASET_DIR=$folder/data/robomimic RUNS_DIR=$folder/runs
unset DATASETS_DIR # the demo alone
export JOBS=${JOBS:-2} SEEDS=1 VQVAE_STEPS=6 BC_STEPS=6 STEPS=6
export EXTRA="--hidden-dim 16 --batch-size 32 --final-eval-episodes 1 --device cpu"
export ONLY='/iql/|saq_bc,codebook-size=64/|saq_iql,(codebook-size=64,)?expectile=0.7,temperature=2/'

status=0
try() { # try SCRIPT DATASET
    echo "== benchmark/$1.sh"
    DATASETS=$2 "benchmark/$1.sh" || status=1
}
ONLY='codebook-size=8/' try ablation ""
ONLY=. try small ""
ONLY=paper try study ""
ONLY='/(bc|iql|brac|saq_brac|cql,alpha=5)/|_bc,codebook-size=64/|_cql,alpha=20/|_iql,expectile=0.7,temperature=2/' \
    try locomotion halfcheetah-expert-v2
try adroit door-human-v0
try antmaze D4RL/antmaze/medium-diverse-v1
try kitchen D4RL/kitchen/mixed-v2
if [ -d "$ROBOMIMIC_DATASET_DIR/v1.5" ]; then
    try robomimic lift-ph
else
    echo "== benchmark/robomimic.sh skipped: it needs pip install --no-deps -r requirements-robosuite.txt"
fi
if [ $status = 0 ]; then
    echo "every job ran"
    [ $# -gt 0 ] || rm -rf "$folder"
else
    echo "jobs failed, see above and $folder"
fi
exit $status
