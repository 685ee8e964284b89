# SPDX-License-Identifier: Apache-2.0
"""The page of a report: a single file without links to others, for light and dark, wide and narrow screens."""
from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from recognition.io.files import regular
from recognition.training.watch.report_charts import look

# The browser must not fetch anything or run a script, even if a name in the page contains HTML.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
STYLE = """
:root { color-scheme: light dark; --ground: #fff; --panel: #f6f8fa; --ink: #1f2328; --soft: #57606a; --rule: #d0d7de;
  --c0: #0b6fb8; --c1: #b8501d; --c2: #22774a; --c3: #8a4fa3; --c4: #8a6a12; --c5: #4c5a67; --differs: #fff3d6; }
@media (prefers-color-scheme: dark) { :root { --ground: #0d1117; --panel: #161b22; --ink: #e6edf3; --soft: #9aa4af;
  --rule: #30363d; --c0: #58a6ff; --c1: #f0883e; --c2: #56c07f; --c3: #d2a0e8; --c4: #d9b44a; --c5: #a5b1bd;
  --differs: #3a2f12; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem clamp(.8rem, 3vw, 2rem) 3rem; max-width: 82rem; background: var(--ground);
  color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin: .4rem 0; } h2 { font-size: 1.15rem; margin: 2rem 0 .6rem; }
p { margin: .3rem 0; } .soft { color: var(--soft); }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); gap: .9rem; }
figure { margin: 0; padding: .7rem; background: var(--panel); border: 1px solid var(--rule); border-radius: 6px; }
figcaption { font-weight: 600; } svg { display: block; width: 100%; height: auto; }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1rem; margin: .2rem 0 0; padding: 0; list-style: none;
  font-size: .85rem; color: var(--soft); }
.legend svg { display: inline-block; width: 1.8rem; height: .6rem; margin-right: .35rem; }
svg text { font: 11.5px system-ui, sans-serif; fill: var(--soft); }
.middle { text-anchor: middle; } .end { text-anchor: end; }
.grid { stroke: var(--rule); fill: none; } .mark { stroke: var(--soft); stroke-dasharray: 3 3; fill: none; }
.line { fill: none; stroke-width: 1.8; stroke-linejoin: round; } .faint { stroke-width: 1; opacity: .4; }
.band { opacity: .18; stroke: none; }
"""
STYLE += "".join(f".line.c{i} {{ stroke: var(--c{i}); }} .band.c{i}, .dot.c{i} {{ fill: var(--c{i}); }}\n"
                 for i in range(6))
STYLE += """
.scroll { overflow-x: auto; margin-bottom: .8rem; }
table { border-collapse: collapse; font-size: .9rem; overflow-wrap: normal; }
caption { text-align: left; color: var(--soft); padding-bottom: .3rem; }
th, td { padding: .25rem .8rem .25rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--rule); }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td { overflow-wrap: anywhere; min-width: 4rem; }
th[scope=row] { font-weight: 500; max-width: 16rem; overflow-wrap: break-word; }
tr.differs > * { background: var(--differs); }
summary { cursor: pointer; padding: .4rem 0; } code { font-size: .9em; }
:focus-visible { outline: 2px solid var(--c0); outline-offset: 2px; }
@media print { details > * { display: block; } }
"""


def _head(policy: str) -> str:
    return ('<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">\n')


HEAD = _head(POLICY)  # of every page that is written, and of no other


def is_page(path: Path) -> bool:
    """True for a file that begins like :func:`page`."""
    try:
        with open(path, "rb", opener=regular) as file:
            return file.read(len(HEAD)) == HEAD.encode()
    except OSError:
        return False


def page(title: str, body: Sequence[str], policy: str = POLICY, end: str = "") -> str:
    """A whole HTML document. ``title`` is text; ``body`` is HTML already, and so is ``end``, which stands behind it."""
    return (_head(policy)
            + '<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
            f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
            + "\n".join(body) + f"\n</main>\n{end}</body>\n</html>\n")


def figure(title: str, drawing: str, names: Sequence[tuple[str, int]] = ()) -> str:
    """A chart under its title. ``names``: the names of its lines, each with the number of its look, for the legend."""
    swatches = "".join(
        f'<li><svg viewBox="0 0 28 10" aria-hidden="true"><path {look(place)} d="M0 5H28"/></svg>{escape(name)}</li>'
        for name, place in names)
    legend = f'<ul class="legend">{swatches}</ul>' if names else ""
    return f"<figure><figcaption>{escape(title)}</figcaption>{drawing}{legend}</figure>"


def charts(figures: Sequence[str]) -> str:
    return f'<div class="charts">{"".join(figures)}</div>'


def table(caption: str, header: Sequence[str], rows: Sequence[Sequence[str]], numbers: bool = False,
          marked: Sequence[bool] = ()) -> str:
    """A table whose first column names its rows. With ``numbers`` the other columns hold numbers. ``marked`` rows are
    highlighted."""
    style = ' class="number"' if numbers else ""
    head = "".join(f'<th scope="col"{style if i else ""}>{escape(name)}</th>' for i, name in enumerate(header))
    lines = []
    for i, row in enumerate(rows):
        cells = "".join(f"<td{style}>{escape(cell)}</td>" for cell in row[1:])
        mark = ' class="differs"' if i < len(marked) and marked[i] else ""
        lines.append(f'<tr{mark}><th scope="row">{escape(row[0])}</th>{cells}</tr>')
    return (f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table>'
            f"<caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody>"
            "</table></div>")


def folded(title: str, content: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{content}</details>"


def section(title: str, *content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{''.join(content)}</section>"
