// How a reader wants plots: smoothing, a logarithmic axis, clipping. Kept over reloads.

import { html, live } from "../html.js";

const KEY = "tunery.plots";
const DEFAULTS = { smoothing: 0.8, isLog: false, isClipped: false };

export function loadSettings() {
  try {
    return { ...DEFAULTS, ...JSON.parse(localStorage.getItem(KEY)) };
  } catch {
    return { ...DEFAULTS }; // what another release has stored
  }
}

export function saveSettings(settings) {
  localStorage.setItem(KEY, JSON.stringify(settings));
}

/** @param {(changed: object) => void} onChange called with the settings that have changed */
export function settingsBar(settings, onChange) {
  return html`
    <label class="slider">
      <span>Smoothing <output>${settings.smoothing.toFixed(2)}</output></span>
      <input
        type="range"
        min="0"
        max="0.99"
        step="0.01"
        .value=${live(String(settings.smoothing))}
        @input=${(event) => onChange({ smoothing: Number(event.target.value) })}
      />
    </label>
    ${check("Logarithmic", settings.isLog, (isLog) => onChange({ isLog }))}
    ${check("Clip outliers", settings.isClipped, (isClipped) => onChange({ isClipped }))}
  `;
}

function check(label, isChecked, onChange) {
  return html`<label class="check">
    <input
      type="checkbox"
      .checked=${live(isChecked)}
      @change=${(event) => onChange(event.target.checked)}
    />
    ${label}
  </label>`;
}
