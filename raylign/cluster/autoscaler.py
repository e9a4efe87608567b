"""Cluster YAML of Ray's autoscaler, for `ray up`, `ray submit` and `ray down`: AWS, GCP, machines of your own."""

from __future__ import annotations

from typing import Any

from raylign.cluster import commands
from raylign.cluster.spec import ClusterSpec, NodeConfig, WorkersConfig

Tree = dict[str, Any]

GCP_DISK = "PERSISTENT"


def aws(spec: ClusterSpec) -> Tree:
    """EC2 machines."""
    assert spec.aws
    provider: Tree = {"type": "aws", "region": spec.aws.region, "cache_stopped_nodes": False}
    if spec.aws.zones:
        provider["availability_zone"] = ",".join(spec.aws.zones)
    types = _node_types(spec, _aws_node)
    return _cloud(spec, provider, types)


def gcp(spec: ClusterSpec) -> Tree:
    """Compute Engine machines."""
    assert spec.gcp
    google = spec.gcp
    provider: Tree = {
        "type": "gcp",
        "region": google.region,
        "availability_zone": google.zone,
        "project_id": google.project,
    }
    return _cloud(spec, provider, _node_types(spec, _gcp_node))


def local(spec: ClusterSpec) -> Tree:
    """Machines of your own. Ray runs beside other things there, so nothing is stopped before a start."""
    assert spec.local
    head, workers = spec.local.head, spec.workers or spec.head
    # A machine has several addresses; the one by which ssh reached it is the one the head knows it by.
    own_address = '$(set -- $SSH_CONNECTION; echo "${3:+--node-ip-address=$3}")'
    num_workers = len(spec.local.workers)
    return _tree(
        spec,
        provider={"type": "local", "head_ip": head, "worker_ips": list(spec.local.workers)},
        limits={"min_workers": num_workers, "max_workers": num_workers},
        head_start=[
            commands.start(spec, spec.head, *_head(spec), f"--node-ip-address={head}"),
            commands.write_address(spec, f"{head}:{spec.ray.port}"),
        ],
        worker_start=[commands.start(spec, workers, f"--address=$RAY_HEAD_IP:{spec.ray.port}", own_address)],
    )


def _cloud(spec: ClusterSpec, provider: Tree, types: Tree) -> Tree:
    workers = spec.workers or spec.head
    stop = f"{commands.ray_command(spec)} stop"  # the machines are ours, and a start may be a restart
    return _tree(
        spec,
        provider=provider,
        limits={"max_workers": spec.workers.max_nodes if spec.workers else 0},
        types={"head_node_type": "head", "available_node_types": types},
        head_start=[
            stop,
            commands.start(spec, spec.head, *_head(spec)),
            commands.write_address(spec, "auto"),
        ],
        worker_start=[stop, commands.start(spec, workers, f"--address=$RAY_HEAD_IP:{spec.ray.port}")],
    )


def _head(spec: ClusterSpec) -> list[str]:
    return [*commands.head_options(spec), "--autoscaling-config=~/ray_bootstrap_config.yaml"]


def _tree(
    spec: ClusterSpec,
    *,
    provider: Tree,
    limits: Tree,
    head_start: list[str],
    worker_start: list[str],
    types: Tree | None = None,
) -> Tree:
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


def _docker(spec: ClusterSpec, image: str) -> Tree:
    options = ["--ulimit nofile=65536:65536"]
    if spec.storage:
        options.append(f"-v {spec.storage.path}:{spec.storage.path}")
        if spec.storage.bucket:
            options.append(f"-v {spec.storage.bucket_path}:{spec.storage.bucket_path}:ro")
    return {"image": image, "container_name": f"raylign-{spec.name}", "pull_before_run": True, "run_options": options}


def _node_types(spec: ClusterSpec, node_config: Any) -> Tree:
    types: Tree = {"head": _node_type(spec.head, node_config(spec, spec.head), 0, 0)}
    if spec.workers:
        config = node_config(spec, spec.workers)
        types["worker"] = _node_type(spec.workers, config, spec.workers.min_nodes, spec.workers.max_nodes)
    return types


def _node_type(node: NodeConfig, node_config: Tree, least: int, most: int) -> Tree:
    resources = {"CPU": node.num_cpus, **({"GPU": node.num_gpus} if node.num_gpus else {})}
    return {"resources": resources, "node_config": node_config, "min_workers": least, "max_workers": most}


def _aws_node(spec: ClusterSpec, node: NodeConfig) -> Tree:
    assert spec.aws
    disk = {"VolumeSize": node.disk_gib, "VolumeType": "gp3", "Encrypted": True}
    config: Tree = {
        "InstanceType": node.machine.aws,
        "BlockDeviceMappings": [{"DeviceName": "/dev/sda1", "Ebs": disk}],
        "MetadataOptions": {"HttpTokens": "required"},
    }
    if spec.aws.image:
        config["ImageId"] = spec.aws.image
    if spec.aws.key_name:
        config["KeyName"] = spec.aws.key_name
    if spec.aws.instance_profile:
        config["IamInstanceProfile"] = {"Arn": spec.aws.instance_profile}
    if isinstance(node, WorkersConfig) and node.use_spot:
        config["InstanceMarketOptions"] = {"MarketType": "spot"}
    return config


def _gcp_node(spec: ClusterSpec, node: NodeConfig) -> Tree:
    assert spec.gcp
    place = f"projects/{spec.gcp.project}/zones/{spec.gcp.zone}"
    disk = {"diskSizeGb": node.disk_gib, "sourceImage": spec.gcp.image}
    scheduling: list[Tree] = []
    config: Tree = {
        "machineType": node.machine.gcp,
        "disks": [{"boot": True, "autoDelete": True, "type": GCP_DISK, "initializeParams": disk}],
    }
    if node.num_gpus:
        config["metadata"] = {"items": [{"key": "install-nvidia-driver", "value": "True"}]}
        scheduling.append({"onHostMaintenance": "TERMINATE"})  # machines with GPUs cannot be moved
    if node.machine.gcp_accelerator:
        kind = f"{place}/acceleratorTypes/{node.machine.gcp_accelerator}"
        config["guestAccelerators"] = [{"acceleratorType": kind, "acceleratorCount": node.num_gpus}]
    if isinstance(node, WorkersConfig) and node.use_spot:
        scheduling.append({"preemptible": True})
    if scheduling:
        config["scheduling"] = scheduling
    return config
