"""Tables in words: what a model reads of CSV and JSON, and what is refused."""

from __future__ import annotations

import csv
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsllm.node.attachments import tables
from nsllm.node.attachments.tables import TableError, describe_table, read_csv, render

SALES = """region,day,amount,paid
north,2026-01-01,12.50,yes
south,2026-01-02,7,no
north,2026-01-03,,yes
"""


def words(text: str, form="CSV") -> str:
    return describe_table(text.encode(), form)[0]


def test_a_csv_file_becomes_columns_with_ranges_and_all_its_rows():
    assert describe_table(SALES.encode(), "CSV") == (
        (
            "3 rows, 4 columns.\n"
            "region: text, north (2), south (1)\n"
            "day: date, 2026-01-01 to 2026-01-03\n"
            "amount: number, 7 to 12.5, mean 9.75, sum 19.5, 1 empty\n"
            "paid: yes/no, no (1), yes (2)\n"
            "All rows:\n"
            "region,day,amount,paid\n"
            "north,2026-01-01,12.50,yes\n"
            "south,2026-01-02,7,no\n"
            "north,2026-01-03,,yes"
        ),
        "table",
    )


def test_a_list_of_objects_is_the_same_table():
    rows = [{"name": "Ann", "age": 41}, {"name": "Bo", "age": 7.5, "on": True}, {"name": "Cy", "age": None}]
    assert words(json.dumps(rows), "JSON").splitlines() == [
        "3 rows, 3 columns.",
        "name: text, Ann (1), Bo (1), Cy (1)",
        "age: number, 7.5 to 41, mean 24.25, sum 48.5, 1 empty",
        "on: yes/no, true (1), 2 empty",
        "All rows:",
        "name,age,on",
        "Ann,41,",
        "Bo,7.5,true",
        "Cy,,",
    ]


def test_sums_are_exact():
    assert "sum 0.3" in words("a\n0.1\n0.2\n")


def test_rows_beyond_the_budget_are_left_out_and_that_is_said():
    text = "number,square\n" + "".join(f"{i},{i * i}\n" for i in range(5000))
    said = words(text)
    assert "5000 rows, 2 columns." in said
    assert "number: integer, 0 to 4999, mean 2499.5, sum 12497500" in said
    shown = said.splitlines()[said.splitlines().index("number,square") + 1 :]
    assert f"The first {len(shown)} rows:" in said
    assert 100 < len(shown) < 1000
    assert len(said) < tables.ROWS_CHARS + 400


@pytest.mark.parametrize("delimiter", [";", "\t", "|", ","])
def test_the_delimiter_is_found(delimiter):
    assert read_csv(f'a{delimiter}"b, b; b"\n1{delimiter}2\n').columns == ("a", "b, b; b")


@pytest.mark.parametrize("first", ["1,2", "a,a", "a,"])
def test_a_first_row_that_is_data_names_no_columns(first):
    table = read_csv(first + "\n3,4\n")
    assert table.columns == ("column 1", "column 2")
    assert len(table.rows) == 2


def test_a_byte_order_mark_and_empty_lines_mean_nothing():
    assert words("\ufeffa,b\n\n1,2\n\n") == words("a,b\n1,2\n")


def test_a_json_document_is_shown_whole_or_in_outline():
    assert describe_table(b'{"a": [1, 2.5], "b": null}', "JSON") == (
        'JSON document.\n{"a":[1,2.5],"b":null}',
        "json",
    )
    large = {"items": [[i] for i in range(3000)], "title": "x" * 50, "more": {"k": 1}}
    said = words(json.dumps(large), "JSON")
    assert said.startswith(
        "JSON document, object of 3 members: items, title, more.\n"
        "items: list of 3000 items\ntitle: text of 50 characters\nmore: object of 1 member: k\nIt begins:\n"
    )
    assert len(said) < tables.ROWS_CHARS + 300


@pytest.mark.parametrize(
    ("data", "form", "said"),
    [
        (b"a,b\n1\n", "CSV", "line 2 of the CSV has 1 fields, the first row 2"),
        (b'a,b\n"1,2\n', "CSV", "line"),
        (b"", "CSV", "empty"),
        (b"\n\n", "CSV", "empty"),
        (b"a,b\0\n", "CSV", "NUL"),
        (b"a,\xff\n", "CSV", "not UTF-8"),
        (b"a\n" * 20_003, "CSV", "more than 20000 rows"),
        (b",".join([b"a"] * 129), "CSV", "129 columns"),
        (b"a,b\n" + b"x" * 10_001 + b",1\n", "CSV", "10000 characters"),
        (b"{", "JSON", "line 1"),
        (b"[" * 100_000, "JSON", "nested"),
        (b"NaN", "JSON", "NaN"),
        (b"1e999999", "JSON", "40 digits"),
        (b"9" * 5000, "JSON", "digits"),
        (b"[" + b"1," * 200_001 + b"1]", "JSON", "200000 values"),
        (json.dumps([{str(i): 1} for i in range(129)]).encode(), "JSON", "129 columns"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_cannot_be_used_is_refused_with_the_reason(data, form, said):
    with pytest.raises(TableError, match=said):
        describe_table(data, form)


def test_a_table_of_too_many_cells_is_refused():
    row = ",".join(str(i) for i in range(100)) + "\n"
    with pytest.raises(TableError, match="200000 cells"):
        read_csv(row * 2_005)


CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)


@given(st.lists(st.lists(CELLS, min_size=2, max_size=2), min_size=1, max_size=8))
def test_whatever_python_writes_as_csv_is_read_and_rendered_the_same_each_time(rows):
    out = io.StringIO()
    csv.writer(out).writerows([["first", "second"], *rows])
    table = read_csv(out.getvalue())
    assert table.columns == ("first", "second")
    assert [list(row) for row in table.rows] == [[" ".join(cell.split()) for cell in row] for row in rows]
    assert render(table) == render(table)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | CELLS,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(CELLS, inner, max_size=4),
        max_leaves=12,
    )
)
def test_any_json_gets_an_answer_or_a_reason(value):
    try:
        text, how = describe_table(json.dumps(value).encode(), "JSON")
    except TableError:
        return
    assert how in {"table", "json"}
    assert text
