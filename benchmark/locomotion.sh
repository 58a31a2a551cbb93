#!/usr/bin/env bash
# The locomotion rows of the paper's table 1, every column: 12 D4RL datasets, 720 jobs with three seeds.
#
#     benchmark/locomotion.sh            # one job after the other; skips finished jobs, continues killed ones
#     DRY=1 benchmark/locomotion.sh      # print the commands
#
# SEEDS, DATASETS, JOBS, SLURM=1, CHECK=1, RUNS_DIR, EXTRA: see docs/benchmark.md.
set -euo pipefail
cd "$(dirname "$0")/.."

SEEDS=${SEEDS:-1 2 3}
DATASETS=${DATASETS:-$(echo {halfcheetah,hopper,walker2d}-{expert,medium-expert,medium-replay,medium}-v2)}
VQVAE_STEPS=${VQVAE_STEPS:-500000} BC_STEPS=${BC_STEPS:-2000000} STEPS=${STEPS:-1000000}

list_jobs() {
    for env in $DATASETS; do for seed in $SEEDS; do
        at=locomotion/${env//\//_}
        common="--env-id $env --seed $seed"
        common+=" --hidden-dim 512 --learning-rate 3e-4 --no-standardize --no-layer-norm --ema-decay 0"

        # SAQ-BC, SAQ-IQL, SAQ-CQL: the authors' scripts.
        # SAQ-BRAC: not released; the settings of the authors' continuous BRAC where there are any.
        # Aquadem: not released; the settings of SAQ. IQL's rewards: --value-scale instead of 1000 / (max - min return).
        for family in saq aquadem; do
            script=saq_ALGORITHM.py
            [ $family = saq ] || script="benchmark/baselines/aquadem.py ALGORITHM"
            flags="$common --no-soft-codes --dead-code-reset-every 0 --weight-decay 1e-3"
            for size in 32 64 128; do
                echo "$at/${family}_bc,codebook-size=$size/$seed python ${script/ALGORITHM/bc} $flags" \
                    "--codebook-size $size --vqvae-steps $VQVAE_STEPS --bc-steps $STEPS --action-mode sampled"
            done
            flags+=" --rl-steps $STEPS --gamma 0.99 --n-step 1"
            codes="--codebook-size 64 --vqvae-path {$at/${family}_bc,codebook-size=64/$seed}/vqvae.pt"
            echo "$at/${family}_iql,expectile=0.7,temperature=2/$seed python ${script/ALGORITHM/iql} $flags $codes" \
                "--bc-steps $BC_STEPS --expectile 0.7 --temperature 2 --tau 0.005 --min-log-pi-b -8" \
                "--action-mode sampled"
            for alpha in 15 20 30; do
                echo "$at/${family}_cql,alpha=$alpha/$seed python ${script/ALGORITHM/cql} $flags $codes" \
                    "--value-scale 0 --alpha $alpha --backup greedy --bc-steps 0 --target-period 200 --action-mode greedy"
            done
            if [ $family = saq ]; then
                echo "$at/saq_brac/$seed python saq_brac.py $flags $codes --bc-steps $BC_STEPS --alpha 1" \
                    "--value-scale 0 --tau 0.005 --action-mode sampled"
            fi
        done

        # Continuous actions. IQL: expectile and beta of its paper for locomotion. CQL: the alphas of its paper and of its
        # reimplementations. BRAC: the SAQ authors' scripts, which take 5M and 2M steps.
        echo "$at/bc/$seed python benchmark/baselines/bc.py $common --bc-steps $STEPS"
        flags="$common --rl-steps $STEPS --gamma 0.99 --n-step 1 --tau 0.005"
        echo "$at/iql/$seed python benchmark/baselines/iql.py $flags --expectile 0.7 --beta 3"
        for alpha in 5 10; do
            echo "$at/cql,alpha=$alpha/$seed python benchmark/baselines/cql.py $flags --value-scale 0 --alpha $alpha"
        done
        echo "$at/brac/$seed python benchmark/baselines/brac.py $flags --value-scale 0 --bc-steps $BC_STEPS --alpha 1"
    done; done
}

jobs=$(list_jobs)
exec python benchmark/launch.py <<< "$jobs"
