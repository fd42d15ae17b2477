/* What was searched, as axes: parallel coordinates and heat map. */

const GRADIENT = ["#1f6feb", "#1f9fb0", "#79b352", "#e0a93b", "#d9680f"];
const mixed = (a, b, share) => "#" + [1, 3, 5].map(i => Math.round(parseInt(a.slice(i, i + 2), 16) * (1 - share) + parseInt(b.slice(i, i + 2), 16) * share).toString(16).padStart(2, "0")).join("");
/* From the best (0) to the worst (1). */
function shade(q) {
  const at = Math.min(Math.max(q, 0), 1) * (GRADIENT.length - 1), i = Math.min(Math.floor(at), GRADIENT.length - 2);
  return mixed(GRADIENT[i], GRADIENT[i + 1], at - i);
}
const judged = data.trials.filter(t => t.rank !== null);
const tintOf = t => t.rank === null ? "var(--gray)" : shade(t.rank / Math.max(1, judged.length - 1));
const shown = v => typeof v === "number" ? number(v, 3) : v === null || v === undefined ? "–" : String(v);
const scientific = v => v !== 0 && (Math.abs(v) < 0.01 || Math.abs(v) >= 1e5) ? v.toExponential(1).replace(".0e", "e").replace("e-", "e−").replace("e+", "e") : number(v, 3);

/* Place of a value on its axis, in [0, 1]; null where the trial has none. */
function placeOn(axis, value) {
  if (value === undefined || value === null && axis.kind === "number") return null;
  if (axis.kind === "choice") {
    const i = axis.values.indexOf(value);
    return i < 0 ? null : (i + 0.5) / axis.values.length;
  }
  const of = v => axis.log ? Math.log(v) : v, low = of(axis.low), high = of(axis.high);
  return high === low ? 0.5 : Math.min(Math.max((of(value) - low) / (high - low), 0), 1);
}

/* The metric as an axis. The worst tenth is pressed to its end, so that a diverged trial does not hide the others. */
function metricAxis() {
  const values = judged.map(t => t.best).sort((a, b) => data.mode === "min" ? a - b : b - a);
  const far = values[Math.min(values.length - 1, Math.ceil(values.length * 0.9))];
  return {name: data.metric, kind: "number", log: false, low: Math.min(values[0], far), high: Math.max(values[0], far), metric: true};
}
const valueOn = (axis, t) => axis.metric ? t.best : t.fields[axis.name];

function axisTicks(axis) {
  if (axis.kind === "choice") return axis.values.map((v, i) => [(i + 0.5) / axis.values.length, shown(v)]);
  const marks = !axis.log ? ticks(axis.low, axis.high, 5) : logTicks(axis.low, axis.high).filter(v => axis.high / axis.low < 30 || Math.abs(Math.log10(v) % 1) < 1e-9);
  return (marks.length ? marks : [axis.low]).map(v => [placeOn(axis, v), scientific(v)]);
}

