"""Overview: which hosts, parents and containers lose frames, and why."""

from grafana_foundation_sdk.builders import dashboard

from parts import BYTES, COUNT, FRAMES, SUB_INTERFACE, bars, chosen_by, instant, lines, new_dashboard, number, rows, target
from table import Scope, Table

# By design of macvlan, and not by a fault: what the word "isolation" stands for in titles.
ISOLATION = 'reason=~"child_to_parent|parent_to_child|sibling_not_reflected"'
OTHERS = 'reason!~"child_to_parent|parent_to_child|sibling_not_reflected"'


def build(table: Table) -> dashboard.Dashboard:
    scope = Scope(table, ["parent"])
    lost = scope.rate("macvlan_dropped_frames_total")
    page = new_dashboard(
        "macvlan-overview",
        "macvlan / Overview",
        "Which hosts, parents and containers lose frames, and why.",
        chosen_by(
            "parent",
            "Parent",
            'label_values(macvlan_parent_up{job=~"$job", instance=~"$instance"}, parent)',
        ),
    )
    page.with_row(dashboard.Row("At a glance"))
    for panel in glance(scope, lost):
        page.with_panel(panel)
    page.with_row(dashboard.Row("Who loses frames, and why"))
    for panel in losses(scope, lost):
        page.with_panel(panel)
    page.with_row(dashboard.Row("Traffic"))
    for panel in traffic(scope):
        page.with_panel(panel)
    page.with_row(dashboard.Row("What the hosts have"))
    for panel in parents(scope):
        page.with_panel(panel)
    return page


def glance(scope: Scope, lost: str):
    yield number(
        "Hosts",
        "Agents that answer, of those that the variables choose.",
        COUNT,
        instant(f"count({scope.of('macvlan_agent_build_info')})", "hosts"),
    )
    yield number(
        "Sub-interfaces",
        "macvlan and macvtap interfaces that the agents know, in all namespaces.",
        COUNT,
        instant(f"sum({scope.of('macvlan_parent_interfaces')})", "sub-interfaces"),
    )
    yield number(
        "Delivered",
        "Frames handed to sub-interfaces, per second.",
        FRAMES,
        instant(f"sum({scope.rate('macvlan_delivered_frames_total')})", "delivered"),
    )
    yield number(
        "Lost to isolation",
        "Frames per second between a sub-interface and its parent, or to a sibling that is not bridged, that macvlan "
        "never delivers.",
        FRAMES,
        instant(f"sum({scope.rate('macvlan_dropped_frames_total', ISOLATION)})", "lost"),
        bad_above=0.01,
    )
    yield number(
        "Lost to faults",
        "Frames per second that were dropped for any other reason: interface down, no memory, queue full.",
        FRAMES,
        instant(f"sum({scope.rate('macvlan_dropped_frames_total', OTHERS)})", "lost"),
        bad_above=0.01,
    )
    yield number(
        "Losing sub-interfaces",
        "Sub-interfaces that lose any frames at the moment.",
        COUNT,
        instant(f"count(sum by (job, {SUB_INTERFACE}) ({lost}) > 0) or vector(0)", "sub-interfaces"),
        bad_above=1,
    )


