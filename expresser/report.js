"use strict";
// What the page does when it is clicked on. Without scripts it is one long page of figures, tables and their numbers.

const INK = "#1a1f24"; // of figures that leave the page: there they stand on white
const status = document.getElementById("status");

// Tabs: each link of the bar shows its section alone. Hidden ones are found by the browser's search, and all are printed.
for (const nav of document.querySelectorAll("nav[data-tabs]")) {
  const main = document.querySelector("main");
  const list = nav.querySelector("ol");
  const tabs = [...list.querySelectorAll("a")];
  const panels = tabs.map((tab) => document.getElementById(tab.hash.slice(1)));
  const all = document.createElement("button");
  let chosen = 0;

  const set = (node, name, value) => (value === null ? node.removeAttribute(name) : node.setAttribute(name, value));
  const draw = () => {
    const single = all.getAttribute("aria-pressed") === "false";
    nav.classList.toggle("single", single);
    set(list, "role", single ? "tablist" : null);
    set(list, "aria-label", single ? "Sections" : null);
    tabs.forEach((tab, i) => {
      const panel = panels[i];
      set(tab.parentNode, "role", single ? "presentation" : null);
      set(tab, "role", single ? "tab" : null);
      set(tab, "aria-controls", single ? panel.id : null);
      set(tab, "aria-selected", single ? String(i === chosen) : null);
      set(tab, "tabindex", single && i !== chosen ? "-1" : null);
      set(panel, "role", single ? "tabpanel" : null);
      set(panel, "tabindex", single && i === chosen ? "0" : null);
      set(panel, "aria-labelledby", single ? tab.id : `${panel.id}-title`);
      set(panel, "hidden", single && i !== chosen ? "until-found" : null);
      set(panel, "aria-hidden", single && i !== chosen ? "true" : null); // only its content is hidden until it is found
    });
    const tab = tabs[chosen]; // in view where the bar is wider than a phone
    list.scrollLeft = tab.offsetLeft - (list.clientWidth - tab.offsetWidth) / 2;
  };
  const choose = (i) => {
    chosen = i;
    draw();
    history.replaceState(null, "", `#${panels[i].id}`);
    if (main.getBoundingClientRect().top < 0) main.scrollIntoView();
  };
  const reveal = () => {
    const wanted = document.getElementById(location.hash.slice(1));
    const i = panels.findIndex((panel) => panel.contains(wanted));
    if (i < 0) return;
    chosen = i;
    draw();
    if (wanted !== panels[i]) wanted.scrollIntoView();
  };

  tabs.forEach((tab, i) => {
    tab.id = `${panels[i].id}-tab`;
    tab.addEventListener("click", (event) => {
      chosen = i;
      if (!nav.classList.contains("single") || event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      choose(i);
    });
    tab.addEventListener("keydown", (event) => {
      const last = tabs.length - 1;
      const to = { ArrowRight: i < last ? i + 1 : 0, ArrowLeft: i > 0 ? i - 1 : last, Home: 0, End: last, " ": i }[event.key];
      if (to === undefined || !nav.classList.contains("single")) return;
      event.preventDefault();
      choose(to);
      tabs[to].focus({ preventScroll: true });
    });
    panels[i].addEventListener("beforematch", () => {
      chosen = i;
      draw();
    });
  });
  all.type = "button";
  all.textContent = "Show all";
  all.title = "All sections on one page";
  all.setAttribute("aria-pressed", "false");
  all.addEventListener("click", () => {
    all.setAttribute("aria-pressed", String(nav.classList.contains("single")));
    draw();
    if (nav.classList.contains("single") && main.getBoundingClientRect().top < 0) main.scrollIntoView();
  });
  nav.append(all);
  addEventListener("hashchange", reveal);
  draw();
  reveal();
}

// Sorting: a click on a heading orders its table; rows without a value stay last.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.title = "Sort by this column";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const before = head.getAttribute("aria-sort");
      const down = before ? before === "ascending" : head.dataset.best === "max";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const numeric = head.classList.contains("number");
      const key = (row) => row.cells[column].dataset.key;
      const rows = [...body.rows].sort((a, b) => {
        const [x, y] = [key(a), key(b)];
        if (x === "" || y === "") return (x === "") - (y === "");
        const order = numeric ? Number(x) - Number(y) : x.localeCompare(y, undefined, { numeric: true });
        return down ? -order : order;
      });
      body.append(...rows);
      status.textContent = `Sorted by ${button.textContent || "the row names"}, ${down ? "descending" : "ascending"}.`;
    });
  });
}

// Saving: the drawing as it stands in the page, dark ink on white, as SVG or as PNG of twice its size.
function standalone(svg, scale) {
  const copy = svg.cloneNode(true);
  for (const node of [copy, ...copy.querySelectorAll("*")])
    for (const name of ["style", "fill", "stroke", "color"])
      if (node.hasAttribute(name)) node.setAttribute(name, node.getAttribute(name).replaceAll("currentColor", INK));
  copy.style.color = INK; // of text that names no colour
  if (scale) {
    copy.setAttribute("width", Math.ceil(svg.width.baseVal.value * scale));
    copy.setAttribute("height", Math.ceil(svg.height.baseVal.value * scale));
  }
  return new XMLSerializer().serializeToString(copy);
}

async function painted(svg) {
  const image = new Image();
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(standalone(svg, 2))}`;
  await image.decode();
  const canvas = document.createElement("canvas");
  canvas.width = image.width;
  canvas.height = image.height;
  const context = canvas.getContext("2d");
  context.fillStyle = "#ffffff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(image, 0, 0);
  return new Promise((done) => canvas.toBlob(done, "image/png"));
}

function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

for (const figure of document.querySelectorAll("figure.card")) {
  const links = figure.querySelector(".links");
  const svg = figure.querySelector("svg");
  const kinds = {
    PNG: async () => painted(svg),
    SVG: async () => new Blob([standalone(svg)], { type: "image/svg+xml" }),
  };
  const buttons = Object.entries(kinds).map(([kind, make]) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = kind;
    button.setAttribute("aria-label", `${kind} of figure ${figure.dataset.number}`);
    button.addEventListener("click", () =>
      make().then(
        (blob) => save(blob, `${links.dataset.name}.${kind.toLowerCase()}`),
        () => (status.textContent = `This browser could not make the ${kind}.`),
      ),
    );
    return button;
  });
  links.prepend(...buttons);
}

// What scrolls can be reached by the keyboard; what does not is no stop on its way.
const stops = new ResizeObserver((changes) => {
  for (const { target } of changes)
    if (target.scrollWidth > target.clientWidth + 1 || target.scrollHeight > target.clientHeight + 1) target.tabIndex = 0;
    else target.removeAttribute("tabindex");
});
document.querySelectorAll(".scroll, .canvas").forEach((box) => stops.observe(box));
