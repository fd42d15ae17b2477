/* The page: what is shown, and in which order. `data` comes from shoal/tracking/report.py. */

const data = JSON.parse(document.getElementById("data").textContent), head = data.headline, curves = data.curves;
const place = id => document.getElementById(id);
const state = {time: false, log: false};

function node(name, className, ...children) {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.append(...children.filter(c => c !== null && c !== undefined));
  return made;
}
const clock = t => new Date(t * 1000).toLocaleString([], {dateStyle: "medium", timeStyle: "short"});
const since = t => duration(Math.max(0, t - data.began));
const count = n => n === null || n === undefined ? "–" : n.toLocaleString("en-US");
const seconds = s => s === null || s === undefined ? "–" : `${number(s, 3)} s`;
const plural = (n, word) => `${count(n)} ${word}${n === 1 ? "" : "s"}`;

function header() {
  const share = data.total_steps ? Math.min(1, head.step / data.total_steps) : data.status === "finished" ? 1 : null;
  const fill = node("i"); fill.style.width = `${100 * (share ?? 0)}%`;
  place("head").append(
    node("h1", "", data.name, node("span", `pill ${data.status}`, data.status)),
    node("p", "", `${data.run_id} · started ${clock(data.began)}${data.ended ? ` · ended ${clock(data.ended)}` : ""}`),
    data.reason && data.reason !== data.status ? node("p", "why", data.reason) : "",
    share === null ? "" : node("div", `bar ${data.status}`, fill));
}

function tiles() {
  const tile = (label, value, small) => place("tiles").append(node("div", "tile", node("span", "", label), node("b", "", value), node("small", "", small || "")));
  const extra = Object.entries(head.val_metrics).filter(([k]) => k !== "val/loss").map(([k, v]) => `${k.replace(/^val\//, "").replaceAll("_", " ")} ${number(v)}`);
  tile("Steps", count(head.step), [data.total_steps ? `/ ${count(data.total_steps)}` : "", head.epoch !== null ? `epoch ${number(head.epoch, 2)}` : ""].filter(Boolean).join(" · "));
  tile("Training loss", number(head.loss), head.first_loss !== null ? `from ${number(head.first_loss)}` : "");
  tile("Validation loss", number(head.val), extra[0] || "");
  tile("Best validation", number(head.best), head.best_step !== null ? `at step ${count(head.best_step)}` : "no evaluation yet");
  tile("Samples/s", number(head.samples_per_s, 3), head.tokens_per_s ? `${number(head.tokens_per_s, 3)} tokens/s` : "");
  tile("Wall time", duration(head.wall_s), "");
  tile("Workers", head.workers === null ? "–" : String(head.workers), head.fewest !== head.most ? `between ${head.fewest} and ${head.most}` : plural(head.views, "view"));
  tile("Workers lost", String(head.lost), head.lost || head.redone ? `${plural(head.redone, "step")} redone` : "none");
}

const column = name => curves[name] && curves[name].some(v => v !== null) ? curves[name] : null;
const line = (name, label, tint, kind = "line") => column(name) && {label, color: tint, kind, y: curves[name]};

function stack() {
  const parts = [["compute_s", "compute", "blue"], ["communicate_s", "communicate", "orange"], ["update_s", "update", "green"], ["data_wait_s", "wait for data", "red"]];
  let base = (curves.step || []).map(() => 0);
  const out = [], total = curves.step_s || [];
  const layer = (label, tint, values) => {
    const low = base, high = values.map((v, i) => low[i] + Math.max(0, v || 0));
    out.push({label, color: tint, kind: "area", y: high, low, high, values});
    base = high;
  };
  for (const [name, label, tint] of parts) if (column(name)) layer(label, tint, curves[name]);
  if (column("step_s")) layer("other", "gray", total.map((v, i) => Math.max(0, (v || 0) - base[i])));
  return out;
}

