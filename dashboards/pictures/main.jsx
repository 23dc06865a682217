// One dashboard as a page: /?dashboard=overview. Its panels are drawn by Grafana's own components where @grafana/ui has
// them; a state timeline is only in Grafana's server, and left out.

import { dateTime, getDisplayProcessor, reduceField, ThemeContext } from '@grafana/data';
import { initPluginTranslations } from '@grafana/i18n';
import { BigValueColorMode, BigValueGraphMode, VizOrientation } from '@grafana/schema';
import { BarGauge, BigValue, GlobalStyles, PanelChrome, Table, TimeSeries, VizRepeater } from '@grafana/ui';
import { createRoot } from 'react-dom/client';

import { frames, theme } from './frames.js';

// Pixels of Grafana's grid.
const COLUMNS = 24;
const COLUMN = 74;
const ROW = 38;
const GAP = 8;

function values(data) {
  return data.flatMap((frame) =>
    frame.fields
      .filter((field) => field.type === 'number')
      .map((field) => {
        const number = reduceField({ field, reducers: ['lastNotNull'] }).lastNotNull;
        const display = (field.display ?? getDisplayProcessor({ field, theme }))(number);
        return { field, display: { ...display, title: field.config.displayNameFromDS ?? '' } };
      })
  );
}

function Inside({ panel, data, width, height }) {
  switch (panel.type) {
    case 'timeseries': {
      const times = data.flatMap((frame) => frame.fields[0].values);
      const range = { from: dateTime(Math.min(...times)), to: dateTime(Math.max(...times)) };
      return (
        <TimeSeries
          frames={data}
          width={width}
          height={height}
          timeRange={{ ...range, raw: range }}
          timeZone="utc"
          legend={panel.options.legend}
        />
      );
    }
    case 'stat': {
      const [{ display }] = values(data);
      return (
        <BigValue
          width={width}
          height={height}
          value={{ ...display, title: '' }}
          theme={theme}
          colorMode={BigValueColorMode.Value}
          graphMode={BigValueGraphMode.None}
        />
      );
    }
    case 'bargauge': {
      const bars = values(data);
      const largest = Math.max(...bars.map(({ display }) => display.numeric));
      return (
        <VizRepeater
          source={data}
          getValues={() => bars}
          renderCounter={0}
          width={width}
          height={height}
          minVizHeight={panel.options.minVizHeight}
          maxVizHeight={panel.options.maxVizHeight}
          itemSpacing={8}
          orientation={VizOrientation.Horizontal}
          renderValue={({ value: { field, display }, width, height }) => (
            <BarGauge
              width={width}
              height={height}
              theme={theme}
              value={display}
              field={{ ...field.config, min: 0, max: largest }}
              display={field.display}
              orientation={VizOrientation.Horizontal}
              displayMode={panel.options.displayMode}
              namePlacement={panel.options.namePlacement}
            />
          )}
        />
      );
    }
    case 'table':
      return <Table data={data[0]} width={width} height={height} resizable={false} />;
  }
}

function place({ x, y, w, h }) {
  return { left: x * COLUMN + GAP, top: y * ROW + GAP, width: w * COLUMN - GAP, height: h * ROW - GAP };
}

function Panel({ panel, data }) {
  const box = place(panel.gridPos);
  return (
    <div style={{ position: 'absolute', ...box }}>
      <PanelChrome title={panel.title} width={box.width} height={box.height}>
        {(width, height) => <Inside panel={panel} data={data} width={width} height={height} />}
      </PanelChrome>
    </div>
  );
}

function Row({ panel }) {
  const { top, ...box } = place(panel.gridPos);
  const style = { position: 'absolute', top: top + 4, ...box, color: theme.colors.text.primary, fontSize: 16 };
  return <div style={style}>▾ {panel.title}</div>;
}

// Moves all up into the lines of the grid that nothing fills, and gives the number of lines that are left.
function closeGaps(all) {
  const filled = new Set(all.flatMap(({ gridPos: { y, h } }) => Array.from({ length: h }, (_, line) => y + line)));
  const lines = [...filled].sort((one, other) => one - other);
  for (const { gridPos } of all) {
    gridPos.y = lines.indexOf(gridPos.y);
  }
  return lines.length;
}

const DRAWN = ['timeseries', 'stat', 'bargauge', 'table'];

await initPluginTranslations('macvlan-agent');

const name = new URLSearchParams(location.search).get('dashboard');
const page = await (await fetch(`/data/${name}.json`)).json();
const rows = page.panels.filter(({ type }) => type === 'row');
const panels = [];
for (const panel of page.panels.filter(({ type }) => DRAWN.includes(type))) {
  const data = await frames(panel);
  // Where Grafana would write "No data", nothing is to be seen.
  if (data.some((frame) => frame.length > 0)) {
    panels.push({ panel, data });
  }
}
const bottom = closeGaps([...rows, ...panels.map(({ panel }) => panel)]);
createRoot(document.getElementById('page')).render(
  <ThemeContext.Provider value={theme}>
    <GlobalStyles />
    <div style={{ position: 'relative', width: COLUMNS * COLUMN + GAP, height: bottom * ROW + GAP, background: '#111217' }}>
      {rows.map((panel) => <Row key={panel.id} panel={panel} />)}
      {panels.map(({ panel, data }) => <Panel key={panel.id} panel={panel} data={data} />)}
    </div>
  </ThemeContext.Provider>
);
