"use strict";
/* A small chart: lines, bands, stacked areas, steps and dots over one shared horizontal axis. */

const HEIGHT = 210, LEFT = 46, RIGHT = 12, TOP = 10, BOTTOM = 24;
const color = name => `var(--${name})`;

function number(value, digits = 4) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e15)) return value.toExponential(2).replace(/\.?0*e/, "e").replace("e-", "e−").replace("e+", "e");
  for (const [limit, suffix] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e4, "k"]])
    if (size >= limit) return trim((value / (suffix === "k" ? 1e3 : limit)).toPrecision(3)) + suffix;
  return trim(value.toPrecision(digits));
}
const trim = text => text.includes("e") ? String(Number(text)) : text.includes(".") ? text.replace(/\.?0+$/, "") : text;

function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  const s = Math.round(seconds);
  if (seconds < 10) return `${trim(seconds.toPrecision(2))} s`;
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)}:${String(s % 60).padStart(2, "0")} min`;
  return `${Math.floor(s / 3600)}:${String(Math.floor(s % 3600 / 60)).padStart(2, "0")} h`;
}

function ticks(low, high, count) {
  const raw = (high - low) / Math.max(1, count), power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map(m => m * power).find(s => s >= raw * 0.999) || raw, out = [];
  for (let t = Math.ceil(low / step - 1e-9) * step; t <= high + step * 1e-6; t += step) out.push(Math.abs(t) < step * 1e-6 ? 0 : t);
  return out;
}
function timeTicks(low, high, count) {
  const steps = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 43200, 86400, 172800, 604800];
  const step = steps.find(s => (high - low) / s <= count) || 604800, out = [];
  for (let t = Math.ceil(low / step) * step; t <= high; t += step) out.push(t);
  return high - low < 3 ? ticks(low, high, count) : out;
}
function logTicks(low, high) {
  const out = [];
  for (let p = Math.floor(Math.log10(low)); p <= Math.ceil(Math.log10(high)); p++)
    for (const m of high / low > 30 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 7]) if (m * 10 ** p >= low && m * 10 ** p <= high) out.push(m * 10 ** p);
  return out.length > 1 ? out : ticks(low, high, 4);
}

/* Lowest and highest value to show; a few wild values (the first steps, a spike) are cut off at the frame. */
function range(chart, log) {
  const values = chart.series.flatMap(s => s.y.concat(s.low || [], s.high || [])).filter(v => v !== null && (!log || v > 0)).sort((a, b) => a - b);
  if (!values.length) return [log ? 0.1 : 0, 1];
  const at = q => values[Math.min(values.length - 1, Math.floor(q * values.length))];
  let low = values[0], high = values[values.length - 1];
  if (chart.cut && high > 3 * at(0.98)) high = 1.5 * at(0.98);
  if (chart.zero) low = Math.min(0, low);
  if (log) return [low / 1.03, high * 1.03];
  const room = (high - low || Math.abs(high) || 1) * 0.06;
  return [chart.zero && low === 0 ? 0 : low - room, high + room];
}

function element(parent, name, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const key in attributes) made.setAttribute(key, attributes[key]);
  if (text !== undefined) made.textContent = text;
  parent.append(made);
  return made;
}

function path(xs, ys, sx, sy, stairs) {
  let out = "", pen = false;
  for (let i = 0; i < xs.length; i++) {
    if (ys[i] === null) { pen = false; continue; }
    const x = sx(xs[i]).toFixed(1), y = sy(ys[i]).toFixed(1);
    out += pen ? (stairs ? `H${x}V${y}` : `L${x} ${y}`) : `M${x} ${y}`;
    pen = true;
  }
  return out;
}
function ribbon(xs, lows, highs, sx, sy) {
  const keep = xs.map((_, i) => i).filter(i => lows[i] !== null && highs[i] !== null);
  if (keep.length < 2) return "";
  const point = (i, v) => `${sx(xs[i]).toFixed(1)} ${sy(v[i]).toFixed(1)}`;
  return "M" + keep.map(i => point(i, highs)).join("L") + "L" + keep.reverse().map(i => point(i, lows)).join("L") + "Z";
}

/* Draw `chart` into the element `box`; `axis` is {low, high, time or label(value), of(series), marks}. A series has a `color`
   (one of the style sheet's) or a `stroke`, an `opacity`, and of kind points a tint for each. */
function draw(box, chart, axis) {
  const log = chart.log, width = box.clientWidth || 560, [low, high] = range(chart, log);
  const span = axis.high - axis.low || 1, inner = width - LEFT - RIGHT, tall = HEIGHT - TOP - BOTTOM;
  const sx = x => LEFT + (x - axis.low) / span * inner;
  const scale = log ? v => (Math.log(Math.max(v, low)) - Math.log(low)) / (Math.log(high) - Math.log(low)) : v => (v - low) / (high - low);
  const sy = v => TOP + tall - scale(v) * tall;
  box.replaceChildren();
  const svg = element(box, "svg", {viewBox: `0 0 ${width} ${HEIGHT}`, height: HEIGHT, role: "img", "aria-label": chart.title});
  const name = `clip-${chart.id}`, clip = element(element(svg, "defs", {}), "clipPath", {id: name});
  element(clip, "rect", {x: LEFT, y: TOP - 4, width: inner + 6, height: tall + 5});
  for (const t of chart.whole ? ticks(low, high, 6).filter(Number.isInteger) : log ? logTicks(low, high) : ticks(low, high, 4)) {
    element(svg, "line", {class: "grid", x1: LEFT, x2: width - RIGHT, y1: sy(t), y2: sy(t)});
    element(svg, "text", {x: LEFT - 7, y: sy(t) + 4, "text-anchor": "end"}, t !== 0 && high < 0.02 ? t.toExponential().replace("e-", "e−") : number(t, 3));
  }
  const label = axis.label || (axis.time ? duration : v => v >= 1e4 ? number(v, 3) : String(v));
  for (const t of (axis.time ? timeTicks : ticks)(axis.low, axis.high, Math.max(3, inner / 95)))
    element(svg, "text", {x: sx(t), y: HEIGHT - 7, "text-anchor": "middle"}, label(t));
  element(svg, "line", {class: "axis", x1: LEFT, x2: width - RIGHT, y1: TOP + tall, y2: TOP + tall});
  const plot = element(svg, "g", {"clip-path": `url(#${name})`});
  for (const mark of axis.marks) element(plot, "line", {class: mark.kind, x1: sx(mark.x), x2: sx(mark.x), y1: TOP, y2: TOP + tall});
  for (const s of chart.series) drawSeries(plot, s, axis.of(s), sx, sy);
  const cross = element(svg, "line", {class: "cross", y1: TOP, y2: TOP + tall, visibility: "hidden"});
  return {svg, sx, sy, plot, cross, width, at: px => axis.low + (px - LEFT) / inner * span};
}