function specification() {
  const evaluations = data.evaluations.filter(e => e.metrics["val/loss"] !== undefined);
  const validation = evaluations.length && {label: "validation", color: "orange", kind: "dots", y: evaluations.map(e => e.metrics["val/loss"]),
    steps: evaluations.map(e => e.step), times: evaluations.map(e => e.time)};
  const band = column("loss") && {label: "", color: "blue", kind: "band", y: [], low: curves.low, high: curves.high};
  return [
    {id: "loss", title: "Loss", wide: true, canLog: true, cut: true, series: [band, line("smooth", "training, smoothed", "blue"), validation]},
    {id: "lr", title: "Learning rate", zero: true, series: [line("lr", "learning rate", "purple")]},
    {id: "norm", title: "Gradient norm", zero: true, cut: true, series: [line("grad_norm", "before clipping", "teal")]},
    {id: "speed", title: "Speed", unit: "samples/s", zero: true, series: [line("samples_per_s", "samples/s", "green")]},
    {id: "workers", title: "Workers", unit: data.views.length > 1 ? "dashed: a new view" : "", zero: true, whole: true, series: [line("workers", "members of the view", "purple", "stairs")]},
    {id: "parts", title: "Where a step's time goes", unit: "seconds per step", wide: true, zero: true, cut: true, series: stack()},
  ].map(c => ({...c, series: c.series.filter(Boolean)})).filter(c => c.series.length);
}

function axis() {
  const key = state.time ? "time" : "step", shift = state.time ? data.began : 0;
  const own = curves[key] || [], evaluations = data.evaluations.map(e => e[key]);
  const all = own.concat(evaluations).map(v => v - shift);
  const stepTime = step => { const i = (curves.step || []).findIndex(s => s >= step); return i < 0 ? null : curves.time[i]; };
  const cost = v => data.changes.filter(c => c.view === v.number).map(c => `${c.members} ${c.what}, ${seconds(c.idle)} without a step`).join("; ");
  const marks = data.views.length > 60 ? [] : data.views.slice(1).map(v => ({kind: "view", x: (state.time ? v.time : v.first_step) - shift, text: `view ${v.number}: ${plural(v.size, "worker")} (${[v.reason, cost(v)].filter(Boolean).join("; ")})`}));
  return {
    key, time: state.time, marks, stepTime,
    low: Math.min(0, ...all), high: Math.max(...all, 1e-9),
    xs: own.map(v => v - shift),
    of: s => s.steps ? (state.time ? s.times : s.steps).map(v => v - shift) : own.map(v => v - shift),
  };
}

let drawn = [];
function charts() {
  const now = axis();
  if (!place("charts").childElementCount) for (const c of specification()) {
    const legend = node("div", "legend");
    for (const s of c.series) if (s.label && c.series.length > 1) {
      const sign = node("i", s.kind === "area" ? "block" : s.kind === "dots" ? "dot" : ""); sign.style.background = color(s.color);
      legend.append(node("span", "", sign, s.label));
    }
    const box = node("div", "plot"), card = node("div", `card chart${c.wide ? " wide" : ""}`, node("div", "top", node("h2", "", c.title, c.unit ? node("em", "", c.unit) : ""), legend), box);
    place("charts").append(card);
    drawn.push({chart: c, box});
  }
  for (const d of drawn) {
    d.chart.log = state.log && d.chart.canLog;
    d.view = draw(d.box, d.chart, now);
    d.view.svg.addEventListener("pointermove", event => hover(event, d, now));
    d.view.svg.addEventListener("pointerleave", () => { place("tip").hidden = true; drawn.forEach(o => o.view.cross.setAttribute("visibility", "hidden")); });
  }
}

function nearest(xs, x) {
  let low = 0, high = xs.length - 1;
  while (high - low > 1) { const middle = (low + high) >> 1; if (xs[middle] < x) low = middle; else high = middle; }
  return Math.abs(xs[high] - x) < Math.abs(xs[low] - x) ? high : low;
}

