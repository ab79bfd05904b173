// npm's ws, without compression. Run through ws_echo.py, which has the command line of the other servers.
import { WebSocketServer } from "ws";

const [host, port, maxPayload] = process.argv.slice(2);
const server = new WebSocketServer({
  host,
  port: Number(port),
  backlog: 1024,
  maxPayload: Number(maxPayload),
  perMessageDeflate: false,
});
server.on("connection", (socket) => {
  socket.on("error", () => {});
  socket.on("message", (data, isBinary) => socket.send(data, { binary: isBinary }));
});
server.on("listening", () => console.log(`listening ${port}`));
