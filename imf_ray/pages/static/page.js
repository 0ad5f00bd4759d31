// What a reader can do with a page: sort, filter, choose and smooth curves, hover, copy commands.
// The server renders everything; this script only rearranges it. On a live page it also fetches the
// page again and puts what changed into the document, without losing any of the reader's choices.
"use strict";
(() => {
  const choices = {
    sort: null, // {title, descending}
    filter: "",
    smoothing: 0,
    curves: new Map(), // key of a row -> true if its curves are shown
  };
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const one = (selector, root = document) => root.querySelector(selector);
  const make = (tag, text = "", className = "") => {
    const element = document.createElement(tag);
    element.textContent = text;
    if (className) element.className = className;
    return element;
  };

  // --- Theme ---

  function isDark() {
    const chosen = document.documentElement.dataset.theme;
    return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  }

  function chooseTheme(theme) {
    if (theme) document.documentElement.dataset.theme = theme;
    one("#theme").textContent = isDark() ? "Light" : "Dark";
  }

  function stored(key, value) {
    try { // a browser may forbid storage for files
      if (value !== undefined) localStorage.setItem(key, value);
      return localStorage.getItem(key);
    } catch { return null; }
  }

  // --- Table: sort and filter ---

  const sortValue = (cell) => cell ? cell.dataset.sort ?? cell.textContent.trim() : "";

  function compare(a, b) {
    const x = Number(a), y = Number(b);
    if (!Number.isNaN(x) && !Number.isNaN(y)) return x - y;
    return a.localeCompare(b, undefined, { numeric: true });
  }

  function columnIndex(title) {
    const titles = all("#results-table thead th").map((header) => header.textContent.trim());
    return titles.indexOf(title);
  }

  function applySort() {
    const body = one("#results-table tbody");
    if (!body) return;
    const rows = [...body.rows];
    rows.forEach((row, index) => { row.dataset.index ??= index; }); // order of the server
    const index = choices.sort ? columnIndex(choices.sort.title) : -1;
    const sign = choices.sort?.descending ? -1 : 1;
    const valued = rows.map((row) => ({ row, value: index < 0 ? "" : sortValue(row.cells[index]) }));
    valued.sort((a, b) => {
      const order = index < 0 ? 0
        : (a.value === "") - (b.value === "") || sign * compare(a.value, b.value);
      return order || a.row.dataset.index - b.row.dataset.index;
    });
    if (valued.some(({ row }, position) => body.rows[position] !== row)) {
      body.append(...valued.map(({ row }) => row));
    }
    all("#results-table thead th").forEach((header, position) => {
      if (position === index) header.setAttribute("aria-sort", sign < 0 ? "descending" : "ascending");
      else header.removeAttribute("aria-sort");
    });
  }

  function sortBy(header) { // first click, second click, then the order of the server again
    const title = header.textContent.trim(), first = "descending" in header.dataset;
    const isSame = choices.sort?.title === title;
    if (isSame && choices.sort.descending !== first) choices.sort = null;
    else choices.sort = { title, descending: isSame ? !first : first };
    applySort();
  }

  function matches(row, term) {
    const [, title, operator, value] = /^(.+?)(<=|>=|=|<|>)(.+)$/.exec(term) ?? [];
    const index = title ? columnIndex(title) : -1;
    if (index < 0) return row.textContent.toLowerCase().includes(term.toLowerCase());
    const found = sortValue(row.cells[index]);
    if (found === "") return false;
    if (operator === "=") return found === value || row.cells[index].textContent.trim() === value
      || Number(found) === Number(value);
    const difference = Number(found) - Number(value);
    return { "<": difference < 0, ">": difference > 0,
      "<=": difference <= 0, ">=": difference >= 0 }[operator];
  }

  function applyFilter() {
    const terms = choices.filter.split(/\s+/).filter(Boolean);
    const rows = all("#results-table tbody tr:not(.reference)");
    for (const row of rows) row.hidden = !terms.every((term) => matches(row, term));
    const count = one("#filter-count");
    const shown = rows.filter((row) => !row.hidden).length;
    if (count) count.textContent = terms.length ? `${shown} of ${rows.length}` : "";
  }

  // --- Curves: which are shown, and smoothing ---

  function applyCurves() {
    for (const button of all("#legend button")) {
      const isShown = choices.curves.get(button.dataset.r) ?? button.getAttribute("aria-pressed") === "true";
      button.setAttribute("aria-pressed", isShown);
      for (const group of all(`svg.curves g[data-r="${button.dataset.r}"]`)) {
        group.classList.toggle("off", !isShown);
      }
    }
    for (const chart of all("svg.curves")) { // the bands of many rows would hide the lines
      chart.classList.toggle("many", all("g[data-r]:not(.off)", chart).length > 4);
    }
    const slider = one("#smoothing");
    if (!slider) return;
    slider.value = choices.smoothing;
    one("output", slider.parentElement).textContent = choices.smoothing;
    for (const line of all('svg.curves[data-exact="0"] .line')) smooth(line);
  }

  function showCurves(which) {
    all("#legend button").forEach((button, index) => {
      choices.curves.set(button.dataset.r, which === "all" || (which === "best" && index < 10));
    });
    applyCurves();
  }

  // Points of each unbroken part of a path "M1 2L3 4M5 6L7 8".
  const parsePath = (d) => d.split("M").filter(Boolean)
    .map((part) => part.split("L").map((point) => point.split(" ").map(Number)));

  // Exponential moving average without bias at its start, as TensorBoard smooths.
  function smooth(line) {
    if (choices.smoothing === 0) {
      if (line.dataset.d) line.setAttribute("d", line.dataset.d);
      return;
    }
    line.dataset.d ??= line.getAttribute("d");
    const weight = choices.smoothing;
    let sum = 0, total = 0;
    line.setAttribute("d", parsePath(line.dataset.d).map((part) => "M" + part.map(([x, y]) => {
      sum = weight * sum + (1 - weight) * y;
      total = weight * total + (1 - weight);
      return `${x} ${(sum / total).toFixed(1)}`;
    }).join("L")).join(""));
  }

  // --- Hover ---

  let hotKey = null;

  function highlight(key) {
    if (key === hotKey) return;
    for (const element of all(".hot")) element.classList.remove("hot");
    hotKey = key;
    if (key) for (const element of all(`[data-r="${CSS.escape(key)}"]`)) element.classList.add("hot");
    document.body.classList.toggle("has-hot", Boolean(key));
  }

  const parsed = new WeakMap();

  function pointsOf(line) {
    const d = line.getAttribute("d");
    if (parsed.get(line)?.d !== d) parsed.set(line, { d, points: parsePath(d).flat() });
    return parsed.get(line).points;
  }

  function valueAt(chart, axis, coordinate) { // inverse of `Scale` in charts.py
    const [low, high, start, end] = chart.dataset[axis].split(" ").map(Number);
    const share = (coordinate - start) / (end - start);
    if (axis === "y" && chart.dataset.log === "1") return low * (high / low) ** share;
    return low + share * (high - low);
  }

  function readCurves(chart, event) {
    const box = chart.getBoundingClientRect();
    const scale = chart.viewBox.baseVal.width / box.width;
    const x = (event.clientX - box.left) * scale, y = (event.clientY - box.top) * scale;
    const labels = new Map(all("#legend button").map((button) => [button.dataset.r, button.textContent]));
    const readings = [];
    for (const group of all("g[data-r]:not(.off)", chart)) {
      const points = pointsOf(one(".line", group));
      if (!points.length) continue;
      const point = points.reduce((a, b) => Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a);
      if (Math.abs(point[0] - x) > 40) continue;
      readings.push({ group, point, label: labels.get(group.dataset.r) ?? "value" });
    }
    readings.sort((a, b) => Math.abs(a.point[1] - y) - Math.abs(b.point[1] - y));
    return readings;
  }

  function showReadings(chart, event) {
    const readings = readCurves(chart, event), tip = one("#tip");
    clearReadings();
    if (!readings.length) return;
    const [nearest] = readings, x = nearest.point[0];
    highlight(nearest.group.dataset.r);
    tip.append(make("b", `step ${Math.round(valueAt(chart, "x", x)).toLocaleString("en")}`));
    const shown = readings.slice(0, 8).sort((a, b) => a.point[1] - b.point[1]);
    for (const { group, point, label } of shown) {
      const entry = make("div", "", group === nearest.group ? "near" : "");
      const swatch = make("i");
      swatch.style.background = getComputedStyle(one(".line", group)).stroke;
      const value = Number(valueAt(chart, "y", point[1]).toPrecision(3));
      entry.append(swatch, make("span", label), make("b", String(value)));
      tip.append(entry);
    }
    if (readings.length > 8) tip.append(make("div", `and ${readings.length - 8} more`));
    tip.hidden = false;
    const width = tip.offsetWidth, left = event.clientX + 16;
    tip.style.left = `${left + width > innerWidth - 8 ? Math.max(8, event.clientX - width - 16) : left}px`;
    tip.style.top = `${Math.max(8, Math.min(event.clientY + 12, innerHeight - tip.offsetHeight - 8))}px`;
    const cross = document.createElementNS(chart.namespaceURI, "path");
    cross.setAttribute("class", "cross");
    cross.setAttribute("d", `M${x} ${valueRange(chart)[0]}V${valueRange(chart)[1]}`);
    chart.append(cross);
  }

  const valueRange = (chart) => chart.dataset.y.split(" ").slice(2).map(Number);

  function clearReadings() {
    const tip = one("#tip");
    tip.hidden = true;
    tip.replaceChildren();
    for (const cross of all(".cross")) cross.remove();
  }

  // --- Copy, details ---

  async function copy(button) {
    const command = one("pre", button.parentElement);
    try {
      await navigator.clipboard.writeText(command.textContent);
      button.textContent = "Copied";
    } catch { // a browser may forbid the clipboard; the selected text can be copied by hand
      getSelection().selectAllChildren(command);
      button.textContent = "Selected";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  }

  function openTarget() {
    const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (target instanceof HTMLDetailsElement) {
      for (let part = target; part; part = part.parentElement.closest("details")) part.open = true;
      target.scrollIntoView({ block: "start" });
    }
  }

  // --- Live page ---

  const sections = new Map(); // id of a section -> its HTML as the server sent it
  const keyOf = (node) => node.id || node.dataset?.r || null;

  // Turns `old` into `fresh`. Nodes that stay the same are kept, so a video goes on playing.
  function morph(old, fresh) {
    if (fresh.nodeName === "SECTION") {
      const html = fresh.outerHTML;
      if (sections.get(fresh.id) === html) return;
      sections.set(fresh.id, html);
    }
    if (old.isEqualNode(fresh)) return;
    if (old.nodeType !== Node.ELEMENT_NODE) { old.nodeValue = fresh.nodeValue; return; }
    for (const { name } of [...old.attributes]) {
      if (!fresh.hasAttribute(name) && name !== "open") old.removeAttribute(name);
    }
    for (const { name, value } of fresh.attributes) {
      if (old.getAttribute(name) !== value && name !== "open") old.setAttribute(name, value);
    }
    const keyed = new Map([...old.childNodes].filter(keyOf).map((node) => [keyOf(node), node]));
    let next = old.firstChild;
    for (const child of [...fresh.childNodes]) {
      const key = keyOf(child);
      let match = key ? keyed.get(key) : next && !keyOf(next) ? next : null;
      if (match?.nodeName !== child.nodeName) match = null;
      if (!match) { old.insertBefore(child, next); continue; }
      if (key) keyed.delete(key);
      if (match === next) next = next.nextSibling;
      else if (old.moveBefore) old.moveBefore(match, next); // does not stop a video
      else old.insertBefore(match, next);
      morph(match, child);
    }
    while (next) { const rest = next; next = next.nextSibling; rest.remove(); }
  }

  function update(html) {
    const fresh = new DOMParser().parseFromString(html, "text/html");
    for (const selector of ["#top", "main"]) {
      const old = one(selector), replacement = one(selector, fresh);
      if (old && replacement) morph(old, replacement);
    }
    document.title = fresh.title;
    hotKey = null;
    applyChoices();
  }

  function followServer(interval) {
    const status = one("#live");
    let etag = null, failures = 0, updated = "";
    async function poll() {
      if (!document.hidden) {
        try {
          const headers = etag ? { "If-None-Match": etag } : {};
          const answer = await fetch(location.href.split("#")[0], { headers, cache: "no-store" });
          if (answer.status === 200) {
            update(await answer.text());
            etag = answer.headers.get("ETag");
          } else if (answer.status !== 304) {
            throw new Error((await answer.text()).slice(0, 300) || `HTTP ${answer.status}`);
          }
          failures = 0;
          updated = new Date().toLocaleTimeString("en-GB");
          status.textContent = `updated ${updated}`;
        } catch (error) {
          failures += 1;
          const reason = error instanceof TypeError ? "The server does not answer." : error.message;
          status.textContent = updated ? `${reason} Last update ${updated}.` : reason;
        }
        status.classList.toggle("lost", failures > 0);
      }
      setTimeout(poll, interval * 1000 * Math.min(1 + failures, 5));
    }
    poll();
  }

  // --- Start ---

  function applyChoices() {
    applySort();
    applyFilter();
    applyCurves();
  }

  document.addEventListener("click", (event) => {
    const header = event.target.closest("#results-table th");
    if (header) sortBy(header);
    const button = event.target.closest("button");
    if (!button) return;
    if (button.id === "theme") {
      const theme = isDark() ? "light" : "dark";
      stored("theme", theme);
      chooseTheme(theme);
    }
    if (button.classList.contains("copy")) copy(button);
    if (button.dataset.show) showCurves(button.dataset.show);
    if (button.closest("#legend")) {
      choices.curves.set(button.dataset.r, button.getAttribute("aria-pressed") !== "true");
      applyCurves();
    }
  });
  document.addEventListener("input", ({ target }) => {
    if (target.id === "filter") { choices.filter = target.value; applyFilter(); }
    if (target.id === "smoothing") { choices.smoothing = Number(target.value); applyCurves(); }
  });
  document.addEventListener("pointerover", ({ target }) => {
    highlight(target.closest("[data-r]")?.dataset.r ?? null);
  });
  let readChart = null;
  document.addEventListener("pointermove", (event) => {
    const chart = event.target.closest("svg.curves");
    if (chart) showReadings(chart, event);
    else if (readChart) clearReadings();
    readChart = chart;
  });
  addEventListener("hashchange", openTarget);
  addEventListener("beforeprint", () => { for (const details of all("details")) details.open = true; });

  document.documentElement.classList.add("js");
  for (const section of all("section[id]")) sections.set(section.id, section.outerHTML);
  chooseTheme(stored("theme"));
  applyChoices();
  openTarget();
  const interval = Number(document.body.dataset.interval);
  if (interval) followServer(interval);
})();
