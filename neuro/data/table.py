"""One reader for every table that a user hands over: CSV, TSV, Parquet, JSON and JSON lines.

Every value stays text, exactly as it is written: an id "001" never becomes 1, and a label "1.0" is
judged where labels are read, not here.
"""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet

from neuro.errors import InputError

pc: Any = pyarrow.compute  # makes its functions at import, where no type checker sees them

UNKNOWN = frozenset({"", "n/a", "na", "nan", "null"})

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_SUFFIXES = (*_DELIMITERS, ".parquet", ".json", ".jsonl")
_BLOCK_BYTES = (
    1 << 24
)  # a row longer than a block is refused; 16 MiB holds any report or connectome


_MOST_CELLS = 50_000_000  # a value that repeats is packed to nothing, and fills the memory


def is_unknown(value: str | None) -> bool:
    """Whether a value says that nobody knows: n/a, NA, nan, null in any case, or nothing.

    Meant for labels and other facts about a study. An id is never unknown: "NA" is a name.
    """
    return value is None or value.strip().casefold() in UNKNOWN


def some_of(names: Sequence[str], most: int = 10, total: int | None = None) -> str:
    """Return the first few names for a message, and how many more there are.

    Args:
        names: The names.
        most: How many are shown.
        total: How many there are, where ``names`` holds the first of them only.
    """
    left_out = (len(names) if total is None else total) - most
    return ", ".join(names[:most]) + (f" and {left_out} more" if left_out > 0 else "")


def read_table(path: Path) -> pa.Table:
    """Read a table whose columns are all text; null where a cell is empty.

    The suffix decides the format. Names of columns lose the spaces around them; rows without any
    value are skipped. JSON is a list of objects, or one object from id to object, or from id to
    value (columns ``id`` and ``label``). Numbers of a Parquet file become the shortest text that
    reads back to them: 1 becomes "1", and so does 1.0.

    Raises:
        InputError: The file is absent, empty, of another format, not UTF-8 or malformed; names of
            columns are empty or occur twice. The message names the line.
    """
    suffix = path.suffix.lower()
    if suffix not in _SUFFIXES:
        raise InputError(
            f"{path}: a table ends in {', '.join(_SUFFIXES)}; got {suffix or 'no suffix'!r}. "
            f"Export it as .csv or .tsv in UTF-8."
        )
    if not path.is_file():
        raise InputError(f"{path} is not a file. Check the path of the table.")
    if suffix in _DELIMITERS:
        table = _read_delimited(path, _DELIMITERS[suffix])
    elif suffix == ".parquet":
        table = _read_parquet(path)
    else:
        table = _from_records(_records(path, suffix), path)
    table = _without_blank_rows(table)
    if not table.num_rows:
        raise InputError(f"{path} is empty: it has no row with a value. Fill it.")
    return table


def _read_delimited(path: Path, delimiter: str) -> pa.Table:
    _check_utf8(path)  # Arrow prints what it cannot decode
    names, num_lines = _header(path, delimiter)
    blank = " \r\n" + delimiter
    try:
        table = pyarrow.csv.read_csv(
            path,
            read_options=pyarrow.csv.ReadOptions(
                column_names=names, skip_rows=num_lines, block_size=_BLOCK_BYTES
            ),
            parse_options=pyarrow.csv.ParseOptions(
                delimiter=delimiter,
                newlines_in_values=True,
                invalid_row_handler=lambda row: "error" if row.text.strip(blank) else "skip",
            ),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types={name: pa.string() for name in names},
                null_values=[""],
                strings_can_be_null=True,
            ),
        )
    except pa.ArrowInvalid as error:
        _check_lines(path, delimiter, len(names))
        raise InputError(f"{path} cannot be read: {error}. Export it anew.") from error
    if _has_quotes(path):  # Arrow takes a quote that is never closed for one long value
        _check_lines(path, delimiter, len(names))
    return table


