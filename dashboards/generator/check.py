"""Says what is wrong with the dashboards, rules and alerts: check.py TABLE.json SCHEMA.json DASHBOARDS_DIRECTORY.

The rules for dashboards are those of Grafana's dashboard-linter, as assertions; names and labels are held against the
agent's table of metrics."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import _jsonnet
import jsonschema
import yaml

from queries import Queries, WrongQuery
from table import Table, UnknownMetric

KINDS_OF_TESTS = ["fires", "does not fire", "survives a restart", "survives the removal"]
SEVERITIES = {"critical", "warning", "info"}


class Check:
    """All faults, by where they are."""

    def __init__(self, table: Table, schema: dict, home: Path):
        self.queries = Queries(table)
        self.schema = jsonschema.Draft7Validator(schema)
        self.home = home
        self.faults: list[str] = []
        self.checked = 0

    def expect(self, right: bool, where: str, what: str) -> None:
        self.checked += 1
        if not right:
            self.faults.append(f"{where}: {what}")

    def labels(self, where: str, expr: str) -> set[str]:
        self.checked += 1
        try:
            return self.queries.labels(expr)
        except (WrongQuery, UnknownMetric) as error:
            self.faults.append(f"{where}: {error}")
            return set()

    # Dashboards

    def dashboard(self, path: Path) -> None:
        page, name = json.loads(path.read_text()), path.name
        for error in self.schema.iter_errors(page):
            place = "/".join(str(part) for part in error.absolute_path)
            self.faults.append(f"{name}: {place}: {error.message[:300]}")
        self.expect(page.get("editable") is False, name, "it can be edited")
        self.expect(page.get("id") is None, name, "it has an id, which belongs to one Grafana")
        self.expect(bool(page.get("uid")), name, "it has no uid")
        self.expect(len(page["uid"]) <= 40, name, "its uid is longer than Grafana takes")
        self.variables(name, page)
        ids = [panel.get("id") for panel in page["panels"]]
        self.expect(len(set(ids)) == len(ids) and all(ids), name, "its panels have no ids of their own")
        titles = [panel["title"] for panel in page["panels"]]
        self.expect(len(set(titles)) == len(titles), name, "two panels have one title")
        for panel in page["panels"]:
            place = panel["gridPos"]
            self.expect(place["x"] + place["w"] <= 24, f"{name}: {panel.get('title')}", "it leaves the grid of 24 columns")
            if panel["type"] != "row":
                self.panel(f"{name}: {panel.get('title')}", panel)

    def variables(self, name: str, page: dict) -> None:
        variables = {each["name"]: each for each in page["templating"]["list"]}
        source = variables.get("datasource", {})
        self.expect(source.get("type") == "datasource" and source.get("query") == "prometheus", name, "no datasource")
        self.expect(source.get("label") == "Data source", name, "the label of datasource is not Data source")
        for wanted in ("job", "instance"):
            each = variables.get(wanted, {})
            self.expect(each.get("label") == wanted.capitalize(), name, f"the label of {wanted} is not its name")
            self.expect(each.get("multi") is True, name, f"{wanted} takes one value alone")
            self.expect(each.get("allValue") == ".+", name, f"all of {wanted} is not .+")
        for each in page["templating"]["list"]:
            if each["type"] != "query":
                continue
            where = f"{name}: ${each['name']}"
            self.expect(each["datasource"]["uid"] == "${datasource}", where, "its datasource is fixed")
            self.expect(each.get("refresh") == 2, where, "it is not read again when the time changes")
            found = re.fullmatch(r"label_values\((.+), (\w+)\)", each["query"])
            self.expect(found is not None, where, "it is no label_values of a selector")
            if found:
                labels = self.labels(where, found[1])
                self.expect(found[2] in labels, where, f"{found[1]} has no label {found[2]}")

    def panel(self, where: str, panel: dict) -> None:
        self.expect(panel.get("datasource", {}).get("uid") == "${datasource}", where, "its datasource is fixed")
        self.expect(bool(panel.get("title")), where, "no title")
        description = panel.get("description", "")
        self.expect(description.endswith("."), where, "no description, or no sentence")
        self.expect(bool(panel["fieldConfig"]["defaults"].get("unit")), where, "no unit")
        self.expect(bool(panel.get("targets")), where, "no query")
        columns: set[str] = set()
        for target in panel.get("targets", []):
            expr = target["expr"]
            labels = self.labels(where, expr)
            columns |= labels
            for matcher in ("job", "instance"):
                selectors = re.findall(r"\w+\{([^}]*)\}", expr)
                followed = all(f'{matcher}=~"${matcher}"' in each for each in selectors)
                self.expect(followed and bool(selectors), where, f"a selector does not follow ${matcher}")
            for window in re.findall(r"\[([^\]]+)\]", expr):
                right = window == "$__rate_interval" or (window == "$__range" and target.get("instant"))
                self.expect(right, where, f"[{window}] does not follow the time that is looked at")
            for label in re.findall(r"\{\{(\w+)\}\}", target.get("legendFormat", "")):
                self.expect(label in labels, where, f"the legend has no label {label}")
        for change in panel.get("transformations", []):
            if change["id"] == "filterFieldsByName":
                for column in change["options"]["include"]["names"]:
                    known = column in columns or column.startswith("Value")
                    self.expect(known, where, f"there is no column {column}")

    # Rules and alerts

    def rules(self, path: Path) -> None:
        for rule in rules_of(path):
            where = f"{path.name}: {rule['record']}"
            level, *rest = rule["record"].split(":")
            self.expect(len(rest) == 2, where, "the name is not level:metric:operation")
            labels = self.labels(where, rule["expr"])
            for label in level.split("_"):
                self.expect(label in labels, where, f"the level names {label}, which the result has not")
            self.expect({"job", "instance"} <= labels, where, "job and instance are lost")
            self.queries.recorded[rule["record"]] = labels

    def alerts(self, path: Path) -> None:
        for rule in rules_of(path):
            name = rule["alert"]
            where = f"{path.name}: {name}"
            labels = self.labels(where, rule["expr"])
            notes = rule["annotations"]
            self.expect(name.startswith("Macvlan"), where, "the name does not begin with Macvlan")
            self.expect(rule["labels"].get("severity") in SEVERITIES, where, "no severity")
            summary = notes["summary"]
            self.expect(summary.endswith(".") and "{{" not in summary, where, "the summary is no fixed sentence")
            self.expect("{{" in notes["description"] or "absent(" in rule["expr"], where, "the description names nothing")
            for label in re.findall(r"\$labels\.(\w+)", notes["description"]):
                self.expect(label in labels, where, f"the description has no label {label}")
            page = self.home.parent / notes["runbook"]
            self.expect(page.is_file() and page.stem == name, where, f"no runbook {page}")
            if page.is_file():
                text = page.read_text()
                for part in (f"# {name}\n", "## Meaning\n", "## Look\n", "## Do\n"):
                    self.expect(part in text, str(page.name), f"no part {part.strip()!r}")
                self.page(page)
            self.tests(where, path.parent / "tests" / f"{name}.yml", name)

    def tests(self, where: str, path: Path, alert: str) -> None:
        self.expect(path.is_file(), where, f"no tests {path}")
        if not path.is_file():
            return
        tests = yaml.safe_load(path.read_text())["tests"]
        for kind in KINDS_OF_TESTS:
            self.expect(any(test["name"].startswith(kind) for test in tests), where, f"no test that it {kind}")
        for test in tests:
            times = test["alert_rule_test"]
            self.expect(all(each["alertname"] == alert for each in times), where, "a test of another alert")
            if test["name"].startswith("fires"):
                self.expect(any(each["exp_alerts"] for each in times), where, "a test of firing expects none")
                self.expect(any(not each["exp_alerts"] for each in times), where, "a test of firing has no time before")
            for series in test["input_series"]:
                self.labels(f"{where}: {test['name']}", f"count_over_time({series['series']}[1m])")

    # Pages

    def page(self, path: Path) -> None:
        """Queries in Markdown: blocks marked promql, and in tables what stands between backticks beside a question."""
        text = path.read_text()
        found = re.findall(r"```promql\n(.*?)```", text, re.S)
        found += re.findall(r"\? \| `([^`]+)` \|", text)
        for expr in found:
            self.labels(path.name, expr.replace("\\|", "|"))

    def mixin(self) -> None:
        mixin = json.loads(_jsonnet.evaluate_file(str(self.home / "mixin.libsonnet")))
        alerts = mixin["prometheusAlerts"]["groups"][0]["rules"]
        self.expect(
            [each["alert"] for each in alerts] == [each["alert"] for each in rules_of(self.home / "alerts/macvlan.alerts.yml")],
            "mixin.libsonnet",
            "its alerts are not those of alerts/",
        )
        self.expect(
            all(each["annotations"]["runbook_url"].endswith(f"{each['alert']}.md") for each in alerts),
            "mixin.libsonnet",
            "an alert without runbook_url",
        )
        rules = yaml.safe_load((self.home / "rules/macvlan.rules.yml").read_text())
        self.expect(mixin["prometheusRules"] == rules, "mixin.libsonnet", "its rules are not those of rules/")
        pages = {path.name: json.loads(path.read_text()) for path in dashboards(self.home)}
        self.expect(mixin["grafanaDashboards"] == pages, "mixin.libsonnet", "its dashboards are not those beside it")


def dashboards(home: Path) -> list[Path]:
    return sorted(home.glob("*.json"))


def rules_of(path: Path) -> Iterator[dict]:
    for group in yaml.safe_load(path.read_text())["groups"]:
        yield from group["rules"]


def main() -> None:
    table, schema, home = Table.read(Path(sys.argv[1])), json.loads(Path(sys.argv[2]).read_text()), Path(sys.argv[3])
    check = Check(table, schema, home)
    check.rules(home / "rules/macvlan.rules.yml")
    check.alerts(home / "alerts/macvlan.alerts.yml")
    pages = dashboards(home)
    check.expect(len(pages) >= 3, str(home), "there are no dashboards")
    for path in pages:
        check.dashboard(path)
    check.page(home.parent / "docs/QUERIES.md")
    check.mixin()
    for fault in check.faults:
        print(fault)
    if check.faults:
        sys.exit(f"{len(check.faults)} faults")
    print(f"{check.checked} checks")


if __name__ == "__main__":
    main()
