// A receiver from node-hl7-server and a sender from node-hl7-client.
//
//     receive [KEY CERTIFICATE]   prints its port, serves until its standard input ends; refuses what asks for it in MSH-5
//     send PORT                   sends the messages of a JSON array on its standard input, prints a code and a control ID for each

const { readFileSync } = require("node:fs");
const from = require("node:module").createRequire(`${process.env.MLLP_INTEROP_NODE}/`);

function receive(key, cert) {
  const { Server } = from("node-hl7-server");
  const tls = key && { tls: { key: readFileSync(key), cert: readFileSync(cert) } };
  const inbound = new Server({ bindAddress: "127.0.0.1", ...tls }).createInbound({ port: 0 }, async (request, response) => {
    const refused = request.getMessage().get("MSH.5").toString() === "REFUSE";
    await response.sendResponse(refused ? "AR" : "AA");
  });
  inbound.on("listen", () => console.log(inbound._socket.address().port));
  process.stdin.on("end", () => process.exit()).resume();
}

async function send(port) {
  const { Client, Message } = from("node-hl7-client");
  let answered;
  const client = new Client({ host: "127.0.0.1" });
  const outbound = client.createConnection({ port: Number(port), autoConnect: true }, async (response) => answered(response.getMessage()));
  for (const text of JSON.parse(readFileSync(0, "utf8"))) {
    const answer = new Promise((resolve) => (answered = resolve));
    await outbound.sendMessage(new Message({ text }));
    const message = await answer;
    console.log(`${message.get("MSA.1").toString()} ${message.get("MSA.2").toString()}`);
  }
  await outbound.close();
  process.exit();
}

({ receive, send })[process.argv[2]](...process.argv.slice(3));
