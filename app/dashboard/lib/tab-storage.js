// What a tab keeps over a reload, such as drafts and conversations. It is that of one project.

const PROJECT = "tunery.project";

/** Forgets what another project has left in this tab. */
export function openStorage(session) {
  const project = session.project?.id ?? "";
  if (sessionStorage.getItem(PROJECT) === project) return;
  sessionStorage.clear();
  sessionStorage.setItem(PROJECT, project);
}

/** Forgets everything once the page is left, with what the page saves until then. */
export function clearStorageOnLeaving() {
  addEventListener("pagehide", () => sessionStorage.clear());
}
