"""A run on disk: JSON lines. The first names the machine, the others are measurements and skipped servers.

{"type": "run", "baseline": ..., "machine": {...}}
{"type": "measurement", "server": ..., "case": ..., "mode": ..., "round": ..., "values": {...}}
{"type": "skipped", "server": ..., "reason": ...}
"""

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import IO

from cases import CASES
from summary import Measurement, Measurements


class ResultsError(Exception):
    """A file does not hold the results of a run; the message says where."""


@dataclass
class Results:
    """The data of the reports."""

    baseline: str
    machine: dict[str, object]
    measurements: Measurements = field(default_factory=Measurements)
    skipped: dict[str, str] = field(default_factory=dict)


class Writer:
    """Writes each line as it becomes known, so that an interrupted run loses nothing."""

    def __init__(self, file: IO[str], baseline: str, machine: dict[str, object]) -> None:
        self.file = file
        self.write({"type": "run", "baseline": baseline, "machine": machine})

    def measurement(self, one: Measurement) -> None:
        """One visit to one server."""
        values = {key: round(value, 4) for key, value in one.values.items()}
        self.write({"type": "measurement", **asdict(one), "values": values})

    def skipped(self, server: str, reason: str) -> None:
        """A server that left the run."""
        self.write({"type": "skipped", "server": server, "reason": reason})

    def write(self, line: dict[str, object]) -> None:
        """Any line, at once."""
        json.dump(line, self.file)
        self.file.write("\n")
        self.file.flush()


def read(path: Path) -> Results:
    """Raises ResultsError, and OSError if there is no such file."""
    lines = []
    for number, text in enumerate(path.read_text().splitlines(), 1):
        try:
            lines.append(json.loads(text))
        except ValueError as error:
            raise ResultsError(f"{path}, line {number}: {error}") from None
    try:
        first, *rest = lines
        results = Results(baseline=first["baseline"], machine=first["machine"])
        for line in rest:
            if line["type"] == "skipped":
                results.skipped[line["server"]] = line["reason"]
            elif line["case"] in CASES:  # else: a case which has been dropped since
                names = (field.name for field in fields(Measurement))
                results.measurements.all.append(Measurement(**{name: line[name] for name in names}))
    except (ValueError, KeyError, TypeError):
        raise ResultsError(f"{path} does not hold the results of a run") from None
    return results
