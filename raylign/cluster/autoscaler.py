"""The parts that every cluster YAML of Ray's autoscaler has (`ray up`, `ray submit`, `ray down`), whoever provides the
machines."""

from __future__ import annotations

from collections.abc import Callable

from raylign.cluster import commands
from raylign.cluster.launch_file import LaunchFile, Tree, to_yaml
from raylign.cluster.spec import ClusterSpec, NodeConfig


def launch_file(spec: ClusterSpec, target: str, tree: Tree, *comments: str) -> LaunchFile:
    """Return the file of a cluster YAML."""
    return LaunchFile(f"{spec.name}-{target}.yaml", to_yaml(tree, *comments), tree)


def cloud_tree(spec: ClusterSpec, provider: Tree, types: Tree) -> Tree:
    """Return the YAML of a cluster whose machines a cloud starts."""
    workers = spec.workers or spec.head
    stop = f"{commands.ray_command(spec)} stop"  # nothing else runs on these machines, and a start may be a restart
    return cluster_tree(
        spec,
        provider=provider,
        limits={"max_workers": spec.workers.max_nodes if spec.workers else 0},
        types={"head_node_type": "head", "available_node_types": types},
        head_start=[
            stop,
            commands.start(spec, spec.head, *head_options(spec)),
            commands.write_address(spec, "auto"),
        ],
        worker_start=[stop, commands.start(spec, workers, f"--address=$RAY_HEAD_IP:{spec.ray.port}")],
    )


def cluster_tree(
    spec: ClusterSpec,
    *,
    provider: Tree,
    limits: Tree,
    head_start: list[str],
    worker_start: list[str],
    types: Tree | None = None,
) -> Tree:
    """Return the YAML of any cluster.

    Args:
        provider: section that names the provider and where its machines are.
        limits: `min_workers`, `max_workers`.
        head_start: commands that start Ray on the head.
        worker_start: commands that start Ray on each worker.
        types: sections for the kinds of nodes, if the provider has them.
    """
    auth: Tree = {"ssh_user": spec.ssh.user}
    if spec.ssh.private_key:
        auth["ssh_private_key"] = spec.ssh.private_key
    tree: Tree = {
        "cluster_name": spec.name,
        **limits,
        "idle_timeout_minutes": spec.idle_minutes,
        "provider": provider,
        "auth": auth,
        **(types or {}),
    }
    if spec.image:
        tree["docker"] = _docker(spec, spec.image)
    return tree | {
        "file_mounts": {commands.TOKEN: spec.token, **spec.files},
        "rsync_exclude": ["**/.git", "**/.git/**", "**/.venv", "**/.venv/**", "**/__pycache__", "**/__pycache__/**"],
        "initialization_commands": commands.mounts(spec),
        "setup_commands": commands.setup(spec),
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "head_start_ray_commands": head_start,
        "worker_start_ray_commands": worker_start,
    }


def head_options(spec: ClusterSpec) -> list[str]:
    """Return the options of `ray start` on a head that runs the autoscaler."""
    return [*commands.head_options(spec), "--autoscaling-config=~/ray_bootstrap_config.yaml"]


def node_types(spec: ClusterSpec, node_config: Callable[[ClusterSpec, NodeConfig], Tree]) -> Tree:
    """Return the kinds of nodes, with the machine that `node_config` asks the provider for."""
    types: Tree = {"head": _node_type(spec.head, node_config(spec, spec.head), 0, 0)}
    if spec.workers:
        config = node_config(spec, spec.workers)
        types["worker"] = _node_type(spec.workers, config, spec.workers.min_nodes, spec.workers.max_nodes)
    return types


def _node_type(node: NodeConfig, node_config: Tree, min_workers: int, max_workers: int) -> Tree:
    resources = {"CPU": node.num_cpus, **({"GPU": node.num_gpus} if node.num_gpus else {})}
    return {
        "resources": resources,
        "node_config": node_config,
        "min_workers": min_workers,
        "max_workers": max_workers,
    }


def _docker(spec: ClusterSpec, image: str) -> Tree:
    options = ["--ulimit nofile=65536:65536"]
    if spec.storage:
        options.append(f"-v {spec.storage.path}:{spec.storage.path}")
        if spec.storage.bucket:
            options.append(f"-v {spec.storage.bucket_path}:{spec.storage.bucket_path}:ro")
    return {"image": image, "container_name": f"raylign-{spec.name}", "pull_before_run": True, "run_options": options}
