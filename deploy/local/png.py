"""Make the PNG of a screenshot small: a palette in place of 32 bits for each pixel, a third of the size.

A page has few colours; those beyond 256 are edges of letters, and become the nearest that is there.
"""

import struct
import zlib
from collections import Counter
from functools import partial
from typing import Final

_MAGIC: Final = b"\x89PNG\r\n\x1a\n"
_CHANNELS: Final = {2: 3, 6: 4}  # by colour type: RGB, RGBA
_DEPTH, _PALETTE, _COLOURS = 8, 3, 256


def small(png: bytes) -> bytes:
    """Return the same picture with a palette.

    Raises:
        ValueError: It is not what a browser makes: RGB or RGBA, 8 bits, not interlaced.
    """
    width, height, rows = _pixels(png)
    counts = Counter(colour for row in rows for colour in row)
    palette = [colour for colour, _ in counts.most_common(_COLOURS)]
    places = {colour: place for place, colour in enumerate(palette)}
    for colour in counts.keys() - places.keys():
        places[colour] = places[min(palette, key=partial(_distance, colour))]
    data = b"".join(b"\0" + bytes(map(places.__getitem__, row)) for row in rows)
    header = struct.pack(">IIBBBBB", width, height, _DEPTH, _PALETTE, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"PLTE", b"".join(palette)), (b"IDAT", zlib.compress(data, 9)), (b"IEND", b""))
    return _MAGIC + b"".join(_chunk(name, value) for name, value in chunks)


def _pixels(png: bytes) -> tuple[int, int, list[list[bytes]]]:
    """Return width, height, and the colours of each row, without how much of them is seen through."""
    parts: dict[bytes, bytes] = {}
    at = len(_MAGIC)
    while at < len(png):
        length, name = struct.unpack_from(">I4s", png, at)
        parts[name] = parts.get(name, b"") + png[at + 8 : at + 8 + length]
        at += 12 + length
    width, height, depth, kind, *_, interlaced = struct.unpack(">IIBBBBB", parts[b"IHDR"])
    if depth != _DEPTH or kind not in _CHANNELS or interlaced:
        raise ValueError("the picture is not RGB or RGBA with 8 bits")
    channels = _CHANNELS[kind]
    raw, stride = zlib.decompress(parts[b"IDAT"]), width * channels
    rows, above = [], bytes(stride)
    for start in range(0, height * (stride + 1), stride + 1):
        above = _unfiltered(raw[start], raw[start + 1 : start + 1 + stride], above, channels)
        rows.append([above[place : place + 3] for place in range(0, stride, channels)])
    return width, height, rows


def _unfiltered(kind: int, line: bytes, above: bytes, channels: int) -> bytes:
    """Undo the filter of one line (PNG, 9.2)."""
    made = bytearray(line)
    for place in range(len(made)):
        left = made[place - channels] if place >= channels else 0
        corner = above[place - channels] if place >= channels else 0
        match kind:
            case 1:
                guess = left
            case 2:
                guess = above[place]
            case 3:
                guess = (left + above[place]) // 2
            case 4:
                guess = _paeth(left, above[place], corner)
            case _:
                return line
        made[place] = (made[place] + guess) & 255
    return bytes(made)


def _paeth(left: int, above: int, corner: int) -> int:
    guess = left + above - corner
    return min((left, above, corner), key=lambda each: abs(guess - each))


def _distance(one: bytes, other: bytes) -> int:
    return sum((a - b) ** 2 for a, b in zip(one, other, strict=True))


def _chunk(name: bytes, value: bytes) -> bytes:
    return struct.pack(">I", len(value)) + name + value + struct.pack(">I", zlib.crc32(name + value))
