"use strict";
(() => {
  const page = JSON.parse(document.getElementById("data").textContent);
  const L = page.latents, rowOf = new Map(L.id.map((id, r) => [id, r])), marked = new Set(page.concepts);
  const bytes = text => Uint8Array.from(atob(text), c => c.charCodeAt(0));
  const colours = { 1: bytes(page.colours[1]), "-1": bytes(page.colours[-1]) };
  const $ = id => document.getElementById(id);
  const el = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) key === "text" ? node.textContent = value : node.setAttribute(key, value);
    node.append(...children);
    return node;
  };
  const fixed = (x, n = 3) => x === null ? "–" : x.toFixed(n);
  const short = x => x === null ? "–" : Math.abs(x) >= 0.001 || x === 0 ? String(+x.toPrecision(3)) : x.toExponential(1);
  const columns = [...document.querySelectorAll("[data-sort]")].map(b => b.dataset.sort);
  const shows = { id: r => L.id[r], label: r => L.label[r] || "–", lift: r => fixed(L.lift[r], 2), f1: r => fixed(L.f1[r]), held: r => fixed(L.held[r]), auroc: r => fixed(L.auroc[r]),
    density: r => short(L.density[r]), max: r => short(L.max[r]) };
  const STEP = 200;
  let sort = { by: L.lift.some(x => x !== null) ? "lift" : "density", down: true }, limit = STEP, found = [], open = null;
  const view = { heat: true, mode: "bilinear", opacity: 0.75 };

  function matches(query) {
    const tests = query.toLowerCase().split(/\s+/).filter(Boolean).map(word => {
      const rule = word.match(/^(lift|f1|held|auroc|density|mean|max)(<=|>=|<|>)([\d.e-]+)$/);
      if (rule) {
        const [, key, op, text] = rule, bound = Number(text);
        return r => L[key][r] !== null && (op[0] === "<" ? L[key][r] < bound : L[key][r] > bound) || op[1] === "=" && L[key][r] === bound;
      }
      if (/^#?\d+$/.test(word)) return r => String(L.id[r]) === word.replace("#", "");
      return r => L.labels[r].some(x => x[0].toLowerCase().includes(word));
    });
    return r => tests.every(test => test(r));
  }

  function order(a, b) {
    const x = L[sort.by][a], y = L[sort.by][b], absent = v => v === null || v === "";
    if (absent(x) || absent(y)) return absent(x) - absent(y) || L.id[a] - L.id[b];
    const way = typeof x === "string" ? x.localeCompare(y) : x - y;
    return (sort.down ? -way : way) || (L.auroc[b] ?? 0) - (L.auroc[a] ?? 0) || L.id[a] - L.id[b];
  }

  function list() {
    found = L.id.map((_, r) => r).filter(matches($("search").value)).sort(order);
    $("rows").replaceChildren(...found.slice(0, limit).map(r => {
      const id = L.id[r], cells = columns.map(c => el("td", { text: shows[c](r) }));
      if (marked.has(id)) cells[0].classList.add("mark");
      if (!(id in page.galleries)) cells[0].classList.add("dim");
      return el("tr", { tabindex: "0", "data-latent": id, "aria-selected": id === open }, ...cells);
    }));
    $("count").textContent = `${found.length.toLocaleString("en")} of ${L.id.length.toLocaleString("en")} latents`;
    $("more").hidden = found.length <= limit;
    for (const b of document.querySelectorAll("[data-sort]"))
      b.parentNode.setAttribute("aria-sort", b.dataset.sort !== sort.by ? "none" : sort.down ? "descending" : "ascending");
  }

  // Value of the heat at pixel centre (x, y) of a picture: the same rules as visae's Geometry, borders go on outwards.
  function sampler(grid, [h, w], [left, top, right, bottom], seen, width, height) {
    return (x, y) => {
      const s = (x + 0.5) / width, t = (y + 0.5) / height;
      if (s < seen[0] || t < seen[1] || s >= seen[2] || t >= seen[3]) return -1;
      let u = (s - left) / (right - left) * w - 0.5, v = (t - top) / (bottom - top) * h - 0.5;
      if (view.mode === "nearest") { u = Math.floor(u + 0.5); v = Math.floor(v + 0.5); }
      u = Math.min(Math.max(u, 0), w - 1); v = Math.min(Math.max(v, 0), h - 1);
      const i = Math.floor(v), j = Math.floor(u), i1 = Math.min(i + 1, h - 1), j1 = Math.min(j + 1, w - 1), a = v - i, b = u - j;
      return ((grid[i * w + j] * (1 - b) + grid[i * w + j1] * b) * (1 - a) + (grid[i1 * w + j] * (1 - b) + grid[i1 * w + j1] * b) * a) / 255;
    };
  }

  function paint(canvas) {
    const { image, grid, thumb, sign } = canvas.source, context = canvas.getContext("2d", { willReadFrequently: true });
    context.imageSmoothingEnabled = image.naturalWidth * 2 > canvas.width;
    context.drawImage(image, 0, 0, canvas.width, canvas.height);
    if (!view.heat || !grid) return;
    const pixels = context.getImageData(0, 0, canvas.width, canvas.height), p = pixels.data;
    const at = sampler(grid, page.grid, thumb.box, thumb.seen, canvas.width, canvas.height), lut = colours[sign];
    for (let y = 0, o = 0; y < canvas.height; y++) for (let x = 0; x < canvas.width; x++, o += 4) {
      const value = at(x, y), grey = 0.299 * p[o] + 0.587 * p[o + 1] + 0.114 * p[o + 2];
      const level = 3 * Math.round(Math.max(value, 0) * 255), alpha = value > 0 ? value ** 0.7 * view.opacity : 0;
      for (let c = 0; c < 3; c++) {
        const base = value < 0 ? grey * 0.35 + 150 - 45 * ((x + y >> 3) % 2) : (p[o + c] + grey) / 2;
        p[o + c] = base * (1 - alpha) + lut[level + c] * alpha;
      }
    }
    context.putImageData(pixels, 0, 0);
  }

  function picture([index, value, heat], sign) {
    const thumb = page.thumbs[index], scale = 256 / Math.max(thumb.w, thumb.h);
    const canvas = el("canvas", { width: Math.round(thumb.w * scale), height: Math.round(thumb.h * scale), role: "img", "aria-label": `${thumb.key}, value ${short(value)}` });
    const image = new Image();
    canvas.source = { image, grid: heat ? bytes(heat) : null, thumb, sign };
    image.onload = () => { paint(canvas); canvas.dataset.painted = "yes"; };
    image.src = "data:image/webp;base64," + thumb.src;
    return el("figure", { title: [thumb.key, ...thumb.labels].join("\n") }, canvas, el("figcaption", {}, el("b", { text: short(value) }), ` ${thumb.labels.map(t => t.split(": ")[1]).join(" · ") || thumb.key}`));
  }

  function histogram(r) {
    const counts = L.histogram[r], [low, high] = L.range[r], top = Math.max(...counts), W = 440, H = 90, step = W / counts.length;
    const bars = counts.map((c, i) => `<rect class="bar" x="${i * step + 0.5}" width="${step - 1}" y="${H - H * c / top}" height="${H * c / top}"><title>${c} tokens, ${short(low + (high - low) * i / counts.length)} to ${short(low + (high - low) * (i + 1) / counts.length)}</title></rect>`);
    const box = el("div", { class: "hist" });
    box.innerHTML = `<svg viewBox="-40 -10 ${W + 60} ${H + 34}" role="img" aria-label="Histogram of values where the latent fires">${bars.join("")}<line class="axis" x1="0" x2="${W}" y1="${H}" y2="${H}"/><text x="0" y="${H + 16}">${short(low)}</text><text x="${W}" y="${H + 16}" text-anchor="end">${short(high)}</text><text x="-6" y="8" text-anchor="end">${top}</text></svg>`;
    return box;
  }

  function labels(r) {
    const hasHeld = columns.includes("held"), head = ["label", "F1", ...(hasHeld ? ["F1 held out"] : []), "AUROC"];
    const body = L.labels[r].map(([name, f1, auroc, held, sign]) => el("tr", {}, el("th", { scope: "row", text: name + (sign < 0 ? " (negative values)" : "") }),
      ...[f1, ...(hasHeld ? [held] : []), auroc].map(x => el("td", { text: fixed(x) }))));
    return el("table", { class: "plain" }, el("thead", {}, el("tr", {}, ...head.map(t => el("th", { scope: "col", text: t })))), el("tbody", {}, ...body));
  }

  function control(label, attributes, change) {
    const input = el("input", attributes);
    input.addEventListener("input", () => { change(input); document.querySelectorAll("#detail figure canvas").forEach(c => c.dataset.painted && paint(c)); });
    const text = el("label", {}, input, " " + label);
    return text;
  }

  function controls() {
    const ramp = el("canvas", { width: 256, height: 1, "aria-hidden": "true" }), context = ramp.getContext("2d"), strip = context.createImageData(256, 1);
    for (let i = 0; i < 256; i++) strip.data.set([...colours[1].slice(3 * i, 3 * i + 3), 255], 4 * i);
    context.putImageData(strip, 0, 0);
    const row = el("div", { class: "controls", role: "group", "aria-label": "Heat map" },
      control("heat", { type: "checkbox", id: "heat", ...(view.heat && { checked: "" }) }, i => { view.heat = i.checked; }),
      ...["bilinear", "nearest"].map(mode => control(mode, { type: "radio", name: "mode", value: mode, ...(view.mode === mode && { checked: "" }) }, () => { view.mode = mode; })),
      control("opacity", { type: "range", min: 0, max: 1, step: 0.05, value: view.opacity }, i => { view.opacity = Number(i.value); }));
    row.append(el("span", { class: "scale" }, "0", ramp, "max"));
    return row;
  }

  function show(id, focus = false) {
    const r = rowOf.get(id), panel = $("detail");
    if (r === undefined) return;
    open = id;
    document.querySelectorAll("#rows tr").forEach(tr => tr.setAttribute("aria-selected", Number(tr.dataset.latent) === id));
    const parts = [el("h2", { text: `Latent ${id}${L.label[r] ? " · " + L.label[r] : ""}` }),
      el("p", { class: "small", text: `density ${short(L.density[r])} · mean where it fires ${short(L.mean[r])} · max ${short(L.max[r])}` })];
    const galleries = page.galleries[id] ?? [];
    if (galleries.length && page.grid) parts.push(controls());
    for (const gallery of galleries) {
      if (gallery.sign < 0 || galleries.length > 1) parts.push(el("h3", { text: gallery.sign < 0 ? "Most negative" : "Most positive" }));
      parts.push(el("div", { class: "images" }, ...gallery.items.map(item => picture(item, gallery.sign))));
    }
    if (!galleries.length) parts.push(el("p", { class: "empty", text: id in page.galleries ? "This latent fires only on tokens that are no part of an image, such as the class token." : "No room was left for the images of this latent." }));
    parts.push(el("h3", { text: "Values where it fires" }), histogram(r));
    if (L.labels[r].length) parts.push(el("h3", { text: "Best labels" }), labels(r));
    panel.replaceChildren(...parts);
    panel.setAttribute("aria-label", `Latent ${id}`);
    panel.scrollTop = 0;
    history.replaceState(null, "", `#latent=${id}`);
    if (focus) { panel.focus({ preventScroll: true }); panel.scrollIntoView({ block: "nearest" }); }
  }

  $("search").addEventListener("input", () => { limit = STEP; list(); });
  $("more").addEventListener("click", () => { limit += 5 * STEP; list(); });
  document.querySelector("#table thead").addEventListener("click", event => {
    const by = event.target.dataset.sort;
    if (!by) return;
    sort = { by, down: sort.by === by ? !sort.down : !["id", "label"].includes(by) };
    list();
  });
  document.addEventListener("click", event => {
    const target = event.target.closest("[data-latent]");
    if (target) show(Number(target.dataset.latent), target.tagName === "BUTTON");
  });
  document.addEventListener("keydown", event => {
    const row = event.target.closest?.("#rows tr");
    if (event.key === "/" && event.target.tagName !== "INPUT") { event.preventDefault(); $("search").focus(); }
    else if (event.key === "Escape" && event.target === $("search")) { $("search").value = ""; list(); }
    else if (event.key === "ArrowDown" && event.target === $("search")) { event.preventDefault(); $("rows").firstElementChild?.focus(); }
    else if (row && event.key === "Enter") show(Number(row.dataset.latent));
    else if (row && (event.key === "ArrowDown" || event.key === "ArrowUp")) {
      const next = event.key === "ArrowDown" ? row.nextElementSibling : row.previousElementSibling;
      event.preventDefault();
      if (next) { next.focus(); show(Number(next.dataset.latent)); }
    }
  });
  list();
  const asked = location.hash.match(/^#latent=(\d+)$/);
  const first = asked ? Number(asked[1]) : L.id[found.find(r => L.id[r] in page.galleries) ?? found[0]];
  if (first !== undefined) show(first);
  document.documentElement.dataset.ready = "yes";
})();
