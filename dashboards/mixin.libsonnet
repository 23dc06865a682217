// The same dashboards, rules and alerts as a monitoring mixin; `_config` is what a site may want to change.
{
  _config+:: {
    // Where the runbooks are served.
    runbookBase: '/usr/share/doc/macvlan-agent/',
  },

  local config = self._config,

  grafanaDashboards+: {
    'agent-health.json': import 'agent-health.json',
    'overview.json': import 'overview.json',
    'sub-interface.json': import 'sub-interface.json',
  },

  prometheusRules+: std.parseYaml(importstr 'rules/macvlan.rules.yml'),

  prometheusAlerts+: {
    local given = std.parseYaml(importstr 'alerts/macvlan.alerts.yml'),
    groups: [
      group {
        rules: [
          rule { annotations+: { runbook_url: config.runbookBase + rule.annotations.runbook } }
          for rule in group.rules
        ],
      }
      for group in given.groups
    ],
  },
}
