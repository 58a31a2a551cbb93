#!/usr/bin/env bash
# The kitchen rows of the paper's table 1, on Minari's datasets: 3 datasets, 306 runs. Options: docs/benchmark.md.
EXPERIMENT=kitchen exec snakemake -s "$(dirname "$0")/Snakefile" -d "$(dirname "$0")/.." "$@"
