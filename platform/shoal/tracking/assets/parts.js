/* What pages are made of: elements, tiles, tables, switches, the tip that follows the pointer. */

const data = JSON.parse(document.getElementById("data").textContent);
const place = id => document.getElementById(id);

function node(name, className, ...children) {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.append(...children.filter(c => c !== null && c !== undefined));
  return made;
}
const clock = t => new Date(t * 1000).toLocaleString([], {dateStyle: "medium", timeStyle: "short"});
const count = n => n === null || n === undefined ? "–" : n.toLocaleString("en-US");
const seconds = s => s === null || s === undefined ? "–" : `${number(s, 3)} s`;
const plural = (n, word) => `${count(n)} ${word}${n === 1 ? "" : "s"}`;
const tile = (label, value, small) => place("tiles").append(node("div", "tile", node("span", "", label), node("b", "", value), node("small", "", small || "")));

/* Name and status on top; `share`: how much is done, in [0, 1], or null. */
function heading(name, status, said, why, share) {
  const fill = node("i"); fill.style.width = `${100 * (share ?? 0)}%`;
  place("head").append(
    node("h1", "", name, node("span", `pill ${status}`, status)),
    node("p", "", said),
    why && why !== status ? node("p", "why", why) : "",
    share === null ? "" : node("div", `bar ${status}`, fill));
}

/* A card for a chart: {card, box, top}; entries of the legend: [label, CSS colour, kind]. */
function chartCard(title, unit, wide, legend = []) {
  const signs = node("div", "legend", ...legend.map(([label, tint, kind]) => {
    const sign = node("i", kind === "area" ? "block" : kind === "dots" ? "dot" : ""); sign.style.background = tint;
    return node("span", "", sign, label);
  }));
  const top = node("div", "top", node("h2", "", title, unit ? node("em", "", unit) : ""), signs), box = node("div", "plot");
  const card = node("div", `card chart${wide ? " wide" : ""}`, top, box);
  place("charts").append(card);
  return {card, box, top};
}

/* Buttons of which one is pressed; `chosen(index)` is called for a new one. */
function buttons(label, names, pressed, chosen) {
  const all = names.map((name, i) => { const b = node("button", "", name); b.onclick = () => { press(i); chosen(i); }; return b; });
  const press = i => all.forEach((b, j) => b.setAttribute("aria-pressed", String(i === j)));
  press(pressed);
  return node("span", "", label, ...all);
}

function tip(event, title, rows, near = []) {
  const box = place("tip");
  box.replaceChildren(node("b", "", title), ...rows.map(([label, value, tint]) => {
    const dot = tint ? node("i") : ""; if (tint) dot.style.background = tint;
    return node("div", "", node("span", "", dot, label), value);
  }), ...near.map(text => node("p", "", text)));
  box.hidden = false;
  box.style.left = `${Math.min(event.clientX + 16, innerWidth - box.offsetWidth - 10)}px`;
  box.style.top = `${Math.min(event.clientY + 14, innerHeight - box.offsetHeight - 10)}px`;
}
const noTip = () => { place("tip").hidden = true; };

function nearest(xs, x) {
  let low = 0, high = xs.length - 1;
  while (high - low > 1) { const middle = (low + high) >> 1; if (xs[middle] < x) low = middle; else high = middle; }
  return Math.abs(xs[high] - x) < Math.abs(xs[low] - x) ? high : low;
}

/* columns: [heading, what a cell shows of a row, numeric, what a click on the heading sorts by]. `wide`: the whole width of the page. */
function table(title, rows, columns, wide) {
  if (!rows.length) return null;
  const cell = (tag, content, numeric) => node(tag, numeric ? "n" : "", content);
  const body = node("tbody", ""), made = new Map(rows.map(r => [r, node("tr", "", ...columns.map(([, value, numeric]) => cell("td", value(r) ?? "–", numeric)))]));
  const heads = columns.map(([name, , numeric, key]) => {
    const head = cell("th", name, numeric);
    if (key) { head.className += " sorts"; head.tabIndex = 0; head.onclick = () => sort(head, key); head.onkeydown = e => { if (e.key === "Enter") sort(head, key); }; }
    return head;
  });
  const sort = (head, key) => {
    const down = head.getAttribute("aria-sort") === "ascending", known = r => { const k = key(r); return k !== null && k !== undefined && k !== ""; };
    heads.forEach(h => h.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const order = (a, b) => { const x = key(a), y = key(b); return (typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y))) * (down ? -1 : 1); };
    body.replaceChildren(...rows.filter(known).sort(order).concat(rows.filter(r => !known(r))).map(r => made.get(r)));
  };
  body.append(...rows.map(r => made.get(r)));
  const whole = node("table", "", node("thead", "", node("tr", "", ...heads)), body);
  const card = node("div", `card${wide ? " wide" : ""}`, node("h2", "", title), node("div", "scroll", whole));
  place("tables").append(card);
  return {card, row: r => made.get(r)};
}

function pairs(title, values, wide) {
  const rows = Object.entries(values);
  if (!rows.length) return;
  const list = node("div", "kv", ...rows.map(([k, v]) => node("div", "", node("span", "", k), node("code", "", v))));
  if (!wide) list.style.columns = 1;
  place("tables").append(node("div", `card${wide ? " wide" : ""}`, node("h2", "", title), list));
}
