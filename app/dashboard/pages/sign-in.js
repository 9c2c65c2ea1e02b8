// Exchanges an API key for the session cookie.

import { post } from "../lib/api.js";
import { html, nothing, render } from "../lib/html.js";
import { problemNote } from "../lib/problems.js";

const PAGES = ["", "job", "new", "compare", "sweep", "try", "files", "models", "service"];

const main = document.querySelector("main");

let isBusy = false;
let problem = null;

main.removeAttribute("aria-busy");
draw();
main.querySelector("input")?.focus();

function draw() {
  render(view(), main);
}

function view() {
  return html`<section class="card sign-in">
    <h1>Sign in to Tunery</h1>
    ${isSecureContext ? form() : needsSecureContext()}
  </section>`;
}

function form() {
  return html`<form class="stack" @submit=${signIn}>
      <label>
        API key
        <input
          name="key"
          type="password"
          autocomplete="off"
          spellcheck="false"
          required
          aria-invalid=${problem ? "true" : nothing}
          aria-describedby="key-hint"
        />
      </label>
      ${problemNote(problem)}
      <button class="primary" ?disabled=${isBusy}>${isBusy ? "Signing in…" : "Sign in"}</button>
    </form>
    <div id="key-hint" class="hint">
      <p>The operator of the service creates keys, on its machine:</p>
      <pre>tunery keys create</pre>
      <p>
        A key is shown once, when it is created. The browser keeps it in a cookie that scripts
        cannot read, until you sign out.
      </p>
    </div>`;
}

function needsSecureContext() {
  const port = location.port || "80";
  const tunnel = `ssh -L ${port}:127.0.0.1:${port} ${location.hostname}`;
  return html`<p class="problem" role="alert">
      This address is not encrypted, and browsers keep no session for it.
    </p>
    <p>Open the dashboard through a tunnel instead. On your machine, run</p>
    <pre>${tunnel}</pre>
    <p>
      and open <a href="http://127.0.0.1:${port}/">http://127.0.0.1:${port}/</a>. For everyday use,
      put the service behind HTTPS.
    </p>`;
}

async function signIn(event) {
  event.preventDefault();
  const field = event.target.elements.key;
  isBusy = true;
  problem = null;
  draw();
  try {
    await post("session", { key: field.value.trim() });
    location.replace(destination());
  } catch (error) {
    problem = error.message;
    isBusy = false;
    draw();
    field.select();
  }
}

/** The page that was asked for, if it is one of the dashboard. */
function destination() {
  const home = new URL(".", location.href);
  try {
    const next = new URL(new URLSearchParams(location.search).get("next") ?? "", home);
    const isPage = PAGES.some((page) => next.pathname === home.pathname + page);
    if (isPage && next.origin === home.origin) return next.href;
  } catch {
    // It is not an address.
  }
  return home.href;
}
