"""Virtual environments of the peers, one each, created once under .bench/ and reused.

TRL cannot share an environment with raylign, because its DPO and PPO trainers are in two different versions. torch is
installed first and alone, so that the second pip call finds the pinned build.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2] / ".bench"
TORCH = "torch==2.13.0"
PEERS = {
    "trl-1.16": ("trl>=1.16,<1.17", "transformers>=5.16.1,<5.20"),  # DPOTrainer, newest
    "trl-1.12": ("trl>=1.12,<1.13", "transformers>=5.16.1,<5.20"),  # the last version with a PPOTrainer
}
TIMEOUT = 1800  # seconds for one pip call; torch is a large download


def python_of(peer: str, torch_index: str | None = None) -> Path:
    """Return the interpreter of a peer's environment, creating the environment if it does not exist.

    Args:
        peer: a key of PEERS.
        torch_index: package index for the torch line only (a CPU build of torch saves several GB).
    Raises:
        subprocess.SubprocessError: pip failed or timed out; the next call removes the incomplete environment.
    """
    folder = ROOT / peer
    python, stamp = folder / "bin" / "python", folder / "made-from.txt"
    wanted = "\n".join((TORCH, *PEERS[peer]))
    if stamp.is_file() and stamp.read_text() == wanted:
        return python
    print(f"making {folder} (once)", file=sys.stderr)
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, timeout=TIMEOUT)
    pip = [str(python), "-m", "pip", "install", "--quiet"]
    index = ["--index-url", torch_index] if torch_index else []
    subprocess.run([*pip, *index, TORCH], check=True, timeout=TIMEOUT)
    subprocess.run([*pip, TORCH, *PEERS[peer]], check=True, timeout=TIMEOUT)
    stamp.write_text(wanted)
    return python


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Create the environments of the peers.")
    parser.add_argument("--peer", choices=list(PEERS), help="only this peer")
    parser.add_argument("--torch-index", help="package index for torch only")
    arguments = parser.parse_args()
    for name in [arguments.peer] if arguments.peer else PEERS:
        print(python_of(name, arguments.torch_index))
