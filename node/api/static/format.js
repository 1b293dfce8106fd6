// Numbers and identifiers as people read them. Every function passes null on: no data stays no data.

const known = (value) => value !== null && value !== undefined;

export const number = (value, digits = 0) =>
  known(value) ? Number(value).toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits }) : null;

/** Parts per million as 0 to 1. */
export const ppm = (value, digits = 3) => (known(value) ? (value / 1e6).toFixed(digits) : null);

export const percent = (part, whole) => (whole ? `${Math.round((100 * part) / whole)} %` : null);

export function bytes(value) {
  if (!known(value)) return null;
  const units = ["B", "kB", "MB", "GB", "TB"];
  let index = 0;
  let size = value;
  while (size >= 1000 && index < units.length - 1) { size /= 1000; index += 1; }
  return `${index ? size.toFixed(1) : size} ${units[index]}`;
}

export function duration(seconds) {
  if (!known(seconds)) return null;
  const s = Math.floor(seconds);
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

export const clock = (ms) => (known(ms) ? new Date(ms).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false }) : null);

/** Both ends of a long identifier. */
export const short = (text, head = 8, tail = 6) =>
  known(text) ? (text.length > head + tail + 1 ? `${text.slice(0, head)}…${text.slice(-tail)}` : text) : null;

export const plural = (count, one, many = `${one}s`) => `${number(count)} ${count === 1 ? one : many}`;

/** `peer_log_size` → `Peer log size`. */
export const words = (name) => {
  const text = name.replaceAll("_", " ");
  return text.charAt(0).toUpperCase() + text.slice(1);
};
