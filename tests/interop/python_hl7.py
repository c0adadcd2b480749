"""A receiver and a sender from python-hl7.

    receive     prints its port, serves until its standard input ends; refuses what asks for it in MSH-5
    send PORT   sends the messages of a JSON array on its standard input, prints a code and a control ID for each
"""

import asyncio
import json
import sys

import hl7
from hl7.client import MLLPClient
from hl7.mllp import start_hl7_server


async def serve(reader, writer):
    try:
        while True:
            message = await reader.readmessage()
            refused = str(message.segment("MSH")(5)) == "REFUSE"
            writer.writemessage(message.create_ack("AR" if refused else "AA"))
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def receive():
    server = await start_hl7_server(serve, "127.0.0.1", 0, encoding="utf-8", limit=16 * 1024 * 1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    server.close()


def send(port):
    with MLLPClient("127.0.0.1", port) as client:
        for message in json.load(sys.stdin):
            answer = hl7.parse(client.send_message(message).strip(b"\x0b\x1c\r").decode())
            print(answer["MSA"][0][1], answer["MSA"][0][2])


if sys.argv[1] == "receive":
    asyncio.run(receive())
else:
    send(int(sys.argv[2]))
