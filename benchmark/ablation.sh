#!/usr/bin/env bash
# What the quantizer is worth: the state-conditioned VQ-VAE (saq), one without the observation (action-only) and a grid
# (uniform), at 8 to 256 codes, under SAQ-BC and SAQ-IQL on the demo, and under SAQ-BC on hopper if $DATASETS_DIR has it.
#
#   JOBS=2 bash benchmark/ablation.sh
#   JOBS=2 DATASETS_DIR=~/datasets SEEDS="1 2 3 4 5" bash benchmark/ablation.sh
#   python benchmark/ablation.py runs/ablation --out benchmark/results/ablation
set -euo pipefail
cd "$(dirname "$0")/.."

hopper=${DATASETS_DIR:-}/hopper-medium-expert-sb3-v0.hdf5
for seed in ${SEEDS:-1 2 3}; do
    for codes in 8 16 32 64 128 256; do
        for quantizer in saq action-only uniform; do
            flags="--seed $seed --codebook-size $codes --final-eval-episodes 50"
            flags+=" --total-steps ${STEPS:-3000}"
            case $quantizer in
                saq) name=saq bc="saq_bc.py" iql="saq_iql.py" ;;
                *) name=quantizers_$quantizer bc="benchmark/quantizers.py $quantizer bc" iql="${bc% bc} iql" ;;
            esac
            end=,codebook-size=$codes/$seed
            echo "ablation/demo/${name}_bc$end python $bc $flags --vqvae-steps ${VQVAE_STEPS:-3000}"
            echo "ablation/demo/${name}_iql$end python $iql $flags --bc-steps ${BC_STEPS:-3000}" \
                "--vqvae-path {ablation/demo/${name}_bc$end}/vqvae.pt"
            [ ! -f "$hopper" ] ||
                echo "ablation/hopper/${name}_bc$end python $bc $flags --vqvae-steps ${VQVAE_STEPS:-3000}" \
                    "--env-id hopper-medium-expert-v2 --dataset-path $hopper"
        done
    done
done | python benchmark/launch.py
