#!/usr/bin/env bash
# SAQ beside the same algorithms on continuous actions, minutes a run: 24 runs on the demo. Options: docs/benchmark.md.
EXPERIMENT=small exec snakemake -s "$(dirname "$0")/Snakefile" -d "$(dirname "$0")/.." "$@"
