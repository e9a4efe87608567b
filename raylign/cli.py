"""The command line: `raylign run | sweep | generate | plan | compare | validate | doctor | cluster | schema`. Heavy imports wait until a command needs them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from raylign.errors import RaylignError, UserError

T = TypeVar("T")

app = typer.Typer(
    help="Align language models on Ray: SFT, reward models, PPO and DPO under one controller.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

cluster = typer.Typer(help="Launch files for clusters.", no_args_is_help=True)
app.add_typer(cluster, name="cluster")

ConfigFile = Annotated[Path, typer.Argument(help="Run config (YAML).", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Override config keys, e.g. algorithm.beta=0.3.", metavar="[KEY=VALUE]...", show_default=False),
]


@app.command()
def run(
    config: ConfigFile,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option(help="Continue the newest run of this name.")] = False,
    quiet: Annotated[bool, typer.Option(help="Print only the result.")] = False,
) -> None:
    """Execute a run, after the runs that it needs."""
    from raylign.config import load_config
    from raylign.config.graph import check_graph

    loaded = load_config(config, overrides or ())
    check_graph(loaded)  # report a mistake in a needed config before the slow imports
    quiet_libraries()
    from raylign.controllers.run import run as execute
    from raylign.controllers.show import show_result

    show_result(execute(loaded, resume=resume, quiet=quiet))


@app.command()
def sweep(
    config: Annotated[Path, typer.Argument(help="Sweep (YAML).", show_default=False)],
    resume: Annotated[bool, typer.Option(help="Continue the newest sweep of this name.")] = False,
    quiet: Annotated[bool, typer.Option(help="Print only the result.")] = False,
) -> None:
    """Run a config with many settings, as many at a time as the cluster has room for, and report the best."""
    from raylign.config.search_space import load_sweep

    loaded = load_sweep(config)  # report a mistake before the slow imports
    quiet_libraries()
    from raylign.tuning.sweep import show_results
    from raylign.tuning.sweep import sweep as execute

    show_results(loaded, execute(loaded, resume=resume, quiet=quiet))


@app.command()
def generate(
    config: ConfigFile,
    overrides: Overrides = None,
    samples: Annotated[int | None, typer.Option(help="Completions per prompt.", show_default="8")] = None,
    keep: Annotated[
        str | None, typer.Option(help="Completions to keep: best of each prompt, pairs, or all.", show_default="best")
    ] = None,
    rows: Annotated[int | None, typer.Option(help="Rows to write.", show_default="one pass over the prompts")] = None,
    out: Annotated[Path | None, typer.Option(help="Also write the rows to this .jsonl or .parquet file.")] = None,
    resume: Annotated[bool, typer.Option(help="Continue the newest run of this name.")] = False,
    quiet: Annotated[bool, typer.Option(help="Print only the result.")] = False,
) -> None:
    """Sample the model that a run starts from (`model.path`), score the samples with its reward, and write them as a dataset.

    A collect config sets samples, keep and rows itself; the options override them.
    """
    from raylign.config.generate import generate_config
    from raylign.config.graph import check_graph

    loaded = generate_config(config, overrides or (), samples=samples, keep=keep, rows=rows)
    check_graph(loaded)
    quiet_libraries()
    from raylign.controllers.generate import generate as execute
    from raylign.controllers.show import show_dataset, show_result

    result = execute(loaded, out=out, resume=resume, quiet=quiet)
    show_result(result)
    show_dataset(out or result.output)


@app.command()
def validate(config: ConfigFile, overrides: Overrides = None) -> None:
    """Check a config, and the configs that it needs, without starting anything."""
    from raylign.config import load_config
    from raylign.config.graph import check_graph

    loaded = load_config(config, overrides or ())
    names = check_graph(loaded)
    needs = f", needs {', '.join(names)}" if names else ""
    print(f"{config}: valid: {loaded.algorithm.name} run {loaded.name!r}{needs}")


@app.command()
def plan(
    config: ConfigFile,
    overrides: Overrides = None,
    gpu: Annotated[
        str | None,
        typer.Option(help="GPU to plan for: its name, e.g. h100-80gb, or its memory; default: this machine."),
    ] = None,
    spec: Annotated[Path | None, typer.Option("--cluster", help="Plan for the GPU of this cluster spec.")] = None,
    rows: Annotated[int | None, typer.Option(help="Number of rows, if the data is not on this machine.", min=1)] = None,
    runs: Annotated[int, typer.Option(help="Number of runs, for the cost of a sweep.", min=1)] = 1,
    price_per_gpu_hour: Annotated[
        float | None, typer.Option(help="Price of a GPU-hour, for the cost estimate.", min=0)
    ] = None,
    explain: Annotated[bool, typer.Option(help="Print the arithmetic.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the plan to this file.")] = None,
) -> None:
    """Print the memory that every role needs, changes that would make it fit, and the time and cost of the run."""
    from raylign.config import load_config
    from raylign.config.graph import check_graph

    loaded = load_config(config, overrides or ())
    check_graph(loaded)
    quiet_libraries()
    from raylign.cluster.spec import load_spec
    from raylign.planning import devices
    from raylign.planning.plan import plan as make_plan
    from raylign.planning.show import show_plan

    if gpu:
        device = devices.gpu(gpu)
    elif spec:
        device = devices.of_cluster(load_spec(spec))
    else:
        device = devices.this_gpu() if loaded.uses_gpus else devices.this_machine()
    planned = make_plan(loaded, device, num_rows=rows, runs=runs, price_per_gpu_hour=price_per_gpu_hour)
    show_plan(planned, explain)
    if json_file:
        json_file.write_text(json.dumps(planned.tree(), indent=2))


@app.command()
def compare(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="Spec of a comparison (YAML); or dotted.key=value for the exact task.",
            metavar="[SPEC.yaml | KEY=VALUE...]",
            show_default=False,
        ),
    ] = None,
    task: Annotated[str, typer.Option(help="Embedded task to compare on: exact.")] = "exact",
    algorithms: Annotated[str, typer.Option(help="ppo, grpo, rloo, reinforce++, dpo, online_dpo; comma-separated.")] = (
        "ppo,dpo"
    ),
    betas: Annotated[str, typer.Option(help="KL coefficients, comma-separated.")] = "1.0,0.3,0.1",
    seeds: Annotated[str, typer.Option(help="Seeds of the runs, comma-separated.")] = "0,1,2",
    pairs: Annotated[int, typer.Option(help="Preference pairs for dpo.", min=1)] = 20_000,
    output_dir: Annotated[str, typer.Option(help="Where the comparison's folder is made.")] = "runs",
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the records to this file.")] = None,
) -> None:
    """Compare methods and write a report: `raylign compare SPEC.yaml`. Without a spec, run algorithms on the exact task
    and show how close each comes to the optimum.

    All options but --json apply only to the exact task.
    """
    quiet_libraries()
    if overrides and "=" not in overrides[0] and overrides[0].endswith((".yaml", ".yml")):
        if overrides[1:]:
            raise UserError(f"{overrides[1]}: a spec has its own overrides; write it there, under overrides")
        from raylign.compare.command import compare_spec

        compare_spec(Path(overrides[0]), json_file)
        return
    from raylign.compare.exact.command import compare_exact
    from raylign.compare.exact.expand import ExactSpec

    spec = ExactSpec(
        algorithms=split_list("--algorithms", algorithms, str),
        betas=split_list("--betas", betas, float),
        seeds=split_list("--seeds", seeds, int),
        overrides=overrides or [],
        num_pairs=pairs,
        output_dir=output_dir,
    )
    compare_exact(task, spec, json_file)


@app.command()
def doctor(
    address: Annotated[
        str | None, typer.Option(help="Address of a Ray cluster to check too.", show_default="RAY_ADDRESS")
    ] = None,
    output_dir: Annotated[Path, typer.Option(help="Where runs would be written.")] = Path("runs"),
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the findings to this file.")] = None,
) -> None:
    """Look over this machine, or a cluster, and say what would stand in the way of a run."""
    from raylign.doctor import check

    findings = check(output_dir, address)
    if json_file:
        json_file.write_text(json.dumps([vars(finding) for finding in findings], indent=2))
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        print(f"{finding.status:<4}  {finding.name:<{width}}  {finding.detail}")
        if finding.fix:
            print(f"{'':<{width + 8}}-> {finding.fix}")
    if any(finding.status == "fail" for finding in findings):
        raise typer.Exit(1)


@cluster.command()
def render(
    spec: Annotated[Path, typer.Argument(help="Cluster spec (YAML).", show_default=False)],
    to: Annotated[
        str, typer.Option(help="Launchers, comma-separated: aws, gcp, local, kuberay, slurm, skypilot.")
    ] = "all",
    output: Annotated[Path, typer.Option(help="Folder for the files.")] = Path("clusters"),
) -> None:
    """Write the launch files of a cluster from its spec. Cluster YAMLs are checked with Ray's own validator first."""
    import ray

    from raylign.actors.launchers import check_cluster_yaml
    from raylign.cluster.launch_file import RenderContext
    from raylign.cluster.render import render as render_files
    from raylign.cluster.render import select_targets
    from raylign.cluster.spec import load_spec

    loaded = load_spec(spec)
    context = RenderContext(source=spec.as_posix(), ray_version=ray.__version__)
    files = render_files(loaded, select_targets(loaded, to), context)
    for file in files:  # check all before writing the first
        if file.autoscaler:
            check_cluster_yaml(file.autoscaler, file.name)
    output.mkdir(parents=True, exist_ok=True)
    for file in files:
        (output / file.name).write_text(file.text)
        print(output / file.name)


