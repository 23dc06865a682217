"""The agent's table of metrics, and selectors that it vouches for."""

import json
from pathlib import Path

# What a Prometheus itself stores of each scrape, and what the agent's process says by the names all exporters use.
OF_THE_SCRAPE = {
    "up": "gauge",
    "scrape_duration_seconds": "gauge",
    "scrape_samples_scraped": "gauge",
    "process_cpu_seconds_total": "counter",
    "process_open_fds": "gauge",
    "process_max_fds": "gauge",
    "process_resident_memory_bytes": "gauge",
    "process_start_time_seconds": "gauge",
}

# Labels that Prometheus gives to every target.
OF_THE_TARGET = {"job", "instance"}


class UnknownMetric(Exception):
    """A name or a label that is not in the table."""


class Table:
    """Name, type and labels of each metric that a query may use."""

    def __init__(self, rows: list[dict]):
        self.kinds = {row["name"]: row["type"] for row in rows} | OF_THE_SCRAPE
        self.label_names = {row["name"]: set(row["labels"]) for row in rows}

    @classmethod
    def read(cls, path: Path) -> "Table":
        return cls(json.loads(path.read_text()))

    def kind(self, name: str) -> str:
        if name not in self.kinds:
            raise UnknownMetric(f"{name} is not in the table of metrics")
        return self.kinds[name]

    def labels(self, name: str) -> set[str]:
        self.kind(name)
        return self.label_names.get(name, set()) | OF_THE_TARGET


class Scope:
    """Makes selectors that follow a dashboard's variables."""

    def __init__(self, table: Table, variables: list[str]):
        self.table = table
        self.variables = ["job", "instance", *variables]

    def of(self, name: str, *matchers: str) -> str:
        """All series of a gauge that the variables choose."""
        return self._selector(name, "gauge", matchers)

    def rate(self, name: str, *matchers: str) -> str:
        """How fast a counter grows, per second."""
        return f"rate({self._selector(name, 'counter', matchers)}[$__rate_interval])"

    def increase(self, name: str, *matchers: str) -> str:
        """How much a counter grew in the time that is looked at."""
        return f"increase({self._selector(name, 'counter', matchers)}[$__range])"

    def _selector(self, name: str, kind: str, matchers: tuple[str, ...]) -> str:
        if self.table.kind(name) != kind:
            raise UnknownMetric(f"{name} is no {kind}")
        labels = self.table.labels(name)
        chosen = [f'{label}=~"${label}"' for label in self.variables if label in labels]
        return f"{name}{{{', '.join([*chosen, *matchers])}}}"
