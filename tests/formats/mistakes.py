"""Mistakes in files: what disks, editors, programs and enemies do to annotations, drawn from a seeded generator."""

from __future__ import annotations

import json
import random
import re
import struct
import zlib
from collections.abc import Callable
from typing import Any

# Numbers that are too large, too small, none at all, or just at the edge of something.
NUMBERS = (
    b"0", b"-1", b"-0", b"1e-320", b"1e999", b"-1e999", b"nan", b"NaN", b"inf", b"-Infinity", b"Infinity", b"1_000",
    b"1,5", b"0x10", b"1e5", b"65536", b"250000000", b"250000001", b"2147483647", b"2147483648", b"4294967296",
    b"9223372036854775808", b"1000000000000", b"99999999999999999999999", b"9" * 400, b"9" * 5000, b"0." + b"1" * 5000,
    b"\xd9\xa3", b"\xc2\xb2", b"+1", b"1.", b".5", b"1e5000", b"--1", b"true", b"null", b"",
)  # fmt: skip
STRAY = (
    b"\x00", b"\xff", b"\xfe\xff", b"\xed\xa0\x80", b"\\ud800", b"\x1a", b"\x0b", b"\r", b"\xc2\x85", b"\xe2\x80\xa8",
    b'"', b"'", b"<", b"]]>", b"&x;", b"<!-- ", b"<!DOCTYPE a [<!ENTITY x 'y'>]>", b"{", b"}", b"[", b",", b";", b":",
    b"\t", b"\n", b"../../", b"/etc/passwd", b"- ", b"!!python/object ", b"&a [*a]", b"*a", b"#", b"\\", b"{}", b"[]",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 0.5, 1e308, -(10**12), 10**12, 2**63, 10**400, float("nan"), float("inf"), "", "x", "1",
    "\ud800", "\x00", [], [[]], {}, {"x": 1}, [None], [1, 2, 3], [1e308] * 4, [[0, 0, 1e12, 0, 5, 5]], "a" * 100_000,
    {"counts": [10**12], "size": [10**6, 10**6]}, {"counts": "o" * 1000, "size": [10, 20]}, {"counts": {}, "size": 1},
    {"type": "Polygon", "coordinates": [[[0, 0], [1e12, 0], [5, 5], [0, 0]]]}, {"type": "Point", "coordinates": [1, 2]},
)  # fmt: skip

Mistake = Callable[[bytes, random.Random], bytes]


def _place(data: bytes, draw: random.Random) -> tuple[int, int]:
    return draw.randrange(len(data) + 1), draw.randint(1, 12)