function hover(event, d, now) {
  if (!now.xs.length) return;
  const box = d.view.svg.getBoundingClientRect(), x = d.view.at((event.clientX - box.left) * d.view.width / box.width);
  const i = nearest(now.xs, x), tip = place("tip"), rows = [];
  for (const s of d.chart.series) if (s.label) {
    const j = s.steps ? nearest(now.of(s), x) : i, dot = node("i"); dot.style.background = color(s.color);
    rows.push(node("div", "", node("span", "", dot, s.steps ? `${s.label} (step ${count(s.steps[j])})` : s.label), number((s.values || s.y)[j])));
  }
  const near = now.marks.filter(m => Math.abs(d.view.sx(m.x) - d.view.sx(x)) < 6).map(m => node("p", "", m.text));
  tip.replaceChildren(node("b", "", `step ${count(curves.step[i])} · ${since(curves.time[i])}`), ...rows, ...near);
  tip.hidden = false;
  tip.style.left = `${Math.min(event.clientX + 16, innerWidth - tip.offsetWidth - 10)}px`;
  tip.style.top = `${Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 10)}px`;
  for (const other of drawn) {
    for (const end of ["x1", "x2"]) other.view.cross.setAttribute(end, other.view.sx(now.xs[i]));
    other.view.cross.setAttribute("visibility", "visible");
  }
}

function switches() {
  const group = (label, key, names) => {
    const buttons = names.map((name, i) => { const b = node("button", "", name); b.onclick = () => { state[key] = i === 1; press(); charts(); }; return b; });
    const press = () => buttons.forEach((b, i) => b.setAttribute("aria-pressed", String((i === 1) === state[key])));
    press();
    place("switches").append(node("span", "", label, ...buttons));
  };
  group("horizontal axis", "time", ["steps", "time"]);
  group("loss", "log", ["linear", "logarithmic"]);
}

/* columns: [heading, value of a row, numeric]; `wide`: the whole width of the page. */
function table(title, rows, columns, wide) {
  if (!rows.length) return;
  const cell = (tag, content, numeric) => node(tag, numeric ? "n" : "", content);
  const body = rows.map(r => node("tr", "", ...columns.map(([, value, numeric]) => cell("td", value(r) ?? "–", numeric))));
  const whole = node("table", "", node("thead", "", node("tr", "", ...columns.map(([name, , numeric]) => cell("th", name, numeric)))), node("tbody", "", ...body));
  place("tables").append(node("div", `card${wide ? " wide" : ""}`, node("h2", "", title), node("div", "scroll", whole)));
}

function pairs(title, values, wide) {
  const rows = Object.entries(values);
  if (!rows.length) return;
  const list = node("div", "kv", ...rows.map(([k, v]) => node("div", "", node("span", "", k), node("code", "", v))));
  if (!wide) list.style.columns = 1;
  place("tables").append(node("div", `card${wide ? " wide" : ""}`, node("h2", "", title), list));
}

function tables() {
  const keys = [...new Set(data.evaluations.flatMap(e => Object.keys(e.metrics)))];
  const mark = (e, k) => k === "val/loss" && e.step === head.best_step ? node("span", "best", number(e.metrics[k], 5)) : number(e.metrics[k], 5);
  table("Evaluations", [...data.evaluations].reverse(), [["step", e => count(e.step), true], ...keys.map(k => [k, e => mark(e, k), true]), ["took", e => duration(e.seconds), true]]);
  table("Checkpoints", [...data.checkpoints].reverse(), [["step", c => count(c.step), true], ["size", c => c.bytes ? `${number(c.bytes, 3)}B` : "–", true], ["took", c => duration(c.seconds), true],
    ["where", c => c.error ? node("span", "failed", c.error) : c.uri]]);
  table("Changes of the membership", [...data.changes].reverse(), [["after", c => since(c.time), true], ["what", c => node("span", c.what === "loss" || c.what === "hang" ? "failed" : "", c.what)], ["who", c => c.members],
    ["workers", c => count(c.workers), true], ["step", c => count(c.step), true], ["without a step", c => seconds(c.idle), true], ...["detect", "regroup", "state", "resume"].map(p => [p, c => seconds(c[p]), true]), ["steps redone", c => count(c.steps_redone), true]], true);
  table("Events", [...data.events].reverse(), [["after", e => since(e.time), true], ["what", e => node("span", e.kind === "loss" ? "failed" : "", e.kind)], ["", e => e.text], ["why", e => e.reason || "–"]], true);
  pairs("Job", data.parameters, true);
  pairs("Versions", data.versions);
  pairs("Code", {...data.code, folder: data.folder});
}

header(); tiles(); switches(); charts(); tables();
place("foot").append(`Made by Shoal from the run's ledger on ${clock(data.written)}. Steps that were rolled back are not drawn.`);
let pending; addEventListener("resize", () => { clearTimeout(pending); pending = setTimeout(charts, 80); });
