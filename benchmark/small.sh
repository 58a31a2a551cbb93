#!/usr/bin/env bash
# SAQ beside the same algorithms on continuous actions, minutes a run: on the demo, and on the datasets whose files lie
# in $DATASETS_DIR.
#
#   bash benchmark/small.sh                                    # the demo
#   JOBS=2 DATASETS_DIR=~/datasets bash benchmark/small.sh     # also halfcheetah, OGBench, Square, hopper, Lift, door
#
# Both sides get the same data, rewards, batches, widths and gradient steps. IQL and CQL train policy and Q at once, so
# they take the steps of both phases of SAQ. The VQ-VAE's steps come on top of SAQ's. Every argument is the default of its
# file, with one exception: CQL samples 4 actions instead of CORL's 10, which halves its time.
#
# SEEDS, VQVAE_STEPS, BC_STEPS, STEPS, JOBS, SLURM=1, ...: see docs/benchmark.md. 72 jobs a seed with all datasets.
set -euo pipefail
cd "$(dirname "$0")/.."
source benchmark/datasets.sh

for seed in ${SEEDS:-1 2 3}; do
    datasets | while read -r name flags; do
        flags="--seed $seed --eval-every 5000 $flags"
        codes="--vqvae-path {small/$name/saq_bc/$seed}/vqvae.pt"
        bc=${BC_STEPS:+--bc-steps $BC_STEPS} rl=${STEPS:+--rl-steps $STEPS}
        both=${STEPS:+--rl-steps $((${BC_STEPS:-STEPS} + STEPS))}
        job() { # job FOLDER SCRIPT FLAGS...
            local folder=small/$name/$1/$seed script=$2
            shift 2
            echo "$folder python $script $flags $*"
        }
        job saq_bc saq_bc.py "${VQVAE_STEPS:+--vqvae-steps $VQVAE_STEPS} $bc"
        job bc benchmark/baselines/bc.py "$bc"
        for algorithm in iql cql brac; do
            job saq_$algorithm saq_$algorithm.py "$codes $bc $rl"
        done
        job iql benchmark/baselines/iql.py "$both"
        job cql benchmark/baselines/cql.py "$both --n-actions 4"
        job brac benchmark/baselines/brac.py "$bc $rl"
    done
done | python benchmark/launch.py
