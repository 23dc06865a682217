"""Agent health: can its numbers be believed, and what do they cost."""

from grafana_foundation_sdk.builders import dashboard

from parts import COUNT, instant, lines, new_dashboard, number, rows, states, target
from table import Scope, Table


def build(table: Table) -> dashboard.Dashboard:
    scope = Scope(table, [])
    page = new_dashboard(
        "macvlan-agent-health",
        "macvlan / Agent health",
        "Whether the agents see all they should, whether their counts are whole, and what they cost.",
    )
    page.with_row(dashboard.Row("Can the numbers be believed?"))
    for panel in belief(scope):
        page.with_panel(panel)
    page.with_row(dashboard.Row("Hooks"))
    for panel in hooks(scope):
        page.with_panel(panel)
    page.with_row(dashboard.Row("Room"))
    for panel in room(scope):
        page.with_panel(panel)
    page.with_row(dashboard.Row("Cost"))
    for panel in cost(scope):
        page.with_panel(panel)
    return page


def belief(scope: Scope):
    yield number(
        "Agents down",
        "Targets that do not answer.",
        COUNT,
        instant(f"count({scope.of('up')} == 0) or vector(0)", "agents"),
        bad_above=1,
    )
    yield number(
        "Required hooks missing",
        "Hooks without which an agent is not ready, and which are not attached somewhere.",
        COUNT,
        instant(
            f"count(({scope.of('macvlan_agent_hook_attached')} == 0) and on (job, instance, hook) "
            f"({scope.of('macvlan_agent_hook_required')} == 1)) or vector(0)",
            "hooks",
        ),
        bad_above=1,
    )
    yield number(
        "Accounting error",
        "Distance between the count of delivered skbs and the kernel's own, of the sub-interface where it is largest: "
        "0 when every frame is accounted for.",
        COUNT,
        instant(f"max({scope.of('macvlan_accounting_error_skbs')})", "skbs"),
        bad_above=1,
    )
    yield number(
        "Sources failing",
        "Sources of counts that did not answer at the last scrape: the maps' pages, or netlink.",
        COUNT,
        instant(f"count({scope.of('macvlan_scrape_collector_success')} == 0) or vector(0)", "sources"),
        bad_above=1,
    )
    yield number(
        "Runs missed",
        "Runs that a hook missed in the time looked at: frames without a verdict.",
        COUNT,
        instant(f"sum({scope.increase('macvlan_agent_hook_missed_total')}) or vector(0)", "runs"),
        bad_above=1,
    )
    yield number(
        "Counts lost",
        "Counts that found no place or no owner in the time looked at.",
        COUNT,
        instant(f"sum({scope.increase('macvlan_agent_lost_counts_total')})", "counts"),
        bad_above=1,
    )
    yield number(
        "Over the limit",
        "Sub-interfaces without counts of their own because there are too many.",
        COUNT,
        instant(f"sum({scope.of('macvlan_agent_interfaces_over_limit')})", "sub-interfaces"),
        bad_above=1,
    )
    yield number(
        "Netlink read anew",
        "How often an agent missed events and read a namespace anew, in the time looked at: counts stay right, names "
        "may have been late.",
        COUNT,
        instant(f"sum({scope.increase('macvlan_agent_netlink_resyncs_total')})", "times"),
    )
    yield number(
        "Longest uptime",
        "Since the agent that runs longest was started.",
        "s",
        instant(f"max(time() - {scope.of('process_start_time_seconds')})", "uptime"),
        width=8,
    )


def sources(scope: Scope):
    return lines(
        "Time of each source",
        "How long the agent took to read the maps' pages and to ask netlink, at each scrape.",
        "s",
        target(
            f"max by (instance, collector) ({scope.of('macvlan_scrape_collector_duration_seconds')})",
            "{{instance}} {{collector}}",
        ),
        width=8,
    )


def hooks(scope: Scope):
    yield states(
        "Hooks attached",
        "Each hook of each parent over time; handle_frame and kernel_counters exist once for each host.",
        target(scope.of("macvlan_agent_hook_attached"), "{{instance}} {{hook}} {{parent}}"),
        {"0": ("missing", "orange"), "1": ("attached", "green")},
        height=9,
    )
    yield rows(
        "Why, and how",
        "The mechanism of each hook, or the reason why it is not attached.",
        COUNT,
        instant(scope.of("macvlan_agent_hook_info"), as_table=True),
        names={
            "instance": "Host",
            "hook": "Hook",
            "parent": "Parent",
            "mechanism": "Mechanism",
            "reason": "Reason",
        },
    )


def room(scope: Scope):
    yield lines(
        "Maps, how full",
        "Entries in the kernel's maps against what they can hold.",
        "percentunit",
        target(
            f"max by (instance, map) ({scope.of('macvlan_agent_map_entries')} / "
            f"on (job, instance, map) {scope.of('macvlan_agent_map_max_entries')})",
            "{{instance}} {{map}}",
        ),
    )
    yield lines(
        "Counts lost over time",
        "By where: credits = more unknown MACs than a parent may have, asks = more unanswered address requests than "
        "are kept, entries = a return of the handler without its entry, reads = a kernel field that could not be read.",
        COUNT,
        target(f"sum by (instance, map) ({scope.rate('macvlan_agent_lost_counts_total')})", "{{instance}} {{map}}"),
    )


def cost(scope: Scope):
    yield lines(
        "Time of a scrape",
        "As the Prometheus that scrapes measured it.",
        "s",
        target(f"max by (instance) ({scope.of('scrape_duration_seconds')})", "{{instance}}"),
        width=8,
    )
    yield sources(scope)
    yield lines(
        "Series of a scrape",
        "Samples that each scrape gave.",
        COUNT,
        target(f"max by (instance) ({scope.of('scrape_samples_scraped')})", "{{instance}}"),
        width=8,
    )
    yield lines(
        "Processor time",
        "Of the agent's process; what its programs cost is part of the kernel's time.",
        "percentunit",
        target(f"sum by (instance) ({scope.rate('process_cpu_seconds_total')})", "{{instance}}"),
        width=8,
    )
    yield lines(
        "Memory",
        "Resident memory of the agent's process.",
        "bytes",
        target(f"sum by (instance) ({scope.of('process_resident_memory_bytes')})", "{{instance}}"),
        width=8,
    )
    yield lines(
        "Open files",
        "Of the agent's process, of all that it may open.",
        "percentunit",
        target(
            f"sum by (instance) ({scope.of('process_open_fds')} / {scope.of('process_max_fds')})", "{{instance}}"
        ),
        width=8,
    )
    yield rows(
        "Versions",
        "What is installed where.",
        COUNT,
        instant(scope.of("macvlan_agent_build_info"), as_table=True),
        names={"instance": "Host", "version": "Version", "revision": "Revision", "rustc": "Compiler"},
        height=6,
    )
