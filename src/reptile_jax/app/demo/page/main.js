// The tabs, the theme, and what both tabs need.

import { Symbols } from "./symbols.js";
import { Waves } from "./waves.js";

const $ = (id) => document.getElementById(id);

const dark = matchMedia("(prefers-color-scheme: dark)");
let theme = null; // the system's, until the button is pressed
let symbols = null;
let waves = null;

$("theme").addEventListener("click", () => {
  const isDark = theme ? theme === "dark" : dark.matches;
  theme = isDark ? "light" : "dark";
  document.documentElement.dataset.theme = theme;
  symbols?.repaint();
});
dark.addEventListener("change", () => symbols?.repaint());

async function loaded(address) {
  const answer = await fetch(address);
  if (!answer.ok) throw new Error(await answer.text());
  return answer.json();
}

async function omniglot() {
  const file = await loaded("omniglot.json");
  const image = new Image();
  image.src = file.picture;
  await image.decode();
  return { ...file, image };
}

const tabs = [...document.querySelectorAll('[role="tab"]')];
let facts = null;

function open(tab) {
  for (const other of tabs) {
    other.setAttribute("aria-selected", other === tab);
    other.tabIndex = other === tab ? 0 : -1;
    $(other.getAttribute("aria-controls")).hidden = other !== tab;
  }
  if (tab.id === "waves-tab" && facts) waves ??= new Waves(facts.waves);
}

for (const [index, tab] of tabs.entries()) {
  tab.addEventListener("click", () => open(tab));
  tab.addEventListener("keydown", (event) => {
    if (!["ArrowLeft", "ArrowRight"].includes(event.key)) return;
    const other = tabs[(index + 1) % tabs.length];
    open(other);
    other.focus();
  });
}

try {
  let characters;
  [facts, characters] = await Promise.all([loaded("models.json"), omniglot()]);
  $("about").textContent = facts.about;
  symbols = new Symbols(facts.symbols, characters);
  if (!$("waves").hidden) open($("waves-tab"));
} catch (error) {
  $("symbols-status").textContent = `The page did not start: ${error.message}`;
}