@app.command()
def schema() -> None:
    """Print the JSON Schema of run configs, for editors."""
    from raylign.config import RunConfig

    print(json.dumps(RunConfig.model_json_schema(), indent=2))


def quiet_libraries() -> None:
    """Read as transformers is imported: its bars and notes would stand between the run's own lines."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def split_list(option: str, text: str, kind: Callable[[str], T]) -> list[T]:
    """Split an option like `1.0,0.3` into its values.

    Raises:
        UserError: there is no value, or one is wrong or listed twice.
    """
    values = []
    for part in (part.strip() for part in text.split(",")):
        try:
            if not part:
                raise ValueError
            values.append(kind(part))
        except ValueError:
            name = {int: "an integer", float: "a number"}.get(kind, "a value")
            raise UserError(f"{option}: {part!r} is not {name}; separate values with commas, e.g. 0,1,2") from None
        if values[-1] in values[:-1]:
            raise UserError(f"{option}: {part} is listed twice; remove one")
    return values


def main(args: list[str] | None = None) -> None:
    """Run the command line. Exit codes: 0 done, 1 failed, 2 wrong input, 130 stopped."""
    try:
        result: Any = app(args, standalone_mode=True)
    except RaylignError as e:
        print("\n".join(f"raylign: {line}" for line in str(e).splitlines()), file=sys.stderr)
        sys.exit(e.exit_code)
    except KeyboardInterrupt:
        print("raylign: stopped at once; the last commit is intact", file=sys.stderr)
        sys.exit(130)
    sys.exit(result or 0)
