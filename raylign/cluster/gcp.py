"""Cluster YAML for Compute Engine machines."""

from __future__ import annotations

from raylign.cluster.autoscaler import cloud_tree, launch_file, node_types
from raylign.cluster.launch_file import LaunchFile, RenderContext, Tree
from raylign.cluster.spec import ClusterSpec, NodeConfig, WorkersConfig

DISK_TYPE = "PERSISTENT"


def render(spec: ClusterSpec, context: RenderContext) -> list[LaunchFile]:
    """Return one cluster YAML for `ray up`."""
    assert spec.gcp
    provider: Tree = {
        "type": "gcp",
        "region": spec.gcp.region,
        "availability_zone": spec.gcp.zone,
        "project_id": spec.gcp.project,
    }
    tree = cloud_tree(spec, provider, node_types(spec, _node_config))
    return [launch_file(spec, "gcp", tree, context.header)]


def _node_config(spec: ClusterSpec, node: NodeConfig) -> Tree:
    assert spec.gcp
    place = f"projects/{spec.gcp.project}/zones/{spec.gcp.zone}"
    disk = {"diskSizeGb": node.disk_gib, "sourceImage": spec.gcp.image}
    scheduling: list[Tree] = []
    config: Tree = {
        "machineType": node.machine.gcp,
        "disks": [{"boot": True, "autoDelete": True, "type": DISK_TYPE, "initializeParams": disk}],
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
