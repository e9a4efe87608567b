"""Run raylign on the cluster that `ray up` started: `ray submit CLUSTER.yaml clusters/launch.py -- run CONFIG KEY=VALUE`.

`ray submit` copies this one file to the head and runs it there, so it needs nothing but Python. Arguments with spaces
need quotes twice, as Ray joins them for a shell: "'key=a b'".
"""

import os
import shutil
import sys
from pathlib import Path

ADDRESS_FILE = Path("~/.raylign-cluster").expanduser()  # written by the head's start commands


def main() -> None:
    if not ADDRESS_FILE.exists():
        sys.exit(f"launch: {ADDRESS_FILE} is not there: no cluster was started here; run: ray up CLUSTER.yaml")
    raylign = shutil.which("raylign")
    if raylign is None:
        sys.exit(
            "launch: raylign is not on the PATH of this node; name it in `install` of the cluster spec, ray up again"
        )
    os.environ.update(line.split("=", 1) for line in ADDRESS_FILE.read_text().splitlines() if "=" in line)
    os.chdir(Path.home())  # what relative paths of a run mean, whatever shell we came through
    # Ray's shells say 1 thread for the driver; actors have their own number, from placement.*.num_threads.
    os.execv(raylign, [raylign, *sys.argv[1:]])


main()
