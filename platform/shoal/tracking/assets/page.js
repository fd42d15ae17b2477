/* The page of a run: what is shown, and in which order. `data` comes from shoal/tracking/report.py. */

const head = data.headline, curves = data.curves;
const state = {time: false, log: false};
const since = t => duration(Math.max(0, t - data.began));

function header() {
  const share = data.total_steps ? Math.min(1, head.step / data.total_steps) : data.status === "finished" ? 1 : null;
  heading(data.name, data.status, `${data.run_id} · started ${clock(data.began)}${data.ended ? ` · ended ${clock(data.ended)}` : ""}`, data.reason, share);
}

function tiles() {
  const extra = Object.entries(head.val_metrics).filter(([k]) => k !== "val/loss").map(([k, v]) => `${k.replace(/^val\//, "").replaceAll("_", " ")} ${number(v)}`);
  tile("Steps", count(head.step), [data.total_steps ? `/ ${count(data.total_steps)}` : "", head.epoch !== null ? `epoch ${number(head.epoch, 2)}` : ""].filter(Boolean).join(" · "));
  tile("Training loss", number(head.loss), head.first_loss !== null ? `from ${number(head.first_loss)}` : "");
  tile("Validation loss", number(head.val), extra[0] || "");
  tile("Best validation", number(head.best), head.best_step !== null ? `at step ${count(head.best_step)}` : "no evaluation yet");
  tile("Samples/s", number(head.samples_per_s, 3), head.tokens_per_s ? `${number(head.tokens_per_s, 3)} tokens/s` : "");
  tile("Wall time", duration(head.wall_s), "");
  tile("Workers", head.workers === null ? "–" : String(head.workers), head.fewest !== head.most ? `between ${head.fewest} and ${head.most}` : plural(head.views, "view"));
  const cost = data.cost, share = u => `${number(100 * cost.wasted[u], 3)}% wasted`;
  if (cost && cost.total.joules) tile("Energy", `${number(cost.total.joules, 3)} J`, `${cost.sources.join(", ")} · ${share("joules")}`);
  if (cost && cost.total.dollars) tile("Cost", `$${number(cost.total.dollars, 3)}`, share("dollars"));
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
    {id: "batch", title: "Batch size", unit: "samples", zero: true, cut: true, series: [line("batch", "batch", "purple", "stairs"), line("noise_scale", "gradient noise scale", "orange"), line("critical_batch", "critical batch", "gray")]},
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
  if (!drawn.length) for (const c of specification()) {
    const legend = c.series.length > 1 ? c.series.filter(s => s.label).map(s => [s.label, color(s.color), s.kind]) : [];
    drawn.push({chart: c, box: chartCard(c.title, c.unit, c.wide, legend).box});
  }
  for (const d of drawn) {
    d.chart.log = state.log && d.chart.canLog;
    d.view = draw(d.box, d.chart, now);
    d.view.svg.addEventListener("pointermove", event => hover(event, d, now));
    d.view.svg.addEventListener("pointerleave", () => { noTip(); drawn.forEach(o => o.view.cross.setAttribute("visibility", "hidden")); });
  }
}

function hover(event, d, now) {
  if (!now.xs.length) return;
  const box = d.view.svg.getBoundingClientRect(), x = d.view.at((event.clientX - box.left) * d.view.width / box.width);
  const i = nearest(now.xs, x), rows = d.chart.series.filter(s => s.label).map(s => {
    const j = s.steps ? nearest(now.of(s), x) : i;
    return [s.steps ? `${s.label} (step ${count(s.steps[j])})` : s.label, number((s.values || s.y)[j]), color(s.color)];
  });
  const near = now.marks.filter(m => Math.abs(d.view.sx(m.x) - d.view.sx(x)) < 6).map(m => m.text);
  tip(event, `step ${count(curves.step[i])} · ${since(curves.time[i])}`, rows, near);
  for (const other of drawn) {
    for (const end of ["x1", "x2"]) other.view.cross.setAttribute(end, other.view.sx(now.xs[i]));
    other.view.cross.setAttribute("visibility", "visible");
  }
}

