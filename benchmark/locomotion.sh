#!/usr/bin/env bash
# The locomotion rows of the paper's table 1: 12 D4RL datasets, 720 runs. Options: docs/benchmark.md.
EXPERIMENT=locomotion exec snakemake -s "$(dirname "$0")/Snakefile" -d "$(dirname "$0")/.." "$@"
