"""A SkyPilot task: the cheapest machines that fit, on any cloud, with a Ray cluster separate from SkyPilot's own."""

from __future__ import annotations

from raylign.cluster import commands
from raylign.cluster.launch_file import LaunchFile, RenderContext, Tree, to_yaml
from raylign.cluster.spec import ClusterSpec

JOIN_SECONDS = 600  # for the head to answer its workers


def render(spec: ClusterSpec, context: RenderContext) -> list[LaunchFile]:
    """Return one task."""
    return [LaunchFile(f"{spec.name}-skypilot.yaml", to_yaml(task(spec), context.header))]


def task(spec: ClusterSpec) -> Tree:
    """Return the task, for `sky launch FILE --env ARGS="run configs/ppo.yaml"`.

    All nodes of a task are alike: workers.min_nodes nodes of the workers' kind, the first of which is also the head; or
    the head alone if the spec has no workers.
    """
    assert spec.skypilot
    workers = spec.workers
    node, num_nodes = (workers, max(1, workers.min_nodes)) if workers else (spec.head, 1)
    resources: Tree = {"cpus": f"{node.num_cpus}+", "memory": f"{node.memory_gib}+", "disk_size": node.disk_gib}
    if node.num_gpus:
        resources["accelerators"] = f"{node.machine.gpu}:{node.num_gpus}"
    if workers and workers.use_spot:
        resources["use_spot"] = True
    if spec.skypilot.infra:
        resources["infra"] = spec.skypilot.infra
    if spec.image:
        resources["image_id"] = f"docker:{spec.image}"
    mounts: Tree = {commands.TOKEN: spec.token, **spec.files}
    if spec.storage and spec.storage.bucket:
        mounts[spec.storage.bucket_path] = {"source": spec.storage.bucket, "mode": "MOUNT"}
    without_bucket = spec
    if spec.storage:  # SkyPilot mounts the bucket itself
        without_bucket = spec.model_copy(update={"storage": spec.storage.model_copy(update={"bucket": None})})
    return {
        "name": spec.name,
        "num_nodes": num_nodes,
        "resources": resources,
        "envs": {**commands.variables(spec), "ARGS": "doctor"},
        "file_mounts": mounts,
        "setup": "\n".join(["set -e", *commands.mounts(without_bucket), *commands.setup(spec), ""]),
        "run": _run(spec, node.num_cpus, node.num_gpus),
    }


def _run(spec: ClusterSpec, num_cpus: int, num_gpus: int) -> str:
    ray, port = commands.ray_command(spec), spec.ray.port
    resources = f"--num-cpus={num_cpus} --num-gpus={num_gpus} --disable-usage-stats"
    path = "" if spec.image else f'export PATH="{commands.home(spec.environment)}/bin:$PATH"\n'
    # Never `ray stop`: SkyPilot runs a Ray cluster of its own on these nodes.
    return f"""\
set -e
{path}head=$(echo "$SKYPILOT_NODE_IPS" | head -n 1)
export RAY_ADDRESS="$head:{port}"
if [ "$SKYPILOT_NODE_RANK" -ne 0 ]; then
  for attempt in $(seq {JOIN_SECONDS // 5}); do
    if {ray} health-check --address "$RAY_ADDRESS" >/dev/null 2>&1; then
      exec {ray} start --address="$RAY_ADDRESS" --block {resources}
    fi
    sleep 5
  done
  echo "the head at $RAY_ADDRESS did not answer in {JOIN_SECONDS} s" >&2
  exit 1
fi
{ray} health-check --address "$RAY_ADDRESS" >/dev/null 2>&1 ||
  env -u RAY_ADDRESS {ray} start --head --node-ip-address="$head" --port={port} \\
    --dashboard-host=127.0.0.1 --dashboard-port={spec.ray.dashboard_port} {resources}
raylign $ARGS
"""
