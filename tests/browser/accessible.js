// What is wrong with this page, as a list of sentences.
const wrong = [];
const check = (is, what) => { if (!is) wrong.push(what); };
check(document.documentElement.lang, 'the page names no language');
check(document.title.trim(), 'the page has no title');
check(document.querySelectorAll('h1').length === 1, 'there is not one h1');
check(document.querySelectorAll('main').length === 1, 'there is not one main');
check(document.documentElement.scrollWidth <= innerWidth, 'the page is wider than the window');
for (const it of document.querySelectorAll('a, button, input:not([type=hidden])')) {
  const name = it.textContent.trim() || (it.labels && it.labels.length && it.labels[0].textContent.trim());
  check(name, `${it.outerHTML} has no name`);
  check(it.getBoundingClientRect().height >= 40, `${name} is too low for a finger`);
}
// WCAG 2.2, 1.4.3: contrast of text to what is behind it.
const channels = (color) => color.match(/[\d.]+/g).map(Number);
const luminance = (color) => channels(color).slice(0, 3)
  .map((c) => c / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
  .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
const behind = (it) => {
  for (; it; it = it.parentElement) {
    const color = getComputedStyle(it).backgroundColor;
    if ((channels(color)[3] ?? 1) === 1) return color;
  }
  return matchMedia('(prefers-color-scheme: dark)').matches ? 'rgb(18, 18, 18)' : 'rgb(255, 255, 255)';
};
for (const it of document.querySelectorAll('body *')) {
  const says = [...it.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  if (!says || !it.getClientRects().length) continue;
  const both = [luminance(getComputedStyle(it).color), luminance(behind(it))].sort((a, b) => b - a);
  const contrast = (both[0] + 0.05) / (both[1] + 0.05);
  check(contrast >= 4.5, `${it.textContent.trim()} has a contrast of ${contrast.toFixed(1)}`);
}
return wrong;
