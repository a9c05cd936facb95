// The colours that the reader chose, before anything is painted; no module, as those run later.
try {
  document.documentElement.dataset.theme = localStorage.getItem("edge.theme") ?? "auto";
} catch {
  document.documentElement.dataset.theme = "auto"; // storage is forbidden
}
