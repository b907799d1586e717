"use strict";
// The reader of answers: filters all of them, and draws only the rows in view. Their words are set as text, never as HTML.
(() => {
  const HEIGHT = 95, MOST = 150000, SHOWN = 500;  // px of a row; rows (a page higher than 16 million px is cut off); characters
  const byId = (id) => document.getElementById(id);
  const source = byId("answers");
  if (!source) return;
  const { points, beside, questions, rows } = JSON.parse(source.textContent);
  const lower = rows.map((row) => row[4].toLowerCase());
  const list = byId("list"), space = byId("space"), whole = byId("whole"), form = byId("filters");
  const field = (name) => form.elements.namedItem(name);

  const add = (parent, tag, text, kind) => {
    const made = parent.appendChild(document.createElement(tag));
    made.textContent = text;
    if (kind) made.className = kind;
    if (kind === "text") made.dir = "auto";
    return made;
  };
  const fill = (name, names) => names.forEach((text, value) => { add(field(name), "option", text).value = value; });
  const names = [...new Set(questions.map((question) => question[2]))];
  const nameOf = questions.map((question) => names.indexOf(question[2]));
  fill("point", points);
  fill("beside", points);
  fill("question", names);
  for (const kind of new Set(questions.map((question) => question[1]))) add(field("format"), "option", kind).value = kind;
  field("beside").value = beside;

  // The nth answer of one point to a question stands beside the nth of another.
  const groups = new Map(), nth = new Uint32Array(rows.length);
  rows.forEach((row, at) => {
    const key = row[0] * questions.length + row[1];
    if (!groups.has(key)) groups.set(key, []);
    nth[at] = groups.get(key).push(at) - 1;
  });
  const other = (at) => (groups.get(Number(field("beside").value) * questions.length + rows[at][1]) || [])[nth[at]];
  const score = (value) => value === null ? "none" : Math.round(10 * value) / 10;
  const scores = (row) => row[3] === null ? "not judged" : `aligned ${score(row[2])}, coherent ${score(row[3])}`;

  let found = [];
  const filter = () => {
    const point = field("point").value, question = field("question").value, kind = field("format").value;
    const words = field("words").value.toLowerCase();
    const bounds = ["aligned", "coherent"].map((name) => [`${name}-from`, `${name}-to`].map((end) => field(end).value));
    const within = (value, [from, to]) =>
      from === "" && to === "" || value !== null && (from === "" || value >= from) && (to === "" || value <= to);
    found = [];
    rows.forEach((row, at) => {
      if (point !== "" && row[0] !== Number(point)) return;
      if (question !== "" && nameOf[row[1]] !== Number(question)) return;
      if (kind !== "" && questions[row[1]][1] !== kind) return;
      if (!within(row[2], bounds[0]) || !within(row[3], bounds[1])) return;
      if (words === "" || lower[at].includes(words)) found.push(at);
    });
    const cut = found.length > MOST ? `; the first ${MOST.toLocaleString("en")} are listed, narrow the filter` : "";
    byId("count").textContent = `${found.length.toLocaleString("en")} of ${rows.length.toLocaleString("en")} answers${cut}`;
    found.length = Math.min(found.length, MOST);
    space.style.height = `${HEIGHT * found.length}px`;
    list.scrollTop = 0;
    draw();
  };

  const cells = (parent, at, short) => {
    const row = rows[at], facing = other(at), clip = (text) => short ? text.slice(0, SHOWN) : text;
    const about = add(parent, "div", "");
    add(about, "div", points[row[0]], "text");
    add(about, "div", questions[row[1]][0], "text");
    add(about, "div", scores(row));
    if (!short) add(about, "div", questions[row[1]][3], "text");
    add(parent, "div", clip(row[4]), "text");
    const right = add(parent, "div", facing === undefined ? "" : clip(rows[facing][4]), "text");
    if (!short && facing !== undefined) add(about, "div", `beside: ${points[rows[facing][0]]}, ${scores(rows[facing])}`, "text");
    if (facing === undefined) right.textContent = "(no such answer)";
  };
  const open = (at) => {
    whole.replaceChildren();
    cells(whole, at, false);
    whole.hidden = false;
  };
  const draw = () => {
    const first = Math.max(0, Math.floor(list.scrollTop / HEIGHT) - 2);
    const last = Math.min(found.length, Math.ceil((list.scrollTop + list.clientHeight) / HEIGHT) + 2);
    const drawn = document.createDocumentFragment();
    for (let place = first; place < last; place++) {
      const row = add(drawn, "div", "", "row");
      row.style.top = `${place * HEIGHT}px`;
      row.tabIndex = 0;
      row.setAttribute("role", "button");
      cells(row, found[place], true);
      row.onclick = () => open(found[place]);
      row.onkeydown = (event) => { if (event.key === "Enter") open(found[place]); };
    }
    space.replaceChildren(drawn);
  };
  list.addEventListener("scroll", draw);
  addEventListener("resize", draw);
  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  filter();
})();
