"""Cluster YAML for EC2 machines."""

from __future__ import annotations

from raylign.cluster.autoscaler import cloud_tree, launch_file, node_types
from raylign.cluster.launch_file import LaunchFile, RenderContext, Tree
from raylign.cluster.spec import ClusterSpec, NodeConfig, WorkersConfig


def render(spec: ClusterSpec, context: RenderContext) -> list[LaunchFile]:
    """Return one cluster YAML for `ray up`."""
    assert spec.aws
    provider: Tree = {"type": "aws", "region": spec.aws.region, "cache_stopped_nodes": False}
    if spec.aws.zones:
        provider["availability_zone"] = ",".join(spec.aws.zones)
    tree = cloud_tree(spec, provider, node_types(spec, _node_config))
    return [launch_file(spec, "aws", tree, context.header)]


def _node_config(spec: ClusterSpec, node: NodeConfig) -> Tree:
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
