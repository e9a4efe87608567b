#!/usr/bin/env bash
# Made from clusters/specs/ppo-8xgpu.yaml by: raylign cluster render clusters/specs/ppo-8xgpu.yaml
# Change the spec, not this file.
#SBATCH --job-name=ppo-8xgpu
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=90
#SBATCH --mem=1000G
#SBATCH --gpus-per-node=8
#SBATCH --time=24:00:00
#SBATCH --partition=gpu
#SBATCH --output=%x-%j.log
#SBATCH --exclusive

set -euo pipefail
if [ "$#" -eq 0 ]; then
    echo "usage: sbatch $0 run CONFIG [KEY=VALUE]..." >&2
    exit 2
fi
source "$HOME/raylign-env/bin/activate"
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 RAYLIGN_STORAGE=/mnt/shared
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=600
# The token, in a folder that all nodes share; readable by you alone.
export RAY_AUTH_TOKEN_PATH="$HOME/.ray/auth_token"
if [ ! -s "$RAY_AUTH_TOKEN_PATH" ]; then
    echo "no Ray token in $RAY_AUTH_TOKEN_PATH; run: ray get-auth-token --generate" >&2
    exit 2
fi

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# An address, not a name: a name may mean loopback on the head itself.
addresses=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname -I)
address="${addresses%% *}:6379"

exec srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --kill-on-bad-exit=1 \
    ray symmetric-run --address "$address" --min-nodes "$SLURM_JOB_NUM_NODES" \
    --num-cpus=90 --num-gpus=8 --disable-usage-stats -- \
    env RAY_ADDRESS="$address" raylign "$@"