function drawSeries(plot, s, xs, sx, sy) {
  const tint = s.stroke || color(s.color), opacity = s.opacity || 1;
  /* The outline of a band keeps it visible where it is as thin as a line: in short runs, whose every step is drawn. */
  if (s.low) element(plot, "path", {d: ribbon(xs, s.low, s.high, sx, sy), fill: tint, opacity: s.kind === "area" ? 0.78 : 0.26,
    ...(s.kind === "band" ? {stroke: tint, "stroke-width": 1} : {})});
  if (s.kind === "area" || s.kind === "band") return;
  if (s.kind !== "points" && (s.kind !== "dots" || xs.length < 200))
    element(plot, "path", {d: path(xs, s.y, sx, sy, s.kind === "stairs"), fill: "none", stroke: tint, "stroke-width": 1.8, "stroke-linejoin": "round", opacity});
  if (s.kind === "dots" || s.kind === "points" || xs.length === 1)
    for (let i = 0; i < xs.length; i++)
      if (s.y[i] !== null) element(plot, "circle", {cx: sx(xs[i]), cy: sy(s.y[i]), r: xs.length > 60 ? (s.tints ? 3 : 2) : s.tints ? 4.5 : 3.2, fill: s.tints ? s.tints[i] : tint, opacity});
}
