/* The page of a sweep: what is shown, and in which order. `data` comes from shoal/tuning/report.py. */

const best = data.best, TINTS = ["blue", "orange", "green", "purple", "teal", "red"];
const units = {samples: "samples", steps: "steps", seconds: "seconds", worker_seconds: "worker time", joules: "joules", dollars: "dollars"};
const money = v => v === null || v === undefined ? "–" : `$${v < 0.1 ? trim(v.toFixed(5)) : v.toFixed(2)}`;
const amount = (unit, v) => v === null || v === undefined ? "–" : unit === "dollars" ? money(v) : unit.endsWith("seconds") ? duration(v) : unit === "joules" ? `${number(v, 3)} J` : count(v);
const said = {finished: "finished", "stopped-early": "stopped early", failed: "failed", running: "running", interrupted: "interrupted"};
const painters = [], values = data.trials.flatMap(t => t.y).filter(v => v !== null);
/* Losses fall by the same share, not by the same amount. */
let logarithmic = data.mode === "min" && Math.min(...values) > 0, rowOf = () => null;

function header() {
  const over = data.counts.finished + data.counts["stopped-early"] + data.counts.failed, all = over + data.counts.running + data.counts.interrupted + data.counts.waiting;
  heading(data.name, data.status, `sweep of ${data.facts["base job"] || "a job"} · started ${clock(data.started)}${data.ended ? ` · ended ${clock(data.ended)}` : ""}`, data.reason, all ? over / all : null);
}

function tiles() {
  const c = data.counts, over = c.finished + c["stopped-early"] + c.failed, cost = data.cost;
  tile("Trials over", count(over), [c.running ? `${c.running} running` : "", c.waiting ? `${c.waiting} waiting` : "", c.interrupted ? `${c.interrupted} interrupted` : ""].filter(Boolean).join(" · "));
  tile("Finished", count(c.finished), "used their budget up");
  tile("Stopped early", count(c["stopped-early"]), data.facts["early stopping"] ? data.facts["early stopping"].split("(")[0] : "no rule");
  tile("Failed", count(c.failed), c.failed ? "errors below" : "none");
  tile(`Best ${data.metric}`, best ? number(best.value, 5) : "–", best ? `trial ${best.number}` : "no value yet");
  tile("Wall time", duration(data.elapsed), "");
  tile("Worker time", cost.worker_seconds !== null ? duration(cost.worker_seconds) : "–", "sum over all workers");
  tile("Cost", cost.dollars !== null ? money(cost.dollars) : cost.joules !== null ? amount("joules", cost.joules) : "–", cost.dollars !== null && cost.joules !== null ? amount("joules", cost.joules) : cost.dollars === null ? "no prices known" : "");
}

function bestJob() {
  if (!best) return;
  const changed = Object.entries(best.fields).map(([name, value]) => {
    const before = best.before[name], now = shown(value), same = before === String(value) || Number(before) === value;
    return node("div", "", node("span", "", name), node("code", "", before === null || before === undefined || same ? now : `${shown(isNaN(Number(before)) ? before : Number(before))} → ${now}`));
  });
  const value = Object.entries(best.metrics).filter(([k]) => k !== data.metric).map(([k, v]) => `${k} ${number(v)}`).join(" · ");
  place("switches").before(node("div", "card bestjob", node("h2", "", `Best: trial ${best.number}`, node("em", "", `${data.metric} ${number(best.value, 5)}${value ? ` · ${value} at its end` : ""} · run ${best.run_id}`)),
    node("div", "kv", ...changed), best.command ? node("pre", "", best.command) : ""));
}

function choose(trial, event) {
  for (const paint of painters) paint(trial);
  if (!trial) return noTip();
  const cost = ["samples", "worker_seconds", "joules", "dollars"].filter(u => trial[u]).map(u => [units[u], amount(u, trial[u])]);
  tip(event, `trial ${trial.number} · ${said[trial.status]}`, [[`best ${data.metric}`, number(trial.best, 5), tintOf(trial)], ...Object.entries(trial.fields).map(([k, v]) => [k, shown(v)]), ...cost], trial.reason ? [trial.reason.split("\n")[0]] : []);
}
function goTo(trial) {
  const row = rowOf(trial);
  if (!row) return;
  row.scrollIntoView({block: "center", behavior: "smooth"});
  document.querySelectorAll("tr.chosen").forEach(r => r.classList.remove("chosen"));
  row.classList.add("chosen");
}

