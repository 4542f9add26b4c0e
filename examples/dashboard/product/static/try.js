// Sends requests with the key in the field. The key stays in that field: it is neither stored nor put
// into a URL.
"use strict";

const field = document.getElementById("key");
const answer = document.getElementById("answer");
const stream = document.getElementById("stream");
document.getElementById("with-script").hidden = false;

function headers() {
  return { Authorization: "Bearer " + field.value.trim() };
}

async function send(method, path) {
  answer.textContent = method + " " + path + " …";
  try {
    const response = await fetch(path, { method, headers: headers() });
    answer.textContent = method + " " + path + "\n" + response.status + " " + response.statusText + "\n" + (await response.text());
  } catch {
    answer.textContent = method + " " + path + "\nThere was no answer.";
  }
}

async function watch() {
  stream.textContent = "GET /v1/events …";
  let events = 0;
  try {
    const response = await fetch("/v1/events", { headers: headers() });
    if (!response.ok) {
      stream.textContent = "GET /v1/events\n" + response.status + " " + response.statusText + "\n" + (await response.text());
      return;
    }
    const reader = response.body.getReader();
    for (;;) {
      const { done } = await reader.read();
      if (done) break;
      events++;
      stream.textContent = "The stream is open. Events so far: " + events + ". Revoke the key now.";
    }
  } catch {
    // The server cut the connection: below it is asked why.
  }
  let reason = "The product cannot be reached.";
  try {
    const again = await fetch("/v1/signatures", { headers: headers() });
    reason = "The same key now gets: " + again.status + " " + again.statusText + ".";
  } catch {
    // The product has ended.
  }
  stream.textContent = "The stream has ended after " + events + " events. " + reason;
}

document.getElementById("read").addEventListener("click", () => send("GET", "/v1/signatures"));
document.getElementById("delete").addEventListener("click", () => send("DELETE", "/v1/signatures/sig-1"));
document.getElementById("watch").addEventListener("click", watch);
