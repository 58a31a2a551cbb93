#!/usr/bin/env bash
# What the quantizer is worth: the state-conditioned VQ-VAE (saq), one that does not see the observation (action-only) and
# a grid (uniform), with 8 to 256 codes. SAQ-BC and SAQ-IQL on the demo and, if $DATASETS_DIR has the files, SAQ-IQL on
# OGBench's cube-single, where SAQ-BC hardly succeeds, and SAQ-BC on hopper.
#
#   JOBS=2 bash benchmark/ablation.sh
#   JOBS=2 DATASETS_DIR=~/datasets SEEDS="1 2 3 4 5" bash benchmark/ablation.sh
#   python benchmark/ablation.py runs/ablation --out benchmark/results/ablation
set -euo pipefail
cd "$(dirname "$0")/.."
source benchmark/datasets.sh

for seed in ${SEEDS:-1 2 3}; do
    datasets | while read -r name dataset; do
        case $name in
            demo | hopper) default=3000 ;;
            cube-single) default=20000 ;;
            *) continue ;;
        esac
        steps=${STEPS:-$default} bc_steps=${BC_STEPS:-$default}
        for codes in 8 16 32 64 128 256; do
            for quantizer in saq action-only uniform; do
                flags="$dataset --seed $seed --codebook-size $codes --final-eval-episodes 50 --no-soft-codes"
                flags+=" --action-mode mean"
                case $quantizer in
                    saq) bc=saq_bc.py iql=saq_iql.py ;;
                    action-only) bc=saq_bc.py iql=saq_iql.py flags+=" --no-state-conditioned" ;;
                    uniform) bc="benchmark/quantizers.py bc" iql="benchmark/quantizers.py iql" ;;
                esac
                end=,codebook-size=$codes/$seed
                vqvae="--vqvae-steps ${VQVAE_STEPS:-$default}"
                if [ $name != cube-single ]; then
                    echo "ablation/$name/${quantizer}_bc$end python $bc $flags $vqvae --bc-steps $steps"
                    vqvae="--vqvae-path {ablation/$name/${quantizer}_bc$end}/vqvae.pt"
                fi
                if [ $name != hopper ]; then
                    echo "ablation/$name/${quantizer}_iql$end python $iql $flags $vqvae --bc-steps $bc_steps" \
                        "--rl-steps $steps"
                fi
            done
        done
    done
done | python benchmark/launch.py