def flipped(data: bytes, draw: random.Random) -> bytes:
    """One to four bits are the other way round."""
    changed = bytearray(data)
    for _ in range(draw.randint(1, 4) if data else 0):
        changed[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def cut_off(data: bytes, draw: random.Random) -> bytes:
    """The end is missing, or the start, or all of it."""
    at, _ = _place(data, draw)
    return draw.choice([data[:at], data[:at], data[at:], b"", data[: max(0, len(data) - 2)]])


def cut_out(data: bytes, draw: random.Random) -> bytes:
    """Some bytes are missing."""
    at, length = _place(data, draw)
    return data[:at] + data[at + length :]


def stray(data: bytes, draw: random.Random) -> bytes:
    """Bytes that do not belong there, put in or over others."""
    at, length = _place(data, draw)
    return data[:at] + draw.choice(STRAY) + data[at + draw.choice([0, length]) :]


def _words(data: bytes, pattern: bytes = rb"[\w.+-]+") -> list[tuple[int, int]]:
    return [match.span() for match in re.finditer(pattern, data)]


def swapped(data: bytes, draw: random.Random) -> bytes:
    """Two words have changed places, or one stands where another should."""
    words = _words(data)
    if len(words) < 2:
        return data
    (a, b), (c, d) = sorted(draw.sample(words, 2))
    other = data[a:b] if draw.random() < 0.7 else data[c:d]
    return data[:a] + data[c:d] + data[b:c] + other + data[d:]


def odd_number(data: bytes, draw: random.Random) -> bytes:
    """One to four numbers are others, or none."""
    for _ in range(draw.randint(1, 4)):
        if numbers := _words(data, rb"-?\d+(\.\d+)?"):
            start, end = draw.choice(numbers)
            data = data[:start] + draw.choice(NUMBERS) + data[end:]
    return data


def long_word(data: bytes, draw: random.Random) -> bytes:
    """A word of a hundred thousand letters."""
    words = _words(data) or [(0, 0)]
    start, end = draw.choice(words)
    return data[:start] + draw.choice([b"x", b"9", b" ", b"1 ", b"\xc3\xa9", b'"']) * 100_000 + data[end:]


def other_encoding(data: bytes, draw: random.Random) -> bytes:
    """Saved in another encoding, with a mark or without, or with a letter that has no place in it."""
    text = data.decode("latin-1")
    accented = text.replace("a", "é", 1).replace("C", "細", 1)
    forms = [
        b"\xef\xbb\xbf" + data,
        b"\xef\xbb\xbf\xef\xbb\xbf" + data,
        b"\xff\xfe" + data,
        text.encode("utf-16"),
        text.encode("utf-16-le"),
        b"\xfe\xff" + accented.encode("utf-16-be"),
        b"\xff\xfe" + accented.encode("utf-16-le")[:-1],
        text.encode("utf-32"),
        accented.encode("utf-8", "replace"),
        accented.encode("latin-1", "replace"),
        accented.encode("gb18030", "replace"),
        text.encode("utf-7"),
    ]
    return draw.choice(forms)


def line_ends(data: bytes, draw: random.Random) -> bytes:
    """Other line ends, or none."""
    return re.sub(rb"\r?\n", draw.choice([b"\r\n", b"\r", b"\n\n", b"\n\r", b" ", b"", b"\x0b"]), data)


def repeated(data: bytes, draw: random.Random) -> bytes:
    """Lines that are there twice, a thousand times, in another order; or the whole file twice."""
    lines = data.splitlines(keepends=True) or [b""]
    at = draw.randrange(len(lines))
    kind = draw.choice(["line", "line", "many", "order", "whole", "drop"])
    if kind == "order":
        draw.shuffle(lines)
    elif kind == "drop":
        del lines[at]
    elif kind == "whole":
        lines *= 2
    else:
        lines[at:at] = [lines[at]] * (1 if kind == "line" else 1000)
    return b"".join(lines)


def nested(data: bytes, draw: random.Random) -> bytes:
    """Brackets, braces or elements, one inside the other, deeper than any reader likes."""
    at, depth = _place(data, draw)[0], draw.choice([50, 2_000, 100_000])
    left, right = draw.choice([(b"[", b"]"), (b'{"a":', b"}"), (b"<a>", b"</a>"), (b"- ", b""), (b"{a: ", b"}")])
    middle = draw.choice([b"", b"1"])
    return data[:at] + left * depth + middle + draw.choice([right * depth, b""]) + data[at:]


def wrong_types(data: bytes, draw: random.Random) -> bytes:
    """JSON of which one to three values are of another type, are missing, or have their key twice."""
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError):
        return odd_number(data, draw)
    for _ in range(draw.randint(1, 3)):
        holders = _holders(tree)
        holder = draw.choice(holders) if holders else None
        if holder is None or draw.random() < 0.03:
            tree = draw.choice(VALUES)
            continue
        key = draw.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        kind = draw.choice(["value", "value", "value", "delete", "copy", "twice"])
        if kind == "delete":
            del holder[key]
        elif kind == "copy":
            holder[key] = json.loads(json.dumps(draw.choice(holders)))
        elif kind == "twice" and isinstance(holder, dict):
            twin = f'"{key}": {json.dumps(draw.choice(VALUES))}, "{key}":'
            return json.dumps(tree).replace(f'"{key}":', twin, 1).encode()
        else:
            holder[key] = draw.choice(VALUES)
    return json.dumps(tree, ensure_ascii=draw.random() < 0.8).encode("utf-8", "surrogatepass")


def _holders(tree: Any) -> list[Any]:
    """Every list and dictionary of JSON data that is not empty."""
    found, ahead = [], [tree]
    while ahead:
        node = ahead.pop()
        if isinstance(node, (dict, list)) and node:
            found.append(node)
            ahead += node.values() if isinstance(node, dict) else node
    return found


def odd_header(data: bytes, draw: random.Random) -> bytes:
    """An image file whose header says something else: sizes, depths, counts; the checksums of a PNG are right."""
    extreme = draw.choice([0, 1, 2, 3, 255, 65_535, 2**16, 15_811, 250_000_000, 2**31 - 1, 2**32 - 1])
    if data.startswith(b"\x89PNG") and len(data) > 33:
        at, form = draw.choice([(16, ">I"), (20, ">I"), (24, ">B"), (25, ">B"), (26, ">B"), (28, ">B")])
        body = bytearray(data[:29])
        struct.pack_into(form, body, at, extreme & (0xFF if form == ">B" else 0xFFFFFFFF))
        return bytes(body) + struct.pack(">I", zlib.crc32(bytes(body[12:29]))) + data[33:]
    if len(data) < 8:
        return data
    body = bytearray(data)
    for _ in range(draw.randint(1, 2)):
        struct.pack_into("<I", body, 2 * draw.randrange((len(data) - 4) // 2 + 1), extreme)
    return bytes(body)


OF_TEXT: tuple[Mistake, ...] = (
    flipped, cut_off, cut_out, stray, stray, swapped, odd_number, odd_number, long_word, other_encoding, line_ends,
    repeated, nested, wrong_types,
)  # fmt: skip
OF_BYTES: tuple[Mistake, ...] = (flipped, cut_off, cut_out, stray, repeated, odd_header, odd_header)


def spoilt(data: bytes, draw: random.Random, is_text: bool = True) -> bytes:
    """A file with one mistake, sometimes up to three."""
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        if len(data) < 3_000_000:
            data = draw.choice(OF_TEXT if is_text else OF_BYTES)(data, draw)
    return data
