const body = document.querySelector(".all tbody");
const search = document.querySelector(".search input");
const rows = [...body.rows].map((row) => [row, row.textContent.toLowerCase()]);

function find() {
  const wanted = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const [row, text] of rows) {
    row.hidden = !wanted.every((word) => text.includes(word));
    shown += !row.hidden;
  }
  document.querySelector(".search output").textContent = `${shown} of ${rows.length}`;
}

// Numbers by value, where there are any; what has none comes last.
function sortBy(head) {
  const column = head.cellIndex;
  const numeric = rows.some(([row]) => row.cells[column].dataset.v !== undefined);
  const first = numeric && column > 0 ? "descending" : "ascending";
  const other = { ascending: "descending", descending: "ascending" };
  const now = head.getAttribute("aria-sort");
  const order = now === "none" ? first : other[now];
  for (const one of head.parentElement.cells) one.setAttribute("aria-sort", "none");
  head.setAttribute("aria-sort", order);
  const sign = order === "ascending" ? 1 : -1;
  const key = (row) => (numeric ? row.cells[column].dataset.v : row.cells[column].textContent);
  const compare = (a, b) => {
    const [x, y] = [key(a[0]), key(b[0])];
    if (x === "" || y === "") return (x === "") - (y === "");
    return sign * (numeric ? x - y : x.localeCompare(y));
  };
  body.append(...rows.sort(compare).map(([row]) => row));
}

search.addEventListener("input", find);
for (const head of document.querySelectorAll(".all th"))
  head.addEventListener("click", () => sortBy(head));
if (location.hash) search.value = decodeURIComponent(location.hash.slice(1));
find();
