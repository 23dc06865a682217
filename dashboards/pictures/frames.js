// Prometheus' answers as Grafana's data frames, with Grafana's own units, thresholds and transformations applied.

import {
  applyFieldOverrides,
  createTheme,
  FieldType,
  identityOverrideProcessor,
  standardFieldConfigEditorRegistry,
  standardTransformers,
  standardTransformersRegistry,
  toDataFrame,
  transformDataFrame,
} from '@grafana/data';
import { firstValueFrom } from 'rxjs';

// The settings of a field that our panels use; Grafana's server registers them together with their editors.
const SETTINGS = ['unit', 'min', 'max', 'noValue', 'thresholds', 'mappings', 'color', 'custom'];
standardFieldConfigEditorRegistry.setInit(() =>
  SETTINGS.map((name) => ({
    id: name,
    path: name,
    name,
    description: name,
    process: identityOverrideProcessor,
    shouldApply: () => true,
    override: () => null,
    editor: () => null,
  }))
);
standardTransformersRegistry.setInit(() =>
  [...new Map(Object.values(standardTransformers).map((each) => [each.id, each])).values()].map((transformation) => ({
    id: transformation.id,
    name: transformation.name,
    description: transformation.description,
    transformation: () => Promise.resolve(transformation),
    isApplicable: () => 0,
    imageDark: '',
    imageLight: '',
  }))
);

export const theme = createTheme({ colors: { mode: 'dark' } });

function legend(target, labels) {
  return (target.legendFormat || '').replace(/\{\{(\w+)\}\}/g, (_, label) => labels[label] ?? '').trim();
}

function series(target, result) {
  const points = result.values ?? [result.value];
  return toDataFrame({
    refId: target.refId,
    fields: [
      { name: 'Time', type: FieldType.time, values: points.map(([time]) => time * 1000) },
      {
        name: 'Value',
        type: FieldType.number,
        labels: result.metric,
        values: points.map(([, value]) => Number(value)),
        config: { displayNameFromDS: legend(target, result.metric) },
      },
    ],
  });
}

function table(target, results, several) {
  const labels = [...new Set(results.flatMap(({ metric }) => Object.keys(metric)))].sort();
  return toDataFrame({
    refId: target.refId,
    fields: [
      { name: 'Time', type: FieldType.time, values: results.map(({ value }) => value[0] * 1000) },
      ...labels.map((label) => ({
        name: label,
        type: FieldType.string,
        values: results.map(({ metric }) => metric[label] ?? ''),
      })),
      {
        name: several ? `Value #${target.refId}` : 'Value',
        type: FieldType.number,
        values: results.map(({ value }) => Number(value[1])),
      },
    ],
  });
}

// What Grafana's server fills in where a panel says nothing about colors.
function usualColor({ type }) {
  return { mode: type === 'timeseries' ? 'palette-classic' : 'thresholds' };
}

export async function frames(panel) {
  let data = panel.targets.flatMap((target, index) => {
    const { result } = panel.answers[index];
    if (target.format === 'table') {
      return result.length ? [table(target, result, panel.targets.length > 1)] : [];
    }
    return result.map((each) => series(target, each));
  });
  if (panel.transformations?.length) {
    data = await firstValueFrom(transformDataFrame(panel.transformations, data));
  }
  return applyFieldOverrides({
    data,
    fieldConfig: { ...panel.fieldConfig, defaults: { color: usualColor(panel), ...panel.fieldConfig.defaults } },
    replaceVariables: (text) => text,
    theme,
    timeZone: 'utc',
  });
}
