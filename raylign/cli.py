"""The command line: `raylign run | validate | doctor | schema`. Heavy imports wait until a command needs them."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from raylign.errors import RaylignError

app = typer.Typer(
    help="Align language models on Ray: SFT, reward models, PPO and DPO under one controller.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

ConfigFile = Annotated[Path, typer.Argument(help="Run config (YAML).", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="dotted.key=value, over the file.", metavar="[KEY=VALUE]...", show_default=False),
]


@app.command()
def run(
    config: ConfigFile,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option(help="Go on with the newest run of this name.")] = False,
    quiet: Annotated[bool, typer.Option(help="Print only the result.")] = False,
) -> None:
    """Execute a run, and the runs it needs, to the end."""
    from raylign.config import load_config
    from raylign.config.graph import check_graph

    loaded = load_config(config, overrides or ())
    check_graph(loaded)  # a mistake in a needed config is told before the libraries are in
    # Read as transformers is imported: its bars and notes would stand between the run's own lines.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from raylign.controllers.run import run as execute
    from raylign.controllers.show import show_result

    show_result(execute(loaded, resume=resume, quiet=quiet))


@app.command()
def validate(config: ConfigFile, overrides: Overrides = None) -> None:
    """Check a config, and the configs it needs, without starting anything."""
    from raylign.config import load_config
    from raylign.config.graph import check_graph

    loaded = load_config(config, overrides or ())
    names = check_graph(loaded)
    needs = f", needs {', '.join(names)}" if names else ""
    print(f"{config}: valid: {loaded.algorithm.name} run {loaded.name!r}{needs}")


@app.command()
def doctor() -> None:
    """Look over this machine and say what would stand in the way of a run."""
    from raylign.doctor import check

    findings = check()
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        print(f"{finding.status:<4}  {finding.name:<{width}}  {finding.detail}")
        if finding.fix:
            print(f"{'':<{width + 8}}-> {finding.fix}")
    if any(finding.status == "fail" for finding in findings):
        raise typer.Exit(1)


@app.command()
def schema() -> None:
    """Print the JSON Schema of run configs, for editors."""
    from raylign.config import RunConfig

    print(json.dumps(RunConfig.model_json_schema(), indent=2))


def main(args: list[str] | None = None) -> None:
    """Entry point. Exit codes: 0 done, 1 failed, 2 the input must be mended, 130 stopped."""
    try:
        result: Any = app(args, standalone_mode=True)
    except RaylignError as e:
        print("\n".join(f"raylign: {line}" for line in str(e).splitlines()), file=sys.stderr)
        sys.exit(e.exit_code)
    except KeyboardInterrupt:
        print("raylign: stopped at once; the last commit is whole", file=sys.stderr)
        sys.exit(130)
    sys.exit(result or 0)
