# SPDX-License-Identifier: MIT
"""A second opinion on a QEMU migration stream: the blocks' bytes, read by nobody else's code.

Plain precopy streams without differences only, as QEMU sends them by default.
"""
import struct

PAGE = 4096
ZERO_FLAG, MEM_SIZE, PAGE_FLAG, EOS, CONTINUE = 0x2, 0x4, 0x8, 0x10, 0x20


class Stream:
    """.blocks: {id: bytearray}, .machine, .tail_at, .sections: [(code, byte)], .named: {id: {offset: byte}},
    where the bytes of a page came last; None: as zero"""

    def __init__(self, data):
        self.data = data
        self.at = 0
        self.blocks = {}
        self.named = {}
        self.sections = []
        self.pages = self.zeros = 0
        self._last = None
        assert self._take(8) == b"QEVM\0\0\0\3"
        assert self._take(1) == b"\x07"
        self.machine = self._take(self._be(4)).decode()
        while self._section():
            pass
        self.tail_at = self.at

    def unnamed(self):
        """Pages that no record was for."""
        return [(name, offset) for name, block in self.blocks.items()
                for offset in range(0, len(block), PAGE) if offset not in self.named[name]]

    def _take(self, n):
        assert self.at + n <= len(self.data), "cut off"
        self.at += n
        return self.data[self.at - n:self.at]

    def _be(self, n):
        return int.from_bytes(self._take(n), "big")

    def _str8(self):
        return self._take(self._be(1)).decode()

    def _section(self):
        code = self.data[self.at]
        if code == 4:
            return False
        if code == 8:  # a command: from QEMU 10 that it switches over
            self._take(3)
            self._take(self._be(2))
            return True
        self.sections.append((code, self.at))
        self._take(5)
        if code == 1:
            assert (self._str8(), self._be(4), self._be(4)) == ("ram", 0, 4)
        while self._record():
            pass
        assert self._take(1) == b"\x7e"
        self._take(4)
        return True

    def _record(self):
        word, = struct.unpack(">Q", self._take(8))
        flags, offset = word & 0xfff, word & ~0xfff
        if flags == EOS:
            return False
        if flags == MEM_SIZE:
            while sum(map(len, self.blocks.values())) < offset:
                name = self._str8()
                self.blocks[name] = bytearray(self._be(8))
                self.named[name] = {}
            return True
        if not flags & CONTINUE:
            self._last = self._str8()
        block = self.blocks[self._last]
        if flags & ~CONTINUE == ZERO_FLAG:
            assert self._take(1) == b"\0"
            block[offset:offset + PAGE] = bytes(PAGE)
            self.named[self._last][offset] = None
            self.zeros += 1
        else:
            assert flags & ~CONTINUE == PAGE_FLAG, f"flags {flags:#x}"
            self.named[self._last][offset] = self.at
            block[offset:offset + PAGE] = self._take(PAGE)
            self.pages += 1
        return True
