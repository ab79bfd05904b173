// node interop.mjs <url> <whole|fragmented|pipelined> <sizes as JSON>: one conversation of test_interop.py, held by
// `ws`. Prints {"messages": how many were echoed, "wrong": [what was not]} as JSON.

import WebSocket from "ws";
import { difference, messages, pieces, pipelinedMessages } from "./payloads.mjs";

const [url, conversation, sizesJson] = process.argv.slice(2);
const sizes = JSON.parse(sizesJson);

const socket = new WebSocket(url);
const received = [];
let wake = () => {};
socket.on("message", (data, isBinary) => {
  received.push(isBinary ? data : data.toString());
  wake();
});
socket.on("close", (code) => {
  if (code !== 1000) throw new Error(`closed with ${code}`);
});

async function receive() {
  while (received.length === 0) await new Promise((resolve) => (wake = resolve));
  return received.shift();
}

function sendPieces(message) {
  const binary = typeof message !== "string";
  const cut = pieces(message);
  cut.forEach((piece, index) => socket.send(piece, { binary, fin: index === cut.length - 1 }));
}

const report = { messages: 0, wrong: [] };

async function expect(sent) {
  const wrong = difference(await receive(), sent);
  report.messages += 1;
  if (wrong !== null) report.wrong.push(wrong);
}

await new Promise((resolve, reject) => socket.once("open", resolve).once("error", reject));
if (conversation === "pipelined") {
  const all = pipelinedMessages(sizes);
  all.forEach((message) => socket.send(message));
  for (const message of all) await expect(message);
} else {
  for (const message of messages(sizes)) {
    if (conversation === "fragmented") sendPieces(message);
    else socket.send(message);
    await expect(message);
  }
}
socket.close(1000);
await new Promise((resolve) => socket.once("close", resolve));
console.log(JSON.stringify(report));
