"""Run raylign on the cluster that `ray up` started: `ray submit CLUSTER.yaml clusters/launch.py -- run CONFIG KEY=VALUE`.

`ray submit` copies only this file to the head and runs it there, so it imports only the standard library. Quote arguments
with spaces twice, because Ray joins them into one shell command: "'key=a b'".
"""

import os
import shutil
import sys
from pathlib import Path

ADDRESS_FILE = Path("~/.raylign-cluster").expanduser()  # written by the head's start commands


def main() -> None:
    if not ADDRESS_FILE.exists():
        sys.exit(f"launch: {ADDRESS_FILE} does not exist: no cluster was started here; run: ray up CLUSTER.yaml")
    raylign = shutil.which("raylign")
    if raylign is None:
        sys.exit(
            "launch: raylign is not on the PATH of this node; add it to `install` in the cluster spec and run ray up again"
        )
    os.environ.update(line.split("=", 1) for line in ADDRESS_FILE.read_text().splitlines() if "=" in line)
    os.chdir(Path.home())  # relative paths of a run start here, whichever shell started this script
    # Ray's shells limit the driver to 1 thread; actors set their own number from placement.*.num_threads.
    os.execv(raylign, [raylign, *sys.argv[1:]])


main()
