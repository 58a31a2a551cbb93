#!/usr/bin/env bash
# The paper's table 2, except the columns quoted from robomimic's authors: 5 datasets, 270 jobs with three seeds.
#
#     benchmark/robomimic.sh            # one job after the other; skips finished jobs, continues killed ones
#     DRY=1 benchmark/robomimic.sh      # print the commands
#
# SEEDS, DATASETS, JOBS, SLURM=1, CHECK=1, RUNS_DIR, EXTRA: see docs/benchmark.md.
set -euo pipefail
cd "$(dirname "$0")/.."

SEEDS=${SEEDS:-1 2 3}
DATASETS=${DATASETS:-lift-ph can-ph square-ph tool_hang-ph transport-ph}
VQVAE_STEPS=${VQVAE_STEPS:-500000} BC_STEPS=${BC_STEPS:-2000000} STEPS=${STEPS:-1000000}

list_jobs() {
    for env in $DATASETS; do for seed in $SEEDS; do
        at=robomimic/${env//\//_}
        common="--env-id $env --seed $seed --eval-every 100000"
        common+=" --hidden-dim 512 --learning-rate 3e-4 --no-standardize --no-layer-norm --ema-decay 0"

        # Not released; the sweeps of the authors' adroit (IQL) and kitchen (CQL) scripts.
        flags="$common --no-soft-codes --dead-code-reset-every 0 --weight-decay 1e-3"
        echo "$at/saq_bc,codebook-size=64/$seed python saq_bc.py $flags" \
            "--codebook-size 64 --vqvae-steps $VQVAE_STEPS --bc-steps $STEPS --action-mode sampled"
        flags+=" --rl-steps $STEPS --value-scale 0 --gamma 0.99 --n-step 1"
        codes="--codebook-size 64 --vqvae-path {$at/saq_bc,codebook-size=64/$seed}/vqvae.pt"
        for expectile in 0.7 0.8 0.9; do for temperature in 0.5 1 2; do
            name=saq_iql,expectile=$expectile,temperature=$temperature
            echo "$at/$name/$seed python saq_iql.py $flags $codes --bc-steps $BC_STEPS" \
                "--expectile $expectile --temperature $temperature --tau 0.005 --min-log-pi-b -8 --action-mode sampled"
        done; done
        for alpha in 10 15 20 30; do
            echo "$at/saq_cql,alpha=$alpha/$seed python saq_cql.py $flags $codes" \
                "--alpha $alpha --backup greedy --bc-steps 0 --target-period 200 --action-mode greedy"
        done

        # Continuous actions. IQL: expectile and beta of its paper for locomotion. CQL: the alphas of its paper and reimplementations.
        echo "$at/bc/$seed python benchmark/baselines/bc.py $common --bc-steps $STEPS"
        flags="$common --rl-steps $STEPS --value-scale 0 --gamma 0.99 --n-step 1 --tau 0.005"
        echo "$at/iql/$seed python benchmark/baselines/iql.py $flags --expectile 0.7 --beta 3"
        for alpha in 5 10; do
            echo "$at/cql,alpha=$alpha/$seed python benchmark/baselines/cql.py $flags --alpha $alpha"
        done
    done; done
}

jobs=$(list_jobs)
exec python benchmark/launch.py <<< "$jobs"
