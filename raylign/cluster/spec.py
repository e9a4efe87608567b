"""`ClusterSpec`: the description of a cluster, independent of its provider, from which `raylign cluster render` makes
launch files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from raylign.config.base import Config
from raylign.config.load import Lines, parse_as, read_tree


class MachineConfig(Config):
    """The kind of machine, by the name that each provider gives it."""

    aws: str | None = None
    """EC2 instance type, e.g. p5.48xlarge."""
    gcp: str | None = None
    """Compute Engine machine type, e.g. a2-highgpu-8g."""
    gcp_accelerator: str | None = None
    """GPU type to attach to a machine type without GPUs, e.g. nvidia-tesla-t4."""
    gpu: str | None = None
    """Name of the GPU in SkyPilot and on Kubernetes nodes, e.g. H100; `raylign plan` reads it too."""


class NodeConfig(Config):
    """Resources of a node, and the machine that provides them."""

    num_cpus: int = Field(ge=1)
    """CPUs that Ray may give to actors on a node."""
    num_gpus: int = Field(default=0, ge=0)
    """GPUs of a node."""
    memory_gib: int = Field(ge=1)
    """Memory of a node, in GiB."""
    disk_gib: int = Field(default=200, ge=10)
    """Disk of a node in a cloud, in GiB."""
    machine: MachineConfig = MachineConfig()


class WorkersConfig(NodeConfig):
    """Nodes other than the head."""

    min_nodes: int = Field(default=0, ge=0)
    """Nodes that start with the cluster and stay."""
    max_nodes: int = Field(ge=1)
    """The most nodes that the autoscaler may start."""
    use_spot: bool = False
    """Use machines that the cloud may take back at any time; only for rollout engines (rollout.elastic)."""

    @model_validator(mode="after")
    def _ordered(self):
        if self.max_nodes < self.min_nodes:
            raise ValueError(f"max_nodes: {self.max_nodes} is less than min_nodes {self.min_nodes}; raise it")
        return self


class StorageConfig(Config):
    """The folder for runs, models and data that every node sees under the same path."""

    path: str = Field(pattern=r"^/[\w./-]+$")
    """Shared folder, absolute; a relative output_dir of a run is relative to it."""
    nfs: str | None = Field(default=None, pattern=r"^[\w.-]+:/[\w./-]*$")
    """`server:/export` to mount there (EFS, Filestore, your own server); not set: the nodes have the folder already."""
    bucket: str | None = Field(default=None, pattern=r"^(s3|gs)://[\w./-]+$")
    """Bucket to mount read-only at bucket_path, for models and data. Runs need renames, which buckets lack."""
    bucket_path: str = Field(default="/mnt/bucket", pattern=r"^/[\w./-]+$")
    """Path of the mounted bucket."""


class SSHConfig(Config):
    """Account and key with which the launching machine reaches the nodes by ssh."""

    user: str = Field(default="ubuntu", pattern=r"^[\w.-]+$")
    """Account on the nodes."""
    private_key: str | None = None
    """Key of that account on the machine that launches; not set: a cloud's launcher makes one."""


class RayConfig(Config):
    """Options of `ray start`; KubeRay sets its own."""

    port: int = Field(default=6379, ge=1024, le=65535)
    """Port of the head, for the nodes of the cluster."""
    dashboard_port: int = Field(default=8265, ge=1024, le=65535)
    """Port of the dashboard and of `ray job submit`, on the head's loopback only."""
    temp_dir: str | None = Field(default=None, pattern=r"^/[\w./-]+$")
    """Ray's folder on the nodes, if /tmp/ray is too small or another Ray cluster uses it."""
    options: tuple[str, ...] = ()
    """Further options of `ray start` on every node, e.g. --object-store-memory=100000000000."""


class AWSConfig(Config):
    """Where and with which rights EC2 machines are started."""

    region: str
    """Region, e.g. us-west-2."""
    zones: tuple[str, ...] = ()
    """Availability zones to try in turn; name one if a run spans nodes."""
    image: str | None = None
    """AMI; Ray's choice for the region if not set."""
    key_name: str | None = None
    """Name that EC2 has for ssh.private_key."""
    instance_profile: str | None = None
    """ARN of the nodes' role: lets them read the bucket, and the head start workers."""


class GCPConfig(Config):
    """Where Compute Engine machines are started."""

    project: str
    """Project id."""
    region: str
    """Region, e.g. us-central1."""
    zone: str
    """Zone, e.g. us-central1-a."""
    image: str = "projects/deeplearning-platform-release/global/images/family/common-cu128-ubuntu-2204-nvidia-570"
    """Source image of the nodes' disk."""


class LocalConfig(Config):
    """Machines that you already have, reached by ssh on port 22."""

    head: str = Field(pattern=r"^[\w.:-]+$")
    """Address of the head."""
    workers: tuple[str, ...] = ()
    """Addresses of the workers, as many as workers.max_nodes."""


class KubeRayConfig(Config):
    """Kubernetes objects that the cluster lives in and uses."""

    namespace: str = "default"
    """Namespace of the cluster."""
    claim: str | None = None
    """PersistentVolumeClaim (ReadWriteMany) to mount at storage.path."""
    secret: str | None = None
    """Secret whose keys become variables of every container, e.g. HF_TOKEN."""


