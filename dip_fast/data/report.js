"use strict";
document.documentElement.classList.add("js");

for (const box of document.querySelectorAll(".compare")) {
  const part = (name) => box.querySelector(name);
  const stage = part(".stage"), at = part(".at"), handle = part(".handle");
  const show = (side) => {
    const source = document.getElementById(part(`.choose-${side}`).value);
    const target = part(`.${side}`);
    for (const name of ["src", "alt", "width", "height"]) target.setAttribute(name, source.getAttribute(name));
  };
  const move = () => {
    stage.style.setProperty("--at", `${at.value}%`);
    handle.classList.toggle("end", at.value === "0" || at.value === "100");
  };
  for (const side of ["left", "right"]) {
    part(`.choose-${side}`).addEventListener("change", () => show(side));
    show(side);
  }
  at.addEventListener("input", move);
  move();
  const drag = (event) => {
    if (!(event.buttons & 1)) return;
    const place = stage.getBoundingClientRect();
    at.value = Math.round(100 * (event.clientX - place.left) / place.width);
    move();
    event.preventDefault();
  };
  stage.addEventListener("pointerdown", (event) => { stage.setPointerCapture(event.pointerId); drag(event); });
  stage.addEventListener("pointermove", drag);
  const marks = part(".marks[type=checkbox]");
  if (marks) marks.addEventListener("change", () => stage.classList.toggle("marks", marks.checked));
}

for (const scrub of document.querySelectorAll(".scrub")) {
  const figures = [...document.querySelectorAll(".iterates figure")];
  const lines = [...document.querySelectorAll("#history svg")];
  const show = (moved) => {
    const step = figures[scrub.value].dataset.step;
    figures.forEach((figure, index) => figure.classList.toggle("current", index === Number(scrub.value)));
    scrub.previousElementSibling.textContent = step;
    scrub.setAttribute("aria-valuetext", `step ${step}`);
    for (const svg of moved ? lines : []) {
      const first = Number(svg.dataset.first), last = Number(svg.dataset.last);
      const x = 600 * (step - first) / Math.max(1, last - first), now = svg.querySelector(".now");
      now.setAttribute("x1", x);
      now.setAttribute("x2", x);
      now.setAttribute("visibility", x < 0 || x > 600 ? "hidden" : "visible");
    }
  };
  scrub.addEventListener("input", () => show(true));
  show(false);
}

for (const table of document.querySelectorAll(".sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  const value = (row, column) => {
    const cell = row.cells[column];
    return "value" in cell.dataset ? Number(cell.dataset.value) : cell.textContent;
  };
  const order = (a, b) => {
    if (typeof a === typeof b) return typeof a === "number" ? a - b : a.localeCompare(b, undefined, { numeric: true });
    return typeof a === "number" ? -1 : 1;
  };
  heads.forEach((head, column) => {
    if (!("sort" in head.dataset)) return;
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...body.rows].sort((a, b) => order(value(a, column), value(b, column)));
      body.replaceChildren(...(down ? rows.reverse() : rows));
    });
  });
}