/* A line chart whose series belong to trials: [{trial, x, y, ...}]; the pointer finds the nearest of them. */
function trialChart(box, chart, axis) {
  const view = draw(box, {...chart, id: chart.id}, {...axis, of: s => s.x}), over = element(view.plot, "g", {});
  const px = event => { const r = view.svg.getBoundingClientRect(); return [(event.clientX - r.left) * view.width / r.width, (event.clientY - r.top) * HEIGHT / r.height]; };
  const tracks = new Map();
  for (const s of chart.series) if (s.trials) s.trials.forEach((t, i) => tracks.set(t, [[s.x[i]], [s.y[i]]])); else if (s.trial) tracks.set(s.trial, [s.x, s.y]);
  const find = event => {
    const [x, y] = px(event);
    return closest([...tracks.keys()], t => Math.min(...tracks.get(t)[0].map((v, i) => tracks.get(t)[1][i] === null ? 1e9 : Math.hypot(view.sx(v) - x, (view.sy(tracks.get(t)[1][i]) - y)))), 18);
  };
  follow(view.svg, find, choose);
  return t => {
    over.replaceChildren();
    const track = tracks.get(t);
    if (!track) return;
    if (track[0].length > 1) element(over, "path", {d: path(track[0], track[1], view.sx, view.sy), fill: "none", stroke: "var(--text)", "stroke-width": 2.6});
    else if (track[1][0] !== null) element(over, "circle", {cx: view.sx(track[0][0]), cy: view.sy(track[1][0]), r: 6.5, fill: "none", stroke: "var(--text)", "stroke-width": 2});
  };
}

function stopping(box) {
  const drawn = [...data.trials].filter(t => t.x.length).sort((a, b) => (a.status === "stopped-early" ? 0 : 1) - (b.status === "stopped-early" ? 0 : 1) || (b.rank ?? 1e9) - (a.rank ?? 1e9));
  const most = Math.max(1e-9, ...drawn.flatMap(t => t.x)), seconds = data.resource === "seconds", crowd = drawn.length > 60;
  const series = drawn.map(t => ({trial: t, x: t.x, y: t.y, kind: "line", stroke: t.status === "stopped-early" ? "var(--gray)" : t.status === "failed" ? "var(--red)" : tintOf(t), opacity: t.status === "stopped-early" ? (crowd ? 0.35 : 0.7) : 0.95}));
  const marks = data.rungs.filter(r => r <= most).map(r => ({kind: "rung", x: r}));
  return trialChart(box, {id: "stopping", title: "Early stopping", cut: true, log: logarithmic, series}, {low: 0, high: most, time: seconds, label: seconds ? null : v => number(v, 3), marks});
}

function progress(box) {
  const h = data.history, byNumber = new Map(data.trials.map(t => [t.number, t])), trials = h.number.map(n => byNumber.get(n));
  const series = [{x: h.seconds, y: h.best, kind: "stairs", color: "green"}, {x: h.seconds, y: h.value, kind: "points", trials, tints: trials.map(t => t.status === "stopped-early" ? "var(--gray)" : tintOf(t)), color: "gray"}];
  return trialChart(box, {id: "progress", title: "Best so far", cut: true, log: logarithmic, series}, {low: 0, high: Math.max(1, ...h.seconds), time: true, marks: []});
}

function schedules(box) {
  const byNumber = new Map(data.trials.map(t => [t.number, t]));
  const series = data.schedules.map((s, i) => ({trial: byNumber.get(s.number), x: s.x, y: s.y, kind: "line", color: TINTS[i]}));
  return trialChart(box, {id: "schedules", title: "Schedules", zero: true, series}, {low: 0, high: 1, label: v => `${Math.round(v * 100)}%`, marks: []});
}

const costs = () => ["worker_seconds", "samples", "joules", "dollars"].filter(u => judged.some(t => t[u]));
function front(box, unit) {
  const able = judged.filter(t => t[unit] !== null && t.best !== null).sort((a, b) => a[unit] - b[unit] || a.rank - b.rank), edge = [];
  for (const t of able) if (!edge.length || t.rank < edge[edge.length - 1].rank) edge.push(t);
  const most = Math.max(1e-9, ...able.map(t => t[unit])), series = [
    {x: edge.map(t => t[unit]).concat(edge.length ? [most] : []), y: edge.map(t => t.best).concat(edge.length ? [edge[edge.length - 1].best] : []), kind: "stairs", color: "green"},
    {x: able.map(t => t[unit]), y: able.map(t => t.best), kind: "points", trials: able, tints: able.map(t => edge.includes(t) ? "var(--green)" : t.status === "stopped-early" ? "var(--gray)" : tintOf(t)), color: "gray"}];
  return trialChart(box, {id: "front", title: "Cost and loss", cut: true, log: logarithmic, series}, {low: 0, high: most * 1.02, time: unit.endsWith("seconds"), label: unit.endsWith("seconds") ? null : unit === "dollars" ? money : v => number(v, 3), marks: []});
}

function picker(label, names, chosen, changed) {
  const list = node("select", "", ...names.map((n, i) => { const o = node("option", "", n); o.selected = i === chosen; return o; }));
  list.onchange = () => changed(list.selectedIndex);
  return node("label", "", label, list);
}

/* Each chart is made once, and drawn again when the window changes: [draw]. */
const drawings = [];
function add(draw) {
  const at = painters.length;
  painters.push(() => {});
  const again = () => { painters[at] = draw() || (() => {}); };
  drawings.push(again);
  return again;
}

