"""The report as one HTML page that needs no other file: pictures inside it, no script, nothing fetched."""

from __future__ import annotations

import base64
from html import escape

from raylign.compare.report.model import Report, Section, Table

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.5rem; }
p.verdict { border-left: 4px solid #1f77b4; padding: .4rem .9rem; background: #f4f7fb; }
figure { margin: 1rem 0; } img { max-width: 100%; height: auto; }
figcaption, .from { font-size: .8rem; color: #555; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .82rem; margin: .8rem 0; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid #ddd; text-align: right; vertical-align: top; }
th:first-child, td:first-child, table.wide th, table.wide td { text-align: left; }
code { background: #f2f2f2; padding: 0 .25rem; overflow-wrap: anywhere; }
summary { cursor: pointer; }
"""


def page(report: Report) -> str:
    """Return the whole document."""
    claims = Table(("claim", "verdict", "why"), tuple((c.text, c.verdict, c.why) for c in report.claims), wide=True)
    body = [
        f"<h1>{escape(report.title)}</h1>",
        f"<p>{escape(report.summary)}</p>",
        f'<p class="verdict">{escape(report.verdict)}</p>',
        table(claims),
        *(_section(section, report.command) for section in report.sections),
    ]
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(report.title)}</title><style>{STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n' + "\n".join(body) + "\n</body></html>\n"


def table(content: Table) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in content.header)
    lines = ("".join(f"<td>{escape(cell)}</td>" for cell in row) for row in content.rows)
    kind = ' class="wide"' if content.wide else ""
    return (
        f'<div class="scroll"><table{kind}><tr>{head}</tr>'
        + "".join(f"<tr>{line}</tr>" for line in lines)
        + "</table></div>"
    )


def _section(section: Section, command: str) -> str:
    parts = [f"<section><h2>{escape(section.title)}</h2>", f"<p>{escape(section.text)}</p>"]
    origin = f"<code>{escape(command)}</code> <details><summary>{len(section.runs)} runs</summary>{escape(', '.join(section.runs))}</details>"
    if section.figure:
        image = base64.b64encode(section.figure.read_bytes()).decode()
        parts.append(
            f'<figure><img alt="{escape(section.title)}" src="data:image/png;base64,{image}"><figcaption>{origin}</figcaption></figure>'
        )
    if section.table:
        parts.append(table(section.table))
    if not section.figure:
        parts.append(f'<div class="from">{origin}</div>')
    return "\n".join([*parts, "</section>"])
