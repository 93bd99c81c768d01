// Runs before the first paint, so that nobody who chose the dark theme is shown the light one first.
// Preferences only: the key is never here.
(function () {
  "use strict";
  const root = document.documentElement;
  const stored = (name) => {
    try {
      return localStorage.getItem(`naru.${name}`);
    } catch {
      return null; // storage may be forbidden; then the browser's own settings hold
    }
  };
  const language = stored("language");
  root.lang = language === "ko" || language === "en" ? language : navigator.language.startsWith("ko") ? "ko" : "en";
  const theme = stored("theme");
  if (theme === "light" || theme === "dark") root.dataset.theme = theme;
  const currency = stored("currency");
  root.dataset.currency = currency === "usd" || currency === "krw" ? currency : "krw";
})();