/* Choices that only one value was made of, and axes that few trials have, say little; they stay, because they were searched. */
function parallel(box, chosen) {
  const all = [...data.axes, ...(judged.length ? [metricAxis()] : [])], width = box.clientWidth || 1100, tall = 300;
  const top = 34, bottom = tall - 34, left = 62, right = 58, gap = (width - left - right) / Math.max(1, all.length - 1);
  const x = i => left + i * gap, missing = bottom + 18;
  const y = (axis, value) => { const p = placeOn(axis, value); return p === null ? missing : axis.metric && data.mode === "min" ? top + p * (bottom - top) : bottom - p * (bottom - top); };
  box.replaceChildren();
  const svg = element(box, "svg", {viewBox: `0 0 ${width} ${tall}`, height: tall, role: "img", "aria-label": "Parallel coordinates"});
  const lines = element(svg, "g", {}), over = element(svg, "g", {}), brushes = parallel.brushes ||= new Map();
  const points = t => all.map((axis, i) => [x(i), y(axis, valueOn(axis, t))]);
  const curve = at => at.map(([px, py], i) => i ? `C${px - gap / 2} ${at[i - 1][1].toFixed(1)} ${px - gap / 2} ${py.toFixed(1)} ${px.toFixed(1)} ${py.toFixed(1)}` : `M${px.toFixed(1)} ${py.toFixed(1)}`).join("");
  const places = new Map(data.trials.map(t => [t, points(t)]));
  const inside = t => [...brushes].every(([i, [a, b]]) => { const py = places.get(t)[i][1]; return py >= a && py <= b; });
  const order = [...data.trials].sort((a, b) => (b.rank ?? 1e9) - (a.rank ?? 1e9)), crowd = data.trials.length > 60;
  function paint() {
    lines.replaceChildren();
    for (const t of order) {
      const open = inside(t), faint = t.rank === null || t.status === "stopped-early";
      element(lines, "path", {d: curve(places.get(t)), fill: "none", stroke: open ? tintOf(t) : "var(--grid)", "stroke-width": t.rank === 0 ? 3 : crowd ? 1.2 : 1.8, opacity: !open ? 0.6 : t.rank === 0 ? 1 : faint ? (crowd ? 0.3 : 0.45) : crowd ? 0.6 : 0.85});
    }
  }
  const lacking = axis => data.trials.some(t => placeOn(axis, valueOn(axis, t)) === null);
  all.forEach((axis, i) => {
    element(svg, "line", {class: "rail", x1: x(i), x2: x(i), y1: top, y2: bottom});
    const name = gap > 8.5 * axis.name.length ? axis.name : axis.name.split(".").pop();
    const anchor = i === 0 ? "start" : i === all.length - 1 ? "end" : "middle";
    element(svg, "text", {class: "name", x: i === 0 ? 4 : i === all.length - 1 ? width - 4 : x(i), y: 15, "text-anchor": anchor}, name).append(title(axis.name));
    for (const [p, text] of axisTicks(axis)) {
      const py = axis.metric && data.mode === "min" ? top + p * (bottom - top) : bottom - p * (bottom - top), end = i === all.length - 1;
      element(svg, "text", {class: "tick", x: x(i) + (end ? 6 : -6), y: py + 4, "text-anchor": end ? "start" : "end"}, text);
    }
    if (!axis.metric && lacking(axis)) element(svg, "text", {class: "tick", x: x(i) - 6, y: missing + 4, "text-anchor": "end"}, "none");
    const brush = element(svg, "rect", {class: "brush", x: x(i) - 7, width: 14, y: 0, height: 0}), touch = element(svg, "rect", {class: "touch", x: x(i) - 14, width: 28, y: top - 6, height: missing - top + 14});
    const draw = () => { const b = brushes.get(i); brush.setAttribute("y", b ? b[0] : 0); brush.setAttribute("height", b ? b[1] - b[0] : 0); };
    const py = event => { const r = svg.getBoundingClientRect(); return (event.clientY - r.top) * tall / r.height; };
    touch.onpointerdown = event => {
      const from = py(event); touch.setPointerCapture(event.pointerId);
      touch.onpointermove = e => { const to = py(e); if (Math.abs(to - from) > 3) brushes.set(i, [Math.min(from, to), Math.max(from, to)]); draw(); paint(); };
      touch.onpointerup = e => { touch.onpointermove = touch.onpointerup = null; if (Math.abs(py(e) - from) <= 3) brushes.delete(i); draw(); paint(); };
    };
    draw();
  });
  paint();
  const find = event => {
    const r = svg.getBoundingClientRect(), px = (event.clientX - r.left) * width / r.width, py = (event.clientY - r.top) * tall / r.height;
    const i = Math.min(Math.max(Math.floor((px - left) / gap), 0), Math.max(0, all.length - 2)), s = Math.min(Math.max((px - x(i)) / gap, 0), 1), ease = s * s * (3 - 2 * s);
    return closest(data.trials.filter(inside), t => { const at = places.get(t), b = at[i + 1] || at[i]; return Math.abs(at[i][1] + ease * (b[1] - at[i][1]) - py); }, 12);
  };
  follow(svg, find, chosen);
  return t => { over.replaceChildren(); if (t) element(over, "path", {d: curve(places.get(t)), fill: "none", stroke: "var(--text)", "stroke-width": 3}); };
}

