"""CSV and JSON in words that a small model can use: columns with types and ranges, then rows as far as they fit.

Pure and deterministic. Numbers are decimal, never binary: sums are exact.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal, InvalidOperation
from typing import Any, Final, Literal

from nsllm.node.attachments.attached import Format

MAX_ROWS: Final = 20_000
MAX_COLUMNS: Final = 128
MAX_NODES: Final = 200_000
"""Cells of a table; values, lists and objects of a JSON document."""
MAX_CELL_CHARS: Final = 10_000
ROWS_CHARS: Final = 3_000
"""Budget of the rows that are shown: about a thousand tokens."""
SHOWN_CELL_CHARS: Final = 200
SHOWN_COLUMNS: Final = 32
SHOWN_VALUES: Final = 6
"""A text column with at most so many different values lists them."""
NAME_CHARS: Final = 64
DELIMITERS: Final = ",;\t|"
YES_NO: Final = frozenset({"true", "false", "yes", "no"})

How = Literal["table", "json"]


class TableError(ValueError):
    """A table that cannot be used: damaged, or beyond a bound. The message quotes none of it."""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under named columns; cells are text, and "" is an empty one."""

    columns: tuple[str, ...]
    rows: Sequence[Sequence[str]]


def describe_table(data: bytes, form: Format) -> tuple[str, How]:
    """A CSV or JSON file in words, and whether it was a table or another JSON document.

    Raises:
        TableError: not UTF-8, not CSV or JSON, empty, or beyond a bound; says which.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TableError(f"the file is not UTF-8 (byte {error.start})") from None
    if form == "CSV":
        return render(read_csv(text)), "table"
    value = _parse_json(text)
    table = _as_table(value)
    return (render_json(value), "json") if table is None else (render(table), "table")


def read_csv(text: str) -> Table:
    """The table of a CSV file; its first row names the columns unless that looks like data."""
    if "\0" in text:
        raise TableError("the CSV holds NUL characters")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text), strict=True)
    rows: list[list[str]] = []
    try:
        for row in reader:
            if not row or (len(row) == 1 and not row[0].strip()):
                continue
            rows.append([_clean(cell) for cell in row])
            _check_size(len(rows) - 1, max(len(rows[0]), len(row)))
            if len(row) != len(rows[0]):
                raise TableError(
                    f"line {reader.line_num} of the CSV has {len(row)} fields, the first row {len(rows[0])}"
                )
            if any(len(cell) > MAX_CELL_CHARS for cell in row):
                raise TableError(f"a field in line {reader.line_num} has more than {MAX_CELL_CHARS} characters")
    except csv.Error as error:
        raise TableError(f"line {reader.line_num} of the CSV: {error}") from None
    if not rows:
        raise TableError("the CSV is empty")
    if _is_header(rows[0]):
        return Table(tuple(name[:NAME_CHARS] for name in rows[0]), rows[1:])
    return Table(tuple(f"column {number}" for number in range(1, len(rows[0]) + 1)), rows)


def render(table: Table) -> str:
    """The table in words, several lines."""
    rows, columns = len(table.rows), len(table.columns)
    lines = [f"{_count(rows, 'row')}, {_count(columns, 'column')}."]
    for index, name in enumerate(table.columns[:SHOWN_COLUMNS]):
        lines.append(f"{name}: {_summary([row[index] for row in table.rows])}")
    if columns > SHOWN_COLUMNS:
        lines.append(f"({columns - SHOWN_COLUMNS} more columns)")
    shown = _first_rows(table)
    if rows:
        lines.append("All rows:" if len(shown) == rows else f"The first {_count(len(shown), 'row')}:")
        lines += [_line(table.columns), *shown]
    return "\n".join(lines)


def render_json(value: object) -> str:
    """A JSON document: as it is if it fits the budget, else its outline and its beginning."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=_plain)
    if len(text) <= ROWS_CHARS:
        return f"JSON document.\n{text}"
    outline = [f"{name[:NAME_CHARS]}: {_kind(item)}" for name, item in _members(value)][:SHOWN_COLUMNS]
    return "\n".join([f"JSON document, {_kind(value)}.", *outline, "It begins:", text[:ROWS_CHARS] + " …"])


def _check_size(rows: int, columns: int) -> None:
    if rows > MAX_ROWS:
        raise TableError(f"the table has more than {MAX_ROWS} rows")
    if columns > MAX_COLUMNS:
        raise TableError(f"the table has {columns} columns, the limit is {MAX_COLUMNS}")
    if rows * columns > MAX_NODES:
        raise TableError(f"the table has more than {MAX_NODES} cells")


def _delimiter(text: str) -> str:
    """The likeliest delimiter: the commonest of the first line outside of quotes; the comma if there is none."""
    first = text.lstrip("\r\n").splitlines()[:1]
    outside = "".join(first).split('"')[::2]
    counts = [sum(part.count(sign) for part in outside) for sign in DELIMITERS]
    return DELIMITERS[counts.index(max(counts))]


def _is_header(row: Sequence[str]) -> bool:
    return all(row) and len(set(row)) == len(row) and not any(_number(cell) is not None for cell in row)


