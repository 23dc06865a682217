"""Writes the dashboards: generate.py TABLE.json DIRECTORY."""

import json
import sys
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

import agent_health
import overview
import sub_interface
from table import Table

DASHBOARDS = {"overview": overview, "sub-interface": sub_interface, "agent-health": agent_health}


def main() -> None:
    table, directory = Table.read(Path(sys.argv[1])), Path(sys.argv[2])
    for name, module in DASHBOARDS.items():
        page = module.build(table).build()
        for number, panel in enumerate(page.panels, start=1):
            panel.id_val = number
        (directory / f"{name}.json").write_text(as_json(page))


def as_json(page) -> str:
    """As Grafana's schema has it: the SDK gives every variable the keys of an interval's."""
    document = json.loads(JSONEncoder().encode(page))
    for variable in document["templating"]["list"]:
        for key in ("auto", "auto_count", "auto_min"):
            variable.pop(key, None)
    return json.dumps(document, sort_keys=True, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    main()
