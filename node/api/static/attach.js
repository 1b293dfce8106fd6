// Files that go along with a question: chosen, named, and turned into content parts.

import { byId, say } from "./dom.js";
import { plural } from "./format.js";

const DATA = { csv: "text/csv", json: "application/json" };
const USED = { "ocr+labels": "read and described", native: "seen by the model", table: "summed up", json: "quoted" };

export function setUpAttach() {
  byId("attach").addEventListener("change", () => say("attached", names(byId("attach").files)));
}

function names(files) {
  return files.length > 2 ? plural(files.length, "file") : [...files].map((file) => file.name).join(", ");
}

/** A message's content: the files first, then the question; just the question if there are none. */
export async function contentWith(question) {
  const parts = await Promise.all([...byId("attach").files].map(part));
  return parts.length ? [...parts, { type: "text", text: question }] : question;
}

export function clearAttached() {
  byId("attach").value = "";
  say("attached", "");
}

/** How the peer used what came along, for the line below the answer; empty if nothing did. */
export function usedNote(attachments) {
  return (attachments ?? []).map((row) => `${row.name || row.kind} ${USED[row.how] ?? row.how}`).join(", ");
}

async function part(file) {
  const url = await dataUrl(file);
  if (file.type.startsWith("image/")) return { type: "image_url", image_url: { url } };
  const type = DATA[file.name.split(".").pop().toLowerCase()] ?? file.type;
  return { type: "file", file: { filename: file.name, file_data: url.replace(/^data:[^,]*,/, `data:${type};base64,`) } };
}

function dataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error(`${file.name} cannot be read`));
    reader.readAsDataURL(file);
  });
}
