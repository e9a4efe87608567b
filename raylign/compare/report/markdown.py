"""The report as Markdown, with its pictures in separate files."""

from __future__ import annotations

from pathlib import Path

from raylign.compare.report.model import Report, Section, Table


def text(report: Report, folder: Path) -> str:
    """Return the whole document, to be written into `folder`."""
    claims = Table(("claim", "verdict", "why"), tuple((c.text, c.verdict, c.why) for c in report.claims))
    parts = [f"# {report.title}", report.summary, report.verdict, table(claims)]
    return "\n\n".join([*parts, *(_section(section, report.command, folder) for section in report.sections)]) + "\n"


def table(content: Table) -> str:
    lines = [content.header, ["---"] * len(content.header), *content.rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _section(section: Section, command: str, folder: Path) -> str:
    parts = [f"## {section.title}", section.text]
    if section.figure:
        parts.append(f"![{section.title}]({section.figure.relative_to(folder).as_posix()})")
    if section.table:
        parts.append(table(section.table))
    parts.append(f"`{command}`; runs: {', '.join(section.runs)}")
    return "\n\n".join(parts)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").strip()
