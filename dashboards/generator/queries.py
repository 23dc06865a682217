"""Which labels a query's result has, by the table of metrics: a name or label that is not there is an error."""

import re

import promql_parser as promql

from table import Table

RATES = {"rate", "irate", "increase"}
# Functions over a counter's own restarts and presence, which are not about how fast it grows.
OVER_RANGES = {"changes", "resets", "present_over_time", "count_over_time"}

VARIABLES = {"$__rate_interval": "5m", "$__interval": "1m", "$__range": "1h"}


class WrongQuery(Exception):
    """What is wrong with a query."""


class Queries:
    """Checks queries against the metrics and the recorded series."""

    def __init__(self, table: Table):
        self.table = table
        self.recorded: dict[str, set[str]] = {}

    def record(self, name: str, expr: str) -> None:
        self.recorded[name] = self.labels(expr)

    def labels(self, expr: str) -> set[str]:
        """The labels that every series of the result may have."""
        for variable, value in VARIABLES.items():
            expr = expr.replace(variable, value)
        try:
            return self._labels(promql.parse(expr))
        except ValueError as error:
            raise WrongQuery(f"{error} in {expr}") from error

    def _labels(self, node, inside: str = "") -> set[str]:
        match node:
            case promql.VectorSelector():
                return self._selected(node, inside)
            case promql.MatrixSelector():
                return self._selected(node.vector_selector, inside)
            case promql.SubqueryExpr() | promql.ParenExpr() | promql.UnaryExpr():
                return self._labels(node.expr, inside)
            case promql.Call():
                return self._called(node)
            case promql.AggregateExpr():
                return self._aggregated(node)
            case promql.BinaryExpr():
                return self._joined(node)
            case promql.NumberLiteral() | promql.StringLiteral():
                return set()
        raise WrongQuery(f"{type(node).__name__} is not known to this check")

    def _selected(self, selector, inside: str) -> set[str]:
        name = selector.name
        matched = re.findall(r'(\w+)(?:=~|!~|!=|=)"', str(selector.matchers))
        if name in self.recorded:
            labels = self.recorded[name]
        else:
            labels = self.table.labels(name)
            counter = self.table.kind(name) == "counter"
            if counter and inside not in RATES | OVER_RANGES:
                raise WrongQuery(f"{name} is a counter: it is asked for by rate or increase")
            if not counter and inside in RATES:
                raise WrongQuery(f"{name} is a gauge, of which {inside} means nothing")
        for label in matched:
            self._known(label, labels, name)
        return labels

    def _called(self, call) -> set[str]:
        name = call.func.name
        of_arguments = [self._labels(argument, name) for argument in call.args]
        if name in {"vector", "time", "scalar"}:
            return set()
        if name in {"absent", "absent_over_time"}:
            return {"job", "instance"}
        return set().union(*of_arguments)

    def _aggregated(self, node) -> set[str]:
        inner = self._labels(node.expr)
        if node.modifier is None:
            # topk and its like keep what they choose from.
            return inner if str(node.op) in {"topk", "bottomk"} else set()
        for label in node.modifier.labels:
            self._known(label, inner, str(node))
        named = set(node.modifier.labels)
        return named if node.modifier.type == promql.AggModifierType.By else inner - named

    def _joined(self, node) -> set[str]:
        left, right = self._labels(node.lhs), self._labels(node.rhs)
        modifier = node.modifier
        if modifier is None:
            return left if str(node.op) in {"and", "unless"} else left | right
        matching = modifier.matching.labels if modifier.matching else []
        for side in (left, right):
            for label in matching:
                self._known(label, side, str(node))
        if str(node.op) in {"and", "unless"}:
            return left
        if modifier.card == promql.VectorMatchCardinality.ManyToOne:
            for label in modifier.group_labels or []:
                self._known(label, right, str(node))
            return left | set(modifier.group_labels or [])
        if modifier.card == promql.VectorMatchCardinality.OneToOne and matching and not _compares(node):
            return set(matching)
        return left | right if str(node.op) == "or" else left

    @staticmethod
    def _known(label: str, labels: set[str], where: str) -> None:
        if label not in labels:
            raise WrongQuery(f"{where} has no label {label}; it has {', '.join(sorted(labels))}")


def _compares(node) -> bool:
    return str(node.op) in {"==", "!=", "<", ">", "<=", ">="}
