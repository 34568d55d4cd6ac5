"""Files that are whole or absent, and JSON whose faults are told by file, row and value."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NUMBER = (int, float)  # for `field_of`


def expect(path: Path, layout: str) -> Path:
    """`path`, or FileNotFoundError that says what is missing, which layout has it, and how to make the embedded data."""
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; it belongs to the layout of {layout}. `make reproduce` draws the embedded one.")
    return path


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields a path to write to; on success it takes the place of `path`, so that a file is whole or absent."""
    partial = path.with_name(path.name + ".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield partial
        partial.rename(path)
    except OSError as error:
        raise OSError(f"could not write {path}: {error}. Is the disk full?") from error
    finally:
        partial.unlink(missing_ok=True)


def read_json(path: Path, object_hook: Callable | None = None) -> Any:
    """The content of a JSON file; ValueError names the file and where it breaks off. `object_hook` is that of `json.loads`."""
    try:
        return json.loads(path.read_bytes(), object_hook=object_hook)
    except (ValueError, RecursionError) as error:  # broken JSON, broken UTF-8, or lists in lists without end
        raise ValueError(f"{path} is not JSON: {error}") from error


def read_json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """(row, value) of a JSON-lines file, blank lines left out; ValueError names the file and the row that is broken."""
    with path.open("rb") as lines:
        for row, line in enumerate(lines):
            if line.strip():
                try:
                    yield row, json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise ValueError(f"{path} row {row} is not JSON ({error}): {shorten(line)}") from error


def field_of(record: Any, name: str, kinds: type | tuple[type, ...], where: str) -> Any:
    """record[name] if it has one of the types `kinds`; else ValueError with `where` (file and row) and the value. A bool is no number."""
    value = record.get(name) if isinstance(record, dict) else None
    if not isinstance(value, kinds) or isinstance(value, bool):
        raise ValueError(f"{where}: {name!r} is missing or of a wrong type: {shorten(record if value is None else value)}")
    return value


def shorten(value: Any, length: int = 100) -> str:
    """repr(value), cut to `length` characters."""
    text = repr(value)
    return text if len(text) <= length else text[: length - 1] + "…"
