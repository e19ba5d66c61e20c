// Bars, by Chart.js. A table with the same figures is beside each chart, for those who do not see it.
import { h } from "./dom.js";

const drawn = new Set();

export function recolour() {
  for (const chart of drawn) {
    Object.assign(chart.data.datasets[0], { backgroundColor: colour("--accent") });
    for (const scale of Object.values(chart.options.scales)) Object.assign(scale.ticks, { color: colour("--quiet") });
    chart.options.scales.y.grid.color = colour("--line");
    chart.update("none");
  }
}

export function clear() {
  for (const chart of drawn) chart.destroy();
  drawn.clear();
}

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

export function bars(description, labels, values, format, choose) {
  const canvas = h("canvas", { role: "img", "aria-label": description });
  const axis = { grid: { color: colour("--line") }, ticks: { color: colour("--quiet") } };
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const chart = new Chart(canvas, {
    type: "bar",
    data: { labels, datasets: [{ data: values, backgroundColor: colour("--accent"), maxBarThickness: 48 }] },
    options: {
      animation: calm ? false : { duration: 200 },
      maintainAspectRatio: false,
      onClick: (_, items) => items.length && choose?.(items[0].index),
      plugins: { legend: { display: false }, tooltip: { callbacks: { label: (item) => format(item.raw) } } },
      scales: { x: { ...axis, grid: { display: false } }, y: { ...axis, beginAtZero: true, ticks: { ...axis.ticks, callback: (value) => format(value) } } },
    },
  });
  drawn.add(chart);
  return h("figure", {}, canvas);
}
