"""Reading of rows from JSONL, Parquet, `datasets` folders and the hub; each row knows its place for error messages."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raylign.config.data import DataConfig
from raylign.errors import DataError, folded

if TYPE_CHECKING:
    import datasets

Row = dict[str, Any]
_FILE_SUFFIXES = (".jsonl", ".json", ".parquet")


@dataclass(frozen=True)
class Rows:
    """Rows of a dataset, with the place of each row for error messages.

    >>> rows = Rows([{"prompt": "a"}, {"prompt": "b"}], "train.jsonl:", [1, 3])
    >>> rows.place(1)
    'train.jsonl:3'
    """

    rows: list[Row]  # N
    prefix: str
    numbers: Sequence[int]  # N: lines from 1 for JSONL, rows from 0 for the others

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> Row:
        return self.rows[row]

    def place(self, row: int) -> str:
        """Return the place of a row, e.g. `train.jsonl:3`."""
        return f"{self.prefix}{self.numbers[row]}"

    def placed(self) -> Iterator[tuple[str, Row]]:
        """Return an iterator of (place, row)."""
        return ((self.place(i), row) for i, row in enumerate(self.rows))


def read_rows(config: DataConfig) -> Rows:
    """Read the rows of a dataset, with its columns renamed by `config.columns`.

    The caller must first resolve `task:` and `run:` paths to files.

    Raises:
        DataError: the dataset does not exist or is unreadable, has no such split or column, or has no rows.
    """
    path = Path(config.path).expanduser()
    if path.is_dir():
        rows = _read_folder(path, config)
    elif path.is_file():
        rows = _read_file(path, config.max_rows)
    elif path.suffix in _FILE_SUFFIXES or config.path.startswith((".", "/", "~")):
        raise DataError(f"{config.path}: no such file; check data.path (relative paths start at the working directory)")
    else:
        rows = _read_with_datasets(config.path, config)
    if not rows:
        raise DataError(f"{config.path}: the dataset has no rows; check data.path and data.split")
    return _rename(rows, config)


def _read_file(path: Path, max_rows: int | None) -> Rows:
    match path.suffix:
        case ".jsonl" | ".json":
            return _read_jsonl(path, max_rows)
        case ".parquet":
            return _read_parquet(path, max_rows)
        case suffix:
            raise DataError(f"{path}: cannot read {suffix or 'a file without suffix'}; convert to .jsonl or .parquet")


def _read_jsonl(path: Path, max_rows: int | None) -> Rows:
    rows: list[Row] = []
    numbers: list[int] = []
    with path.open("rb") as lines:  # bytes: only \n ends a line, and bad UTF-8 is reported with its line
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as e:
                raise DataError(f"{path}:{number}: not valid JSON: {folded(e)}; fix or remove the line") from None
            if not isinstance(row, dict):
                kind = type(row).__name__
                raise DataError(f"{path}:{number}: a {kind}, not an object; write one {{...}} object per line")
            rows.append(row)
            numbers.append(number)
            if len(rows) == max_rows:
                break
    return Rows(rows, f"{path}:", numbers)


def _read_parquet(path: Path, max_rows: int | None) -> Rows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            rows = list(islice((row for batch in file.iter_batches() for row in batch.to_pylist()), max_rows))
    except pa.ArrowException as e:
        raise DataError(f"{path}: not a readable Parquet file: {folded(e)}; write the file again") from None
    return Rows(rows, f"{path} row ", range(len(rows)))


def _read_folder(path: Path, config: DataConfig) -> Rows:
    if (path / "dataset_dict.json").is_file():
        splits = json.loads((path / "dataset_dict.json").read_text())["splits"]
        if config.split not in splits:
            raise DataError(f"{path}: no split {config.split!r}; set data.split to one of: {', '.join(splits)}")
        return _from_disk(path / config.split, f"{path}[{config.split}] row ", config)
    if (path / "state.json").is_file():
        return _from_disk(path, f"{path} row ", config)
    return _read_with_datasets(str(path), config)


def _from_disk(path: Path, prefix: str, config: DataConfig) -> Rows:
    import datasets

    try:
        dataset = datasets.Dataset.load_from_disk(str(path))
    except Exception as e:  # anything wrong inside the folder is for the user to fix
        raise DataError(f"{path}: cannot load the saved dataset: {folded(e)}; save it again") from e
    return _from_dataset(dataset, prefix, config.max_rows)


def _read_with_datasets(path: str, config: DataConfig) -> Rows:
    import datasets

    try:
        dataset = datasets.load_dataset(path, config.subset, split=config.split)
    except Exception as e:  # datasets, the hub client and its HTTP client raise a dozen unrelated types here
        fix = "check data.path, data.split and data.subset, and network access if it is a hub name"
        raise DataError(f"{path}: cannot load the dataset: {folded(e)}; {fix}") from e
    return _from_dataset(dataset, f"{path}[{config.split}] row ", config.max_rows)


def _from_dataset(dataset: datasets.Dataset, prefix: str, max_rows: int | None) -> Rows:
    rows = dataset.select(range(min(len(dataset), max_rows or len(dataset)))).to_list()
    return Rows(rows, prefix, range(len(rows)))


def _rename(rows: Rows, config: DataConfig) -> Rows:
    if not config.columns:
        return rows
    names = list(dict.fromkeys(column for row in rows.rows for column in row))
    for expected, actual in config.columns.items():
        if actual not in names:
            near = difflib.get_close_matches(actual, names, n=1)
            hint = f"did you mean {near[0]}?" if near else f"found: {', '.join(names)}"
            raise DataError(f"{config.path}: data.columns.{expected}: no column {actual!r}; {hint}")
    replaced = {*config.columns, *config.columns.values()}

    def renamed(row: Row) -> Row:
        kept = {column: value for column, value in row.items() if column not in replaced}
        return kept | {expected: row[actual] for expected, actual in config.columns.items() if actual in row}

    return replace(rows, rows=[renamed(row) for row in rows.rows])
