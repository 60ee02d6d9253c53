#!/bin/bash
# A whole export on a SLURM cluster: one share of the series for each task of a job array, nothing else to install.
#
#   export UCSEG_EXPORT=/data/export UCSEG_RESULTS=/data/results UCSEG_SITE_SECRET=…
#   sbatch slurm-array.sh                     # options of `ucseg batch` can follow
#   sbatch --array=3,5 slurm-array.sh         # two shares again; what they have done already is left alone
#
# Both folders are on a file system that all nodes share. Another number of shares: --array=1-N and UCSEG_SHARES=N.
#SBATCH --job-name=ucseg-batch
#SBATCH --array=1-8
#SBATCH --cpus-per-task=4
#SBATCH --mem=6G
#SBATCH --time=12:00:00
#SBATCH --signal=B:TERM@60
#SBATCH --requeue
#SBATCH --output=ucseg-batch-%A-%a.log
set -eu

: "${UCSEG_EXPORT:?folder of the export}" "${UCSEG_RESULTS:?folder for the results}"
: "${SLURM_ARRAY_TASK_ID:?this is a job array: sbatch slurm-array.sh}"

# Not SLURM_ARRAY_TASK_COUNT: that is 2 where two shares of eight are done again, and the shares would be others.
shares=${UCSEG_SHARES:-8}

# exec: the signal of a minute before the time is over has to reach ucseg, which then ends in order.
exec ucseg batch "$UCSEG_EXPORT" --out "$UCSEG_RESULTS" --shard "$SLURM_ARRAY_TASK_ID/$shares" \
  --threads "${SLURM_CPUS_PER_TASK:-0}" "$@"
