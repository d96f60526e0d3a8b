# SPDX-License-Identifier: MIT
"""A guest that writes: a boot sector of ours, on a floppy.

Each pass adds one to a counter and writes it into every page of a region above 1 MiB,
with the page's number, and prints a dot on the debug port. A nonce is drawn from the time
stamp counter at boot and lives in RAM only: the same nonce later means no reboot since.

Each pass begins with a flush of the TLB. QEMUs before 9.0 lose writes under TCG: when they fetch the dirty
pages, pages that are in the TLB as dirty stay there, and further writes to them are not seen. So a
page is written at most once between two flushes.
"""
import os

NONCE_AT = 0x600
COUNTER_AT = 0x604
REGION_AT = 0x200000


def _assemble(pages):
    """16-bit code at 0x7c00. Labels: a string defines one; ("jnz", label) uses it."""
    gdt = 0x7c00 + 0x80
    gdtr = gdt + 16
    program = [
        b"\xfa",                                    # cli
        b"\x31\xc0",                                # xor ax, ax
        b"\x8e\xd8",                                # mov ds, ax
        b"\x8e\xd0",                                # mov ss, ax
        b"\xbc\x00\x7c",                            # mov sp, 0x7c00
        b"\xe4\x92\x0c\x02\xe6\x92",                # A20 on: in al, 0x92; or al, 2; out 0x92, al
        b"\x0f\x01\x16" + gdtr.to_bytes(2, "little"),  # lgdt [gdtr]
        b"\x0f\x20\xc0\x0c\x01\x0f\x22\xc0",        # protected mode: cr0 |= 1
        b"\xbb\x08\x00\x8e\xc3",                    # mov es, 8: a limit of 4 GiB, which ...
        b"\x24\xfe\x0f\x22\xc0",                    # ... es keeps back in real mode
        b"\x0f\x31",                                # rdtsc
        b"\x66\xa3" + NONCE_AT.to_bytes(2, "little"),  # mov [nonce], eax
        b"\x66\x31\xed",                            # xor ebp, ebp
        "pass",
        b"\x0f\x20\xc0\x66\x35\x00\x00\x01\x00\x0f\x22\xc0",  # cr0 ^= 1 << 16: flush the TLB
        b"\x66\x45",                                # inc ebp
        b"\x66\x89\x2e" + COUNTER_AT.to_bytes(2, "little"),  # mov [counter], ebp
        b"\x66\xbf" + REGION_AT.to_bytes(4, "little"),  # mov edi, region
        b"\x66\xb9" + pages.to_bytes(4, "little"),  # mov ecx, pages
        "page",
        b"\x26\x67\x66\x89\x2f",                    # mov es:[edi], ebp
        b"\x26\x67\x66\x89\x4f\x08",                # mov es:[edi + 8], ecx
        b"\x66\x81\xc7\x00\x10\x00\x00",            # add edi, 4096
        b"\x66\x49",                                # dec ecx
        ("\x75", "page"),                           # jnz page
        b"\xb0\x2e\xe6\xe9",                        # mov al, '.'; out 0xe9, al
        ("\xeb", "pass"),                           # jmp pass
    ]
    code, labels = b"", {}
    for item in program:
        if isinstance(item, str):
            labels[item] = len(code)
        elif isinstance(item, tuple):
            back = labels[item[1]] - (len(code) + 2)
            code += item[0].encode("latin-1") + back.to_bytes(1, "little", signed=True)
        else:
            code += item
    assert len(code) <= gdt - 0x7c00
    code = code.ljust(gdt - 0x7c00, b"\0")
    code += bytes(8) + 0x00cf92000000ffff.to_bytes(8, "little")  # null; data, base 0, 4 GiB
    code += (15).to_bytes(2, "little") + gdt.to_bytes(4, "little")
    return code.ljust(510, b"\0") + b"\x55\xaa"


def _image(folder, pages):
    """A disk image that boots the writer."""
    path = os.path.join(folder, "writer.img")
    if not os.path.exists(path):
        with open(path, "wb") as f:
            f.write(_assemble(pages).ljust(1440 * 1024, b"\0"))
    return path


def floppy(folder, pages):
    """The QEMU options for a floppy with the writer."""
    return ["-drive", f"if=floppy,format=raw,readonly=on,file={_image(folder, pages)}", "-boot", "a"]


def disk(folder, pages):
    """The same for a disk, where a machine has no floppy. (A disk of IDE cannot be read-only.)"""
    return ["-drive", f"if=none,id=writer,format=raw,file={_image(folder, pages)}",
            "-device", "ide-hd,drive=writer", "-boot", "c"]


def check_region(ram, pages):
    """Every page of the region was written in the pass of the counter or the one before."""
    counter = int.from_bytes(ram[COUNTER_AT:COUNTER_AT + 4], "little")
    assert counter > 0, "the writer has not begun"
    for page in range(pages):
        at = REGION_AT + page * 4096
        seen = int.from_bytes(ram[at:at + 4], "little")
        number = int.from_bytes(ram[at + 8:at + 12], "little")
        assert seen in (counter, counter - 1), f"page {page}: pass {seen}, counter {counter}"
        assert seen == 0 or number == pages - page, f"page {page}: number {number}"
    return counter
