#!/bin/bash
# Predict in an array of tasks, and publish when all of them have ended well:
#
#     bash docs/scripts/slurm_submit.sh
#
# What follows goes to slurm_predict.py. A task that failed for good keeps the second job from starting:
# submit this again, and it predicts what is missing. STORE names another store than run.zarr.
set -euo pipefail
store=${STORE:-run.zarr}
array=$(sbatch --parsable docs/scripts/slurm_array.sbatch --store "$store" "$@")
sbatch --job-name=publish --dependency="afterok:${array%%;*}" --kill-on-invalid-dep=yes \
    --wrap "accumulator publish $(printf %q "$store")"
