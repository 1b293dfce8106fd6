// Keys: the page asks for one only where the peer does, keeps it nowhere, and goes on with a strict same-site cookie.

import { byId, say } from "./dom.js";

let session = { may_read: true, may_administer: false, csrf: null };

export const mayAdminister = () => session.may_administer;

/** Headers of the page's own POSTs. */
export const postHeaders = () => ({ "Content-Type": "application/json", ...(session.csrf ? { "X-NSLLM-CSRF": session.csrf } : {}) });

export async function readSession() {
  const answer = await fetch("/session");
  session = await answer.json();
  return session;
}

/** What an error answer says. */
export async function errorText(answer) {
  try {
    return (await answer.json()).error.message;
  } catch {
    return `the peer answered with status ${answer.status}`;
  }
}

/** Ask for a key until it fits. Resolves to true once it does, to false if the person gives up. */
export function unlock(note, headers) {
  const dialog = byId("key-dialog");
  say("key-note", note);
  say("key-error", "");
  byId("key").value = "";
  dialog.showModal();
  return new Promise((resolve) => {
    byId("key-cancel").onclick = () => dialog.close();
    dialog.onclose = () => resolve(false);
    byId("key-form").onsubmit = async (event) => {
      event.preventDefault();
      const answer = await fetch("/session", {
        method: "POST",
        headers: { "Content-Type": "application/json", ...headers(byId("key").value) },
        body: "{}",
      });
      if (!answer.ok) {
        say("key-error", answer.status === 401 ? "That is not the key." : await errorText(answer));
        return;
      }
      session = await answer.json();
      dialog.onclose = null;
      dialog.close();
      resolve(true);
    };
  });
}

// Header values are ASCII; anything else cannot be a key of ours.
const ascii = (key) => key.replace(/[^\x20-\x7e]/g, "?").trim();

export const unlockReading = () =>
  unlock("This peer listens beyond its own machine and asks for its API key.", (key) => ({ Authorization: `Bearer ${ascii(key)}` }));

export const unlockAdmin = () =>
  unlock("Inviting needs the admin key. It is in the peer’s data folder, in keys/admin.key.", (key) => ({ "X-NSLLM-Admin-Key": ascii(key) }));
