#!/usr/bin/env bash
# What each default is worth: SAQ with one default at a time set back to the paper's, and with all of them. The runs at
# the defaults are the ones of small.sh, and run first if they are missing.
#
#   DATASETS_DIR=~/datasets SEEDS="1 2 3 4 5" JOBS=2 bash benchmark/study.sh
#   python benchmark/study.py runs --out benchmark/results/study
#
# SEEDS, ONLY, ...: see docs/benchmark.md. 46 jobs a dataset and seed.
set -euo pipefail
cd "$(dirname "$0")/.."
source benchmark/datasets.sh

changes() { # one line each: name, algorithms, whether it changes the VQ-VAE, and flags
    echo "learning-rate bc,iql,cql,brac 1 --learning-rate 3e-4"
    echo "standardize bc,iql,cql,brac 1 --no-standardize"
    echo "dead-code-reset-every bc,iql,cql,brac 1 --dead-code-reset-every 0"
    echo "layer-norm bc,iql,cql,brac 1 --no-layer-norm"
    echo "soft-codes bc,iql,cql,brac 0 --no-soft-codes"
    echo "ema-decay bc,iql,cql,brac 1 --ema-decay 0"
    echo "value-scale iql,cql,brac 0 --value-scale 0"
    echo "gamma iql,cql,brac 0 --gamma 0.99"
    echo "n-step iql,cql,brac 0 --n-step 1"
    echo "tau iql,brac 0 --tau 0.005"
    echo "target-period cql 0 --target-period 200"
    echo "backup cql 0 --backup greedy"
    echo "min-log-pi-b iql 0 --min-log-pi-b -8"
    local paper="--learning-rate 3e-4 --no-standardize --dead-code-reset-every 0 --no-layer-norm --no-soft-codes"
    paper+=" --ema-decay 0"
    local rl="--value-scale 0 --gamma 0.99 --n-step 1"
    echo "paper bc 1 $paper --action-mode sampled"
    echo "paper cql 1 $paper $rl --bc-steps 0 --alpha 20 --backup greedy --target-period 200 --action-mode greedy"
    echo "paper brac 1 $paper $rl --tau 0.005 --action-mode sampled"
    echo "paper iql 1 $paper $rl --tau 0.005 --min-log-pi-b -8 --action-mode sampled"
}

for seed in ${SEEDS:-1 2 3 4 5}; do
    datasets | grep -v lift-200 | while read -r name flags; do
        flags="--seed $seed --eval-every 5000 $flags"
        job() { # job FOLDER ALGORITHM VQ-VAE FLAGS...: VQ-VAE is the folder of a job, or empty to train one
            local folder=$1/$seed script=saq_$2.py codes="--vqvae-path {$3/$seed}/vqvae.pt"
            local steps=${BC_STEPS:+--bc-steps $BC_STEPS}
            [ "$3" ] || codes=${VQVAE_STEPS:+--vqvae-steps $VQVAE_STEPS}
            [ "$2" = bc ] || steps+=" ${STEPS:+--rl-steps $STEPS}"
            shift 3
            echo "$folder python $script $flags $codes $steps" "$@"
        }
        job "small/$name/saq_bc" bc ""
        for algorithm in iql cql brac; do job "small/$name/saq_$algorithm" $algorithm "small/$name/saq_bc"; done
        changes | while read -r change algorithms own flag; do
            for algorithm in ${algorithms//,/ }; do
                case $own,$algorithm in
                    0,*) codes=small/$name/saq_bc ;;
                    1,bc) codes="" ;;
                    *) codes=study/$name/saq_bc,$change ;;
                esac
                # shellcheck disable=SC2086  # words
                job "study/$name/saq_$algorithm,$change" "$algorithm" "$codes" $flag
            done
        done
    done
done | python benchmark/launch.py
