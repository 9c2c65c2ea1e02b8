// Where models are asked.

/** Address of the page that asks these models side by side. */
export function tryAddress(...models) {
  return `try?models=${models.map(encodeURIComponent).join(",")}`;
}
