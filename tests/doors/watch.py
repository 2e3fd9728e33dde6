"""Run a command in an empty network namespace, as root of it, and tell as JSON what it listened on, which names it looked up, and
which addresses it sent to.

    unshare --net --mount python watch.py OUT COMMAND ...

The namespace has loopback, and on it a name server, ours, that writes down what it is asked and knows nothing. As on most
machines, the host's own name stands for an address that is not loopback's. Whatever is sent anywhere else is read here, by the
other end of the one device that leads out, and answered by nobody.
"""

import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ANSWER_FLAGS = b"\x81\x83"
"""An answer that says: there is no such name."""
LISTENING = "0A"
OWN_ADDRESS = "10.9.9.9"
TUN, TUNSETIFF, IFF_TUN, IFF_NO_PI = "/dev/net/tun", 0x400454CA, 0x0001, 0x1000
"""A device whose other end is a file: <linux/if_tun.h>."""
WAY_OUT = "out0"


def questioned(packet: bytes) -> str:
    """Return the name that a DNS query asks for."""
    labels, place = [], 12
    while packet[place]:
        labels.append(packet[place + 1 : place + 1 + packet[place]].decode(errors="replace"))
        place += 1 + packet[place]
    return ".".join(labels)


def serve_names(server: socket.socket, asked: list[str]) -> None:
    while True:
        packet, client = server.recvfrom(4096)
        asked.append(questioned(packet))
        server.sendto(packet[:2] + ANSWER_FLAGS + packet[4:], client)


def open_way_out() -> int:
    """Make the device that all addresses but loopback's lead to, and return its other end."""
    tun = os.open(TUN, os.O_RDWR)
    fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH", WAY_OUT.encode(), IFF_TUN | IFF_NO_PI))
    subprocess.run(["ip", "address", "add", "10.200.0.1/24", "dev", WAY_OUT], check=True)
    subprocess.run(["ip", "link", "set", WAY_OUT, "up"], check=True)
    subprocess.run(["ip", "route", "add", "default", "dev", WAY_OUT], check=True)
    subprocess.run(["ip", "-6", "route", "add", "default", "dev", WAY_OUT], check=False)
    return tun


def read_packets(tun: int, reached: set[str]) -> None:
    """Write down where packets go, but for what the kernel itself says to its neighbours (multicast)."""
    while True:
        packet = os.read(tun, 65536)
        version = packet[0] >> 4
        place = packet[16:20] if version == 4 else packet[24:40]
        if place[0] not in (0xFF, *range(224, 240)):
            reached.add(socket.inet_ntop(socket.AF_INET if version == 4 else socket.AF_INET6, place))


def listening() -> set[str]:
    """Return the addresses that anything in this namespace listens on, as the kernel writes them."""
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTENING:
                found.add(address(fields[1].partition(":")[0]))
    return found


def address(text: str) -> str:
    data = b"".join(bytes.fromhex(text[place : place + 8])[::-1] for place in range(0, len(text), 8))
    return socket.inet_ntop(socket.AF_INET if len(data) == 4 else socket.AF_INET6, data).removeprefix("::ffff:")


def put_over(path: str, text: str) -> None:
    """Let a file of the system say something else, in this namespace."""
    with tempfile.NamedTemporaryFile("w") as file:
        file.write(text)
        file.flush()
        Path(file.name).chmod(0o644)
        subprocess.run(["mount", "--bind", file.name, str(Path(path).resolve())], check=True)


def main() -> None:
    out, *command = sys.argv[1:]
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    subprocess.run(["ip", "address", "add", f"{OWN_ADDRESS}/32", "dev", "lo"], check=True)
    put_over("/etc/resolv.conf", "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
    put_over("/etc/hosts", f"127.0.0.1 localhost\n::1 localhost\n{OWN_ADDRESS} {socket.gethostname()}\n")
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("127.0.0.1", 53))
    asked, reached = list[str](), set[str]()
    threading.Thread(target=read_packets, args=(open_way_out(), reached), daemon=True).start()
    threading.Thread(target=serve_names, args=(server, asked), daemon=True).start()
    process, open_doors = subprocess.Popen(command), set[str]()
    while process.poll() is None:
        open_doors |= listening()
        time.sleep(0.05)
    found = {"exit": process.returncode, "listening": sorted(open_doors), "asked": sorted(set(asked)), "reached": sorted(reached)}
    Path(out).write_text(json.dumps(found))


main()
