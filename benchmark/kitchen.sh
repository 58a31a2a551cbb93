#!/usr/bin/env bash
# The kitchen rows of the paper's table 1, every column, on Minari's datasets: 306 jobs with three seeds.
#
#     benchmark/kitchen.sh            # one job after the other; skips finished jobs, continues killed ones
#     DRY=1 benchmark/kitchen.sh      # print the commands
#
# SEEDS, DATASETS, JOBS, SLURM=1, CHECK=1, RUNS_DIR, EXTRA: see docs/benchmark.md.
set -euo pipefail
cd "$(dirname "$0")/.."

SEEDS=${SEEDS:-1 2 3}
DATASETS=${DATASETS:-$(echo D4RL/kitchen/{mixed,complete,partial}-v2)}
VQVAE_STEPS=${VQVAE_STEPS:-500000} BC_STEPS=${BC_STEPS:-2000000} STEPS=${STEPS:-1000000}

list_jobs() {
    for env in $DATASETS; do for seed in $SEEDS; do
        at=kitchen/${env//\//_}
        common="--env-id $env --seed $seed --eval-every 100000"
        common+=" --hidden-dim 512 --learning-rate 3e-4 --no-standardize --no-layer-norm --ema-decay 0"

        # SAQ-CQL: the authors' scripts. SAQ-BC, SAQ-IQL: not released; the sweep of their adroit script (IQL).
        # SAQ-BRAC: not released; the settings of the authors' continuous BRAC where there are any.
        # Aquadem: not released; the settings of SAQ.
        for family in saq aquadem; do
            script=saq_ALGORITHM.py
            [ $family = saq ] || script="benchmark/baselines/aquadem.py ALGORITHM"
            flags="$common --no-soft-codes --dead-code-reset-every 0 --weight-decay 1e-3"
            echo "$at/${family}_bc,codebook-size=64/$seed python ${script/ALGORITHM/bc} $flags" \
                "--codebook-size 64 --vqvae-steps $VQVAE_STEPS --bc-steps $STEPS --action-mode sampled"
            flags+=" --rl-steps $STEPS --value-scale 0 --gamma 0.99 --n-step 1"
            codes="--codebook-size 64 --vqvae-path {$at/${family}_bc,codebook-size=64/$seed}/vqvae.pt"
            for expectile in 0.7 0.8 0.9; do for temperature in 0.5 1 2; do
                name=${family}_iql,expectile=$expectile,temperature=$temperature
                echo "$at/$name/$seed python ${script/ALGORITHM/iql} $flags $codes --bc-steps $BC_STEPS" \
                    "--expectile $expectile --temperature $temperature --tau 0.005 --min-log-pi-b -8 --action-mode sampled"
            done; done
            for alpha in 10 15 20 30; do
                echo "$at/${family}_cql,alpha=$alpha/$seed python ${script/ALGORITHM/cql} $flags $codes" \
                    "--alpha $alpha --backup greedy --bc-steps 0 --target-period 200 --action-mode greedy"
            done
            if [ $family = saq ]; then
                echo "$at/saq_brac/$seed python saq_brac.py $flags $codes --bc-steps $BC_STEPS --alpha 1" \
                    "--tau 0.005 --action-mode sampled"
            fi
        done

        # Continuous actions. IQL: expectile and beta of its paper for kitchen. CQL: the alphas of its paper and of its
        # reimplementations. BRAC: the SAQ authors' scripts, which take 5M and 2M steps.
        echo "$at/bc/$seed python benchmark/baselines/bc.py $common --bc-steps $STEPS"
        flags="$common --rl-steps $STEPS --value-scale 0 --gamma 0.99 --n-step 1 --tau 0.005"
        echo "$at/iql/$seed python benchmark/baselines/iql.py $flags --expectile 0.7 --beta 0.5"
        for alpha in 5 10; do
            echo "$at/cql,alpha=$alpha/$seed python benchmark/baselines/cql.py $flags --alpha $alpha"
        done
        echo "$at/brac/$seed python benchmark/baselines/brac.py $flags --bc-steps $BC_STEPS --alpha 1"
    done; done
}

jobs=$(list_jobs)
exec python benchmark/launch.py <<< "$jobs"
