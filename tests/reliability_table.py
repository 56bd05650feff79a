"""Puts what `make test-reliability` recorded into the table of docs/reliability.md."""

import json
import re
import sys
from pathlib import Path

START, END = "<!-- table -->", "<!-- end of table -->"


def table(rows):
    """Returns the record as a Markdown table."""
    lines = ["| what was tried | times | outcome |", "|---|---|---|"]
    return "\n".join(lines + [f"| {what} | {row['tried']} | {row['outcome']} |" for what, row in sorted(rows.items())])


def with_table(text, rows):
    """Returns a document with the record between its marks."""
    return re.sub(f"{START}.*{END}", lambda _: f"{START}\n{table(rows)}\n{END}", text, flags=re.DOTALL)


if __name__ == "__main__":
    record, document = map(Path, sys.argv[1:])
    document.write_text(
        with_table(document.read_text(encoding="utf-8"), json.loads(record.read_text(encoding="utf-8")))
    )
