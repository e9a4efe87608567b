"""Shell commands that set up a node and start Ray on it, shared by all launchers that run commands."""

from __future__ import annotations

from shlex import quote

from raylign.cluster.spec import ClusterSpec, NodeConfig

ADDRESS_FILE = (
    "~/.raylign-cluster"  # on the head: variables that `clusters/launch.py` puts into the driver's environment
)
TOKEN = "~/.ray/auth_token"  # where Ray looks for its token on a node
MAX_OPEN_FILES = 65536  # as Ray advises; most systems grant fewer
SHARED_MEMORY_SHARE = 0.4  # of a node's memory, for the object store of a container


def variables(spec: ClusterSpec) -> dict[str, str]:
    """Return the environment of every process of the cluster; the token is in a file, never here."""
    environment = {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}
    if spec.storage:
        environment["RAYLIGN_STORAGE"] = spec.storage.path
    return environment


def exports(spec: ClusterSpec) -> str:
    """Return the command that sets `variables`: `export A=b C=d`."""
    return "export " + " ".join(f"{name}={quote(value)}" for name, value in variables(spec).items())


def home(path: str) -> str:
    """Return the path for use between double quotes in a shell, which does not expand ~ there."""
    return f"$HOME{path.removeprefix('~')}" if path.startswith("~") else path


def mounts(spec: ClusterSpec) -> list[str]:
    """Return commands that mount the shared folder and the bucket on a machine, unless they are mounted already."""
    storage, mount_commands = spec.storage, []
    if storage and storage.nfs:
        path = quote(storage.path)
        mount_commands.append(
            f"mountpoint -q {path} || {{ command -v mount.nfs4 >/dev/null || sudo apt-get install -y -q nfs-common; "
            f"sudo mkdir -p {path} && sudo mount -t nfs4 {quote(storage.nfs)} {path} && sudo chmod 1777 {path}; }}"
        )
    if storage and storage.bucket:
        path, name = quote(storage.bucket_path), storage.bucket.partition("://")[2].strip("/")
        tool = {
            "s3": f"sudo mount-s3 --read-only --allow-other {quote(name)} {path}",
            "gs": f"sudo gcsfuse -o ro,allow_other --implicit-dirs {quote(name)} {path}",
        }[storage.bucket[:2]]
        mount_commands.append(f"mountpoint -q {path} || {{ sudo mkdir -p {path} && {tool}; }}")
    return mount_commands


def setup(spec: ClusterSpec) -> list[str]:
    """Return commands that make the environment, install raylign into it, and put it on the PATH of login shells.

    They are safe to run again.
    """
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
    """Return the command `ray` of the image, or of the environment if there is no image."""
    return "ray" if spec.image else f'"{home(spec.environment)}/bin/ray"'


def start(spec: ClusterSpec, node: NodeConfig, *options: str) -> str:
    """Return `ray start` with the resources of this kind of node."""
    temp_dir = [f"--temp-dir={spec.ray.temp_dir}"] if spec.ray.temp_dir else []
    resources = [f"--num-cpus={node.num_cpus}", f"--num-gpus={node.num_gpus}"]
    words = [ray_command(spec), "start", *options, *resources, *temp_dir, *map(quote, spec.ray.options)]
    return f"{exports(spec)}; ulimit -n {MAX_OPEN_FILES} || true; {' '.join(words)}"


def head_options(spec: ClusterSpec) -> list[str]:
    """Return the options of `ray start` on the head.

    The dashboard accepts jobs, so it listens on loopback only: reach it through ssh.
    """
    return [
        "--head",
        f"--port={spec.ray.port}",
        "--include-dashboard=true",
        "--dashboard-host=127.0.0.1",
        f"--dashboard-port={spec.ray.dashboard_port}",
    ]


def write_address(spec: ClusterSpec, address: str) -> str:
    """Return the command that writes the variables with which a driver attaches, on the head."""
    lines = {"RAY_ADDRESS": address, **variables(spec)}
    text = " ".join(quote(f"{name}={value}") for name, value in lines.items())
    return f"printf '%s\\n' {text} > {ADDRESS_FILE}"
