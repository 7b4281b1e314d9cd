// Turning pages, countdowns, and a window for the speaker. Nothing is fetched.
// From a cut, "?without=steps 2, 3; 8–9 package": those slides, agenda and breaks are left out.
const asked = new URLSearchParams(location.search).get('without'), without = new Set();
for (const item of (asked || '').split('; ')) {
  const some = item.match(/^(step|exercise)s? (\d+(?:, \d+)*)$/);
  for (const name of some ? some[2].split(', ').map(n => `${some[1]} ${n}`) : [item]) {
    if (name) without.add(name);
  }
}
if (asked !== null) without.add('agenda').add('break');
const slides = [...document.querySelectorAll('section')].filter(slide => {
  const out = without.has(slide.dataset.part) || without.has(slide.dataset.row);
  slide.closest('.unit').hidden = out;
  return !out;
});
const clocks = new Map([...document.querySelectorAll('.clock')].map(
  button => [button, {left: 60 * button.dataset.minutes, since: null}]));
const begun = Date.now();
let now = 0, speaker = null;

function show(next) {
  slides[now].classList.remove('now');
  now = Math.max(0, Math.min(slides.length - 1, next));
  slides[now].classList.add('now');
  history.replaceState(null, '', '#' + (now + 1));
  speak();
}

function fit() {
  const scale = Math.min(innerWidth / 1280, innerHeight / 720);
  document.body.style.setProperty('--fit', scale);
}

function seconds(clock) {
  return clock.left - (clock.since === null ? 0 : (Date.now() - clock.since) / 1000);
}

function written(left) {
  const whole = Math.abs(Math.ceil(left));
  const text = Math.floor(whole / 60) + ':' + String(whole % 60).padStart(2, '0');
  return left < 0 && whole ? '−' + text : text;  // below zero it counts on
}

function toggle(button) {
  const clock = clocks.get(button);
  clock.left = seconds(clock);
  clock.since = clock.since === null ? Date.now() : null;
  tick();
}

function tick() {
  for (const [button, clock] of clocks) {
    const left = seconds(clock);
    button.textContent = written(left);
    button.classList.toggle('running', clock.since !== null);
    button.classList.toggle('over', left < 0);
  }
  if (speaker && !speaker.closed) {
    const part = speaker.document;
    part.getElementById('time').textContent = written((Date.now() - begun) / 1000);
    const button = slides[now].querySelector('.clock');
    part.getElementById('left').textContent = button ? '⏱ ' + button.textContent : '';
  }
}

const SPEAKER = `<title>Notes</title><style>
  body { font: 20px/1.45 sans-serif; margin: 24px; max-width: 900px; }
  header { display: flex; justify-content: space-between; font-size: 26px; gap: 24px; }
  pre, code { font-family: monospace; } #next { color: #555; } table { border-collapse: collapse; }
  td, th { padding: 2px 12px; border-bottom: 1px solid #ccc; }
</style><header><b id="where"></b><span id="left"></span><span id="time"></span></header>
<p id="span"></p><div id="notes"></div><hr><p id="next"></p>`;

function openSpeaker() {
  speaker = open('', 'speaker', 'width=960,height=720');
  if (!speaker) return;  // the browser blocks windows
  speaker.document.body.innerHTML = SPEAKER;
  speaker.document.title = 'Notes';
  speaker.onkeydown = pressed;
  speak();
}

function heading(slide) {
  return slide ? slide.querySelector('h1, h2').innerText.replace(/\s+/g, ' ') : 'the end';
}

function speak() {
  if (!speaker || speaker.closed) return;
  const part = speaker.document, slide = slides[now];
  part.getElementById('where').textContent = `${now + 1} / ${slides.length} · ${heading(slide)}`;
  part.getElementById('span').textContent = slide.dataset.span || '';
  part.getElementById('notes').innerHTML = document.getElementById(slide.id.replace('slide', 'notes')).innerHTML;
  part.getElementById('next').textContent = 'Next: ' + heading(slides[now + 1]);
  tick();
}

function pressed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const key = event.key, button = slides[now].querySelector('.clock');
  if (['ArrowRight', 'ArrowDown', 'PageDown', ' ', 'Enter'].includes(key)) show(now + 1);
  else if (['ArrowLeft', 'ArrowUp', 'PageUp', 'Backspace'].includes(key)) show(now - 1);
  else if (key === 'Home') show(0);
  else if (key === 'End') show(slides.length - 1);
  else if (key === 'c' && button) toggle(button);
  else if (key === 's') openSpeaker();
  else return;
  event.preventDefault();
}

addEventListener('keydown', pressed);
addEventListener('resize', fit);
addEventListener('hashchange', () => show((parseInt(location.hash.slice(1)) || 1) - 1));
addEventListener('click', event => {
  const button = event.target.closest('.clock');
  if (button) toggle(button);
  else if (!event.target.closest('a')) show(now + 1);
});
fit();
show((parseInt(location.hash.slice(1)) || 1) - 1);
setInterval(tick, 200);
tick();
