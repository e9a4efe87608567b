"""A Slurm batch script: one Ray cluster over all nodes of the job (`ray symmetric-run`), with the driver on the first."""

from __future__ import annotations

from shlex import quote

from raylign.cluster import commands
from raylign.cluster.launch_file import LaunchFile, RenderContext, to_comment
from raylign.cluster.spec import ClusterSpec

START_SECONDS = 600  # for all nodes to join; Ray's default of 30 s is too short for a shared file system


def render(spec: ClusterSpec, context: RenderContext) -> list[LaunchFile]:
    """Return one batch script."""
    text = f"#!/usr/bin/env bash\n{to_comment(context.header)}{script(spec)}"
    return [LaunchFile(f"{spec.name}-slurm.sh", text)]


def script(spec: ClusterSpec) -> str:
    """Return the script below its header, to be called as `sbatch FILE run CONFIG [KEY=VALUE]...`.

    All nodes of a Slurm job are alike: workers.min_nodes nodes of the workers' kind, the first of which is also the
    head; or the head alone if the spec has no workers.
    """
    assert spec.slurm
    workers = spec.workers
    node, num_nodes = (workers, max(1, workers.min_nodes)) if workers else (spec.head, 1)
    options = {
        "job-name": spec.name,
        "nodes": num_nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": node.num_cpus,
        "mem": f"{node.memory_gib}G",
        "gpus-per-node": node.num_gpus or None,
        "time": spec.slurm.time,
        "partition": spec.slurm.partition,
        "account": spec.slurm.account,
        "output": "%x-%j.log",
    }
    header = [f"#SBATCH --{name}={value}" for name, value in options.items() if value is not None]
    # symmetric-run ends by stopping every Ray process of this user on its nodes, so this job must not share them.
    header.append("#SBATCH --exclusive")
    temp_dir = [f"--temp-dir={spec.ray.temp_dir}"] if spec.ray.temp_dir else []
    start = [f"--num-cpus={node.num_cpus}", f"--num-gpus={node.num_gpus}", "--disable-usage-stats", *temp_dir]
    start += map(quote, spec.ray.options)
    activate = [] if spec.image else [f'source "{commands.home(spec.environment)}/bin/activate"']
    token = commands.home(spec.token)
    return "\n".join(
        [
            *header,
            "",
            "set -euo pipefail",
            'if [ "$#" -eq 0 ]; then',
            '    echo "usage: sbatch $0 run CONFIG [KEY=VALUE]..." >&2',
            "    exit 2",
            "fi",
            *spec.setup_commands,
            *activate,
            commands.exports(spec),
            f"export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT={START_SECONDS}",
            "# The token, in a folder that all nodes share; readable by you alone.",
            f'export RAY_AUTH_TOKEN_PATH="{token}"',
            'if [ ! -s "$RAY_AUTH_TOKEN_PATH" ]; then',
            '    echo "no Ray token in $RAY_AUTH_TOKEN_PATH; run: ray get-auth-token --generate" >&2',
            "    exit 2",
            "fi",
            "",
            'head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
            "# An address, not a name: a name may mean loopback on the head itself.",
            'addresses=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname -I)',
            f'address="${{addresses%% *}}:{spec.ray.port}"',
            "",
            'exec srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --kill-on-bad-exit=1 \\',
            '    ray symmetric-run --address "$address" --min-nodes "$SLURM_JOB_NUM_NODES" \\',
            f"    {' '.join(start)} -- \\",
            '    env RAY_ADDRESS="$address" raylign "$@"',
            "",
        ]
    )
