"""Panels, variables and dashboards as all of ours are made."""

from grafana_foundation_sdk.builders import bargauge, common as common_builders, dashboard, prometheus, stat, statetimeline, table, timeseries
from grafana_foundation_sdk.models import common, dashboard as models
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

DATASOURCE = common.DataSourceRef(type_val="prometheus", uid="${datasource}")
TAG = "macvlan"

# Sub-interfaces are told apart by these, hosts by the first.
SUB_INTERFACE = "instance, parent, netns, interface"

FRAMES = "pps"
BYTES = "Bps"
COUNT = "short"

GOOD, BAD, WORSE = "green", "orange", "red"


def target(expr: str, legend: str = "", ref: str = "A") -> prometheus.Dataquery:
    return prometheus.Dataquery().expr(expr).legend_format(legend).ref_id(ref).datasource(DATASOURCE).range()


def instant(expr: str, legend: str = "", ref: str = "A", as_table: bool = False) -> prometheus.Dataquery:
    query = prometheus.Dataquery().expr(expr).legend_format(legend).ref_id(ref).datasource(DATASOURCE).instant()
    return query.format(PromQueryFormat.TABLE) if as_table else query


def _dressed(panel, title: str, description: str, unit: str, width: int, height: int):
    return (
        panel.title(title).description(description).unit(unit).span(width).height(height).datasource(DATASOURCE)
    )


def _steps(*steps: tuple[float | None, str]) -> dashboard.ThresholdsConfig:
    return (
        dashboard.ThresholdsConfig()
        .mode(models.ThresholdsMode.ABSOLUTE)
        .steps([models.Threshold(value=value, color=color) for value, color in steps])
    )


def lines(title: str, description: str, unit: str, *targets, width: int = 12, height: int = 8, stacked: bool = False):
    """Values over time."""
    panel = (
        _dressed(timeseries.Panel(), title, description, unit, width, height)
        .min(0)
        .line_width(1)
        .fill_opacity(20 if stacked else 8)
        .show_points(common.VisibilityMode.NEVER)
        .legend(
            common_builders.VizLegendOptions()
            .display_mode(common.LegendDisplayMode.TABLE)
            .placement(common.LegendPlacement.BOTTOM)
            .show_legend(True)
            .calcs(["lastNotNull", "max"])
        )
        .tooltip(
            common_builders.VizTooltipOptions()
            .mode(common.TooltipDisplayMode.MULTI)
            .sort(common.SortOrder.DESCENDING)
        )
    )
    if stacked:
        panel.stacking(common_builders.StackingConfig().mode(common.StackingMode.NORMAL).group("A"))
    for each in targets:
        panel.with_target(each)
    return panel


def number(title: str, description: str, unit: str, query, *, bad_above: float | None = None, width: int = 4):
    """One number, with its colour."""
    steps = [(None, GOOD)] if bad_above is None else [(None, GOOD), (bad_above, BAD)]
    return (
        _dressed(stat.Panel(), title, description, unit, width, 4)
        .color_mode(common.BigValueColorMode.VALUE)
        .graph_mode(common.BigValueGraphMode.NONE)
        .reduce_options(common_builders.ReduceDataOptions().calcs(["lastNotNull"]).values(False).fields(""))
        .thresholds(_steps(*steps))
        .no_value("0" if bad_above is not None else "-")
        .with_target(query)
    )


def bars(title: str, description: str, unit: str, query, *, width: int = 12, height: int = 8):
    """The largest of many, as bars."""
    return (
        _dressed(bargauge.Panel(), title, description, unit, width, height)
        .orientation(common.VizOrientation.HORIZONTAL)
        .display_mode(common.BarGaugeDisplayMode.BASIC)
        .reduce_options(common_builders.ReduceDataOptions().calcs(["lastNotNull"]).values(False).fields(""))
        .min(0)
        .thresholds(_steps((None, BAD)))
        .with_target(query)
    )


def states(title: str, description: str, query, words: dict[str, tuple[str, str]], *, width: int = 24, height: int = 6):
    """A state over time, in words."""
    options = {
        value: models.ValueMappingResult(text=text, color=color, index=index)
        for index, (value, (text, color)) in enumerate(words.items())
    }
    return (
        _dressed(statetimeline.Panel(), title, description, "none", width, height)
        .mappings([models.ValueMap(options=options)])
        .merge_values(True)
        .show_value(common.VisibilityMode.AUTO)
        .with_target(query)
    )


def rows(title: str, description: str, unit: str, *queries, names: dict[str, str], width: int = 24, height: int = 9):
    """A table; `names` gives the columns that stay, in order, and what they are called."""
    panel = _dressed(table.Panel(), title, description, unit, width, height)
    for each in queries:
        panel.with_target(each)
    if len(queries) > 1:
        panel.with_transformation(models.DataTransformerConfig(id_val="merge", options={}))
    panel.with_transformation(
        models.DataTransformerConfig(
            id_val="filterFieldsByName",
            options={"include": {"names": list(names)}},
        )
    )
    panel.with_transformation(
        models.DataTransformerConfig(
            id_val="organize",
            options={
                "indexByName": {name: index for index, name in enumerate(names)},
                "renameByName": names,
            },
        )
    )
    return panel


def chosen_by(name: str, label: str, query: str, *, several: bool = True):
    """A variable whose values come from the data."""
    variable = (
        dashboard.QueryVariable(name)
        .label(label)
        .query(query)
        .datasource(DATASOURCE)
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_CASE_INSENSITIVE_ASC)
    )
    if several:
        variable.multi(True).include_all(True).all_value(".+")
        variable.current(models.VariableOption(selected=True, text="All", value="$__all"))
    return variable


def new_dashboard(uid: str, title: str, description: str, *variables) -> dashboard.Dashboard:
    """A dashboard with what all of ours have."""
    page = (
        dashboard.Dashboard(title)
        .uid(uid)
        .description(description)
        .tags([TAG])
        .readonly()
        .refresh("30s")
        .time("now-1h", "now")
        .timezone("browser")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .link(
            dashboard.DashboardLink("macvlan")
            .type(models.DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .include_vars(True)
            .keep_time(True)
        )
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(chosen_by("job", "Job", "label_values(macvlan_agent_build_info, job)"))
        .with_variable(
            chosen_by("instance", "Instance", 'label_values(macvlan_agent_build_info{job=~"$job"}, instance)')
        )
    )
    for variable in variables:
        page.with_variable(variable)
    return page
