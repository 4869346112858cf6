// Looks at a running node's dashboard in a headless Chromium, and fails on
// whatever a person would notice: errors, requests that leave this machine,
// sections that stay empty, a page wider than a phone, keys that do nothing.
//
// A test does so wherever there are npm and a browser (tests/it/dashboard.rs). By hand:
//
//     npm install --no-save playwright-core     (anywhere; and NODE_PATH or a link to it)
//     node dashboard/check.mjs http://127.0.0.1:8000 [FOLDER FOR SCREENSHOTS]
//
// CASCADE says that a cascade was asked, GATHERED how many degraded answers came
// in a row for one reason, row after row ("3,1"). TOKEN is signed in with, where the node wants to know who looks (https, of
// the site's own authority).
// CHROMIUM names the browser; /usr/bin/chromium without it.

import { createRequire } from "node:module";
import { join } from "node:path";

const { chromium } = createRequire(join(process.cwd(), "here.js"))("playwright-core");
const [, , address, folder] = process.argv;
const token = process.env.TOKEN;
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: ["--no-sandbox", "--disable-background-networking"],
});
const wrong = [];

/** As a person would: a wrong token first, then the right one, by keys alone. */
async function signIn(page, expect, name) {
  await page.waitForSelector("#sign-in:not([hidden])", { timeout: 15_000 });
  expect(await page.locator("main").isHidden(), "something is shown before anybody signed in");
  const type = async (text) => {
    await page.locator("#token").focus();
    await page.keyboard.type(text);
    await page.keyboard.press("Enter");
  };
  await type("tla1.nonsense");
  await page.waitForFunction(() => document.getElementById("sign-in-why").textContent !== "", null, { timeout: 15_000 });
  if (folder) await page.screenshot({ path: `${folder}/${name}-sign-in.png`, fullPage: true });
  await type(token);
  await page.waitForSelector("#state.good", { timeout: 15_000 });
  expect(!page.url().includes(token), "the token is in the address");
  expect(await page.evaluate(() => localStorage.length + document.cookie.length) === 0, "the token outlives the tab");
}

for (const [name, scheme, width, height] of [["light", "light", 1280, 900], ["dark", "dark", 1280, 900], ["phone", "light", 375, 800]]) {
  const page = await browser.newPage({ ignoreHTTPSErrors: true, colorScheme: scheme, viewport: { width, height } });
  const expect = (holds, what) => { if (!holds) wrong.push(`${name}: ${what}`); };
  await page.route("**", (route) => {
    const to = new URL(route.request().url());
    if (["127.0.0.1", "localhost", "[::1]"].includes(to.hostname)) return route.continue();
    wrong.push(`${name}: asked for ${to}`);
    return route.abort();
  });
  // Refusals of the door are told there, too.
  const isRefusal = (text) => token && /status of 40[13]/.test(text);
  page.on("console", (said) => { if (!isRefusal(said.text()) && ["error", "warning"].includes(said.type())) wrong.push(`${name}: ${said.text()}`); });
  page.on("pageerror", (error) => wrong.push(`${name}: ${error}`));
  await page.goto(`${address}/`);
  if (token) await signIn(page, expect, name);
  await page.waitForSelector("#state.good", { timeout: 15_000 });
  // A cascade has rates where it was asked.
  const cascade = process.env.CASCADE ? ["services tbody tr", "rates svg"] : [];
  for (const id of ["map svg", "tiles dd", "nodes tbody tr", "waterfall svg", "sweep svg", "events li", ...cascade]) {
    expect(await page.locator(`#${id}`).count() > 0, `#${id} is empty`);
  }
  for (const drawn of await page.locator("svg[role=img]").all()) {
    expect((await drawn.getAttribute("aria-label"))?.length > 0, "a drawing without words");
  }
  const [inner, outer] = await page.evaluate(() => [document.documentElement.scrollWidth, innerWidth]);
  expect(inner <= outer, `${inner} pixels wide on a screen of ${outer}`);
  // By keys alone: every control is reached, and the slider moves the plan.
  const reached = new Set();
  for (let i = 0; i < 20; i += 1) {
    await page.keyboard.press("Tab");
    reached.add(await page.evaluate(() => document.activeElement.id || document.activeElement.tagName));
  }
  const gathered = process.env.GATHERED;
  if (gathered) {
    const lines = await page.locator("#events li.degraded").allTextContents();
    const counts = lines.map((line) => Number(/\((\d+) times since/.exec(line)?.[1] ?? 1)).join(",");
    expect(counts === gathered, `degraded answers come as ${counts} instead of ${gathered}: ${lines.join(" | ")}`);
  }
  for (const control of ["model", "speed", "events", "SUMMARY", "A"]) expect(reached.has(control), `Tab never reaches ${control}`);
  const before = await page.locator("#speed-label").textContent();
  await page.locator("#speed").focus();
  await page.keyboard.press("Home");
  expect(await page.locator("#speed-label").textContent() !== before, "the slider moves nothing");
  if (folder) await page.screenshot({ path: `${folder}/${name}.png`, fullPage: true });
  await page.close();
}
await browser.close();
wrong.forEach((what) => console.error(what));
console.log(wrong.length === 0 ? "the page is well" : `${wrong.length} faults`);
process.exit(wrong.length === 0 ? 0 : 1);
