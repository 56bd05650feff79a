"""The official Super-NaturalInstructions task schema: one JSON document becomes one `Task`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tagi_lightning.data.json_text import parse_json
from tagi_lightning.data.report import DataReport
from tagi_lightning.data.task import Demonstration, Instance, Task


def read_task(path: Path, report: DataReport) -> Task | None:
    """Reads one task file; its name is the file's name without suffix.

    Args:
        path: A JSON file in the official schema.
        report: Receives every problem of the file.

    Returns:
        The task with all its usable instances in file order, or None where `report` got an error.
    """
    document = read_document(path, report)
    if document is None:
        return None
    return parse_task(document, path.stem, report, path.name, lambda row: f"{path.name} instance {row}")


def read_document(path: Path, report: DataReport) -> dict[str, Any] | None:
    """Returns the JSON object of a file, or None where `report` got an error."""
    text = read_text(path, report)
    return None if text is None else parse_object(text, path.name, report)


def read_text(path: Path, report: DataReport) -> str | None:
    """Returns the UTF-8 text of a file without a byte order mark, or None where `report` got an error."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        report.error("not UTF-8 text", f"{path} (byte {error.start})")
    except OSError as error:
        report.error("file that cannot be read", f"{path} ({error.strerror})")
    return None


def parse_object(text: str, where: str, report: DataReport) -> dict[str, Any] | None:
    """Returns the JSON object that `text` holds, or None where `report` got an error at `where`."""
    try:
        document = parse_json(text)
    except ValueError as error:
        report.error("not valid JSON", f"{where} ({error})")
        return None
    if not isinstance(document, dict):
        report.error("not a JSON object", where)
        return None
    return document


def parse_task(
    document: dict[str, Any], name: str, report: DataReport, where: str, place: Callable[[int], str]
) -> Task | None:
    """Turns a document of the official schema into a task.

    Instances without id get `<task>/<row>`. Rows repeated with their id and empty references are left out and noted.

    Args:
        document: Holds Definition, Categories, Positive Examples and Instances.
        name: Name of the task.
        report: Receives every problem.
        where: Names the document in the report.
        place: Names an instance in the report, given its row.

    Returns:
        The task, or None where `report` got an error.
    """
    errors = _error_count(report)
    task = Task(
        name=name,
        category=_category(document.get("Categories", []), name, report, where),
        definitions=_definitions(document.get("Definition"), report, where),
        demonstrations=_demonstrations(document.get("Positive Examples", []), report, where),
        instances=_instances(document.get("Instances"), name, report, where, place),
    )
    return task if _error_count(report) == errors else None


def _error_count(report: DataReport) -> int:
    return sum(len(places) for places in report.errors.values())


def _category(value: object, name: str, report: DataReport, where: str) -> str:
    if not isinstance(value, list) or not all(isinstance(entry, str) and entry.strip() for entry in value):
        report.error("category that is not a name", where)
        return name
    if not value:
        report.note("task without category, taken as a category of its own", where)
        return name
    return str(value[0])


def _definitions(value: object, report: DataReport, where: str) -> tuple[str, ...]:
    definitions = [value] if isinstance(value, str) else value
    if not definitions:
        report.error("task without definition (instruction)", where)
    elif not isinstance(definitions, list) or not all(isinstance(text, str) for text in definitions):
        report.error("definition that is neither text nor a list of texts", where)
    elif not all(text.strip() for text in definitions):
        report.error("empty definition", where)
    else:
        return tuple(definitions)
    return ()


def _demonstrations(value: object, report: DataReport, where: str) -> tuple[Demonstration, ...]:
    if not isinstance(value, list):
        report.error("positive examples that are not a list", where)
        return ()
    if not value:
        report.note("task without positive examples, its definition alone is the instruction", where)
    demonstrations = []
    for number, example in enumerate(value):
        match example:
            case {"input": str(shown), "output": str(answer)}:
                demonstrations.append(Demonstration(shown, answer))
            case _:
                report.error("positive example without text as input and output", f"{where} example {number}")
    return tuple(demonstrations)


def _instances(
    rows: object, name: str, report: DataReport, where: str, place: Callable[[int], str]
) -> tuple[Instance, ...]:
    if not isinstance(rows, list) or not rows:
        report.error("task without instances", where)
        return ()
    errors = _error_count(report)
    found: dict[str, Instance] = {}
    for number, row in enumerate(rows):
        instance = _instance(row, f"{name}/{number}", report, place(number))
        if instance is None:
            continue
        first = found.setdefault(instance.id, instance)
        if first is instance:
            continue
        if first == instance:
            report.note("row given twice, taken once", place(number))
        else:
            report.error("id given to two different rows", f"{place(number)} (id {instance.id})")
    if not found and _error_count(report) == errors:
        report.error("task without an instance that has a reference", where)
    return tuple(found.values())


def _instance(row: Any, default_id: str, report: DataReport, place: str) -> Instance | None:
    match row:
        case {"input": str(text), "output": str() | list() as output}:
            references = [output] if isinstance(output, str) else output
        case _:
            report.error("instance without text as input and text or a list as output", place)
            return None
    given = row.get("id")
    if given is not None and not isinstance(given, str):
        report.error("id that is neither text nor null", place)
        return None
    if not all(isinstance(reference, str) for reference in references):
        report.error("reference that is not text", place)
        return None
    if not given:
        report.note("instance without id, named <task>/<row>", place)
    kept = tuple(reference for reference in references if reference.strip())
    if len(kept) < len(references):
        report.note("empty reference dropped", place)
    if not kept:
        report.note("instance without reference dropped", place)
        return None
    return Instance(given or default_id, text, kept)
