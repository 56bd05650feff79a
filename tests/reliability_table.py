"""Puts what one `make test-reliability` recorded into docs/reliability.md, in the place of the table that was there."""

import json
import re
import sys
from pathlib import Path

START, END = "<!-- table -->", "<!-- end of table -->"


def joined(records):
    """Returns the records of a run's processes as one."""
    runs = [record["run"] for record in records]
    counts = {name: sum(run[name] for run in runs) for name in ("tests", "skipped")}
    most = {name: max(run[name] for run in runs) for name in ("points", "examples", "minutes")}
    rows = {what: row for record in records for what, row in record["rows"].items()}
    return {"run": most | counts, "rows": dict(sorted(rows.items()))}


def table(record):
    """Returns a record as a sentence on its run and a Markdown table."""
    run = record["run"]
    told = f"Of one run with `POINTS={run['points']} EXAMPLES={run['examples']}`: {run['tests']} tests in"
    told += f" {run['minutes']:.0f} minutes, {run['skipped']} skipped and none failed."
    rows = [f"| {what} | {row['tried']} | {row['outcome']} |" for what, row in record["rows"].items()]
    return "\n".join([told, "", "| what was tried | times | outcome |", "|---|---|---|", *rows])


def with_table(text, record):
    """Returns a document with the record between its marks."""
    return re.sub(f"{START}.*{END}", lambda _: f"{START}\n{table(record)}\n{END}", text, flags=re.DOTALL)


if __name__ == "__main__":
    document, whole, *parts = map(Path, sys.argv[1:])
    record = joined([json.loads(part.read_text(encoding="utf-8")) for part in parts])
    whole.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    document.write_text(with_table(document.read_text(encoding="utf-8"), record), encoding="utf-8")
