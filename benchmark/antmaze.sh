#!/usr/bin/env bash
# The antmaze rows of the paper's table 1, on Minari's datasets: 4 datasets, 408 runs. Options: docs/benchmark.md.
EXPERIMENT=antmaze exec snakemake -s "$(dirname "$0")/Snakefile" -d "$(dirname "$0")/.." "$@"
