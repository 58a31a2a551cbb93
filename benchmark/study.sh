#!/usr/bin/env bash
# What each default is worth: 138 runs on the demo, 12 of them those of small.sh. Options: docs/benchmark.md.
EXPERIMENT=study exec snakemake -s "$(dirname "$0")/Snakefile" -d "$(dirname "$0")/.." "$@"
