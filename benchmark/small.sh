#!/usr/bin/env bash
# SAQ against its continuous counterparts at a budget of minutes a run: four algorithms with and without quantization, on
# this repository's demo dataset and on those of the others whose files lie in $DATASETS_DIR.
#
#   bash benchmark/small.sh                                    # the demo
#   JOBS=2 DATASETS_DIR=~/datasets bash benchmark/small.sh     # hopper, door and Lift with 20 and 200 demonstrations, too
#
# Both sides get the same data, rewards, batches, widths and gradient steps: of policy and Q together where one side trains
# both at once (IQL, CQL), in phases of the same name elsewhere. The VQ-VAE's steps come on top of SAQ's; CQL's cost more
# by far (report.py prints seconds). Arguments are the files' defaults on every dataset, with one exception: CQL samples 4
# actions where CORL samples 10, which would double its time.
#
# SEEDS, VQVAE_STEPS, BC_STEPS, STEPS, JOBS, SLURM=1, ...: see benchmark/README.md. 40 jobs a seed with all datasets.
set -euo pipefail
cd "$(dirname "$0")/.."
source benchmark/datasets.sh

for seed in ${SEEDS:-1 2 3}; do
    datasets | while read -r name vqvae bc total flags; do
        vqvae=${VQVAE_STEPS:-$vqvae} bc=${BC_STEPS:-$bc} total=${STEPS:-$total}
        flags="--seed $seed --eval-every 5000 $flags"
        codes="--vqvae-path {small/$name/saq_bc/$seed}/vqvae.pt"
        job() { # job FOLDER SCRIPT FLAGS...
            local folder=small/$name/$1/$seed script=$2
            shift 2
            echo "$folder python $script $flags $*"
        }
        job saq_bc saq_bc.py --vqvae-steps "$vqvae" --total-steps "$bc"
        job bc benchmark/baselines/bc.py --total-steps "$bc"
        job saq_iql saq_iql.py "$codes" --bc-steps "$bc" --total-steps "$total"
        job iql benchmark/baselines/iql.py --total-steps $((bc + total))
        job saq_cql saq_cql.py "$codes" --total-steps $((bc + total))
        job cql benchmark/baselines/cql.py --total-steps $((bc + total)) --n-actions 4
        job saq_brac saq_brac.py "$codes" --bc-steps "$bc" --total-steps "$total"
        job brac benchmark/baselines/brac.py --bc-steps "$bc" --total-steps "$total"
    done
done | python benchmark/launch.py
