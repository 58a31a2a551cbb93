#!/usr/bin/env bash
# What the quantizer is worth, with 8 to 256 codes: 108 runs on the demo. Options: docs/benchmark.md.
EXPERIMENT=ablation exec snakemake -s "$(dirname "$0")/Snakefile" -d "$(dirname "$0")/.." "$@"
