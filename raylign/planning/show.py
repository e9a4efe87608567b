"""Print a plan for a person: tables of at most 100 columns, and with `--explain` the arithmetic line by line."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from raylign.actors.layout import Layout
from raylign.planning.cost import HIGH, LOW, START
from raylign.planning.parts import GIB, RoleMemory
from raylign.planning.plan import Plan

_PARTS = {
    "process": "process",
    "weights": "weights",
    "gradients": "grads",
    "optimizer": "adam",
    "activations": "activ.",
    "logits": "logits",
    "kv cache": "kv",
}
"""Column titles, by the part that the column shows."""
WIDTH = 100


def show_plan(plan: Plan, explain: bool = False, console: Console | None = None) -> None:
    """Print a plan."""
    if console is None:
        usual = Console(highlight=False)
        console = Console(width=min(usual.width, WIDTH) if usual.is_terminal else WIDTH, highlight=False)
    profile = plan.resolved.profile
    console.print(
        f"[bold]{escape(plan.config.name)}[/bold] ({plan.config.algorithm.name}) on {plan.device.name}, "
        f"{plan.device.memory / GIB:,.0f} GiB; rows of {profile.lengths.mean():,.0f} tokens, longest {profile.lengths.max():,} "
        f"({escape(profile.origin)})"
    )
    console.print(_memory_table(plan))
    if explain:
        for role in plan.memory.values():
            _explain(role, console)
    _show_fit(plan, console)
    _show_placement(plan, console)
    _show_cost(plan, console, explain)


def _memory_table(plan: Plan) -> Table:
    table = Table(
        title="GiB of one actor in its largest state", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False
    )
    for name in ("role", "state", *_PARTS.values(), "other", "total"):
        table.add_column(name, justify="left" if name in ("role", "state") else "right", no_wrap=True)
    for name, role in plan.memory.items():
        parts = [role.part_size(part) for part in _PARTS]
        cells = [_gib(size) if size else "-" for size in (*parts, role.peak - sum(parts))]
        count = f" x {role.num_actors}" if role.num_actors > 1 else ""
        table.add_row(f"{name}{count}", role.worst.name, *cells, f"[bold]{_gib(role.peak)}[/bold]")
    return table


def _explain(role: RoleMemory, console: Console) -> None:
    for state in role.states:
        mark = " (the largest)" if state is role.worst and len(role.states) > 1 else ""
        console.print(f"{role.role}, {state.name}{mark}: {_gib(state.total)} GiB")
        for part in state.parts:
            console.print(f"  {part.size / 2**20:>10,.0f} MiB  {part.name}: {escape(part.how)}", soft_wrap=True)


def _show_fit(plan: Plan, console: Console) -> None:
    for demand in plan.demands:
        verdict = "[green]fits[/green]" if demand.fits else "[red]does not fit[/red]"
        roles = ", ".join(demand.roles)
        console.print(f"{verdict}: {demand.where} holds {roles}: {_gib(demand.needed)} of {_gib(demand.available)} GiB")
    if plan.fits:
        return
    if not plan.changes:
        console.print("no setting that plan knows would help; use a smaller model or a larger device")
        return
    table = Table(title="changes, in this order", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("set", "cost", "then GiB", ""):
        table.add_column(name, justify="right" if name == "then GiB" else "left")
    for change in plan.changes:
        verdict = "fits" if change.demand.fits else ""
        table.add_row(escape("\n".join(change.settings)), change.cost, _gib(change.demand.needed), verdict)
    console.print(table)
    if not plan.fits_after_changes:
        console.print("after all of these it still does not fit; use a smaller model or a larger device")


def _show_placement(plan: Plan, console: Console) -> None:
    for number, layout in enumerate(plan.layouts, start=1):
        phase = f" (phase {number} of {len(plan.layouts)})" if len(plan.layouts) > 1 else ""
        console.print(
            f"placement{phase}: {len(layout.bundles)} bundles, {plan.config.placement.mode}, "
            f"{plan.config.placement.strategy}: {_seats(layout)}"
        )


def _seats(layout: Layout) -> str:
    def size(seats: range) -> str:
        bundle = layout.bundles[seats[0]]
        return " ".join(f"{bundle[key]:g} {key}" for key in ("GPU", "CPU") if key in bundle)

    def numbers(seats: range) -> str:
        return str(seats[0]) if len(seats) == 1 else f"{seats[0]}-{seats[-1]}"

    return "; ".join(f"{role} in {numbers(seats)} ({size(seats)})" for role, seats in layout.seats.items())


def _show_cost(plan: Plan, console: Console, explain: bool) -> None:
    cost = plan.cost
    if explain:
        for work in cost.works:
            console.print(f"  {work.seconds:>8.1f} s  {work.role}, {work.how}", soft_wrap=True)
    step, hours = cost.step_seconds, cost.run_hours
    console.print(
        f"a step: about {step:,.1f} s ({step * LOW:,.1f} to {step * HIGH:,.1f}); "
        f"a run of {cost.steps:,} steps: {hours:,.2f} h, including {START:g} s to start"
    )
    if cost.num_gpus:
        money = "" if cost.money is None else f", {cost.money:,.2f} at {cost.price:g} a GPU-hour"
        runs = f"{cost.runs} runs" if cost.runs > 1 else "the run"
        console.print(f"{runs}: {cost.num_gpus:g} GPUs, {cost.gpu_hours:,.1f} GPU-hours{money} (same range)")


def _gib(size: int) -> str:
    return f"{size / GIB:,.2f}" if size < 100 * GIB else f"{size / GIB:,.0f}"
