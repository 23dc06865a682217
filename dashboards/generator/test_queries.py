"""The check of queries refuses what is wrong with them."""

import unittest

from queries import Queries, WrongQuery
from table import Scope, Table, UnknownMetric

TABLE = Table(
    [
        {"name": "a_total", "type": "counter", "labels": ["parent", "reason"]},
        {"name": "b", "type": "gauge", "labels": ["parent"]},
        {"name": "b_info", "type": "gauge", "labels": ["parent", "mode"]},
    ]
)


class TestQueries(unittest.TestCase):
    def labels(self, expr: str) -> set[str]:
        queries = Queries(TABLE)
        queries.record("instance:a:rate5m", "sum without (parent, reason) (rate(a_total[5m]))")
        return queries.labels(expr)

    def test_the_labels_of_a_result_are_known(self):
        for expr, labels in {
            "b": {"job", "instance", "parent"},
            'sum by (reason) (rate(a_total{parent="x"}[$__rate_interval]))': {"reason"},
            "sum without (reason) (increase(a_total[$__range]))": {"job", "instance", "parent"},
            "topk(3, sum by (parent) (rate(a_total[1m])))": {"parent"},
            "b * on (job, instance, parent) group_left (mode) b_info": {"job", "instance", "parent", "mode"},
            "b / on (parent) b": {"parent"},
            "count(b == 0) or vector(0)": set(),
            "instance:a:rate5m": {"job", "instance"},
        }.items():
            self.assertEqual(self.labels(expr), labels, expr)

    def test_what_is_wrong_is_refused(self):
        for expr in [
            "c",
            'b{reason="x"}',
            "sum by (mode) (b)",
            "sum without (mode) (b)",
            "sum(a_total)",
            "rate(b[5m])",
            "b * on (mode) b",
            "b * on (parent) group_left (reason) b_info",
            "instance:a:rate1m",
            'instance:a:rate5m{parent="x"}',
            "sum(rate(a_total[5m])",
        ]:
            with self.assertRaises((WrongQuery, UnknownMetric), msg=expr):
                self.labels(expr)

    def test_a_selector_follows_the_variables_it_can(self):
        scope = Scope(TABLE, ["parent", "netns"])
        self.assertEqual(scope.of("b"), 'b{job=~"$job", instance=~"$instance", parent=~"$parent"}')
        for wrong in (lambda: scope.of("a_total"), lambda: scope.rate("b"), lambda: scope.of("c")):
            self.assertRaises(UnknownMetric, wrong)


if __name__ == "__main__":
    unittest.main()