function charts() {
  if (data.axes.length && data.trials.length) {
    const p = chartCard("What was tried", "a line is a trial; drag along an axis to select, click it to clear", true, [["best", shade(0), "area"], ["middle", shade(0.5), "area"], ["worst", shade(1), "area"], ["thin: stopped early", "var(--faint)"]]);
    add(() => parallel(p.box, choose));
  }
  if (data.trials.some(t => t.x.length)) {
    const e = chartCard("Early stopping", `${data.metric} over ${units[data.resource]}${data.rungs.length ? "; dashed: rungs, where trials are compared" : ""}`, true, [["best", shade(0)], ["worst", shade(1)], ["stopped early", "var(--gray)"], ...(data.counts.failed ? [["failed", "var(--red)"]] : [])]);
    add(() => stopping(e.box));
    e.top.append(node("div", "legend", buttons("", ["linear", "logarithmic"], Number(logarithmic), i => { logarithmic = i === 1; drawings.forEach(draw => draw()); })));
  }
  if (judged.length && data.axes.length > 1) heatCard();
  if (data.history.number.length) { const h = chartCard("Best so far", `${data.metric} over time`, false, [["best of all", color("green")], ["a trial", shade(0.3), "dots"]]); add(() => progress(h.box)); }
  if (data.schedules.length) {
    const byNumber = new Map(data.trials.map(t => [t.number, t]));
    const s = chartCard("Schedules of the best", "learning rate over progress", false, data.schedules.map((d, i) => [[`trial ${d.number}`, d.family, number((byNumber.get(d.number) || {}).best, 4)].filter(Boolean).join(" "), color(TINTS[i])]));
    add(() => schedules(s.box));
  }
  if (judged.length && costs().length) {
    const known = costs(), f = chartCard("Cost and loss", "green: nothing is both cheaper and better", false);
    let unit = known[0];
    const again = add(() => front(f.box, unit));
    if (known.length > 1) f.top.append(node("div", "legend", buttons("", known.map(u => units[u]), 0, i => { unit = known[i]; again(); })));
  }
}

function heatCard() {
  const names = data.axes.map(a => a.name), of = (name, other) => names.includes(name) ? names.indexOf(name) : names.findIndex((_, i) => i !== other);
  const h = chartCard("Heat map", `best ${data.metric} of each cell`, false);
  let across = of("optimizer.lr", -1), up = of("batch.size", across);
  if (up === across) up = names.findIndex((_, i) => i !== across);
  const again = add(() => heat(h.box, data.axes[across], data.axes[up]));
  h.top.append(node("div", "legend", picker("across ", names, across, i => { across = i; again(); }), picker("up ", names, up, i => { up = i; again(); })));
}

function tables() {
  const rows = [...data.trials].sort((a, b) => (a.rank ?? 1e9) - (b.rank ?? 1e9) || a.number - b.number), has = key => data.trials.some(t => t[key] !== null && t[key] !== undefined);
  const status = t => node("span", `pill ${t.status}`, said[t.status]);
  const field = a => [a.name, t => shown(t.fields[a.name]), a.kind === "number" || a.values.every(v => typeof v === "number"), t => t.fields[a.name] ?? null];
  const made = table("Trials", rows, [["trial", t => String(t.number), true, t => t.number], ["status", status, false, t => t.status],
    [`best ${data.metric}`, t => t.rank === 0 ? node("span", "best", number(t.best, 5)) : number(t.best, 5), true, t => t.best], ["last", t => number(t.last, 5), true, t => t.last],
    ...data.axes.map(field), ["step", t => t.total_steps ? `${count(t.step)} / ${count(t.total_steps)}` : count(t.step), true, t => t.step],
    ...["samples", "worker_seconds", "joules", "dollars"].filter(has).map(u => [units[u], t => amount(u, t[u]), true, t => t[u]]), ["took", t => duration(t.wall_s), true, t => t.wall_s],
    ["run", t => t.run_id, false, t => t.run_id]], true);
  if (made) { made.card.classList.add("long"); rowOf = t => made.row(t); }
  const setting = t => Object.entries(t.fields).map(([k, v]) => `${k}=${shown(v)}`).join(", ");
  table("Failed trials", data.trials.filter(t => t.status === "failed"), [["trial", t => String(t.number), true], ["error", t => node("span", "error", t.reason || "no reason given")], ["after step", t => count(t.step), true], ["with", setting], ["run", t => t.run_id]], true);
  pairs("The sweep", data.facts, true);
}

header(); tiles(); bestJob(); charts(); drawings.forEach(draw => draw()); tables();
place("foot").append(`Made by Shoal from the sweep's ledger on ${clock(data.written)}. The learning rates are those of the runs' commits.`);
let pending; addEventListener("resize", () => { clearTimeout(pending); pending = setTimeout(() => drawings.forEach(draw => draw()), 80); });