def _clean(cell: str) -> str:
    return " ".join(cell.split())


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _number(cell: str) -> Decimal | None:
    if len(cell) > 40 or not cell or cell[0] not in "+-.0123456789":
        return None
    try:
        value = Decimal(cell)
    except InvalidOperation:
        return None
    return value if value.is_finite() and abs(value.adjusted()) < 40 else None


def _date(cell: str) -> str | None:
    try:
        return date.fromisoformat(cell).isoformat() if len(cell) == 10 else None
    except ValueError:
        return None


def _all(cells: Iterable[str], read: Callable[[str], Any]) -> list[Any] | None:
    """Every cell as `read` gives it; None if one is not of that kind."""
    values = []
    for cell in cells:
        value = read(cell)
        if value is None:
            return None
        values.append(value)
    return values


def _summary(cells: Sequence[str]) -> str:
    """Type, range and gaps of a column."""
    filled = [cell for cell in cells if cell]
    gaps = f", {len(cells) - len(filled)} empty" if len(filled) < len(cells) else ""
    if not filled:
        return "empty"
    numbers = _all(filled, _number)
    if numbers is not None:
        total = sum(numbers, Decimal(0))
        kind = "integer" if all(number == number.to_integral_value() for number in numbers) else "number"
        return (
            f"{kind}, {_decimal(min(numbers))} to {_decimal(max(numbers))},"
            f" mean {_decimal(round(total / len(numbers), 4))}, sum {_decimal(total)}{gaps}"
        )
    dates = _all(filled, _date)
    if dates is not None:
        return f"date, {min(dates)} to {max(dates)}{gaps}"
    different = sorted(set(filled))
    kind = "yes/no" if {cell.lower() for cell in different} <= YES_NO else "text"
    if len(different) <= SHOWN_VALUES and max(len(cell) for cell in different) <= NAME_CHARS:
        return f"{kind}, {', '.join(f'{cell} ({filled.count(cell)})' for cell in different)}{gaps}"
    return f"{kind}, {len(different)} different{gaps}"


def _decimal(number: Decimal) -> str:
    """Without an exponent, without trailing zeros."""
    text = f"{number:f}"
    return (text.rstrip("0").rstrip(".") or "0") if "." in text else text


def _first_rows(table: Table) -> list[str]:
    shown: list[str] = []
    left = ROWS_CHARS
    for row in table.rows:
        line = _line(row)
        left -= len(line) + 1
        if left < 0 and shown:
            break
        shown.append(line)
    return shown


def _line(cells: Sequence[str]) -> str:
    out = io.StringIO()
    short = [cell if len(cell) <= SHOWN_CELL_CHARS else cell[:SHOWN_CELL_CHARS] + "…" for cell in cells[:SHOWN_COLUMNS]]
    csv.writer(out, lineterminator="").writerow(short)
    return out.getvalue()


def _parse_json(text: str) -> object:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON number")

    try:
        value: object = json.loads(text, parse_float=_real, parse_constant=refuse)
    except RecursionError:
        raise TableError("the JSON is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise TableError(f"not JSON: {error.msg} in line {error.lineno}, column {error.colno}") from None
    except ValueError as error:  # a number beyond Python's limit of digits
        raise TableError(f"not JSON that can be read: {str(error)[:100]}") from None
    if _nodes(value) > MAX_NODES:
        raise TableError(f"the JSON holds more than {MAX_NODES} values")
    return value


def _real(text: str) -> Decimal:
    number = _number(text)
    if number is None:
        raise ValueError("a number beyond 40 digits")
    return number


def _nodes(value: object) -> int:
    count, todo = 0, [value]
    while todo and count <= MAX_NODES:
        item = todo.pop()
        count += 1
        if isinstance(item, dict):
            todo += item.values()
        elif isinstance(item, list):
            todo += item
    return count


def _as_table(value: object) -> Table | None:
    """A list of flat objects is a table, its columns in the order in which they first occur."""
    if not isinstance(value, list) or not value or not all(isinstance(row, dict) and row for row in value):
        return None
    if any(isinstance(cell, list | dict) for row in value for cell in row.values()):
        return None
    columns = tuple(dict.fromkeys(name for row in value for name in row))
    _check_size(len(value), len(columns))
    rows = [[_clean(_cell(row.get(name))) for name in columns] for row in value]
    return Table(tuple(_clean(name)[:NAME_CHARS] or "(no name)" for name in columns), rows)


def _cell(value: object) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case Decimal():
            return _decimal(value)
        case _:
            return str(value)[:MAX_CELL_CHARS]


def _plain(value: object) -> object:
    """Decimals on their way back into JSON; nothing else gets here."""
    assert isinstance(value, Decimal)
    return int(value) if value == value.to_integral_value() else float(value)


def _members(value: object) -> Iterable[tuple[str, object]]:
    if isinstance(value, dict):
        return value.items()
    return [("first item", value[0])] if isinstance(value, list) and value else []


def _kind(value: object) -> str:
    match value:
        case dict():
            return f"object of {_count(len(value), 'member')}: {', '.join(list(value)[:SHOWN_VALUES])}"[
                :SHOWN_CELL_CHARS
            ]
        case list():
            return f"list of {_count(len(value), 'item')}"
        case str():
            return f"text of {_count(len(value), 'character')}"
        case bool() | None:
            return json.dumps(value)
        case _:
            return f"number {value}"
