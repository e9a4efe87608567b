"""Cluster YAML for machines that you already have, reached by ssh."""

from __future__ import annotations

from raylign.cluster import commands
from raylign.cluster.autoscaler import cluster_tree, head_options, launch_file
from raylign.cluster.launch_file import LaunchFile, RenderContext
from raylign.cluster.spec import ClusterSpec

NOTE = (
    "Before `ray up`: export RAY_UP_enable_autoscaler_v2=0 (version 2 starts one worker too few on your own machines)."
)
# A machine has several addresses; the head knows it by the address through which ssh reached it.
OWN_ADDRESS = '$(set -- $SSH_CONNECTION; echo "${3:+--node-ip-address=$3}")'


def render(spec: ClusterSpec, context: RenderContext) -> list[LaunchFile]:
    """Return one cluster YAML for `ray up`.

    Ray shares these machines with other programs, so no command stops anything before a start.
    """
    assert spec.local
    head, workers = spec.local.head, spec.workers or spec.head
    num_workers = len(spec.local.workers)
    tree = cluster_tree(
        spec,
        provider={"type": "local", "head_ip": head, "worker_ips": list(spec.local.workers)},
        limits={"min_workers": num_workers, "max_workers": num_workers},
        head_start=[
            commands.start(spec, spec.head, *head_options(spec), f"--node-ip-address={head}"),
            commands.write_address(spec, f"{head}:{spec.ray.port}"),
        ],
        worker_start=[commands.start(spec, workers, f"--address=$RAY_HEAD_IP:{spec.ray.port}", OWN_ADDRESS)],
    )
    return [launch_file(spec, "local", tree, context.header, NOTE)]
