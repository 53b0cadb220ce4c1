// Signing in with a token. The browser keeps a cookie that this page cannot read.

import { ask } from "./api.js";
import { h, put } from "./dom.js";
import { setKeys } from "./keys.js";

/** The form. `done` is called with the session once it is open. */
export function loginView(main, done) {
  setKeys({});
  const token = h("input", { type: "password", id: "token", name: "token", autocomplete: "current-password", required: true, spellcheck: "false" });
  const wrong = h("p", { role: "alert", class: "wrong" });
  const button = h("button", { class: "primary big", type: "submit" }, "Sign in");
  const form = h("form", { class: "card login" },
    h("h1", {}, "Sign in"),
    h("p", { class: "soft" }, "With the token that your operator made for you with ", h("code", {}, "overread token"), "."),
    h("label", { class: "field", for: "token" }, "Token", token), wrong, button);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    button.disabled = true;
    put(wrong, "");
    try {
      done(await ask("POST", "/v1/session", { json: { token: token.value.trim() } }));
    } catch (problem) {
      put(wrong, problem.code === "unauthenticated" ? "This token is not known here." : problem.message);
      button.disabled = false;
      token.select();
    }
  });
  put(main, form);
  token.focus();
  return () => {};
}
