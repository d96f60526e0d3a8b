#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Writes the seeds of multifd/, multifd_scan/, reader/, tail/ and xbzrle/ beside itself: small streams of every
record, made from the layout in docs/wire-format.md. The files are kept; run this to add one."""
import os
import struct
import zlib

HERE = os.path.dirname(os.path.abspath(__file__))


def be64(v):
    return struct.pack(">Q", v)


def str8(s):
    return bytes([len(s)]) + s.encode()


CONFIG = b"QEVM" + struct.pack(">I", 3) + b"\x07" + struct.pack(">I", 4) + b"test"
START = b"\x01" + struct.pack(">I", 2) + str8("ram") + struct.pack(">II", 0, 4)
EOS = be64(0x10) + b"\x7e" + struct.pack(">I", 2)
PART = b"\x02" + struct.pack(">I", 2)
END = b"\x03" + struct.pack(">I", 2)
LIST = be64(0x18004) + str8("a") + be64(0x10000) + str8("bb") + be64(0x8000)


def page(offset, fill, block=None):
    return be64(offset | 8 | (0 if block else 0x20)) + (str8(block) if block else b"") + \
        bytes([fill]) * 4096


def zero(offset, block=None):
    return be64(offset | 2 | (0 if block else 0x20)) + (str8(block) if block else b"") + b"\0"


def compressed(offset, data, block=None):
    data = zlib.compress(data)
    return be64(offset | 0x100 | (0 if block else 0x20)) + (str8(block) if block else b"") + \
        struct.pack(">I", len(data)) + data


def page_range(offset, block, *fills, said=None):
    return be64(offset | 0xc00) + str8(block) + be64((said or len(fills)) << 12) + \
        b"".join(bytes([f]) * 4096 for f in fills)


def announce(*blocks):
    out = be64(len(blocks) << 12 | 0x800)
    for name, incarnation, used, largest in blocks:
        out += str8(name) + struct.pack(">QQQIIQ", incarnation, used, largest, 4096, 0, 0x100000)
    return out


def announce_file(name, incarnation, used):
    """One block, and which file it is."""
    return be64(1 << 12 | 0x800) + str8(name) + struct.pack(
        ">QQQIIQ", incarnation, used, used, 4096, 0x80000002, 0x100000) + \
        bytes(range(16)) + struct.pack(">QQQ", 0x801, 1234, 0x3000)


def description(json):
    return b"\0\x06" + struct.pack(">I", len(json)) + json


def device(ident, name, data):
    return b"\x04" + struct.pack(">I", ident) + str8(name) + struct.pack(">II", 0, 1) + data + \
        b"\x7e" + struct.pack(">I", ident)


TAIL = device(0, "timer", b"\1\2\3") + \
    description(b'{"devices": [{"name": "timer", "instance_id": 0, "fields": [{"size": 3}]}]}')
OWN = device(1, "cpu", struct.pack(">I", 5) + b"state") + description(
    b'{"page_size": 4096, "writer": "guestram", "devices": '
    b'[{"name": "cpu", "instance_id": 0, "version": 1, "size": 9}]}')
XBZRLE = be64(0x1060) + b"\x01" + struct.pack(">H", 7) + b"\x05\x02ab\x81\x01\x01"[:7]
BEGIN = CONFIG + START + LIST + EOS

SHARED = CONFIG + b"\x05" + str8("configuration/capabilities") + struct.pack(">II", 1, 1) + \
    str8("x-ignore-shared")

READER = {
    "shared": b"\x20" + SHARED + START + be64(0x18004) + str8("a") + be64(0x10000) + be64(0) +
              str8("bb") + be64(0x8000) + be64(0xfffc0000) + EOS + PART + zero(0, "bb") + EOS + END +
              EOS + TAIL,
    "plain": b"\0" + BEGIN + PART + zero(0, "a") + zero(0x1000) + page(0, 7, "bb") + EOS + END +
             EOS + TAIL,
    "run": b"\x0e" + BEGIN + PART + page(0, 1, "a") + page(0x3000, 2) + page(0x2000, 3) +
           zero(0x1000) + EOS + END + page(0x7000, 4, "bb") + EOS + TAIL,
    "delta": b"\x03" + BEGIN + PART + page(0, 1, "a") + be64(0x60) + b"\x01\0\x06\x05\x01x\x09\x01y" +
             EOS + END + EOS + TAIL,
    "compressed": b"\0" + BEGIN + PART + compressed(0, b"ab" * 2048, "a") + compressed(0x1000, bytes(4096)) +
                  EOS + END + EOS + TAIL,
    "bomb": b"\0" + BEGIN + PART + compressed(0, bytes(1 << 20), "a") + EOS + END + EOS + TAIL,
    "flush": b"\x10" + CONFIG + START + LIST + be64(0x200) + EOS + PART + zero(0, "a") + be64(0x200) +
             EOS + PART + EOS + END + be64(0x200) + EOS + TAIL,
    "commands": b"\x81" + CONFIG + b"\x08\0\x01\0\0" + b"\x08\0\x02\0\x04GR\0\x01" + START + LIST +
                EOS + END + EOS + b"\x08\0\x0b\0\0" + TAIL,
    "extensions": b"\x21" + BEGIN + PART + announce(("a", 1, 0x10000, 0x20000),
                                                   ("c", 2, 0x1000, 0x1000)) +
                  be64(0x1400) + str8("a") + be64(0x5000) + page(0, 9, "c") +
                  announce(("c", 3, 0x2000, 0x2000)) + zero(0x1000, "c") + EOS + END + EOS + OWN,
    "file": b"\x21" + BEGIN + PART + announce_file("a", 1, 0x10000) + page(0, 9, "a") + EOS + END + EOS + OWN,
    "range": b"\1" + BEGIN + PART + page_range(0x2000, "a", 1, 2, 3, 4, 5, 6) + page(0x8000, 7) +
             page_range(0, "bb", 8) + EOS + END + EOS + OWN,
    "range-beyond": b"\1" + BEGIN + PART + page_range(0xf000, "a", 1, 2) + EOS + END + EOS + OWN,
    "range-breaks": b"\1" + BEGIN + PART + page_range(0x2000, "a", 1, 2, said=6),
    "pages64k": b"\0QEVM" + struct.pack(">I", 3) + b"\x07\0\0\0\1m\x05" +
                str8("configuration/target-page-bits") + struct.pack(">II", 1, 13) + START +
                be64(0x4004) + str8("a") + be64(0x4000) + EOS + PART + zero(0x2000, "a") +
                be64(0x28) + bytes(8192) + EOS + END + EOS + TAIL,
    "uuid": b"\0" + CONFIG + b"\x05" + str8("configuration/uuid") + struct.pack(">I", 1) +
            bytes(16) + b"\x05" + str8("configuration/capabilities") + struct.pack(">II", 1, 0) +
            START + LIST + EOS + TAIL,
}
TAILS = {
    "device": TAIL,
    "own": OWN,
    "empty": description(b'{"devices": []}'),
    "decoy": b"\0\x06\0\0\xff\xff{}" + TAIL,
    "nested": description(b'{"a": [[{"b": "\\u0041\\n"}, -1.5e3, true, null]], "devices": []}'),
}


def packet(flags=0, pages=(), zeros=(), block="ram", said=None, stale=False, page=4096):
    room = (512 << 10) // page
    out = struct.pack(">IIIIIIQI", 0x11223344, 1, flags, room, len(pages),
                      len(pages) * page if said is None else said, 7, len(zeros)).ljust(64, b"\0")
    out += (block.encode() if pages or zeros or stale else b"").ljust(256, b"\0")
    return out + b"".join(map(be64, (*pages, *zeros))).ljust(8 * room, b"\0")


GREETING = struct.pack(">II", 0x11223344, 1) + bytes(range(16)) + b"\1" + bytes(39)


def zlib_pages(*fills):
    z = zlib.compressobj(1)
    return z.compress(b"".join(bytes([f]) * 4096 for f in fills)) + z.flush(zlib.Z_SYNC_FLUSH)


# A frame of zstd by hand: no window of its own, one block of one repeated byte.
ZSTD = b"\x28\xb5\x2f\xfd\x00\x58" + (3 * 4096 << 3 | 1 << 1 | 0).to_bytes(3, "little") + b"\7"
MULTIFD = {
    "sync": b"\0" + GREETING + packet(1),
    "pages": b"\0" + GREETING + packet(1, (0x3000, 0x1000, 0), (0x5000,)),
    "quirk": b"\0" + GREETING + packet(0, said=12345, stale=True),
    "pages64k": b"\4" + GREETING + packet(0, (0x10000,), (0x20000, 0), page=65536),
    "device": b"\0" + GREETING + packet(1 << 6),
    "zlib": b"\1" + GREETING + packet(2, (0,), said=40) + zlib_pages(1, 2, 3),
    "bomb": b"\1" + GREETING + packet(2, (0,), said=40) + zlib_pages(*range(200)),
    "zstd": b"\2" + GREETING + packet(4, (0, 0x1000), said=40) + ZSTD,
}

# How it is cut in two bytes, then a channel.
SCANS = {
    "packets": b"\x46\1" + GREETING + packet(1) + packet(0, (0x3000, 0), (0x5000,)) + bytes(8192) +
               packet(0, said=12345, stale=True) + packet(1, zeros=(0, 0x1000)),
    "compressed": b"\0\0" + GREETING + packet(3, (0x3000, 0), said=77) + bytes(77) + packet(1),
    "pages64k": b"\xff\0" + GREETING + packet(1, (0x10000,), (0x20000,), page=65536) + bytes(65536) +
                packet(1, page=65536),
    "breaks-off": b"\2\0" + GREETING + packet(1, (0x3000, 0)) + bytes(5000),
    "wrong": b"\x80\2" + GREETING + packet(1) + packet(1 << 6),
    "greeting": b"\1\0" + GREETING[:20],
}

def runs(*pairs):
    """A delta: so many bytes are skipped, so many follow."""
    def number(v):
        return bytes([v]) if v < 0x80 else bytes([v & 0x7f | 0x80, v >> 7])
    return b"".join(number(skip) + number(n) + bytes(1 + i % 255 for i in range(n)) for skip, n in pairs)


# The first byte: pages of 64 << n bytes.
XBZRLES = {
    "nothing": b"\6",
    "words": b"\6" + runs((0, 8), (800, 8), (1000, 8), (56, 8), (8, 16), (1900, 8)),
    "bytes": b"\6" + runs(*[(1, 1)] * 600),
    "wide": b"\2" + runs((3, 31), (1, 32), (1, 33), (5, 64), (1, 65), (4, 15)),
    "to-the-end": b"\0" + runs((2, 30), (1, 31)),
    "beyond": b"\0" + runs((2, 30), (1, 32)),
    "whole": b"\6" + runs((0, 4096)),
    "long": b"\x09" + runs((16000, 40), (16000, 100), (1, 20)),
    "second-skips-nothing": b"\6" + runs((0, 8), (0, 8)),
    "cut": b"\6" + runs((7, 40))[:-1],
    "three-bytes": b"\6\x80\x80\x01\x01\x01",
}

for kind, seeds in (("multifd", MULTIFD), ("multifd_scan", SCANS), ("reader", READER), ("tail", TAILS),
                    ("xbzrle", XBZRLES)):
    for name, data in seeds.items():
        with open(f"{HERE}/{kind}/{name}", "wb") as f:
            f.write(data)
