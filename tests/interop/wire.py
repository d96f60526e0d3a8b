# SPDX-License-Identifier: MIT
"""What two ends say to each other, kept: a program in between that passes all of it on.

    with Wire(folder, "in", to="unix:...") as wire:
        source.migrate(wire.uri)
    wire.read()         # .stream, .channels, .count
"""
import collections
import mmap
import os
import socket
import struct
import threading

from qemu import TIMEOUT
from stream import ANSWERS, PACKET_MAGIC, Channel, Stream, answers

CHUNK = 256 << 10
ACK = next(code for code, name in ANSWERS.items() if name == "ack")


def connected(uri):
    kind, rest = uri.split(":", 1)
    if kind == "unix":
        s = socket.socket(socket.AF_UNIX)
        s.connect(rest)
        return s
    host, port = rest.rsplit(":", 1)
    return socket.create_connection((host.strip("[]"), int(port)))


class Wire:
    """.uri is where it listens: on TCP if `tcp`, else a unix socket."""

    def __init__(self, folder, name, to, *, tcp=False):
        self.path, self.to = os.path.join(folder, name), to
        if tcp:
            self.listener = socket.create_server(("127.0.0.1", 0))
            self.uri = f"tcp:127.0.0.1:{self.listener.getsockname()[1]}"
        else:
            self.listener = socket.socket(socket.AF_UNIX)
            self.listener.bind(self.path + ".wire")
            self.listener.listen(32)
            self.uri = f"unix:{self.path}.wire"
        self.sockets, self.pumps = [], []
        self.connections = 0
        self.back = []  # what came back, by connection
        self.ack_passes = True  # else a SWITCHOVER_ACK stays here until pass_ack()
        self.ack_came = threading.Event()
        self.held, self.sending = [], threading.Lock()
        self.stream, self.channels, self.count = None, [], collections.Counter()
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, failed, *_):
        if not failed:
            self._end_of_pumps()
        self.listener.close()
        for s in self.sockets:
            try:
                s.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        for pump in self.pumps:
            pump.join(TIMEOUT)
        for s in self.sockets:
            s.close()

    def _accept(self):
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            try:
                far = connected(self.to)
            except OSError:  # nobody is there any more
                near.close()
                continue
            self.sockets += [near, far]
            said = bytearray()
            self.back.append(said)
            kept = open(f"{self.path}.{self.connections}", "wb", buffering=0)
            self.connections += 1
            for pump in (threading.Thread(target=self._forth, args=(near, far, kept), daemon=True),
                         threading.Thread(target=self._back, args=(far, near, said), daemon=True)):
                self.pumps.append(pump)
                pump.start()

    @staticmethod
    def _end(receives, sends):
        """Who sent hears that nobody takes more, who received that nothing more comes."""
        for s, how in (receives, socket.SHUT_RD), (sends, socket.SHUT_WR):
            try:
                s.shutdown(how)
            except OSError:
                pass

    def _forth(self, near, far, kept):
        buffer = memoryview(bytearray(CHUNK))
        with kept:
            try:
                while n := near.recv_into(buffer):
                    kept.write(buffer[:n])
                    far.sendall(buffer[:n])
            except OSError:
                pass
            self._end(near, far)

    def _back(self, far, near, said):
        at = 0
        try:
            while part := far.recv(CHUNK):
                said += part
                while n := self._whole(said, at):
                    self._answer(near, bytes(said[at:at + n]))
                    at += n
        except OSError:
            pass
        self._end(far, near)

    @staticmethod
    def _whole(said, at):
        """Bytes of the message there; 0: not yet all."""
        if len(said) - at < 4:
            return 0
        n = 4 + struct.unpack(">H", said[at + 2:at + 4])[0]
        return n if len(said) - at >= n else 0

    def _answer(self, near, message):
        is_ack = struct.unpack(">H", message[:2])[0] == ACK
        with self.sending:
            if is_ack and not self.ack_passes:
                self.held.append((near, message))
            else:
                near.sendall(message)
        if is_ack:
            self.ack_came.set()

    def pass_ack(self):
        with self.sending:
            self.ack_passes = True
            for near, message in self.held:
                near.sendall(message)

    def _end_of_pumps(self):
        for pump in list(self.pumps):
            pump.join(TIMEOUT)
            assert not pump.is_alive(), "an end has not closed its connection"

    def read(self, compressed=False):
        """All of it, when both ends have finished."""
        self._end_of_pumps()
        for i in range(self.connections):
            with open(f"{self.path}.{i}", "rb") as f:
                data = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
            if struct.unpack(">I", data[:4])[0] == PACKET_MAGIC:
                self.channels.append(Channel(data, compressed))
                self.count += self.channels[-1].count
            else:
                assert not self.stream, "two streams"
                self.stream = Stream(data)
                self.count += self.stream.count
            self.count += answers(bytes(self.back[i]))
        assert self.stream, "no stream"
