// Charts on uPlot: bars that stack, and lines. Colours come from the style sheet, so both themes are drawn.

import { h } from "./dom.js";

const { uPlot } = window;
const HEIGHT = 220;
const DAY_LABEL_WIDTH = 46;

/** Everything that is drawn now; they are taken down together. */
let drawn = [];

export function removeCharts() {
  for (const { plot, observer } of drawn) {
    observer.disconnect();
    plot.destroy();
  }
  drawn = [];
}

/**
 * Bars per day in layers, the first at the bottom.
 * `layers` are {label, color (a custom property), values}; `format` writes a value, `formatAxis` one on the axis.
 */
export function stackedBars(
  container,
  { days, layers, height = HEIGHT, format, formatAxis, formatDay, formatLongDay, totalLabel },
) {
  const sums = layers.map(() => []);
  days.forEach((_, index) => {
    let sum = 0;
    layers.forEach((layer, position) => {
      sum += layer.values[index];
      sums[position].push(sum);
    });
  });
  const order = layers.map((_, position) => position).reverse(); // the tallest first, the others in front of it
  const bars = uPlot.paths.bars({ size: [0.72, 30], align: 0 });
  draw(container, {
    days,
    height,
    data: [days.map((_, index) => index), ...order.map((position) => sums[position])],
    series: order.map((position) => ({
      fill: color(container, layers[position].color),
      width: 0,
      paths: bars,
      points: { show: false },
    })),
    top: Math.max(0, ...sums.at(-1)),
    formatAxis,
    formatDay,
    tip: (index) => [
      h("strong", {}, formatLongDay(days[index])),
      tipLines(
        layers
          .map((layer) => ({ ...layer, text: format(layer.values[index]), value: layer.values[index] }))
          .filter(({ value }) => value > 0)
          .reverse(),
      ),
      totalLabel &&
        h("p", { class: "tip-total" }, h("span", {}, totalLabel), h("span", {}, format(sums.at(-1)[index]))),
    ],
  });
}

/** Lines per day; null is a day without a figure and leaves a gap. */
export function lines(container, { days, series, format, formatAxis, formatDay, formatLongDay }) {
  const values = series.flatMap((line) => line.values).filter((value) => value !== null);
  draw(container, {
    days,
    data: [days.map((_, index) => index), ...series.map((line) => line.values)],
    series: series.map((line) => {
      const stroke = color(container, line.color);
      return {
        stroke,
        width: 2,
        dash: line.dash,
        points: { show: true, size: 4, fill: stroke, width: 0 },
        spanGaps: false,
      };
    }),
    top: Math.max(0, ...values),
    formatAxis,
    formatDay,
    tip: (index) => [
      h("strong", {}, formatLongDay(days[index])),
      tipLines(
        series
          .filter((line) => line.values[index] !== null)
          .map((line) => ({ ...line, text: format(line.values[index]) }))
          .reverse(),
      ),
    ],
  });
}

function tipLines(entries) {
  return h(
    "ul",
    {},
    entries.map((entry) => h("li", {}, swatch(entry.color), h("span", {}, entry.label), h("span", {}, entry.text))),
  );
}

/** A little square in a layer's colour. */
export function swatch(colorName) {
  return h("i", { class: "swatch", style: { background: `var(${colorName})` }, "aria-hidden": "true" });
}

function draw(container, { days, height = HEIGHT, data, series, top, formatAxis, formatDay, tip }) {
  const ink = color(container, "--muted");
  const grid = { stroke: color(container, "--line"), width: 1 };
  const font = `12px ${getComputedStyle(container).fontFamily}`;
  const axis = { stroke: ink, font, ticks: { show: false }, gap: 6 };
  const plot = new uPlot(
    {
      width: container.clientWidth || 320,
      height,
      padding: [10, 16, 0, 0],
      legend: { show: false },
      cursor: { x: false, y: false, points: { show: false }, drag: { x: false, y: false } },
      scales: {
        x: { time: false, range: [-0.5, days.length - 0.5] },
        y: { range: [0, top > 0 ? top * 1.06 : 1] },
      },
      axes: [
        {
          ...axis,
          size: 30,
          grid: { show: false },
          splits: (self) => dayMarks(days.length, self.bbox.width / devicePixelRatio),
          values: (_, marks) => marks.map((index) => formatDay(days[index])),
        },
        {
          ...axis,
          grid,
          space: 44,
          size: (self, values) => Math.max(36, ...(values ?? []).map((text) => textWidth(self.ctx, text, font) + 14)),
          values: (_, marks) => marks.map(formatAxis),
        },
      ],
      series: [{}, ...series],
      plugins: [tooltip(days.length, tip)],
    },
    data,
    container,
  );
  const observer = new ResizeObserver(() => {
    const width = container.clientWidth;
    if (width && width !== plot.width) plot.setSize({ width, height });
  });
  observer.observe(container);
  drawn.push({ plot, observer });
}

/** Which days are named: as many as fit, and today always. */
function dayMarks(count, width) {
  const step = Math.max(1, Math.ceil(count / Math.max(1, Math.floor(width / DAY_LABEL_WIDTH))));
  const marks = [];
  for (let index = count - 1; index >= 0; index -= step) marks.unshift(index);
  return marks;
}

function textWidth(context, text, font) {
  context.save();
  context.font = font;
  const { width } = context.measureText(text);
  context.restore();
  return Math.ceil(width);
}

// The figures under the pointer. Screen readers are given the table instead.
function tooltip(count, tip) {
  const box = h("div", { class: "tip", "aria-hidden": "true" });
  const column = h("div", { class: "tip-column", "aria-hidden": "true" });
  return {
    hooks: {
      init: (plot) => {
        plot.under.append(column);
        plot.over.append(box);
      },
      setCursor: (plot) => {
        const { idx } = plot.cursor;
        const outside = idx === null || idx === undefined || plot.cursor.left < 0;
        box.hidden = column.hidden = outside;
        if (outside) return;
        box.replaceChildren(...tip(idx).filter(Boolean));
        const { clientWidth: width, clientHeight: height } = plot.over;
        const slot = width / count;
        column.style.setProperty("left", `${idx * slot}px`);
        column.style.setProperty("width", `${slot}px`);
        const middle = (idx + 0.5) * slot;
        const left = middle > width / 2 ? middle - box.offsetWidth - slot : middle + slot;
        box.style.setProperty("left", `${Math.min(Math.max(left, -36), width - box.offsetWidth)}px`);
        box.style.setProperty("top", `${Math.max(0, Math.min(plot.cursor.top - 20, height - box.offsetHeight))}px`);
      },
    },
  };
}

// A canvas knows no custom properties, and light-dark() is resolved where it is used as a colour.
function color(container, name) {
  const probe = h("span", { style: { color: `var(${name})` }, hidden: true });
  container.append(probe);
  const resolved = getComputedStyle(probe).color;
  probe.remove();
  return resolved;
}
