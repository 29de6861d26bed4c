"""The numbers of a mixture study as tables: CSV for people, Parquet for programs.

In: the analysis. Out: TABLE.csv and TABLE.parquet for each of `TABLES`, a row a thing. Invariant: the same analysis gives the same
bytes; every table is written, an empty one with no row.
"""

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

TABLES = ("runs", "items", "correlations", "effects", "predictions", "fits", "forgetting", "scaling", "candidates")

Row = dict[str, Any]


def write_tables(analysis: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write every table twice; the paths written."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, rows in tables_of(analysis).items():
        columns = list(dict.fromkeys(column for row in rows for column in row))
        csv_path, parquet_path = folder / f"{name}.csv", folder / f"{name}.parquet"
        csv_path.write_text(_csv(columns, rows), encoding="utf-8")
        whole = pyarrow.table({column: [row.get(column) for row in rows] for column in columns})
        pyarrow.parquet.write_table(whole, parquet_path)
        written += [csv_path, parquet_path]
    return written


def tables_of(analysis: Mapping[str, Any]) -> dict[str, list[Row]]:
    """The rows of each table."""
    proposal = analysis["proposal"] or {"candidates": []}
    rows: dict[str, Iterable[Row]] = {
        "runs": map(_run_row, analysis["runs"]),
        "items": (
            {"run": run["name"], "exam": exam, "question": question, "is_right": is_right}
            for run in analysis["runs"]
            for exam, items in run["items"].items()
            for question, is_right in items.items()
        ),
        "correlations": map(dict, analysis["correlations"]),
        "effects": map(dict, analysis["effects"]),
        "predictions": ({"target": fit["target"], **prediction} for fit in analysis["fits"] for prediction in fit["predictions"]),
        "fits": ({key: value for key, value in fit.items() if key != "predictions"} for fit in analysis["fits"]),
        "forgetting": map(dict, analysis["forgetting"]),
        "scaling": ({"run": one["run"], **point} for one in analysis["scaling"] for point in one["points"]),
        "candidates": ({**_prefixed("share", c["shares"]), "predicted": c["predicted"]} for c in proposal["candidates"]),
    }
    return {name: list(rows[name]) for name in TABLES}


def _run_row(run: Mapping[str, Any]) -> Row:
    head = {key: run[key] for key in ("name", "seed", "is_base", "tokens_read")}
    return head | _prefixed("read share", run["shares"]) | _prefixed("feature", run["features"]) | _prefixed("score", run["scores"])


def _prefixed(prefix: str, values: Mapping[str, Any]) -> Row:
    return {f"{prefix}: {name}": value for name, value in values.items()}


def _csv(columns: list[str], rows: list[Row]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([["" if row.get(column) is None else row[column] for column in columns] for row in rows])
    return stream.getvalue()