function title(text) { const made = document.createElementNS("http://www.w3.org/2000/svg", "title"); made.textContent = text; return made; }
function closest(trials, distance, most) {
  let found = null, least = most;
  for (const t of trials) { const d = distance(t); if (d <= least) { least = d; found = t; } }
  return found;
}
/* The pointer over a chart: `chosen(trial or null, event)` hears which trial it is at, `click` goes to its row. */
function follow(svg, find, chosen) {
  svg.addEventListener("pointermove", event => chosen(find(event), event));
  svg.addEventListener("pointerleave", () => chosen(null));
  svg.addEventListener("click", event => { const t = find(event); if (t) goTo(t); });
}

/* The parts of an axis for a heat map: [{label, has(value)}]. */
function cells(axis, most = 7) {
  const distinct = [...new Set(data.trials.map(t => valueOn(axis, t)).filter(v => v !== undefined))];
  if (axis.kind === "choice" || axis.whole && distinct.length <= 8) {
    const values = axis.kind === "choice" ? axis.values.filter(v => distinct.includes(v)) : distinct.sort((a, b) => a - b);
    return values.map(v => ({label: shown(v), has: value => value === v}));
  }
  const parts = Math.max(1, Math.min(most, distinct.length)), of = v => axis.log ? Math.log(v) : v, back = v => axis.log ? Math.exp(v) : v, low = of(axis.low), size = (of(axis.high) - low) / parts || 1;
  return Array.from({length: parts}, (_, i) => ({label: `${scientific(back(low + i * size))}–${scientific(back(low + (i + 1) * size))}`, middle: scientific(back(low + (i + 0.5) * size)),
    has: value => value !== undefined && value !== null && Math.min(parts - 1, Math.max(0, Math.floor((of(value) - low) / size))) === i}));
}

function heat(box, across, up) {
  const columns = cells(across), rows = cells(up, 6).reverse(), width = box.clientWidth || 560, tall = 250, left = 12 + Math.max(...rows.map(r => (r.middle || r.label).length)) * 7, bottom = 40, top = 4;
  const w = (width - left - 8) / columns.length, h = (tall - top - bottom) / rows.length, better = (a, b) => data.mode === "min" ? a - b : b - a;
  box.replaceChildren();
  const svg = element(box, "svg", {viewBox: `0 0 ${width} ${tall}`, height: tall, role: "img", "aria-label": "Heat map"});
  const grid = rows.flatMap((row, r) => columns.map((column, c) => ({row, column, r, c, trials: judged.filter(t => column.has(valueOn(across, t)) && row.has(valueOn(up, t))).sort((a, b) => a.rank - b.rank)})));
  const known = grid.filter(g => g.trials.length).sort((a, b) => better(a.trials[0].best, b.trials[0].best));
  for (const g of grid) {
    const best = g.trials[0], x = left + g.c * w, y = top + g.r * h;
    const cell = element(svg, "rect", {class: best ? "" : "empty", x: x + 1, y: y + 1, width: Math.max(1, w - 2), height: Math.max(1, h - 2), rx: 3, ...(best ? {fill: shade(known.indexOf(g) / Math.max(1, known.length - 1))} : {})});
    if (!best) continue;
    if (w > 44 && h > 17) element(svg, "text", {class: "incell", x: x + w / 2, y: y + h / 2 + 4, "text-anchor": "middle"}, number(best.best, 4));
    cell.addEventListener("pointermove", event => tip(event, `${across.name} ${g.column.label}, ${up.name} ${g.row.label}`, [["best", number(best.best, 5)], ["in trial", String(best.number)], ["trials", String(g.trials.length)]]));
    cell.addEventListener("pointerleave", noTip);
    cell.addEventListener("click", () => goTo(best));
  }
  const every = Math.ceil(columns.length * 52 / (width - left));
  columns.forEach((c, i) => { if (i % every === 0) element(svg, "text", {x: left + (i + 0.5) * w, y: tall - bottom + 16, "text-anchor": "middle"}, c.middle || c.label); });
  rows.forEach((r, i) => element(svg, "text", {x: left - 6, y: top + (i + 0.5) * h + 4, "text-anchor": "end"}, r.middle || r.label));
  element(svg, "text", {x: left + (width - left) / 2, y: tall - 6, "text-anchor": "middle"}, across.name);
}
