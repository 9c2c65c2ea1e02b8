// Sets the theme before the page is drawn, so that it does not flash. Loaded as a classic script.
{
  const chosen = localStorage.getItem("tunery.theme");
  if (chosen) document.documentElement.dataset.theme = chosen;
}
