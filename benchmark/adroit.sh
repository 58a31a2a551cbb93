#!/usr/bin/env bash
# The adroit rows of the paper's table 1: 4 D4RL datasets, 888 runs. Options: docs/benchmark.md.
EXPERIMENT=adroit exec snakemake -s "$(dirname "$0")/Snakefile" -d "$(dirname "$0")/.." "$@"