def _header(path: Path, delimiter: str) -> tuple[list[str], int]:
    """Return the names of the columns, and how many lines of the file they end at."""
    for line, num_lines, row in _lines(path, delimiter):
        if len(row) == 1:
            other = next((sign for sign in ",;\t" if sign != delimiter and sign in row[0]), None)
            if other:
                raise InputError(
                    f"{path} line {line}: the columns are separated by {other!r}; a "
                    f"{path.suffix.lower()} file uses {delimiter!r}. Export it so, or rename it."
                )
        return _checked_names(row, f"{path} line {line}"), num_lines
    raise InputError(f"{path} is empty. Write a line of column names and one line per row.")


def _check_lines(path: Path, delimiter: str, num_columns: int) -> None:
    """Refuse the first row that is ragged or has quotes in disorder. Slow: a loop over rows."""
    for line, _, row in _lines(path, delimiter):
        if len(row) != num_columns:
            raise InputError(
                f"{path} line {line}: every row has as many values as there are column names, "
                f"{num_columns}; got {len(row)}. Correct it; a value with {delimiter!r} in it "
                f'stands in "quotes".'
            )


def _lines(path: Path, delimiter: str) -> Iterator[tuple[int, int, list[str]]]:
    """Yield the first line, the last line (from 1) and the values of each row with a value."""
    last = 0
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            for row in reader:
                if any(value.strip() for value in row):
                    yield last + 1, reader.line_num, row
                last = reader.line_num
        except csv.Error as error:
            raise InputError(
                f'{path} line {last + 1}: quotes must be closed, and a " inside of them doubled; '
                f"got a row that is not ({error}). Correct the quotes."
            ) from error


def _has_quotes(path: Path) -> bool:
    with path.open("rb") as file:
        return any(b'"' in chunk for chunk in iter(lambda: file.read(1 << 20), b""))


def _check_utf8(path: Path) -> None:
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        with path.open("rb") as file:
            for chunk in iter(lambda: file.read(1 << 20), b""):
                decoder.decode(chunk)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise _not_utf8(path) from error


def _not_utf8(path: Path) -> InputError:
    data = path.read_bytes()
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return InputError(f"{path} line 1: the file is UTF-16, not UTF-8. Save it as UTF-8.")
    try:
        data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        return InputError(
            f"{path} line {line}: byte {data[error.start]:#04x} is not UTF-8. Save it as UTF-8."
        )
    raise AssertionError("only called for a file that is not UTF-8")


def _checked_names(names: Sequence[str], where: str) -> list[str]:
    seen: dict[str, None] = {}
    for position, name in enumerate(name.strip() for name in names):
        if not name:
            raise InputError(
                f"{where}: every column has a name; column {position + 1} of {len(names)} has "
                f"none. Name it, or remove it if it only numbers the rows."
            )
        if name in seen:
            raise InputError(
                f"{where}: column {name!r} occurs twice. Rename or remove one of the two."
            )
        seen[name] = None
    return list(seen)


def _read_parquet(path: Path) -> pa.Table:
    try:
        file = pyarrow.parquet.ParquetFile(path)
        num_rows, num_columns = file.metadata.num_rows, file.metadata.num_columns
        if num_rows * num_columns > _MOST_CELLS:
            raise InputError(
                f"{path} has {num_rows:,} rows of {num_columns} columns; a table has at most "
                f"{_MOST_CELLS:,} cells. Leave out what is not needed."
            )
        table = file.read()
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{path} cannot be read as Parquet: {str(error).splitlines()[0]} Write it anew."
        ) from error
    names = _checked_names(table.column_names, str(path))
    columns = [
        _as_text(column, f"{path} column {name!r}")
        for name, column in zip(names, table.columns, strict=True)
    ]
    return pa.table(columns, names=names)


def _as_text(column: pa.ChunkedArray, where: str) -> pa.ChunkedArray:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), None, column)  # what pandas writes for "missing"
    try:
        if pa.types.is_nested(column.type) or pa.types.is_binary(column.type):
            raise pa.ArrowInvalid("a cell holds one text or number")
        text = column.cast(pa.string())
        text.validate(full=True)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise InputError(
            f"{where} cannot be read as text: {error}; got {column.type}. "
            f"Store it as UTF-8 text, or leave it out."
        ) from error
    return pc.if_else(pc.equal(text, ""), None, text)


