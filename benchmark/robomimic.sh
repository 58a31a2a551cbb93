#!/usr/bin/env bash
# The paper's table 2, without the columns that it quotes from robomimic's authors: 5 datasets, 270 runs. Options: docs/benchmark.md.
EXPERIMENT=robomimic exec snakemake -s "$(dirname "$0")/Snakefile" -d "$(dirname "$0")/.." "$@"
