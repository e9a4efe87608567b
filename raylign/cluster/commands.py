"""The shell commands that make a node and start Ray on it, the same for every launcher that runs commands."""

from __future__ import annotations

from shlex import quote

from raylign.cluster.spec import ClusterSpec, NodeConfig

ADDRESS_FILE = "~/.raylign-cluster"  # on the head: what `clusters/launch.py` puts into the driver's environment
TOKEN = "~/.ray/auth_token"  # where Ray looks for its token on a node
MAX_OPEN_FILES = 65536  # Ray's own advice; more than most systems grant
SHARED_MEMORY_SHARE = 0.4  # of a node's memory, for the object store of a container


def variables(spec: ClusterSpec) -> dict[str, str]:
    """What every process of the cluster has in its environment; the token is in a file, never here."""
    found = {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}
    if spec.storage:
        found["RAYLIGN_STORAGE"] = spec.storage.path
    return found


def exports(spec: ClusterSpec) -> str:
    """`export A=b C=d`."""
    return "export " + " ".join(f"{name}={quote(value)}" for name, value in variables(spec).items())


def home(path: str) -> str:
    """A path for use between double quotes in a shell, where ~ means nothing."""
    return f"$HOME{path.removeprefix('~')}" if path.startswith("~") else path


def mounts(spec: ClusterSpec) -> list[str]:
    """Mount the shared folder and the bucket on the machine itself; nothing where they are mounted already."""
    storage, found = spec.storage, []
    if storage and storage.nfs:
        path = quote(storage.path)
        found.append(
            f"mountpoint -q {path} || {{ command -v mount.nfs4 >/dev/null || sudo apt-get install -y -q nfs-common; "
            f"sudo mkdir -p {path} && sudo mount -t nfs4 {quote(storage.nfs)} {path} && sudo chmod 1777 {path}; }}"
        )
    if storage and storage.bucket:
        path, name = quote(storage.bucket_path), storage.bucket.partition("://")[2].strip("/")
        tool = {
            "s3": f"sudo mount-s3 --read-only --allow-other {quote(name)} {path}",
            "gs": f"sudo gcsfuse -o ro,allow_other --implicit-dirs {quote(name)} {path}",
        }[storage.bucket[:2]]
        found.append(f"mountpoint -q {path} || {{ sudo mkdir -p {path} && {tool}; }}")
    return found


def setup(spec: ClusterSpec) -> list[str]:
    """Make the environment, install raylign into it, and put it on the PATH of login shells. Safe to run again."""
    commands = [f"chmod 600 {TOKEN}", *spec.setup_commands]
    if spec.image:
        return [*commands, *(f"pip install -q --disable-pip-version-check {quote(one)}" for one in spec.install)]
    folder = home(spec.environment)
    if spec.install:
        commands.append(f'[ -x "{folder}/bin/python" ] || {spec.python} -m venv "{folder}"')
        commands.append(
            f'"{folder}/bin/python" -m pip install -q --disable-pip-version-check {" ".join(map(quote, spec.install))}'
        )
    line = f'export PATH="{folder}/bin:$PATH"'
    commands.append(f"grep -qsxF '{line}' ~/.bashrc || echo '{line}' >> ~/.bashrc")
    return commands


def ray_command(spec: ClusterSpec) -> str:
    """`ray` of the environment; of the image where there is one."""
    return "ray" if spec.image else f'"{home(spec.environment)}/bin/ray"'


def start(spec: ClusterSpec, node: NodeConfig, *options: str) -> str:
    """`ray start` with the resources of this kind of node."""
    temp_dir = [f"--temp-dir={spec.ray.temp_dir}"] if spec.ray.temp_dir else []
    resources = [f"--num-cpus={node.num_cpus}", f"--num-gpus={node.num_gpus}"]
    words = [ray_command(spec), "start", *options, *resources, *temp_dir, *map(quote, spec.ray.options)]
    return f"{exports(spec)}; ulimit -n {MAX_OPEN_FILES} || true; {' '.join(words)}"


def head_options(spec: ClusterSpec) -> list[str]:
    """The dashboard takes jobs, so it listens on loopback only: reach it through ssh."""
    return [
        "--head",
        f"--port={spec.ray.port}",
        "--include-dashboard=true",
        "--dashboard-host=127.0.0.1",
        f"--dashboard-port={spec.ray.dashboard_port}",
    ]


def write_address(spec: ClusterSpec, address: str) -> str:
    """Leave on the head what a driver must know to attach."""
    lines = {"RAY_ADDRESS": address, **variables(spec)}
    text = " ".join(quote(f"{name}={value}") for name, value in lines.items())
    return f"printf '%s\\n' {text} > {ADDRESS_FILE}"
