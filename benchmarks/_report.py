"""Tables of measurements: printed, in Markdown, and in JSON."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from _timing import environment

Row = Mapping[str, Any]


@final
@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Table:
    """Hold rows of one measurement.

    Args:
        title: What was measured.
        rows: Column to text, number, or the spread of a number.
        note: How to read it.
    """

    title: str
    rows: list[Row]
    note: str = ""

    def markdown(self) -> str:
        """Return it as Markdown; a spread as median (quartiles)."""
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        lines = [f"## {self.title}", ""]
        if self.note:
            lines += [self.note, ""]
        lines += ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
        for row in self.rows:
            cells = [_cell(row.get(column)) for column in columns]
            lines.append("| " + " | ".join(cells) + " |")
        return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        if value["runs"] == 1:
            return _number(value["median"])
        return (
            f"{_number(value['median'])} ({_number(value['q25'])}–"
            f"{_number(value['q75'])})"
        )
    return _number(value) if isinstance(value, int | float) else str(value)


def _number(value: float) -> str:
    if isinstance(value, int) or (float(value).is_integer() and abs(value) < 1e6):
        return f"{value:.0f}" if value < 1e5 else f"{value:.3g}"
    return f"{value:.3g}"


def asked(what: str, limit: float, found: Any, *, least: bool = False) -> Row:
    """Return a row that compares a number, or the median of a spread, with a limit."""
    number = found["median"] if isinstance(found, dict) else found
    word = "at least" if least else "at most"
    met = None
    if isinstance(number, int | float):
        met = bool(number >= limit if least else number <= limit)
    return {"what": what, "asked": f"{word} {limit:g}", "found": found, "met": met}


def write(
    target: Path | None,
    tables: list[Table],
    *,
    command: str,
    device: torch.device,
    began: float,
    absent: Mapping[str, str],
) -> None:
    """Print the tables; write them as JSON and, beside it, as Markdown.

    Args:
        target: The JSON file, or None to print only.
        tables: What was measured.
        command: How it was made.
        device: Where.
        began: ``time.perf_counter()`` at the start.
        absent: Rivals left out, each with a word of reason.
    """
    record = {
        "command": command,
        "environment": environment(device),
        "rivals_left_out": dict(absent),
        "seconds": round(time.perf_counter() - began, 1),
        "tables": [
            {"title": table.title, "note": table.note, "rows": list(table.rows)}
            for table in tables
        ],
    }
    where = record["environment"]
    text = "\n".join([
        f"Made by `{command}`: {where['chip']}, {where['threads']} thread(s), torch "
        f"{where['torch']}, {record['seconds']} s. Spreads are quartiles. Left out: "
        f"{', '.join(f'{k} ({v})' for k, v in absent.items()) or 'no rival'}.\n",
        *(table.markdown() for table in tables),
    ])
    print(text)
    if target is not None:
        target.write_text(json.dumps(record, indent=1) + "\n")
        target.with_suffix(".md").write_text(text)
