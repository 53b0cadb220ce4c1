// The page: who is signed in, which view is shown, the theme.

import { ask } from "./api.js";
import { h, note, put } from "./dom.js";
import { loginView } from "./login.js";
import { modelsView } from "./models.js";
import { forgetOthers, readingHelp } from "./reading.js";
import { scanHelp, scanView } from "./scan.js";
import { sitesView } from "./sites.js";
import { ROLES, wordsOf } from "./words.js";
import { worklistView } from "./worklist.js";

const VIEWS = {
  scan: ["Scan", scanView, scanHelp],
  worklist: ["Worklist", worklistView, readingHelp],
  sites: ["Sites", sitesView, scanHelp],
  models: ["Models", modelsView, scanHelp],
};

const main = document.getElementById("main");
let session = null;
let models = [];
let leave = () => {};

function dark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : !matchMedia("(prefers-color-scheme: light)").matches;
}

function themeButton() {
  const button = h("button", { class: "quiet", type: "button" });
  const tell = () => {
    put(button, dark() ? "☀" : "☾");
    button.setAttribute("aria-label", dark() ? "Light theme" : "Dark theme");
    button.title = button.getAttribute("aria-label");
  };
  button.addEventListener("click", () => {
    const theme = dark() ? "light" : "dark";
    document.documentElement.dataset.theme = theme;
    localStorage.setItem("theme", theme);
    tell();
  });
  tell();
  return button;
}

function shownView() {
  const asked = location.hash.slice(1);
  if (asked in VIEWS) return asked;
  return session?.role === "annotator" ? "worklist" : "scan";
}

function bar() {
  const shown = shownView();
  put(document.getElementById("tabs"), session?.role && Object.entries(VIEWS).map(([name, [title]]) =>
    h("a", { href: `#${name}`, "aria-current": name === shown ? "page" : null }, title)));
  const who = session?.role && !session.open && h("small", { class: "soft who" }, session.name, session.name !== session.role && `, ${ROLES[session.role]}`);
  put(document.getElementById("who"), who,
    session?.role && h("button", { class: "quiet", type: "button", title: "Keys (?)", "aria-label": "Keys", onclick: () => VIEWS[shownView()][2]() }, "?"),
    themeButton(),
    session?.expires_at && h("button", { class: "quiet", type: "button", onclick: signOut }, "Sign out"));
}

async function signOut() {
  await leave(); // while it may still give back what is being read
  leave = () => {};
  try {
    session = await ask("DELETE", "/v1/session");
    await begin();
  } catch (problem) {
    note(wordsOf(problem), { bad: true });
  }
}

function show() {
  leave();
  bar();
  if (!session?.role) {
    leave = loginView(main, async (opened) => { session = opened; await begin(); });
    return;
  }
  const [title, view] = VIEWS[shownView()];
  document.title = `${title} – Overread`;
  leave = view(main, { models, session, mayScan: session.role !== "annotator", mayCompare: session.role !== "device" });
}

async function begin() {
  try {
    session ??= await ask("GET", "/v1/session");
    if (session.role) forgetOthers(session.name);
    models = session.role ? (await ask("GET", "/v1/models")).models : [];
  } catch (problem) {
    put(main, h("div", { class: "plain" }, h("h1", {}, "Overread"), h("p", {}, wordsOf(problem)),
      h("button", { onclick: () => location.reload() }, "Try again")));
    return;
  }
  show();
}

window.addEventListener("hashchange", () => { show(); main.focus({ preventScroll: true }); });
window.addEventListener("signed-out", () => {
  if (!session?.role) return;
  session = { ...session, role: null };
  note(wordsOf({ code: "session_expired" }), { bad: true });
  show();
});
window.addEventListener("keydown", (event) => {
  if (event.key === "?" && session?.role && !event.target.closest("input, textarea, select") && !document.querySelector("dialog[open]")) VIEWS[shownView()][2]();
});
begin();
