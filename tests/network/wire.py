"""A wire that loses, delays, overtakes, repeats and takes its time: a tun device whose packets come back with their addresses exchanged,
so that what is sent to 10.99.0.2 arrives from there at 10.99.0.1.

    wire.py DELAY JITTER LOSS REPEAT RATE MTU

DELAY and JITTER in milliseconds, LOSS and REPEAT as parts of all packets, RATE in bytes a second (0 for any). Says `ready`, and works
until its standard input ends.
"""

import fcntl
import heapq
import os
import random
import select
import struct
import subprocess
import sys
import time

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000

delay, jitter, loss, repeat, rate, mtu = (float(argument) for argument in sys.argv[1:])
random.seed(20260101)
device = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH", b"wire", IFF_TUN | IFF_NO_PI))
for command in (f"link set wire mtu {mtu:.0f} up", "addr add 10.99.0.1/24 dev wire"):
    subprocess.run(["ip", *command.split()], check=True)
print("ready", flush=True)

waiting = []
free_at = 0.0
while True:
    timeout = max(0, waiting[0][0] - time.monotonic()) if waiting else None
    ready, _, _ = select.select([device, sys.stdin], [], [], timeout)
    if sys.stdin in ready:
        break
    now = time.monotonic()
    if device in ready:
        packet = os.read(device, 65536)
        if packet[0] >> 4 == 4:
            # The checksums stay right: they are sums.
            packet = packet[:12] + packet[16:20] + packet[12:16] + packet[20:]
            for _ in range((random.random() >= loss) + (random.random() < repeat)):
                free_at = max(free_at, now) + (len(packet) / rate if rate else 0)
                due = free_at + (delay + random.random() * jitter) / 1000
                heapq.heappush(waiting, (due, random.random(), packet))
    while waiting and waiting[0][0] <= now:
        os.write(device, heapq.heappop(waiting)[2])
