// What every page has: navigation, the theme, who is signed in, and messages about what was done.

import { get, remove } from "./api.js";
import { html, nothing, render } from "./html.js";
import { clearStorageOnLeaving, openStorage } from "./tab-storage.js";

const PAGES = [
  { name: "jobs", title: "Jobs", href: "." },
  { name: "new", title: "New job", href: "new" },
  { name: "sweep", title: "Sweeps", href: "sweep" },
  { name: "compare", title: "Compare", href: "compare" },
  { name: "try", title: "Try", href: "try", scope: "sample" },
  { name: "files", title: "Files", href: "files" },
  { name: "models", title: "Models", href: "models" },
  { name: "service", title: "Service", href: "service", scope: "admin" },
];

const MESSAGE_MS = 6000;

/**
 * Draws the frame of a page.
 *
 * Goes to the sign-in page if the service wants a key and the browser has none.
 *
 * @param {string} current name of the page
 * @returns {Promise<{session: object, main: HTMLElement}>} who is signed in, and the element to
 *   draw in; it does not resolve if the page is left
 */
export async function openPage(current) {
  const main = document.querySelector("main");
  const session = await findSession(main);
  openStorage(session);
  render(frame(current, session), document.querySelector("header"));
  main.removeAttribute("aria-busy");
  return { session, main };
}

export function can(session, scope) {
  return session.scopes.includes(scope);
}

/** Tell the user that something was done or has failed. Screen readers say it too. */
export function tell(text, kind = "info") {
  const place = document.querySelector("#messages");
  const message = document.createElement("p");
  message.className = `message ${kind}`;
  message.textContent = text;
  place.append(message);
  setTimeout(() => message.remove(), MESSAGE_MS);
}

/**
 * Ask before something that cannot be undone.
 *
 * @returns {Promise<boolean>} whether the user agreed
 */
export function confirm(question, verb) {
  const dialog = document.createElement("dialog");
  dialog.setAttribute("aria-label", question);
  render(
    html`<form method="dialog">
      <p>${question}</p>
      <menu>
        <button value="no" autofocus>Go back</button>
        <button value="yes" class="danger">${verb}</button>
      </menu>
    </form>`,
    dialog,
  );
  document.body.append(dialog);
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue === "yes");
    });
  });
}

async function findSession(main) {
  try {
    return await get("session");
  } catch (error) {
    if (error.status === 401) {
      const here = location.pathname.split("/").pop() + location.search;
      location.replace(`sign-in?next=${encodeURIComponent(here)}`);
      return new Promise(() => {}); // the page is left
    }
    main.removeAttribute("aria-busy");
    render(html`<p class="problem" role="alert">${error.message}</p>`, main);
    throw error;
  }
}

function frame(current, session) {
  const pages = PAGES.filter((page) => !page.scope || can(session, page.scope));
  return html`
    <a class="brand" href=".">Tunery</a>
    <nav aria-label="Pages">
      ${pages.map(
        (page) => html`<a href=${page.href} aria-current=${page.name === current ? "page" : nothing}
          >${page.title}</a
        >`,
      )}
    </nav>
    <div class="account">
      ${session.project ? html`<span class="muted">${session.project.name}</span>` : nothing}
      <button class="quiet" @click=${switchTheme} title="Switch between dark and light">
        Theme
      </button>
      ${
        session.is_keyless
          ? nothing
          : html`<button class="quiet" @click=${signOut}>Sign out</button>`
      }
    </div>
  `;
}

function switchTheme() {
  const root = document.documentElement;
  const isDark = root.dataset.theme
    ? root.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = isDark ? "light" : "dark";
  localStorage.setItem("tunery.theme", root.dataset.theme);
  dispatchEvent(new Event("themechange"));
}

async function signOut() {
  await remove("session");
  clearStorageOnLeaving();
  location.assign("sign-in");
}
