// What the list of jobs shows. The address of the page has it, so that it survives a reload.

import { STATUS_LABELS } from "../../lib/status.js";

/**
 * @typedef {object} Filters
 * @property {string[]} statuses
 * @property {string} model id of the base model
 * @property {string} search
 * @property {[string, string][]} labels keys and values
 * @property {string} after id of the job after which the page of the list begins
 */

/** @returns {Filters} */
export function readFilters(address) {
  const query = new URLSearchParams(address);
  const asked = (query.get("status") ?? "").split(",");
  return {
    statuses: Object.keys(STATUS_LABELS).filter((status) => asked.includes(status)),
    model: query.get("model") ?? "",
    search: query.get("search") ?? "",
    labels: query.getAll("label").map(parseLabel).filter(Boolean),
    after: query.get("after") ?? "",
  };
}

/** The address of the page with these filters. */
export function addressOf({ statuses, model, search, labels, after }) {
  const query = new URLSearchParams();
  if (statuses.length) query.set("status", statuses.join(","));
  if (model) query.set("model", model);
  if (search) query.set("search", search);
  for (const [key, value] of labels) query.append("label", `${key}=${value}`);
  if (after) query.set("after", after);
  return query.size ? `?${query}` : location.pathname;
}

/** The query of `GET /v1/fine_tuning/jobs`. */
export function queryOf({ statuses, model, search, labels, after }) {
  const byLabel = labels.map(([key, value]) => [`metadata[${key}]`, value]);
  return {
    status: statuses.join(","),
    base_model: model,
    search,
    after,
    ...Object.fromEntries(byLabel),
  };
}

export function isFiltered({ statuses, model, search, labels }) {
  return Boolean(statuses.length || model || search || labels.length);
}

/** Whether a job that has changed belongs to the list. The search is the API's, in short. */
export function matches(job, { statuses, model, search, labels }) {
  const metadata = job.metadata ?? {};
  const texts = [
    job.id,
    job.fine_tuned_model,
    job.user_provided_suffix,
    ...Object.values(metadata),
  ];
  const wanted = search.toLowerCase();
  return (
    (!statuses.length || statuses.includes(job.status)) &&
    (!model || job.model === model) &&
    (!wanted || texts.some((text) => text?.toLowerCase().includes(wanted))) &&
    labels.every(([key, value]) => metadata[key] === value)
  );
}

/** The key and the value in `key=value`, or null. */
export function parseLabel(text) {
  const end = text.indexOf("=");
  return end > 0 ? [text.slice(0, end).trim(), text.slice(end + 1).trim()] : null;
}
