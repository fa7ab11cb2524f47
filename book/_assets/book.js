// A formula or a block that is wider than its frame scrolls; the keyboard must reach it.
(function () {
  function reach() {
    document.querySelectorAll("mjx-container[display], .math, main pre, .cell_output .output, .pst-scrollable-table-container").forEach(function (frame) {
      if (frame.scrollWidth > frame.clientWidth + 1) frame.setAttribute("tabindex", "0");
    });
  }
  window.addEventListener("load", function () {
    const startup = window.MathJax && MathJax.startup && MathJax.startup.promise;
    Promise.resolve(startup).then(reach);
  });
  window.addEventListener("resize", reach);
})();

// Paper is white: the dark theme is put aside while a page is printed.
(function () {
  const root = document.documentElement;
  let theme;
  window.addEventListener("beforeprint", function () { theme = root.dataset.theme; root.dataset.theme = "light"; });
  window.addEventListener("afterprint", function () { root.dataset.theme = theme; });
})();
