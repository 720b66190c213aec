// Words for people: sizes, times, and names that come from strangers. Pure functions; the units and forms are
// those of the command line.

const UNITS = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
const AGES = [[31536000, "year"], [2592000, "month"], [604800, "week"], [86400, "day"], [3600, "hour"], [60, "minute"]];
const COUNTS = new Intl.NumberFormat("en-US");

/** Bytes as "98.4 MB", decimal; "–" where they are not known. */
export function size(bytes) {
  if (bytes === null || bytes === undefined) return "–";
  let value = bytes, unit = 0;
  while (value >= (unit ? 999.95 : 1000) && unit < UNITS.length - 1) { value /= 1000; unit += 1; }
  return unit ? `${value.toFixed(1)} ${UNITS[unit]}` : `${value} B`;
}

/** Bytes per second as "20.1 MB/s", or nothing. */
export const rate = (bytes) => (bytes === null || bytes === undefined ? "" : `${size(bytes)}/s`);

/** A count with its thousands apart. */
export const count = (value) => (value === null || value === undefined ? "–" : COUNTS.format(value));

/** A number of parameters as "135M" or "8.03B". */
export function parameters(value) {
  if (value === null || value === undefined) return "–";
  let scale = 0;
  while (value >= 999.5 && scale < 4) { value /= 1000; scale += 1; }
  return `${Number(value.toPrecision(3))}${["", "K", "M", "B", "T"][scale]}`;
}

/** Seconds as "0:03" or "1:02:03". */
export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "";
  const whole = Math.max(0, Math.round(seconds));
  const two = (number) => String(number).padStart(2, "0");
  const minutes = Math.floor(whole / 60) % 60, hours = Math.floor(whole / 3600);
  return hours ? `${hours}:${two(minutes)}:${two(whole % 60)}` : `${minutes}:${two(whole % 60)}`;
}

/** A time as "3 days ago"; "never" where there is none. */
export function ago(time, now = Date.now()) {
  if (!time) return "never";
  const past = (now - Date.parse(time)) / 1000;
  for (const [length, name] of AGES) {
    const number = Math.floor(past / length);
    if (number >= 1) return `${number} ${name}${number > 1 ? "s" : ""} ago`;
  }
  return "just now";
}

/** Seconds from now until a time; null where there is none. */
export const until = (time, now = Date.now()) => (time ? Math.max(0, (Date.parse(time) - now) / 1000) : null);

/** A time to the second, as the reader's clock shows it. */
export const moment = (time) => (time ? new Date(time).toLocaleString() : "–");

/** A share of a whole in percent; null where the whole is not known. */
export const percent = (part, whole) => (whole ? Math.min(100, Math.floor((100 * part) / whole)) : null);

// Control characters, what sets the direction of text (Unicode's annex 9), and what cannot be seen.
const HIDDEN = /[\p{Cc}\p{Cf}\p{Co}\p{Cs}\p{Zl}\p{Zp}]/gu;

/** A text with its invisible characters written out: a name shows what it is made of. */
export const shown = (text) => String(text ?? "").replace(HIDDEN, escaped);

// The same, where lines and tabs, and joiners of letters and emoji, are part of what is said.
const TURNING = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069]/g;

/** A longer text with what could turn its lines round written out. */
export const prose = (text) => String(text ?? "").replace(TURNING, escaped);

function escaped(char) {
  const code = char.codePointAt(0);
  if (char === "\n") return "\\n";
  if (char === "\r") return "\\r";
  if (char === "\t") return "\\t";
  const digits = code.toString(16);
  if (code < 0x100) return `\\x${digits.padStart(2, "0")}`;
  return code < 0x10000 ? `\\u${digits.padStart(4, "0")}` : `\\U${digits.padStart(8, "0")}`;
}

/** An address that may be a link: another scheme than http and https is only text. */
export function link(address) {
  try {
    return ["http:", "https:"].includes(new URL(address).protocol) ? address : null;
  } catch {
    return null;
  }
}
