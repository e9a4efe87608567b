"""KubeRay manifests (ray.io/v1; the token needs operator 1.5.1 or newer): a cluster that stays, and a job with its own."""

from __future__ import annotations

from raylign.cluster import commands
from raylign.cluster.launch_file import LaunchFile, RenderContext, Tree, to_yaml
from raylign.cluster.spec import ClusterSpec, NodeConfig

API = "ray.io/v1"
# Fixed: KubeRay makes its services for these ports.
PORTS = [{"name": "gcs-server", "containerPort": 6379}, {"name": "dashboard", "containerPort": 8265}]
MAX_BACKLOG_SECONDS = 3600  # for the cluster of a job to become ready
JOB_COMMAND = "raylign doctor"
JOB_NOTE = "Set entrypoint to the command of the job, e.g. raylign run CONFIG KEY=VALUE."


def render(spec: ClusterSpec, context: RenderContext) -> list[LaunchFile]:
    """Return the manifest of a cluster and that of a job."""
    return [
        LaunchFile(f"{spec.name}-kuberay-cluster.yaml", to_yaml(cluster(spec, context.ray_version), context.header)),
        LaunchFile(
            f"{spec.name}-kuberay-job.yaml",
            to_yaml(job(spec, context.ray_version, JOB_COMMAND), context.header, JOB_NOTE),
        ),
    ]


def cluster(spec: ClusterSpec, ray_version: str) -> Tree:
    """Return a RayCluster, for `ray job submit` through `kubectl port-forward`."""
    return {
        "apiVersion": API,
        "kind": "RayCluster",
        "metadata": _metadata(spec),
        "spec": _cluster_spec(spec, ray_version),
    }


def job(spec: ClusterSpec, ray_version: str, command: str) -> Tree:
    """Return a RayJob, which makes the cluster, runs the command on it, and removes it.

    Args:
        command: command of the job, e.g. `raylign run /mnt/shared/configs/ppo.yaml`.
    """
    return {
        "apiVersion": API,
        "kind": "RayJob",
        "metadata": _metadata(spec),
        "spec": {
            "entrypoint": command,
            "submissionMode": "K8sJobMode",
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": 300,
            "backoffLimit": 0,
            "preRunningDeadlineSeconds": MAX_BACKLOG_SECONDS,
            "rayClusterSpec": _cluster_spec(spec, ray_version),
        },
    }


def _metadata(spec: ClusterSpec) -> Tree:
    assert spec.kuberay
    return {"name": spec.name, "namespace": spec.kuberay.namespace}


def _cluster_spec(spec: ClusterSpec, ray_version: str) -> Tree:
    workers = spec.workers
    tree: Tree = {
        "rayVersion": ray_version,
        "authOptions": {"mode": "token"},
        "enableInTreeAutoscaling": bool(workers),
        "headGroupSpec": {
            # KubeRay reaches the dashboard from the operator's pod, so it listens in the pod's network; the token guards it.
            "rayStartParams": {"dashboard-host": "0.0.0.0", **_start_params(spec.head)},
            "template": _pod(spec, spec.head, "ray-head", PORTS),
        },
    }
    if workers:
        tree["autoscalerOptions"] = {"idleTimeoutSeconds": 60 * spec.idle_minutes, "upscalingMode": "Default"}
        tree["workerGroupSpecs"] = [
            {
                "groupName": "workers",
                "replicas": workers.min_nodes,
                "minReplicas": workers.min_nodes,
                "maxReplicas": workers.max_nodes,
                "rayStartParams": _start_params(workers),
                "template": _pod(spec, workers, "ray-worker", []),
            }
        ]
    return tree


def _start_params(node: NodeConfig) -> dict[str, str]:
    return {"num-cpus": str(node.num_cpus), "num-gpus": str(node.num_gpus)}


def _pod(spec: ClusterSpec, node: NodeConfig, name: str, ports: list[Tree]) -> Tree:
    assert spec.kuberay
    resources: Tree = {"cpu": str(node.num_cpus), "memory": f"{node.memory_gib}Gi"}
    if node.num_gpus:
        resources["nvidia.com/gpu"] = str(node.num_gpus)
    shared = f"{max(1, int(node.memory_gib * commands.SHARED_MEMORY_SHARE))}Gi"
    volumes: list[Tree] = [{"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": shared}}]
    mounts: list[Tree] = [{"name": "shared-memory", "mountPath": "/dev/shm"}]
    if spec.storage and spec.kuberay.claim:
        volumes.append({"name": "storage", "persistentVolumeClaim": {"claimName": spec.kuberay.claim}})
        mounts.append({"name": "storage", "mountPath": spec.storage.path})
    own = {
        k: v for k, v in commands.variables(spec).items() if k != "RAY_AUTH_MODE"
    }  # the operator sets it, with the token
    container: Tree = {
        "name": name,
        "image": spec.image,
        "env": [{"name": key, "value": value} for key, value in own.items()],
        "resources": {"requests": dict(resources), "limits": dict(resources)},
        "volumeMounts": mounts,
    }
    if ports:
        container["ports"] = ports
    if spec.kuberay.secret:
        container["envFrom"] = [{"secretRef": {"name": spec.kuberay.secret}}]
    pod: Tree = {"containers": [container], "volumes": volumes}
    if node.num_gpus and node.machine.gpu:
        pod["nodeSelector"] = {"nvidia.com/gpu.product": node.machine.gpu}
    return {"spec": pod}
