"""Pictures as PNG, and all of them with what is told in one HTML page that needs nothing else."""

from __future__ import annotations

import base64
import html
import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from tagi_lightning.inspection.pictures import Inspection
from tagi_lightning.report.charts import DPI

PAGE = "index.html"
STYLE = (
    "body{font:16px/1.5 sans-serif;max-width:1200px;margin:2em auto;padding:0 1em;color:#222}"
    "img{max-width:100%;height:auto}figure{margin:2em 0}figcaption{color:#555}"
    "table{border-collapse:collapse;font-size:14px}td,th{border-bottom:1px solid #ddd;padding:.3em .8em .3em 0;"
    "text-align:left;vertical-align:top;overflow-wrap:anywhere}"
    "nav{margin:1em 0}nav a{margin-right:1em;white-space:nowrap}"
)


def to_png(figure: Figure) -> bytes:
    """Returns a picture 1,200 pixels wide."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # labels are anybody's text; a letter that the font lacks becomes a box
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        # without the version of the library, so that equal input gives equal files
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def write_page(
    folder: Path,
    title: str,
    facts: Mapping[str, str],
    inspection: Inspection,
    samples: Sequence[Sequence[str]] = (),
) -> Path:
    """Writes each picture as PNG, and the page; returns its path.

    Args:
        folder: Where to; made where it is missing.
        title: Heading of the page.
        facts: What the model is.
        inspection: The pictures, and what is left out.
        samples: Heading and lines of a table of answers.
    """
    folder.mkdir(parents=True, exist_ok=True)
    figures = []
    for picture in inspection.pictures:
        png = to_png(picture.figure)
        (folder / f"{picture.name}.png").write_bytes(png)
        name, caption = html.escape(picture.name), html.escape(picture.caption)
        source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
        figures.append(
            f'<figure id="{name}"><h2>{name}</h2><img src="{source}" alt="{caption}">'
            f"<figcaption>{caption}</figcaption></figure>"
        )
    links = [f'<a href="#{picture.name}">{picture.name}</a>' for picture in inspection.pictures]
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        table([], list(facts.items())),
        f"<nav>{' '.join([*links, '<a href=#answers>answers</a>' if samples else ''])}</nav>",
        *figures,
    ]
    if samples:
        parts += ["<h2 id=answers>Answers</h2>", table(samples[0], samples[1:])]
    if inspection.left_out:
        parts += ["<h2>Left out</h2>", table([], list(inspection.left_out.items()))]
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>'
    page = folder / PAGE
    page.write_text(f"<!doctype html><html lang=en>{head}{''.join(parts)}</html>\n", encoding="utf-8")
    return page


def table(heading: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Returns an HTML table."""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in heading)
    rows = ["".join(f"<td>{html.escape(cell)}</td>" for cell in line) for line in lines]
    return f"<table>{f'<tr>{head}</tr>' if heading else ''}{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"
