"""What the cells of Markdown tables hold, however they are laid out."""

import re


def table_rows(text):
    """Returns the cells of every line that is a table's, headings and rules included."""
    lines = [line for line in text.splitlines() if line.startswith(("| ", "|-"))]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