def losses(scope: Scope, lost: str):
    yield lines(
        "Lost frames by reason",
        "What was dropped, by reason. child_to_parent, parent_to_child and sibling_not_reflected are macvlan's "
        "isolation, the others are faults.",
        FRAMES,
        target(f"sum by (reason) ({lost})", "{{reason}}"),
        stacked=True,
    )
    yield lines(
        "Lost frames by host",
        "The ten hosts that lose most.",
        FRAMES,
        target(f"topk(10, sum by (instance) ({lost}) > 0)", "{{instance}}"),
    )
    yield rows(
        "Sub-interfaces that lose frames",
        "Each sub-interface that lost frames in the time looked at, with the reason: the place to start from.",
        COUNT,
        instant(
            f"topk(50, sum by (job, {SUB_INTERFACE}, reason) "
            f"({scope.increase('macvlan_dropped_frames_total')}) > 0.5)",
            as_table=True,
        ),
        names={
            "instance": "Host",
            "parent": "Parent",
            "netns": "Namespace",
            "interface": "Sub-interface",
            "reason": "Reason",
            "Value": "Frames lost",
        },
    )
    yield lines(
        "Attempts to pass the isolation",
        "Frames sent to the other side of macvlan's isolation, whether or not something answered: a working shim or a "
        "hairpin switch shows here and not among the losses.",
        FRAMES,
        target(f"sum by (direction) ({scope.rate('macvlan_isolation_attempts_total')})", "{{direction}}"),
        stacked=True,
    )
    yield lines(
        "Lost on the parent",
        "Frames dropped before anyone could tell whose they were: multicast and broadcast that found the parent's queue "
        "full, and frames between siblings that found the backlog full.",
        FRAMES,
        target(
            f"sum by (instance, parent, reason) ({scope.rate('macvlan_parent_dropped_frames_total')})",
            "{{instance}} {{parent}} {{reason}}",
        ),
    )
    yield lines(
        "Packets without a neighbour",
        "Packets that died waiting for a neighbour that did not answer: something calls an address that is not there.",
        FRAMES,
        target(
            f"sum by ({SUB_INTERFACE}) ({scope.rate('macvlan_neighbour_failed_packets_total')})",
            "{{instance}} {{netns}} {{interface}}",
        ),
    )
    yield bars(
        "Parents that lose most to isolation",
        "Frames lost in the time looked at, by parent; from counters of the parents' own, so containers that are gone "
        "are in it.",
        COUNT,
        instant(
            f"topk(10, sum by (instance, parent) "
            f"({scope.increase('macvlan_parent_isolation_lost_frames_total')}) > 0)",
            "{{instance}} {{parent}}",
        ),
    )


def traffic(scope: Scope):
    frames, data = "macvlan_delivered_frames_total", "macvlan_delivered_bytes_total"
    yield lines(
        "Delivered frames by path",
        "external came over the parent, sibling was looped inside, any is multicast and mode source.",
        FRAMES,
        target(f"sum by (path) ({scope.rate(frames)})", "{{path}}"),
        stacked=True,
    )
    yield lines(
        "Delivered bytes by path",
        "Bytes of the same frames.",
        BYTES,
        target(f"sum by (path) ({scope.rate(data)})", "{{path}}"),
        stacked=True,
    )
    yield lines(
        "Sent frames by path",
        "external went out of the parent, frames for the parent itself included; sibling was looped inside.",
        FRAMES,
        target(f"sum by (path) ({scope.rate('macvlan_transmitted_frames_total')})", "{{path}}"),
        stacked=True,
    )
    yield lines(
        "What macvlan decided",
        "macvlan's own verdict on every frame that a parent received, where the kernel has kprobes: delivered, passed "
        "to the parent, or consumed.",
        FRAMES,
        target(f"sum by (verdict) ({scope.rate('macvlan_parent_handled_frames_total')})", "{{verdict}}"),
        stacked=True,
    )


def parents(scope: Scope):
    join = "* on (job, instance, parent) group_left (kind, mac)"
    info = scope.of("macvlan_parent_info")
    yield rows(
        "Parents",
        "Every parent: kind, MAC, how many sub-interfaces, whether it is up.",
        COUNT,
        instant(f"{scope.of('macvlan_parent_interfaces')} {join} {info}", ref="A", as_table=True),
        instant(f"{scope.of('macvlan_parent_up')} {join} {info}", ref="B", as_table=True),
        instant(f"{scope.of('macvlan_parent_promiscuity')} {join} {info}", ref="C", as_table=True),
        names={
            "instance": "Host",
            "parent": "Parent",
            "kind": "Kind",
            "mac": "MAC",
            "Value #A": "Sub-interfaces",
            "Value #B": "Up",
            "Value #C": "Promiscuity",
        },
    )
