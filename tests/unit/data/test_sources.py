import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raylign.config import DataConfig
from raylign.data import read_rows
from raylign.errors import DataError

ROWS = [{"prompt": "a", "answer": 1}, {"prompt": "b", "answer": 2}, {"prompt": "c", "answer": 3}]


def jsonl(folder: Path, *lines: str, name: str = "rows.jsonl") -> str:
    path = folder / name
    path.write_text("".join(f"{line}\n" for line in lines))
    return str(path)


def problem(config: DataConfig) -> str:
    with pytest.raises(DataError) as caught:
        read_rows(config)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture(autouse=True)
def _offline_with_a_cache_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def test_jsonl_counts_blank_lines_in_places_only(tmp_path):
    path = jsonl(tmp_path, json.dumps(ROWS[0]), "", "   ", json.dumps(ROWS[1]))
    rows = read_rows(DataConfig(path=path))
    assert rows.rows == ROWS[:2]
    assert [rows.place(i) for i in range(len(rows))] == [f"{path}:1", f"{path}:4"]
    assert [place for place, _ in rows.placed()] == [f"{path}:1", f"{path}:4"]


def test_jsonl_is_read_no_further_than_max_rows(tmp_path):
    path = jsonl(tmp_path, json.dumps(ROWS[0]), json.dumps(ROWS[1]), "not json")
    assert read_rows(DataConfig(path=path, max_rows=2)).rows == ROWS[:2]
    assert problem(DataConfig(path=path)).startswith(f"{path}:3: not valid JSON: ")


@pytest.mark.parametrize("line", ["{'a': 1}", '{"a": ', "{}{}"])
def test_a_malformed_line_is_named(tmp_path, line):
    path = jsonl(tmp_path, json.dumps(ROWS[0]), line)
    message = problem(DataConfig(path=path))
    assert message.startswith(f"{path}:2: not valid JSON: ")
    assert message.endswith("; fix or remove the line")


def test_bytes_that_are_no_utf8_are_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": "b"}\n{"a": "\xff"}\n')
    assert problem(DataConfig(path=str(path))).startswith(f"{path}:2: not valid JSON: ")


def test_a_line_that_is_no_object_is_named(tmp_path):
    path = jsonl(tmp_path, json.dumps(ROWS[0]), "[1]")
    assert problem(DataConfig(path=path)).startswith(f"{path}:2: a list, not an object")


def test_a_unicode_line_separator_inside_a_string_ends_no_line(tmp_path):
    path = jsonl(tmp_path, '{"a": "x\u2028y"}', "{")
    assert problem(DataConfig(path=path)).startswith(f"{path}:2: ")


def test_parquet(tmp_path):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), path)
    rows = read_rows(DataConfig(path=str(path), max_rows=2))
    assert rows.rows == ROWS[:2]
    assert rows.place(1) == f"{path} row 1"


def test_a_broken_parquet_file_is_named(tmp_path):
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"no parquet at all")
    assert problem(DataConfig(path=str(path))).startswith(f"{path}: not a readable Parquet file: ")


def test_a_saved_dataset(tmp_path):
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    rows = read_rows(DataConfig(path=str(tmp_path / "saved"), max_rows=2))
    assert rows.rows == ROWS[:2]
    assert rows.place(1) == f"{tmp_path / 'saved'} row 1"


def test_a_saved_dataset_with_splits(tmp_path):
    path = str(tmp_path / "saved")
    splits = {"train": ROWS[:1], "test": ROWS[1:]}
    datasets.DatasetDict({k: datasets.Dataset.from_list(v) for k, v in splits.items()}).save_to_disk(path)
    rows = read_rows(DataConfig(path=path, split="test"))
    assert rows.rows == ROWS[1:]
    assert rows.place(1) == f"{path}[test] row 1"
    message = problem(DataConfig(path=path, split="valid"))
    assert message == f"{path}: no split 'valid'; set data.split to one of: train, test"


def test_a_broken_saved_dataset_is_named(tmp_path):
    path = tmp_path / "saved"
    datasets.Dataset.from_list(ROWS).save_to_disk(path)
    next(path.glob("*.arrow")).write_bytes(b"broken")
    assert problem(DataConfig(path=str(path))).startswith(f"{path}: cannot load the saved dataset: ")


def test_a_folder_of_data_files(tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    jsonl(folder, *map(json.dumps, ROWS[:2]), name="train.jsonl")
    jsonl(folder, json.dumps(ROWS[2]), name="test.jsonl")
    rows = read_rows(DataConfig(path=str(folder), split="test"))
    assert rows.rows == ROWS[2:]
    assert rows.place(0) == f"{folder}[test] row 0"


@pytest.mark.parametrize("path", ["nowhere.jsonl", "data/nowhere.parquet", "./nowhere", "/nowhere/at/all"])
def test_a_local_path_that_is_not_there(path):
    assert problem(DataConfig(path=path)).startswith(f"{path}: no such file; ")


def test_a_hub_name_that_cannot_be_reached():
    message = problem(DataConfig(path="nobody/nothing"))
    assert message.startswith("nobody/nothing: cannot load the dataset: ")
    assert "check data.path, data.split and data.subset" in message


def test_a_file_of_another_kind(tmp_path):
    path = jsonl(tmp_path, "a,b", name="rows.csv")
    assert problem(DataConfig(path=path)) == f"{path}: cannot read .csv; convert to .jsonl or .parquet"


def test_no_rows(tmp_path):
    path = jsonl(tmp_path, "", " ")
    assert problem(DataConfig(path=path)).startswith(f"{path}: the dataset has no rows; ")


def test_columns_are_renamed(tmp_path):
    path = jsonl(tmp_path, json.dumps({"good": "g", "bad": "b", "chosen": "index 3"}), json.dumps({"bad": "b2"}))
    rows = read_rows(DataConfig(path=path, columns={"chosen": "good", "rejected": "bad"}))
    assert rows.rows == [{"chosen": "g", "rejected": "b"}, {"rejected": "b2"}]


def test_columns_may_be_swapped(tmp_path):
    path = jsonl(tmp_path, json.dumps({"chosen": "c", "rejected": "r"}))
    rows = read_rows(DataConfig(path=path, columns={"chosen": "rejected", "rejected": "chosen"}))
    assert rows.rows == [{"chosen": "r", "rejected": "c"}]


def test_renaming_a_column_that_no_row_has(tmp_path):
    path = jsonl(tmp_path, json.dumps({"preferred": "x"}))
    message = problem(DataConfig(path=path, columns={"chosen": "prefered"}))
    assert message == f"{path}: data.columns.chosen: no column 'prefered'; did you mean preferred?"
    assert problem(DataConfig(path=path, columns={"chosen": "zzz"})).endswith("found: preferred")
