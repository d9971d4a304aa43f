"use strict";
(() => {
  const PER_PAGE = 25;
  const find = (id) => document.getElementById(id);
  const table = find("cases"), viewer = find("viewer");
  const cases = [...table.tBodies];
  let shown = cases, page = 0, opened = null;

  const number = (element, key) => Number(element.dataset[key]);
  const rowOf = (entry, structure) => entry.querySelector(`tr[data-structure="${structure}"]`);

  // The value to sort by: of the chosen structure, or of the worst one. The smallest comes first.
  function value(entry, key, structure) {
    if (key === "estimate" && structure === "") return number(entry, "estimate");
    const rows = structure === "" ? [...entry.rows] : [rowOf(entry, structure)];
    const numbers = rows.map((row) => number(row, key));
    return key === "estimate" || key === "volume" ? Math.min(...numbers) : -Math.max(...numbers);
  }

  function draw() {
    const pages = Math.max(1, Math.ceil(shown.length / PER_PAGE));
    page = Math.min(Math.max(page, 0), pages - 1);
    const here = new Set(shown.slice(page * PER_PAGE, (page + 1) * PER_PAGE));
    const found = new Set(shown);
    for (const entry of cases) {
      entry.classList.toggle("elsewhere", !here.has(entry));
      entry.classList.toggle("filtered", !found.has(entry));
    }
    find("count").textContent = `${shown.length} of ${cases.length} cases`;
    find("page").textContent = `page ${page + 1} of ${pages}`;
    find("earlier").disabled = page === 0;
    find("later").disabled = page === pages - 1;
  }

  function update() {
    const text = find("text").value.trim().toLowerCase(), structure = find("structure").value, key = find("sort").value;
    shown = cases.filter((entry) => `${entry.dataset.name} ${entry.dataset.words}`.toLowerCase().includes(text));
    const byName = (a, b) => a.dataset.name.localeCompare(b.dataset.name, undefined, { numeric: true });
    shown.sort((a, b) => (key === "name" ? 0 : value(a, key, structure) - value(b, key, structure)) || byName(a, b));
    table.append(...shown);
    if (structure === "") delete document.body.dataset.structure;
    else document.body.dataset.structure = structure;
    for (const row of table.querySelectorAll("tr[data-structure]"))
      row.classList.toggle("other", structure !== "" && row.dataset.structure !== structure);
    for (const path of document.querySelectorAll("svg path")) dim(path);
    page = 0;
    draw();
  }

  function dim(path) {
    const structure = document.body.dataset.structure;
    path.classList.toggle("other", structure !== undefined && !path.classList.contains(`s${structure}`));
  }

  function open(entry) {
    const planes = find(entry.dataset.planes);
    if (!planes) return;
    opened = entry;
    find("viewed").textContent = entry.querySelector("th").textContent;
    find("why").textContent = entry.dataset.words || "";
    find("view").replaceChildren(planes.content.cloneNode(true));
    find("view").querySelectorAll("path").forEach(dim);
    viewer.classList.toggle("no-truth", entry.dataset.planes.startsWith("unlabeled"));
    if (!viewer.open) viewer.showModal();
  }

  function step(by) {
    const list = opened.tagName === "TBODY" ? shown : [...opened.parentElement.rows];
    const next = list[list.indexOf(opened) + by];
    if (next) open(next);
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button.open");
    if (button) open(button.closest("[data-planes]"));
  });
  viewer.addEventListener("keydown", (event) => {
    if (event.key === "ArrowRight") step(1);
    if (event.key === "ArrowLeft") step(-1);
  });
  for (const box of viewer.querySelectorAll("input[data-layer]")) {
    const apply = () => viewer.classList.toggle(`without-${box.dataset.layer}`, !box.checked);
    box.addEventListener("change", apply);
    apply();
  }
  find("previous").addEventListener("click", () => step(-1));
  find("following").addEventListener("click", () => step(1));
  find("earlier").addEventListener("click", () => { page -= 1; draw(); });
  find("later").addEventListener("click", () => { page += 1; draw(); });
  find("filters").addEventListener("submit", (event) => event.preventDefault());
  find("filters").addEventListener("input", update);
  document.body.classList.add("ready");
  update();
})();
