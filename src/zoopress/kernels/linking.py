"""Join the code and the constants of an object file, so that they run wherever they are mapped.

Only what machine code without calls to others needs: sections one after the other, and the
distances between them.

Source: Tool Interface Standard, ELF 1.2; System V ABI, AMD64 supplement, section 4.4.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

_X86_64 = 62
_PROGRAM, _RELOCATIONS, _SYMBOLS = 1, 4, 2
_IN_MEMORY, _WRITABLE = 2, 1
_PC32, _PLT32 = 2, 4


class _Section(NamedTuple):
    name: int
    kind: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int
    alignment: int
    entry_size: int


def linked(code: bytes, entry: str) -> tuple[bytes, int]:
    """Return an image of an object file, and where in it a function begins.

    Raises:
        ValueError: if it is no object file of x86-64 in ELF, or needs more than distances.
    """
    if code[:6] != b"\x7fELF\x02\x01" or struct.unpack_from("<H", code, 18)[0] != _X86_64:
        raise ValueError("not an object file of x86-64 in ELF")
    (start,) = struct.unpack_from("<Q", code, 40)
    size, count = struct.unpack_from("<HH", code, 58)
    sections = [
        _Section(*struct.unpack_from("<IIQQQQIIQQ", code, start + i * size)) for i in range(count)
    ]
    image, places = bytearray(), {}
    for i, each in enumerate(sections):
        if each.kind == _PROGRAM and each.flags & _IN_MEMORY and not each.flags & _WRITABLE:
            image.extend(bytes(-len(image) % max(each.alignment, 1)))
            places[i] = len(image)
            image.extend(code[each.offset : each.offset + each.size])
    (table,) = (each for each in sections if each.kind == _SYMBOLS)
    names = sections[table.link].offset
    symbols = [
        struct.unpack_from("<IBBHQQ", code, table.offset + i)
        for i in range(0, table.size, table.entry_size)
    ]
    for each in sections:
        if each.kind != _RELOCATIONS or each.info not in places:
            continue
        for i in range(0, each.size, each.entry_size):
            offset, info, added = struct.unpack_from("<QQq", code, each.offset + i)
            kind, (name, _, _, section, value, _) = info & 0xFFFFFFFF, symbols[info >> 32]
            if kind not in (_PC32, _PLT32) or section not in places:
                end = code.index(b"\0", names + name)
                raise ValueError(f"it needs {code[names + name : end].decode()!r} from elsewhere")
            place = places[each.info] + offset
            struct.pack_into("<i", image, place, places[section] + value + added - place)
    for name, _, _, section, value, _ in symbols:
        if code[names + name : names + name + len(entry) + 1] == entry.encode() + b"\0":
            return bytes(image), places[section] + value
    raise ValueError(f"it has no function {entry!r}")
