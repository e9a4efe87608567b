"""Launch files: those of the repository against their specs, checked as launchers would, and wrong specs."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from raylign.actors.launchers import check_cluster_yaml
from raylign.cluster.launch_file import RenderContext
from raylign.cluster.render import TARGETS, render, select_targets, targets_of
from raylign.cluster.spec import ClusterSpec, load_spec, parse_spec
from raylign.errors import ConfigError, UserError
from tests.unit.test_cli import command

ROOT = Path(__file__).parents[3]
SPECS = sorted((ROOT / "clusters" / "specs").glob("*.yaml"))
NODE = {"num_cpus": 8, "memory_gib": 32, "machine": {"aws": "m6i.2xlarge", "gcp": "n2-standard-8"}}
GPU_NODE = {
    **NODE,
    "num_gpus": 4,
    "min_nodes": 1,
    "max_nodes": 3,
    "use_spot": True,
    "machine": {"aws": "g6e.12xlarge", "gcp": "n1-standard-32", "gcp_accelerator": "nvidia-tesla-t4", "gpu": "L40S"},
}
ALL: dict[str, Any] = {
    "name": "every",
    "image": "registry.example.com/raylign:1",
    "head": NODE,
    "workers": GPU_NODE,
    "storage": {"path": "/mnt/shared", "nfs": "nfs.example.com:/export"},
    "aws": {"region": "us-west-2", "zones": ["us-west-2a", "us-west-2b"], "image": "ami-1", "key_name": "k"},
    "gcp": {"project": "p", "region": "us-central1", "zone": "us-central1-a"},
    "local": {"head": "10.0.0.1", "workers": ["10.0.0.2", "10.0.0.3", "10.0.0.4"]},
    "kuberay": {"claim": "c", "secret": "s"},
    "slurm": {"partition": "gpu", "account": "a"},
    "skypilot": {"infra": "aws"},
}
# Fields of ray.io/v1 in KubeRay 1.6; unknown ones are dropped or refused by the API server.
RAY_JOB = {
    *("entrypoint", "submissionMode", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "backoffLimit"),
    *("preRunningDeadlineSeconds", "activeDeadlineSeconds", "rayClusterSpec", "runtimeEnvYAML", "suspend"),
}
RAY_CLUSTER = {
    "rayVersion",
    "authOptions",
    "enableInTreeAutoscaling",
    "autoscalerOptions",
    "headGroupSpec",
    "workerGroupSpecs",
}
WORKER_GROUP = {
    "groupName",
    "replicas",
    "minReplicas",
    "maxReplicas",
    "rayStartParams",
    "template",
    "idleTimeoutSeconds",
}


def files(tree: dict[str, Any], to: str = "all") -> dict[str, Any]:
    """Return the content of each file (the text of a script), by name without the cluster's."""
    spec = parse_spec(tree)
    made = render(spec, select_targets(spec, to), RenderContext("spec.yaml", ray.__version__))
    return {f.name.removeprefix(f"{spec.name}-"): yaml.safe_load(f.text) if ".yaml" in f.name else f.text for f in made}


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_files_of_the_repository_are_what_their_specs_make(path):
    spec = load_spec(path)
    source = path.relative_to(ROOT).as_posix()
    made = render(spec, select_targets(spec, "all"), RenderContext(source, ray.__version__))
    assert made
    for file in made:
        there = (ROOT / "clusters" / file.name).read_text()
        assert there == file.text, f"clusters/{file.name} is not up to date; run: raylign cluster render {source}"
        if file.autoscaler:
            check_cluster_yaml(file.autoscaler, file.name)


def test_no_launch_file_is_without_a_spec():
    specs = [load_spec(path) for path in SPECS]
    made = {file.name for spec in specs for file in render(spec, targets_of(spec), RenderContext("", "0"))}
    there = {path.name for path in (ROOT / "clusters").iterdir() if path.suffix in (".yaml", ".sh")}
    assert there == made


