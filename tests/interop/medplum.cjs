// A receiver and a sender from @medplum/hl7.
//
//     receive     prints its port, serves until its standard input ends; refuses what asks for it in MSH-5
//     send PORT   sends the messages of a JSON array on its standard input, prints a code and a control ID for each

const { readFileSync } = require("node:fs");
const from = require("node:module").createRequire(`${process.env.MLLP_INTEROP_NODE}/`);
const { Hl7Client, Hl7Server } = from("@medplum/hl7");

function receive() {
  const server = new Hl7Server((connection) => {
    connection.addEventListener("message", ({ message }) => {
      const refused = message.getSegment("MSH").getField(5).toString() === "REFUSE";
      connection.send(message.buildAck({ ackCode: refused ? "AR" : "AA" }));
    });
  });
  server.start(0);
  server.server.on("listening", () => console.log(server.server.address().port));
  process.stdin.on("end", () => process.exit()).resume();
}

async function send(port) {
  const { Hl7Message } = from("@medplum/core");
  const client = new Hl7Client({ host: "127.0.0.1", port: Number(port) });
  for (const text of JSON.parse(readFileSync(0, "utf8"))) {
    const answer = await client.sendAndWait(Hl7Message.parse(text));
    const field = (number) => answer.getSegment("MSA").getField(number).toString();
    console.log(`${field(1)} ${field(2)}`);
  }
  await client.close();
}

({ receive, send })[process.argv[2]](...process.argv.slice(3));
