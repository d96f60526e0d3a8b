# SPDX-License-Identifier: MIT
"""A second opinion on a QEMU migration stream: what is in it, read by nobody else's code.

What QEMU does not know is an error: what goes to one has nothing of our own in it.
"""
import collections
import struct
import zlib

PAGE = 4096
ZERO_FLAG, MEM_SIZE, PAGE_FLAG, EOS, CONTINUE = 0x2, 0x4, 0x8, 0x10, 0x20
XBZRLE, COMPRESS, FLUSH = 0x40, 0x100, 0x200
PACKET_MAGIC, PACKET_BYTES = 0x11223344, 1344
COMMANDS = {1: "open", 2: "ping", 11: "switchover-start"}  # the others are postcopy's, and COLO's
ANSWERS = {1: "shut", 2: "pong", 7: "ack"}


class Bytes:
    """Taken one after the other."""

    def __init__(self, data):
        self.data = data
        self.at = 0

    def take(self, n):
        assert self.at + n <= len(self.data), "cut off"
        self.at += n
        return self.data[self.at - n:self.at]

    def be(self, n):
        return int.from_bytes(self.take(n), "big")

    def str8(self):
        return bytes(self.take(self.be(1))).decode()


class Stream(Bytes):
    """.blocks: {id: bytearray}, .machine, .tail_at, .sections: [(code, byte)], .named: {id: {offset: byte}},
    where the bytes of a page came last (None: not as they are), .count: how many there were of what, and
    .capabilities and .uuid of the configuration. With mapped_ram a file that QEMU or we have made: a page
    that its bitmap has is named."""

    def __init__(self, data, mapped_ram=False):
        super().__init__(data)
        self.mapped_ram = mapped_ram
        self.blocks = {}
        self.named = {}
        self.sections = []
        self.count = collections.Counter()
        self.capabilities, self.uuid = [], None
        self._last = None
        assert self.take(8) == b"QEVM\0\0\0\3"
        assert self.take(1) == b"\x07"
        self.machine = bytes(self.take(self.be(4))).decode()
        while self.data[self.at] == 5:
            self._subsection()
        while self._section():
            pass
        self.tail_at = self.at

    @property
    def pages(self):
        return self.count["normal"]

    @property
    def zeros(self):
        return self.count["zero"]

    def unnamed(self):
        """Pages that no record was for."""
        return [(name, offset) for name, block in self.blocks.items()
                for offset in range(0, len(block), PAGE) if offset not in self.named[name]]

    def _subsection(self):
        assert self.take(1) == b"\x05"
        name, version = self.str8(), self.be(4)
        assert version == 1, name
        if name == "configuration/capabilities":
            self.capabilities = [self.str8() for _ in range(self.be(4))]
        elif name == "configuration/uuid":
            self.uuid = bytes(self.take(16))
        else:
            assert name == "configuration/target-page-bits" and self.be(4) == 12, name

    def _section(self):
        code = self.data[self.at]
        if code in (0, 4):
            return False
        if code == 8:
            self.take(1)
            self.count[COMMANDS[self.be(2)]] += 1
            self.take(self.be(2))
            return True
        self.sections.append((code, self.at))
        self.take(5)
        if code == 1:
            assert (self.str8(), self.be(4), self.be(4)) == ("ram", 0, 4)
        assert code in (1, 2, 3), f"section {code}"
        while self._record():
            pass
        assert self.take(1) == b"\x7e"
        self.take(4)
        return True

    def _list(self, total):
        while sum(map(len, self.blocks.values())) < total:
            name = self.str8()
            self.blocks[name] = bytearray(self.be(8))
            self.named[name] = {}
            if "x-ignore-shared" in self.capabilities:
                self.take(8)  # where the guest sees it
            if self.mapped_ram:
                self._mapped(name)

    def _mapped(self, name):
        version, page, bitmap_at, pages_at = struct.unpack(">IQQQ", self.take(28))
        assert (version, page, bitmap_at) == (1, PAGE, self.at), name
        n = len(self.blocks[name])
        bitmap = int.from_bytes(self.take(-(-n // PAGE // 64) * 8), "little")
        for offset in range(0, n, PAGE):
            if bitmap >> offset // PAGE & 1:
                self.named[name][offset] = pages_at + offset
                self.blocks[name][offset:offset + PAGE] = self.data[pages_at + offset:pages_at + offset + PAGE]
                self.count["in_bitmap"] += 1
        assert pages_at % PAGE == 0 and pages_at >= self.at, f"{name}: {pages_at:#x} {self.at:#x}"
        self.at = pages_at + n

    def _record(self):
        word, = struct.unpack(">Q", self.take(8))
        flags, offset = word & 0xfff, word & ~0xfff
        if flags == EOS:
            return False
        if flags == MEM_SIZE:
            self._list(offset)
            return True
        if flags == FLUSH:
            self.count["flush"] += 1
            return True
        if not flags & CONTINUE:
            self._last = self.str8()
        kind = self._page(flags & ~CONTINUE, self.blocks[self._last], offset)
        self.named[self._last][offset] = self.at - PAGE if kind == "normal" else None
        self.count[kind] += 1
        return True

    def _page(self, flag, block, offset):
        assert offset < len(block), f"{self._last} at {offset:#x}"
        if flag == ZERO_FLAG:
            assert self.take(1) == b"\0"
            block[offset:offset + PAGE] = bytes(PAGE)
            return "zero"
        if flag == XBZRLE:
            assert self.take(1) == b"\x01"
            self._difference(block, offset, self.at + self.be(2) + 2)
            return "xbzrle"
        if flag == COMPRESS:
            page = zlib.decompress(self.take(self.be(4)))
            assert len(page) == PAGE
            block[offset:offset + PAGE] = page
            return "compress"
        assert flag == PAGE_FLAG, f"flags {flag:#x}"
        block[offset:offset + PAGE] = self.take(PAGE)
        return "normal"

    def _run(self):
        n = self.be(1)
        return n & 0x7f | self.be(1) << 7 if n & 0x80 else n

    def _difference(self, block, offset, end):
        stop = offset + PAGE
        while self.at < end:
            offset += self._run()
            n = self._run()
            assert 0 < n <= stop - offset, "beyond the page"
            block[offset:offset + n] = self.take(n)
            offset += n
        assert self.at == end


class Channel(Bytes):
    """A further channel (multifd): .id, .count of packets, normal and zero pages, .named {block: offsets}."""

    def __init__(self, data, compressed):
        super().__init__(data)
        self.count = collections.Counter()
        self.named = collections.defaultdict(set)
        assert (self.be(4), self.be(4)) == (PACKET_MAGIC, 1)
        self.uuid, self.id = bytes(self.take(16)), self.be(1)
        self.take(39)
        while self.at < len(self.data):
            self._packet(compressed)

    def _packet(self, compressed):
        header = self.take(PACKET_BYTES)
        magic, version, _, _, normal, payload = struct.unpack(">6I", header[:24])
        zero, = struct.unpack(">I", header[32:36])  # from 9.0 on; nothing before
        assert (magic, version) == (PACKET_MAGIC, 1)
        name = bytes(header[64:320]).split(b"\0")[0].decode()
        offsets = struct.unpack(">128Q", header[320:])[:normal + zero]
        if offsets:
            self.named[name].update(offsets)
        self.count.update(packets=1, normal_on_channels=normal, zero_on_channels=zero)
        if compressed and normal:
            self.count["compressed_bytes"] += payload
        self.take(0 if normal == 0 else payload if compressed else normal * PAGE)


def answers(data):
    """What came on a return path: how many of what."""
    there, count = Bytes(data), collections.Counter()
    while there.at < len(data):
        kind = ANSWERS[there.be(2)]
        value = there.take(there.be(2))
        count[f"{kind}-bad" if kind == "shut" and any(value) else kind] += 1
    return count