function switches() {
  const group = (label, key, names) => place("switches").append(buttons(label, names, Number(state[key]), i => { state[key] = i === 1; charts(); }));
  group("horizontal axis", "time", ["steps", "time"]);
  group("loss", "log", ["linear", "logarithmic"]);
}

function tables() {
  const keys = [...new Set(data.evaluations.flatMap(e => Object.keys(e.metrics)))];
  const mark = (e, k) => k === "val/loss" && e.step === head.best_step ? node("span", "best", number(e.metrics[k], 5)) : number(e.metrics[k], 5);
  table("Evaluations", [...data.evaluations].reverse(), [["step", e => count(e.step), true], ...keys.map(k => [k, e => mark(e, k), true]), ["took", e => duration(e.seconds), true]]);
  table("Checkpoints", [...data.checkpoints].reverse(), [["step", c => count(c.step), true], ["size", c => c.bytes ? `${number(c.bytes, 3)}B` : "–", true], ["took", c => duration(c.seconds), true],
    ["where", c => c.error ? node("span", "failed", c.error) : c.uri]]);
  table("Changes of the membership", [...data.changes].reverse(), [["after", c => since(c.time), true], ["what", c => node("span", c.what === "loss" || c.what === "hang" ? "failed" : "", c.what)], ["who", c => c.members],
    ["workers", c => count(c.workers), true], ["step", c => count(c.step), true], ["without a step", c => seconds(c.idle), true], ...["detect", "regroup", "state", "resume"].map(p => [p, c => seconds(c[p]), true]), ["steps redone", c => count(c.steps_redone), true]], true);
  const cost = data.cost, money = d => d === null || d === undefined ? "–" : `$${number(d, 3)}`;
  if (cost) {
    const each = u => cost.per_million[u], part = (r, u) => cost.total[u] ? `${number(100 * (r[u] || 0) / cost.total[u], 3)}%` : "–";
    table("What it took", cost.phases, [["for", p => node("span", p.useful ? "" : "failed", p.phase)], ["worker seconds", p => number(p.seconds, 3), true], ["joules", p => number(p.joules, 3), true],
      ["share", p => part(p, "joules"), true], ...(cost.total.dollars ? [["dollars", p => money(p.dollars), true]] : [])]);
    pairs("Energy and money", {energy: `${number(cost.total.joules, 4)} J (${cost.sources.join(", ") || "no meter"})`, carbon: `${number(cost.co2_g, 3)} g CO2e at ${cost.carbon}`,
      [`per million ${cost.counted}`]: [each("joules") === null ? "" : `${number(each("joules"), 3)} J`, each("dollars") === null ? "" : money(each("dollars"))].filter(Boolean).join(", ") || "–",
      money: cost.total.dollars === null ? "no price" : money(cost.total.dollars), price: cost.prices.join("; ") || "–"});
    table("Workers that left", [...data.departures].reverse(), [["who", w => node("span", w.lost ? "failed" : "", w.member)], ["joined", w => since(w.joined), true], ["left", w => since(w.left), true],
      ["joules", w => number(w.joules, 3), true], ["wasted", w => seconds(w.wasted_s), true], ["dollars", w => money(w.dollars), true], ["measured by", w => w.source || "–"], ["price", w => w.price || "–"]], true);
  }
  table("Events", [...data.events].reverse(), [["after", e => since(e.time), true], ["what", e => node("span", e.kind === "loss" ? "failed" : "", e.kind)], ["", e => e.text], ["why", e => e.reason || "–"]], true);
  pairs("Job", data.parameters, true);
  pairs("Versions", data.versions);
  pairs("Code", {...data.code, folder: data.folder});
}

header(); tiles(); switches(); charts(); tables();
place("foot").append(`Made by Shoal from the run's ledger on ${clock(data.written)}. Steps that were rolled back are not drawn.`);
let pending; addEventListener("resize", () => { clearTimeout(pending); pending = setTimeout(charts, 80); });