@pytest.mark.parametrize("image", [None, "registry.example.com/raylign:1"])
@pytest.mark.parametrize("cloud", ["aws", "gcp", "local"])
def test_ray_accepts_every_autoscaler_yaml(cloud, image):
    tree = {**ALL, "image": image}
    if image is None:
        tree = {k: v for k, v in tree.items() if k != "kuberay"}
    made = files(tree, cloud)[f"{cloud}.yaml"]
    check_cluster_yaml(made, "x.yaml")
    started = " ".join(made["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in started
    for commands in (made["head_start_ray_commands"], made["worker_start_ray_commands"]):
        assert any("RAY_AUTH_MODE=token" in one and " start " in one for one in commands)
        assert all("0.0.0.0" not in one for one in commands)
        assert any(one.endswith(" stop") for one in commands) == (cloud != "local")  # never on a machine we share


def test_ray_refuses_a_bad_yaml():
    made = files(ALL, "aws")["aws.yaml"]
    with pytest.raises(UserError, match=r"x\.yaml: auth: Ray .* refuses it: .*shh_user.*; change the spec"):
        check_cluster_yaml(made | {"auth": {"shh_user": "me"}}, "x.yaml")
    with pytest.raises(UserError, match="max_workers"):
        check_cluster_yaml(made | {"max_workers": 0}, "x.yaml")


def test_spot_gpus_and_disks_reach_the_clouds():
    aws = files(ALL, "aws")["aws.yaml"]["available_node_types"]
    assert aws["worker"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in aws["head"]["node_config"]
    assert (aws["worker"]["min_workers"], aws["worker"]["max_workers"]) == (1, 3)
    assert aws["worker"]["resources"] == {"CPU": 8, "GPU": 4}
    gcp = files(ALL, "gcp")["gcp.yaml"]["available_node_types"]["worker"]["node_config"]
    kind = "projects/p/zones/us-central1-a/acceleratorTypes/nvidia-tesla-t4"
    assert gcp["guestAccelerators"] == [{"acceleratorType": kind, "acceleratorCount": 4}]
    assert {"preemptible": True} in gcp["scheduling"]


def test_kuberay_uses_only_fields_of_its_crds():
    made = files(ALL, "kuberay")
    job, cluster = made["kuberay-job.yaml"], made["kuberay-cluster.yaml"]
    assert (job["apiVersion"], job["kind"], cluster["kind"]) == ("ray.io/v1", "RayJob", "RayCluster")
    assert job["spec"].keys() <= RAY_JOB
    assert job["spec"]["rayClusterSpec"] == cluster["spec"]
    assert cluster["spec"].keys() <= RAY_CLUSTER
    assert cluster["spec"]["authOptions"] == {"mode": "token"}
    (group,) = cluster["spec"]["workerGroupSpecs"]
    assert group.keys() <= WORKER_GROUP
    (container,) = group["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "4"
    assert {"name": "RAYLIGN_STORAGE", "value": "/mnt/shared"} in container["env"]


def test_the_token_is_in_no_file(tmp_path):
    token = tmp_path / "token"
    token.write_text("the-secret")
    for text in map(json.dumps, files({**ALL, "token": str(token)}).values()):
        assert "the-secret" not in text


def slurm_job(tmp_path: Path, *arguments: str, token: str = "t") -> subprocess.CompletedProcess[str]:
    """Run the script with stubs for the commands that only Slurm's nodes have; stubs print how they were called."""
    tree = {k: v for k, v in ALL.items() if k not in ("kuberay", "image")} | {"environment": str(tmp_path / "env")}
    script = tmp_path / "job.sh"
    script.write_text(files(tree, "slurm")["slurm.sh"])
    assert subprocess.run(["bash", "-n", script], check=False, timeout=30).returncode == 0
    stubs = tmp_path / "env" / "bin"
    stubs.mkdir(parents=True, exist_ok=True)
    (stubs / "activate").write_text(f'export PATH="{stubs}:$PATH"\n')
    for name, text in {
        "scontrol": "printf 'node1\\nnode2\\n'",
        "srun": 'case "$*" in *hostname*) echo "10.1.2.3 10.9.9.9" ;; *) printf "<%s>" "$@"; env | grep RAY ;; esac',
    }.items():
        (stubs / name).write_text(f"#!/bin/sh\n{text}\n")
        (stubs / name).chmod(0o755)
    home = tmp_path / "home" / ".ray"
    home.mkdir(parents=True, exist_ok=True)
    (home / "auth_token").write_text(token)
    own = {"HOME": str(home.parent), "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_NUM_NODES": "2"}
    return subprocess.run(
        ["bash", script, *arguments], env={**os.environ, **own}, capture_output=True, text=True, timeout=60, check=False
    )


def test_slurm_starts_one_ray_on_all_nodes_and_passes_arguments_intact(tmp_path):
    done = slurm_job(tmp_path, "run", "ppo.yaml", "name=a b")
    assert done.returncode == 0, done.stderr
    assert "<ray><symmetric-run><--address><10.1.2.3:6379><--min-nodes><2>" in done.stdout
    assert "<--><env><RAY_ADDRESS=10.1.2.3:6379><raylign><run><ppo.yaml><name=a b>" in done.stdout
    assert "RAY_AUTH_MODE=token" in done.stdout
    assert "RAYLIGN_STORAGE=/mnt/shared" in done.stdout


def test_slurm_says_what_is_missing_before_it_starts_anything(tmp_path):
    assert "usage: sbatch" in slurm_job(tmp_path).stderr
    done = slurm_job(tmp_path, "run", "x.yaml", token="")
    assert (done.returncode, done.stdout) == (2, "")
    assert "no Ray token in" in done.stderr


def test_skypilot_runs_with_a_ray_of_its_own():
    task = files(ALL, "skypilot")["skypilot.yaml"]
    assert task["resources"]["accelerators"] == "L40S:4"
    assert task["num_nodes"] == 1
    assert "ray stop" not in task["run"]
    for script in (task["setup"], task["run"]):
        done = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True, check=False, timeout=30)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"haed": NODE}, "haed: unknown key; did you mean head?"),
        ({"workers": {**GPU_NODE, "max_nodes": 0}}, "workers.max_nodes: "),
        ({"workers": {**GPU_NODE, "num_gpu": 1}}, "workers.num_gpu: unknown key; did you mean num_gpus?"),
        ({"workers": {**GPU_NODE, "min_nodes": 9}}, "max_nodes: 3 is less than min_nodes 9; raise it"),
        ({"storage": None}, "storage: several nodes need a folder that all of them share"),
        ({"image": None}, "image: kuberay starts containers"),
        ({"local": {"head": "10.0.0.1"}}, "local.workers: 0 addresses for workers.max_nodes 3; make them equal"),
        ({"head": {**NODE, "machine": {"gcp": "x"}}}, "head.machine.aws: aws needs a machine type"),
        ({"storage": {"path": "/x", "bucket": "gs://b"}}, "storage.bucket: gs://b belongs to another cloud"),
        ({"storage": {"path": "relative"}}, "storage.path: "),
        ({"files": {"~/.ray/auth_token": "x"}}, "files: Ray's token is always copied"),
        ({"name": "Capital"}, "name: "),
    ],
)
def test_a_wrong_spec_is_one_line_with_the_place(tmp_path, change, problem):
    file = tmp_path / "spec.yaml"
    file.write_text(yaml.safe_dump(ALL | change, sort_keys=False))
    with pytest.raises(ConfigError) as caught:
        load_spec(file)
    assert str(file) in caught.value.problems[0]
    assert problem in caught.value.problems[0]
    assert len(caught.value.problems) == 1


def test_every_launcher_has_a_section_in_the_spec_that_may_be_left_out():
    assert targets_of(parse_spec(ALL)) == TARGETS
    assert targets_of(parse_spec({"name": "x", "head": NODE})) == ()
    for name in TARGETS:
        assert ClusterSpec.model_fields[name].default is None


def test_a_launcher_without_a_section_is_refused():
    spec = ClusterSpec.model_validate({"name": "x", "head": NODE, "slurm": {}})
    with pytest.raises(UserError, match="--to: the spec has no section aws"):
        select_targets(spec, "aws")
    with pytest.raises(UserError, match="--to: 'azure' is not a launcher; known: aws, gcp"):
        select_targets(spec, "azure")
    with pytest.raises(UserError, match="names no launcher"):
        select_targets(ClusterSpec.model_validate({"name": "x", "head": NODE}), "all")


def test_render_writes_and_says_what(tmp_path):
    done = command("cluster", "render", str(SPECS[0]), "--output", str(tmp_path / "out"), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split()) == sorted(map(str, (tmp_path / "out").iterdir()))
    done = command("cluster", "render", "no.yaml", folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
