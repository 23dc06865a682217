// Draws each dashboard into a picture: node shoot.mjs DATA_DIRECTORY OUTPUT_DIRECTORY CHROMIUM.

import { cp, readdir } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { fileURLToPath } from 'node:url';

import { chromium } from 'playwright-core';
import { build, preview } from 'vite';

const [data, output, program] = process.argv.slice(2);
// Without a sandbox, which root cannot have: the page is our own, and there is no other.
const FLAGS = ['--no-sandbox', '--disable-gpu', '--disable-background-networking', '--disable-component-update', '--disable-sync'];
// How long bars take to grow, and lines to be drawn.
const DRAWING = 2000;

async function draw(context, name, origin) {
  const page = await context.newPage();
  const complaints = [];
  page.on('pageerror', (error) => complaints.push(error.stack ?? error.message));
  page.on('console', (line) => line.type() === 'error' && complaints.push(line.text()));
  await page.goto(`${origin}/?dashboard=${name}`);
  await page.waitForSelector('section', { timeout: 30000 }).catch((error) => complaints.push(error.message));
  await page.waitForTimeout(DRAWING);
  if (complaints.length) {
    throw new Error(`${name}: ${complaints.join('; ')}`);
  }
  await page.locator('#page > div').screenshot({ path: join(output, `${name}.png`) });
  await page.close();
}

const scrollbars = fileURLToPath(new URL('scrollbars.js', import.meta.url));
await build({
  logLevel: 'error',
  resolve: { alias: [{ find: /^react-custom-scrollbars-2$/, replacement: scrollbars }] },
  build: { target: 'esnext', chunkSizeWarningLimit: 1e5 },
});
await cp(data, 'dist/data', { recursive: true });
const server = await preview({ preview: { host: '127.0.0.1', port: 0 } });
const browser = await chromium.launch({ executablePath: program, args: FLAGS });
const context = await browser.newContext({ viewport: { width: 1900, height: 1000 } });
for (const file of (await readdir(data)).filter((name) => name.endsWith('.json'))) {
  await draw(context, basename(file, '.json'), `http://127.0.0.1:${server.httpServer.address().port}`);
}
await browser.close();
await new Promise((closed) => server.httpServer.close(closed));
process.exit(0);
