"""A receiver from python-hl7: prints its port, serves until its standard input ends.

It refuses messages that ask for it in MSH-5, and accepts the others.
"""

import asyncio
import sys

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


async def main():
    server = await start_hl7_server(serve, "127.0.0.1", 0, encoding="utf-8", limit=16 * 1024 * 1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    server.close()


asyncio.run(main())
