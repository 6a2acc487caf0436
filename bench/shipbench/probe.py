# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The probes of calibration: one process at each end, datagrams and streams between them, and a line of JSON.

Run as ``python -m shipbench.probe serve ADDRESS PORT`` at the source's end and ``... ask ADDRESS PORT RATE COUNT FULL``
at the store's. RATE is the link's (bit/s, 0: none), COUNT how many datagrams shall show the losses; FULL (0 or 1) says
whether TCP is measured too.
"""

from __future__ import annotations

import json
import socket
import statistics
import struct
import sys
import threading
import time
from typing import Any

from shipbench.links import ETHERNET

ECHOES = 40
#: A request may be lost as well.
ATTEMPTS = 3
#: The stream that counts losses: datagrams of this size at this rate (1/s).
SPARSE_SIZE, SPARSE_RATE = 64, 15_000
#: The flood that measures the rate: datagrams of this size for this long (s), this much above the rate.
FLOOD_SIZE, FLOOD_SECONDS, FLOOD_EXCESS = 1400, 1.0, 1.15
HEADERS = 28 + ETHERNET
TCP_WARM, TCP_SECONDS = 2.0, 3.0
_UDP_SEGMENT = 103
_SO_RCVBUFFORCE = 33
_BUFFER = 64 << 20


class _Closed(Exception):
    """The other end is gone."""


def serve(address: str, port: int) -> None:
    """Answer echoes, send streams when asked to, and write into every TCP connection until it is closed."""
    listener = socket.create_server((address, port), backlog=64)
    threading.Thread(target=_accept, args=(listener,), daemon=True).start()
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.bind((address, port))
    print("ready", flush=True)
    while True:
        message, peer = datagrams.recvfrom(2048)
        kind, count, rate, segments = struct.unpack(">IIII", message[:16])
        if kind == 0:
            datagrams.sendto(message, peer)
        else:
            _stream(datagrams, peer, size=kind, count=count, rate=rate, segments=segments)


def _stream(datagrams: socket.socket, peer: Any, *, size: int, count: int, rate: int, segments: int) -> None:
    """Send ``count`` datagrams of ``size`` bytes, ``rate`` a second, ``segments`` of them in one call."""
    datagrams.setsockopt(socket.IPPROTO_UDP, _UDP_SEGMENT, size if segments > 1 else 0)
    started = time.monotonic()
    block = bytes(size * segments)
    sent = 0
    while sent < count:
        batch = min(segments, count - sent)
        datagrams.sendto(block[: size * batch], peer)
        sent += batch
        early = started + sent / rate - time.monotonic()
        if early > 0.001:
            time.sleep(early)
    datagrams.setsockopt(socket.IPPROTO_UDP, _UDP_SEGMENT, 0)


def _accept(listener: socket.socket) -> None:
    while True:
        connection, _peer = listener.accept()
        threading.Thread(target=_write, args=(connection,), daemon=True).start()


def _write(connection: socket.socket) -> None:
    block = bytes(1 << 20)
    try:
        while True:
            connection.sendall(block)
    except OSError:
        connection.close()


def ask(address: str, port: int, rate: int, count: int, full: bool) -> dict[str, Any]:
    """Measure from the store's end."""
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
    datagrams.connect((address, port))
    result: dict[str, Any] = {"rtt": _round_trip(datagrams)}
    received, _seconds = _receive(datagrams, SPARSE_SIZE, count, SPARSE_RATE, 1)
    result.update(sent=count, lost=count - received)
    if rate:
        pace = int(rate * FLOOD_EXCESS / 8 / (FLOOD_SIZE + HEADERS))
        received, seconds = _receive(datagrams, FLOOD_SIZE, int(pace * FLOOD_SECONDS), pace, 40)
        result["rate"] = (received - 1) * (FLOOD_SIZE + HEADERS) * 8 / seconds
    if full:
        for streams in (1, 8):
            result[f"tcp_{streams}"], result["congestion"] = _tcp(address, port, streams)
    return result


def _round_trip(datagrams: socket.socket) -> float:
    """Median of some echoes (s); lost ones are left out."""
    times = []
    datagrams.settimeout(2.0)
    for number in range(ECHOES):
        started = time.monotonic()
        message = struct.pack(">IIII", 0, number, 0, 0)
        datagrams.send(message)
        try:
            while datagrams.recv(2048) != message:
                pass
        except socket.timeout:
            continue
        times.append(time.monotonic() - started)
    if len(times) < ECHOES // 2:
        raise _Closed
    return statistics.median(times)


def _receive(datagrams: socket.socket, size: int, count: int, rate: int, segments: int) -> tuple[int, float]:
    """Ask for a stream; the datagrams that came, and the time (s) between the first and the last of them."""
    datagrams.settimeout(2.0)
    buffer = bytearray(2048)
    received, first, last = 0, 0.0, 0.0
    for _attempt in range(ATTEMPTS):
        datagrams.send(struct.pack(">IIII", size, count, rate, segments))
        try:
            datagrams.recv_into(buffer)
        except socket.timeout:
            continue
        received, first = 1, time.monotonic()
        break
    while received < count:
        try:
            datagrams.recv_into(buffer)
        except socket.timeout:
            break
        last = time.monotonic()
        received += 1
    if received < 2:
        raise _Closed
    return received, last - first


def _tcp(address: str, port: int, streams: int) -> tuple[float, str]:
    """Bit/s that TCP gets through with so many connections once they are warm, and its congestion control."""
    counts = [0] * streams
    stop = threading.Event()
    connections = [socket.create_connection((address, port), timeout=10.0) for _ in range(streams)]

    def read(number: int) -> None:
        buffer = bytearray(1 << 20)
        while not stop.is_set():
            counts[number] += connections[number].recv_into(buffer)

    threads = [threading.Thread(target=read, args=(number,)) for number in range(streams)]
    for thread in threads:
        thread.start()
    stop.wait(TCP_WARM)
    before, started = sum(counts), time.monotonic()
    stop.wait(TCP_SECONDS)
    rate = (sum(counts) - before) * 8 / (time.monotonic() - started)
    stop.set()
    for thread in threads:
        thread.join()
    name = connections[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0").decode()
    for connection in connections:
        connection.close()
    return rate, name


def main(arguments: list[str]) -> int:
    kind, address, port = arguments[0], arguments[1], int(arguments[2])
    if kind == "serve":
        serve(address, port)
        return 0
    try:
        print(json.dumps(ask(address, port, int(arguments[3]), int(arguments[4]), arguments[5] == "1")))
    except (_Closed, OSError) as error:
        print(f"the link does not carry the probes: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
