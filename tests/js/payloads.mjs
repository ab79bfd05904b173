// The payloads of test_interop.py, in JavaScript: for Node and, unchanged, for the page of test_browser.py.

const encoder = new TextEncoder();

// A text of `size` bytes that mixes UTF-8 sequences of one to four bytes.
export function textOf(size) {
  return "aé漢😀".repeat(Math.floor(size / 10)) + "x".repeat(size % 10);
}

// No period that divides a power of two, so that a block out of place shows.
export function binaryOf(size) {
  const bytes = new Uint8Array(size);
  for (let at = 0; at < size; at += 1) bytes[at] = at % 251;
  return bytes;
}

export function messages(sizes) {
  return sizes.flatMap((size) => [textOf(size), binaryOf(size)]);
}

// Many small ones first: they share reads, and their answers share writes.
export function pipelinedMessages(sizes) {
  return messages([...Array(300).keys(), ...sizes]);
}

// Cut into single bytes when short, else in seven with an empty piece between: fragments may be empty.
export function pieces(message) {
  const data = typeof message === "string" ? encoder.encode(message) : message;
  const step = data.length <= 127 ? 1 : Math.floor(data.length / 7) + 1;
  const cut = [];
  for (let at = 0; at < data.length; at += step) cut.push(data.subarray(at, at + step));
  return [...cut.slice(0, 2), new Uint8Array(0), ...cut.slice(2)];
}

// `received` is a string or a Uint8Array. Null when it is `sent`, else what is wrong in few words.
export function difference(received, sent) {
  const name = (message) => `${message.length} ${typeof message === "string" ? "characters" : "bytes"}`;
  const same =
    typeof received === typeof sent &&
    received.length === sent.length &&
    (typeof sent === "string" ? received === sent : sent.every((byte, at) => byte === received[at]));
  return same ? null : `${name(sent)} came back as ${name(received)}`;
}