def _records(path: Path, suffix: str) -> Iterator[tuple[str, object]]:
    """Yield each record of a JSON file, and where it stands."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _not_utf8(path) from error
    if suffix == ".jsonl":
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                yield f"{path} line {number}", _parsed(line, path, number)
        return
    content = _parsed(text, path) if text.strip() else []
    if isinstance(content, list):
        for number, record in enumerate(content, start=1):
            yield f"{path} record {number}", record
        return
    if not isinstance(content, Mapping):
        raise InputError(
            f"{path}: a table in JSON is a list of objects, or one object from id to value or "
            f"object; got {content!r:.80}. Rewrite it so."
        )
    for key, value in content.items():
        where = f"{path} record {key!r}"
        if not isinstance(value, Mapping):
            yield where, {"id": key, "label": value}
        elif value.get("id", key) != key:
            raise InputError(f"{where}: its field id says {value['id']!r}. Remove one of the two.")
        else:
            yield where, {"id": key, **value}


class _RepeatedKeyError(ValueError):
    """A key that an object has twice; JSON itself would silently keep the last."""


def _fields(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        names = [name for name, _ in pairs]
        raise _RepeatedKeyError(next(name for name in names if names.count(name) > 1))
    return fields


_JSON = json.JSONDecoder(
    object_pairs_hook=_fields, parse_float=str, parse_int=str, parse_constant=str
)


def _parsed(text: str, path: Path, line: int | None = None) -> object:
    """Decode JSON whose numbers stay text; ``line`` is where the text stands, None for a file."""
    try:
        return _JSON.decode(text)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path} line {line or error.lineno}: not valid JSON: {error.msg}, column "
            f"{error.colno}. Correct it."
        ) from error
    except _RepeatedKeyError as error:
        where = f"{path} line {line}" if line else str(path)
        raise InputError(
            f"{where}: key {str(error)!r} occurs twice in one object. Remove one of the two."
        ) from error
    except RecursionError as error:
        where = f"{path} line {line}" if line else str(path)
        raise InputError(f"{where}: {error}. A cell holds one text or number.") from error


def _from_records(records: Iterable[tuple[str, object]], path: Path) -> pa.Table:
    columns: dict[str, list[str | None]] = {}
    num_rows = 0
    for where, record in records:
        if not isinstance(record, Mapping):
            raise InputError(f"{where}: a row is an object; got {record!r:.80}. Rewrite it so.")
        for name, value in record.items():
            column = columns.setdefault(name, [])
            column.extend([None] * (num_rows - len(column)))  # rows that lack this field
            column.append(value if value and type(value) is str else _cell(value, name, where))
        num_rows += 1
    names = _checked_names(tuple(columns), str(path))
    for column in columns.values():
        column.extend([None] * (num_rows - len(column)))
    try:
        return pa.table([pa.array(column, pa.string()) for column in columns.values()], names=names)
    except UnicodeEncodeError as error:
        raise InputError(
            f"{path}: half of a surrogate pair (\\ud800) is no text. Remove it."
        ) from error


def _cell(value: object, name: str, where: str) -> str | None:
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None or isinstance(value, str):
        return value or None
    kind = "a list" if isinstance(value, list) else "an object"
    raise InputError(
        f"{where}: field {name!r} is {kind}; a cell holds one text, number or truth value. "
        f"Give each of its values a field of its own."
    )


def _without_blank_rows(table: pa.Table) -> pa.Table:
    if any(column.null_count == 0 for column in table.columns):
        return table
    filled = pa.chunked_array([pa.repeat(pa.scalar(False), table.num_rows)])
    for column in table.columns:
        filled = pc.or_(filled, pc.is_valid(column))
    return table.filter(filled)
