// Server-sent events by fetch: EventSource cannot send a token.

import { request } from "./api.js";

const FIRST_PAUSE_MS = 1000, LONGEST_PAUSE_MS = 15000;
const SILENCE_MS = 45000; // the daemon sends a heartbeat every 15 s

// Listen for ever; `onEvent(kind, data)` for each event, `onState(connected)` when the stream opens or breaks.
export async function listen(onEvent, onState) {
  let pause = FIRST_PAUSE_MS;
  for (;;) {
    try {
      await readStream(onEvent, () => {
        pause = FIRST_PAUSE_MS;
        onState(true);
      });
    } catch { /* the connection broke: tried again below */ }
    onState(false);
    await new Promise((resolve) => setTimeout(resolve, pause));
    pause = Math.min(2 * pause, LONGEST_PAUSE_MS);
  }
}

async function readStream(onEvent, opened) {
  const abort = new AbortController();
  const response = await request("api/v1/events", { signal: abort.signal });
  if (!response.ok) throw new Error(`status ${response.status}`);
  opened();
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const timer = setTimeout(() => abort.abort(), SILENCE_MS);
    const { done, value } = await reader.read();
    clearTimeout(timer);
    if (done) return;
    const parts = (text + value).split("\n\n");
    text = parts.pop();
    parts.forEach((part) => dispatch(part, onEvent));
  }
}

function dispatch(part, onEvent) {
  const fields = Object.fromEntries(part.split("\n").map((line) => [line.split(": ", 1)[0], line.slice(line.indexOf(": ") + 2)]));
  if (fields.event && fields.data) onEvent(fields.event, JSON.parse(fields.data));
}
