"""``metrics.jsonl``: one line a step, appended as the run goes and cut back to the checkpoint on resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from frugalore.pretrain.checkpoint import write_text

NAME = "metrics.jsonl"


class MetricsFile:
    """Appends lines; each is flushed, so a run that is killed loses at most the line in the making."""

    def __init__(self, out: Path, after_step: int):
        """Open for the steps after ``after_step``; later lines and half a line at the end are dropped."""
        path = out / NAME
        kept = [row for row in read(out) if row["step"] <= after_step]
        write_text(path, "".join(_line(row) for row in kept))
        self.rows: list[dict[str, Any]] = kept
        self._file = path.open("a", encoding="utf-8")

    def append(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        self._file.write(_line(row))
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read(out: Path) -> list[dict[str, Any]]:
    """The whole lines of a run's metrics; none if there is no file."""
    path = out / NAME
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text("utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            break
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            break
        rows.append(row)
    return rows


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row) + "\n"