class SlurmConfig(Config):
    """Options of the batch job."""

    partition: str | None = None
    """Partition of the nodes."""
    account: str | None = None
    """Account to charge."""
    time: str = Field(default="24:00:00", pattern=r"^[\d:-]+$")
    """Time limit of the job."""


class SkyPilotConfig(Config):
    """Where SkyPilot may start machines."""

    infra: str | None = None
    """Cloud, region or Kubernetes context, e.g. aws/us-west-2; the cheapest place with such machines if not set."""


class ClusterSpec(Config):
    """A cluster: its nodes, its storage, its software, and a section for each launcher that should start it."""

    name: str = Field(pattern=r"^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$")
    """Name of the cluster: lower-case letters, digits and hyphens."""
    head: NodeConfig
    """The node the driver runs on."""
    workers: WorkersConfig | None = None
    """The other nodes, all alike; not set: the cluster is the head alone."""
    storage: StorageConfig | None = None
    """Folder that all nodes share; not set: runs stay on the head, which works only without workers."""
    environment: str = Field(default="~/raylign-env", pattern=r"^(~|/)[\w./-]*$")
    """Virtual environment on the nodes, made there if it is missing; ignored if image is set."""
    python: str = Field(default="python3", pattern=r"^[\w./-]+$")
    """Python to make the environment with, 3.11 or newer; the same version on every node."""
    install: tuple[str, ...] = ()
    """Packages that pip installs into the environment: `raylign[gpu]`, or a wheel copied with `files`; empty: nothing."""
    image: str | None = None
    """Container image with raylign in it; kuberay needs one, the other launchers use it if set."""
    files: dict[str, str] = Field(default_factory=dict)
    """Files to copy to every node (aws, gcp, local, skypilot): path on the node -> path on the launching machine."""
    setup_commands: tuple[str, ...] = ()
    """Shell commands to run on every node before the installation."""
    token: str = "~/.ray/auth_token"
    """File of Ray's token on the launching machine (`ray get-auth-token --generate`); no launch file contains the token."""
    ray: RayConfig = RayConfig()
    ssh: SSHConfig = SSHConfig()
    idle_minutes: int = Field(default=15, ge=1)
    """Minutes without work after which a worker beyond min_nodes is released."""
    aws: AWSConfig | None = None
    gcp: GCPConfig | None = None
    local: LocalConfig | None = None
    kuberay: KubeRayConfig | None = None
    slurm: SlurmConfig | None = None
    skypilot: SkyPilotConfig | None = None

    @field_validator("files")
    @classmethod
    def _files_not_token(cls, files: dict[str, str]) -> dict[str, str]:
        if any(remote.rstrip("/").endswith("/auth_token") for remote in files):
            raise ValueError("Ray's token is always copied; name its file in token and remove it here")
        return files

    @model_validator(mode="after")
    def _consistent(self):
        self._check_machines()
        if self.workers and self.storage is None:
            raise ValueError(
                "storage: several nodes need a folder that all of them share; add storage: {path: /mnt/shared}, or remove "
                "workers"
            )
        if self.local:
            num_addresses, num_workers = len(self.local.workers), self.workers.max_nodes if self.workers else 0
            if num_addresses != num_workers:
                raise ValueError(
                    f"local.workers: {num_addresses} addresses for workers.max_nodes {num_workers}; make them equal"
                )
        if self.kuberay and not self.image:
            raise ValueError("image: kuberay starts containers; name an image with raylign and Ray in it")
        bucket = self.storage and self.storage.bucket
        if bucket and ((self.aws and bucket.startswith("gs:")) or (self.gcp and bucket.startswith("s3:"))):
            raise ValueError(
                f"storage.bucket: {bucket} belongs to another cloud; use a bucket of the same cloud, or two specs"
            )
        if bucket and not (self.aws or self.gcp or self.skypilot):
            raise ValueError("storage.bucket: only aws, gcp and skypilot mount buckets; copy it to storage.path")
        return self

    def _check_machines(self) -> None:
        nodes = {"head": self.head, "workers": self.workers}
        for cloud, example in (("aws", "m6i.2xlarge"), ("gcp", "n2-standard-8")):
            for place, node in nodes.items():
                if getattr(self, cloud) and node and getattr(node.machine, cloud) is None:
                    raise ValueError(f"{place}.machine.{cloud}: {cloud} needs a machine type; set one, e.g. {example}")
        for place, node in nodes.items():
            if self.skypilot and node and node.num_gpus and node.machine.gpu is None:
                raise ValueError(f"{place}.machine.gpu: skypilot needs the name of the GPU; set it, e.g. H100")


def load_spec(path: str | Path) -> ClusterSpec:
    """Read a cluster spec.

    Raises:
        ConfigError: unreadable file, bad YAML, unknown key, wrong type or contradiction; one line each,
            `file:line: dotted.key: problem`.
    """
    tree, lines = read_tree(path, "a cluster spec")
    return parse_spec(tree, str(path), lines)


def parse_spec(tree: dict[str, Any], source: str = "spec", lines: Lines | None = None) -> ClusterSpec:
    """Validate a spec given as nested dicts; `source` and `lines` are for the error messages."""
    return parse_as(ClusterSpec, tree, source, lines)
