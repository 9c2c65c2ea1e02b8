// Templates. Text that is bound into them is always text, never HTML.
//
// The content security policy forbids `style` attributes: bind `.value` of a <progress>, a class or
// a `hidden` attribute instead.
export { html, nothing, render, svg } from "../vendor/lit-html/lit-html.js";
export { live } from "../vendor/lit-html/directives/live.js";
export { repeat } from "../vendor/lit-html/directives/repeat.js";
