"""Sub-interface: what reached one container, what did not, and why."""

from grafana_foundation_sdk.builders import dashboard

from parts import BYTES, COUNT, FRAMES, chosen_by, instant, lines, new_dashboard, number, rows, states, target
from table import Scope, Table

IDENTITY = 'job=~"$job", instance=~"$instance", parent=~"$parent"'


def build(table: Table) -> dashboard.Dashboard:
    scope = Scope(table, ["parent", "netns", "interface"])
    page = new_dashboard(
        "macvlan-sub-interface",
        "macvlan / Sub-interface",
        "One sub-interface: its frames, what became of them, and what it tried that macvlan never delivers.",
        chosen_by(
            "parent",
            "Parent",
            'label_values(macvlan_interface_info{job=~"$job", instance=~"$instance"}, parent)',
        ),
        chosen_by("netns", "Namespace", f"label_values(macvlan_interface_info{{{IDENTITY}}}, netns)"),
        chosen_by(
            "interface",
            "Sub-interface",
            f'label_values(macvlan_interface_info{{{IDENTITY}, netns=~"$netns"}}, interface)',
        ),
    )
    page.with_row(dashboard.Row("Who it is"))
    for panel in identity(scope):
        page.with_panel(panel)
    page.with_row(dashboard.Row("What reached it, and what it sent"))
    for panel in traffic(scope):
        page.with_panel(panel)
    page.with_row(dashboard.Row("What did not arrive, and why"))
    for panel in losses(scope):
        page.with_panel(panel)
    return page


def identity(scope: Scope):
    yield rows(
        "Sub-interface",
        "Mode, MAC and index of each sub-interface that the variables choose.",
        COUNT,
        instant(scope.of("macvlan_interface_info"), as_table=True),
        names={
            "instance": "Host",
            "parent": "Parent",
            "netns": "Namespace",
            "interface": "Sub-interface",
            "mode": "Mode",
            "mac": "MAC",
            "ifindex": "Index",
        },
        width=16,
        height=5,
    )
    yield number(
        "MTU",
        "Largest payload of a frame in bytes, as the sub-interface has it; of several, the smallest.",
        "none",
        instant(f"min({scope.of('macvlan_interface_mtu_bytes')})", "MTU"),
    )
    yield number(
        "Lost share",
        "Of the frames sent and received in the time looked at, the share that did not arrive.",
        "percentunit",
        instant(
            f"sum({scope.increase('macvlan_dropped_frames_total')}) / clamp_min("
            f"sum({scope.increase('macvlan_delivered_frames_total')}) + "
            f"sum({scope.increase('macvlan_transmitted_frames_total')}), 1)",
            "lost",
        ),
        bad_above=0.001,
    )
    yield states(
        "Up",
        "Whether the sub-interface is administratively up.",
        target(scope.of("macvlan_interface_up"), "{{netns}} {{interface}}"),
        {"0": ("down", "red"), "1": ("up", "green")},
        height=4,
    )


def traffic(scope: Scope):
    yield lines(
        "Delivered frames",
        "Frames that macvlan handed to it. external came over the parent, sibling from a neighbour on the same parent; "
        "multicast includes broadcast.",
        FRAMES,
        target(f"sum by (cast, path) ({scope.rate('macvlan_delivered_frames_total')})", "{{cast}} {{path}}"),
    )
    yield lines(
        "Delivered bytes",
        "Bytes of those frames, Ethernet header included.",
        BYTES,
        target(f"sum by (cast, path) ({scope.rate('macvlan_delivered_bytes_total')})", "{{cast}} {{path}}"),
    )
    yield lines(
        "Sent frames",
        "Frames that it sent. external went out of the parent, and those for the parent itself are in it although they "
        "never arrive; sibling was looped inside.",
        FRAMES,
        target(f"sum by (path) ({scope.rate('macvlan_transmitted_frames_total')})", "{{path}}"),
    )
    yield lines(
        "Sent bytes",
        "Bytes of those frames.",
        BYTES,
        target(f"sum by (path) ({scope.rate('macvlan_transmitted_bytes_total')})", "{{path}}"),
    )


def losses(scope: Scope):
    yield lines(
        "Lost frames by reason",
        "What did not arrive. child_to_parent: it called its host, which macvlan never delivers. parent_to_child: the "
        "host called it. sibling_not_reflected: a sibling in another mode, and the switch sent nothing back.",
        FRAMES,
        target(f"sum by (reason) ({scope.rate('macvlan_dropped_frames_total')})", "{{reason}}"),
        stacked=True,
    )
    yield lines(
        "Attempts to pass the isolation",
        "Each frame for the other side of macvlan's isolation, by direction and kind: unicast to its MAC, or an ARP "
        "request or neighbour solicitation for its address.",
        FRAMES,
        target(
            f"sum by (direction, kind) ({scope.rate('macvlan_isolation_attempts_total')})",
            "{{direction}} {{kind}}",
        ),
    )
    yield lines(
        "Reflected frames",
        "Its own frames that came back from upstream: a hairpin or VEPA switch is at work.",
        FRAMES,
        target(f"sum by (direction) ({scope.rate('macvlan_reflected_frames_total')})", "{{direction}}"),
    )
    yield lines(
        "Packets without a neighbour",
        "Packets of the sub-interface that died waiting for a neighbour that did not answer; they never became frames, "
        "so they are not among the losses.",
        FRAMES,
        target(f"sum({scope.rate('macvlan_neighbour_failed_packets_total')})", "packets"),
    )
    yield rows(
        "Frames lost in the time looked at",
        "The same losses as numbers.",
        COUNT,
        instant(
            f"sum by (instance, parent, netns, interface, reason) "
            f"({scope.increase('macvlan_dropped_frames_total')}) > 0.5",
            as_table=True,
        ),
        names={
            "netns": "Namespace",
            "interface": "Sub-interface",
            "reason": "Reason",
            "Value": "Frames lost",
        },
        height=8,
    )
