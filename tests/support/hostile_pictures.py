"""Pictures as a stranger would make them to break a decoder: a corpus of some 4,500 files.

    files = corpus()                       # made by seeded code, no foreign file among them; the same every time

Four kinds: `cut` (small files of every format, ended at their bytes one after another), `flip` (bytes changed, most of
them in the header), `spliced` (a part of one file inside another) and `crafted` (bombs, absurd dimensions, nonsense in
ICC and EXIF, what is no picture at all); of the crafted ones it is known what must come out.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
from PIL import Image
from profiles import DISPLAY_P3, made


@dataclass(frozen=True)
class Hostile:
    """One file. name: kind, what was done, and an ending that need not be true. expected: "read" or words of the reason
    where that is known, else empty. whole: of a cut file, the file that it was cut from."""

    name: str
    content: bytes
    expected: str = ""
    whole: bytes = b""


# ---------------------------------------------------------------------------------------------------------------------
# Pieces


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, pixels: bytes, *more: bytes, bits: int = 8, colour: int = 0, lace: int = 0) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, lace))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def tiff(tags: dict[int, tuple[int, int, int]], body: bytes = b"", following: int = 0) -> bytes:
    """tags: number -> (type, count, value or place); `body` stands at `tiff_body(len(tags))`."""
    entries = b"".join(struct.pack("<HHLL", tag, *facts) for tag, facts in sorted(tags.items()))
    return b"II*\0" + struct.pack("<LH", 8, len(tags)) + entries + struct.pack("<L", following) + body


def tiff_body(tags: int) -> int:
    return 8 + 2 + 12 * tags + 4


def grey_tiff(width: int = 8, height: int = 8, **changed: tuple[int, int, int]) -> bytes:
    """An uncompressed grey picture; changed: t256=(type, count, value) and so on."""
    tags = {256: (4, 1, width), 257: (4, 1, height), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1), 277: (3, 1, 1)}
    tags |= {278: (4, 1, height), 279: (4, 1, 64), 273: (4, 1, 0)}
    tags |= {int(name[1:]): facts for name, facts in changed.items()}
    if "t273" not in changed:
        tags[273] = (4, 1, tiff_body(len(tags)))
    return tiff(tags, bytes(range(64)))


def bmp(width: int, height: int, body: bytes, *, bits: int = 8, compression: int = 0, colours: int = 256) -> bytes:
    palette = bytes(4 * 256) if bits <= 8 else b""
    start = 14 + 40 + len(palette)
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(body), 0, 0, colours, 0)
    return b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start) + header + palette + body


def gif(width: int, height: int, frames: int = 1, before: bytes = b"", at: tuple[int, int, int, int] | None = None):
    """Black pictures. at: where a frame lies (left, top, width, height), the whole screen without it."""
    place = struct.pack("<HHHH", *(at or (0, 0, min(width, 65535), min(height, 65535))))
    frame = b"," + place + b"\0\2\2\x44\1\0"  # code size 2: clear, black, end
    screen = struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(3) + b"\xff\xff\xff"
    return b"GIF89a" + screen + before + frame * frames + b";"


def webp(*chunks: tuple[bytes, bytes]) -> bytes:
    body = b"".join(name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2) for name, data in chunks)
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def exif(tags: Sequence[tuple[int, int, int, int]], following: int = 0) -> bytes:
    entries = b"".join(struct.pack("<HHLL", *facts) for facts in tags)
    return b"Exif\0\0II*\0" + struct.pack("<LH", 8, len(tags)) + entries + struct.pack("<L", following)


_NOISE = np.random.default_rng(6).integers(0, 256, (6, 5, 3), dtype=np.uint8)
_TIMES = re.compile(rb"((?:mvhd|tkhd|mdhd)\x01...).{16}", re.DOTALL)  # when an animated AVIF was made
_PLAIN = Image.fromarray(_NOISE)


def animation(kind: str, repeated: int = 1, **options: Any) -> bytes:
    first, *rest = (Image.new("RGB", (4, 3), colour) for colour in ("red", "green", "blue") * repeated)
    return encoded(first, kind, save_all=True, append_images=rest, **options)


def heic(picture: Image.Image) -> dict[str, bytes]:
    """One file, where pillow-heif is installed."""
    if find_spec("pillow_heif") is None:
        return {}
    import pillow_heif

    file = io.BytesIO()
    pillow_heif.from_pillow(picture).save(file, quality=60)
    return {"heic": file.getvalue()}


def small_files() -> dict[str, bytes]:
    """A small whole file of every format that is read, and of their relatives of several frames."""
    return {
        "jpeg": encoded(_PLAIN.copy(), "JPEG", quality=60),
        "progressive": encoded(_PLAIN.copy(), "JPEG", progressive=True),
        "profile": encoded(_PLAIN.copy(), "JPEG", icc_profile=made(DISPLAY_P3, 2.2)),
        "cmyk": encoded(_PLAIN.convert("CMYK"), "JPEG"),
        "mpo": animation("MPO"),
        "png": encoded(_PLAIN.copy(), "PNG"),
        "palette": encoded(_PLAIN.convert("P"), "PNG", transparency=0),
        "apng": animation("PNG"),
        "webp": encoded(_PLAIN.copy(), "WEBP"),
        "lossless": encoded(_PLAIN.copy(), "WEBP", lossless=True),
        "animated": animation("WEBP"),
        "gif": encoded(_PLAIN.copy(), "GIF"),
        "frames": animation("GIF"),
        "bmp": encoded(_PLAIN.copy(), "BMP"),
        "rle": bmp(4, 2, b"\4\1\0\0\4\2\0\1", compression=1),
        "tiff": encoded(_PLAIN.copy(), "TIFF"),
        "deflated": encoded(_PLAIN.copy(), "TIFF", compression="tiff_deflate"),
        "pages": animation("TIFF"),
        "avif": encoded(_PLAIN.copy(), "AVIF", speed=10),
        "moving": _TIMES.sub(rb"\1" + bytes(16), animation("AVIF", speed=10)),
        **heic(_PLAIN.copy()),
    }


# ---------------------------------------------------------------------------------------------------------------------
# The corpus


def corpus(seed: int = 0) -> list[Hostile]:
    """All files, in one order: crafted, then cut, flipped and spliced."""
    whole = small_files()
    return [*crafted(), *_cut(whole), *flipped(whole, seed), *_spliced(whole, seed + 1)]


def sample(files: Sequence[Hostile], count: int, seed: int = 0) -> list[Hostile]:
    """All that are crafted, and so many of the others that there are `count`."""
    known = [file for file in files if file.name.startswith("crafted")]
    others = [file for file in files if not file.name.startswith("crafted")]
    picked = np.random.default_rng(seed).permutation(len(others))[: max(0, count - len(known))]
    return known + [others[place] for place in sorted(picked)]


def _cut(whole: dict[str, bytes]) -> Iterator[Hostile]:
    """At each byte of small files; of the larger ones (JPEG has long tables), at each of the first and the last, and at
    every seventh between."""
    for kind, content in whole.items():
        for end in range(len(content)):
            if end < 24 or end > len(content) - 60 or len(content) < 200 or end % 7 == 0:
                yield Hostile(f"cut-{kind}-{end:04}.jpg", content[:end], whole=content)


def flipped(whole: dict[str, bytes], seed: int, count: int = 40) -> Iterator[Hostile]:
    """So many of each file, with bytes changed."""
    random = np.random.default_rng(seed)
    for kind, content in whole.items():
        for number in range(count):
            data = bytearray(content)
            reach = min(len(data), 80) if number % 3 else len(data)
            for place in random.integers(2, reach, random.integers(1, 9)).tolist():
                data[place] = int(random.integers(0, 256)) if number % 2 else data[place] ^ (1 << random.integers(8))
            yield Hostile(f"flip-{kind}-{number:02}.png", bytes(data))


def _spliced(whole: dict[str, bytes], seed: int) -> Iterator[Hostile]:
    random = np.random.default_rng(seed)
    names = list(whole)
    for number in range(100):
        one, other = (whole[names[place]] for place in random.integers(0, len(names), 2).tolist())
        at, start = int(random.integers(2, len(one))), int(random.integers(0, len(other)))
        part = other[start : start + int(random.integers(1, 400))]
        yield Hostile(f"spliced-{number:03}.gif", one[:at] + part + one[at + (len(part) if number % 2 else 0) :])


def crafted() -> Iterator[Hostile]:
    """Each with a thought behind it."""
    jpeg, plain = small_files()["jpeg"], small_files()["png"]
    head, tail = jpeg[:2], jpeg[2:]

    def made(name: str, content: bytes, expected: str) -> Hostile:
        return Hostile(f"crafted-{name}", content, expected)

    # More pixels than anybody can hold, by the header; some of these numbers overflow 32 bits when multiplied.
    sof = jpeg.index(b"\xff\xc0") + 5
    for side in (20_000, 65_500):
        size = struct.pack(">HH", side, side)
        yield made(f"pixels-{side}.jpg", jpeg[:sof] + size + jpeg[sof + 4 :], "cap")
        yield made(f"pixels-{side}.bmp", bmp(side, side, b""), "cap")
        yield made(f"pixels-{side}.gif", gif(side, side), "cap|pixels")
        yield made(f"pixels-{side}.tif", grey_tiff(side, side), "cap")
        yield made(f"pixels-{side}.png", png(side, side, b""), "cap")
    for side in (2**31 - 1, 2**32 - 1):
        yield made(f"pixels-{side}.png", png(side, side, b""), "cap|damaged")
        yield made(f"pixels-{side}.tif", grey_tiff(side, side), "cap|damaged")
    yield made("pixels.bmp", bmp(2**31 - 1, -(2**31), b""), "cap|damaged")
    yield made("frame-beyond-the-screen.gif", gif(1, 1, at=(0, 0, 65_535, 65_535)), "cap|pixels")
    for side in (16_384, 2**24):
        canvas = bytes(4) + struct.pack("<I", side - 1)[:3] + struct.pack("<I", side - 1)[:3]
        yield made(f"canvas-{side}.webp", webp((b"VP8X", canvas)), "pixels|damaged")
    yield made("long-row.png", png(2**25, 1, bytes(1 + 2**25)), "read")
    yield made("high.png", png(1, 2**21, bytes(2**22)), "read")
    yield made("in-one-bit.png", png(10_000, 10_000, bytes(1251 * 10_000), bits=1), "read")
    yield made("laced.png", png(9_000, 9_000, b"", lace=1), "cut short")

    # Nothing at all, or less.
    for width, height in ((0, 0), (0, 5), (5, 0)):
        size = struct.pack(">HH", height, width)
        yield made(f"{width}x{height}.png", png(width, height, b""), "damaged")
        yield made(f"{width}x{height}.jpg", jpeg[:sof] + size + jpeg[sof + 4 :], "damaged|cut short")
        yield made(f"{width}x{height}.bmp", bmp(width, height, b""), "damaged")
        yield made(f"{width}x{height}.gif", gif(width, height, at=(0, 0, width, height)), "damaged")
        yield made(f"{width}x{height}.tif", grey_tiff(width, height), "damaged")

    # Few bytes that become many.
    zeros = zlib.compress(bytes(80_000_000), 9)
    yield made("text.png", png(1, 1, b"\0\0", *[chunk(b"zTXt", b"k%d\0\0" % n + zeros) for n in range(3)]), "read")
    yield made("profile.png", png(1, 1, b"\0\0", chunk(b"iCCP", b"p\0\0" + zeros)), "read|damaged")
    yield made("more-rows.png", png(1, 1, bytes(100_000_000)), "read")
    tile = {256: (4, 1, 8), 257: (4, 1, 8), 258: (3, 1, 8), 259: (3, 1, 8), 262: (3, 1, 1), 277: (3, 1, 1)}
    for side in (2_000, 25_000):
        content = zlib.compress(bytes(side * side), 9)
        tags = tile | {322: (4, 1, side), 323: (4, 1, side), 324: (4, 1, tiff_body(10)), 325: (4, 1, len(content))}
        yield made(f"tile-{side}.tif", tiff(tags, content), "read" if side < 10_000 else "cap")
    strip = zlib.compress(bytes(200_000_000), 9)
    more = {278: (4, 1, 8), 273: (4, 1, tiff_body(9)), 279: (4, 1, len(strip))}
    yield made("strip.tif", tiff(tile | more, strip), "read|damaged")
    for tag, size in ((700, 1), (256, 2), (273, 4), (33432, 1)):
        facts = {f"t{tag}": ({1: 1, 2: 3, 4: 4}[size], 2**31 // size - 1, 8)}
        yield made(f"tag-{tag}.tif", grey_tiff(**facts), "")
    tags = dict.fromkeys(range(30_000, 35_000), (7, 60_000, 8)) | tile
    yield made("the-same-data-in-every-tag.tif", tiff(tags), "damaged|cut short")
    scan = encoded(Image.new("L", (9_000, 9_000)), "JPEG", progressive=True)
    last = scan.rindex(b"\xff\xda")
    yield made("scans.jpg", scan[:last] + scan[last:-2] * 3_000 + scan[-2:], "scans")
    yield made("exif-in-pieces.jpg", head + segment(0xE1, b"Exif\0\0" + b"x" * 10) * 600_000 + tail, "EXIF")
    yield made("run-length.bmp", bmp(3_000, 3_000, b"\1\1\0\0" * 3_001, compression=1), "read")
    yield made("delta.bmp", bmp(9_000, 9_000, b"\0\2\xff\xff" * 2_000, compression=1), "read|damaged")

    # More frames than anybody can count: only the first is looked at.
    yield made("frames.gif", gif(2, 2, 200_000), "read|cut short")
    yield made("blocks.gif", gif(1, 1, before=b"!\xfe" + b"\1x" * 2_000_000 + b"\0"), "read|cut short")
    yield made("frames.png", png(1, 1, b"\0\0", chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0))), "read")
    pages = grey_tiff()
    yield made("page-after-itself.tif", pages[: 8 + 2 + 12 * 9] + struct.pack("<L", 8) + pages[-64:], "read")
    yield made("page-after-the-end.tif", pages[: 8 + 2 + 12 * 9] + struct.pack("<L", 2**32 - 2) + pages[-64:], "read")
    alpha = webp((b"VP8X", b"\x02" + bytes(9)), (b"ANIM", bytes(6)), *[(b"ANMF", bytes(16))] * 20_000)
    yield made("empty-frames.webp", alpha, "damaged|cut short")
    yield made("pictures.mpo", animation("MPO", 20), "read")

    # ICC and EXIF, and what else stands beside the pixels.
    nonsense = np.random.default_rng(7).bytes(3_000)
    for name, words in (
        ("icc", b"ICC_PROFILE\0\1\1" + nonsense),
        ("icc-9-of-3", b"ICC_PROFILE\0\x09\3" + nonsense),
        ("icc-none", b"ICC_PROFILE\0"),
        ("exif-noise", b"Exif\0\0" + nonsense),
        ("exif-empty", b"Exif\0\0"),
        ("exif-loop", exif([(0x8769, 4, 1, 8), (0x8825, 4, 1, 8), (0xA005, 4, 1, 8)], following=8)),
        ("exif-far", exif([(0x0112, 3, 2**31, 2**32 - 1)])),
        ("exif-many", exif([(0x0112, 3, 1, 6)] * 5_000)),
        ("turned-9", exif([(0x0112, 3, 1, 9)])),
        ("turned-text", exif([(0x0112, 2, 4, 0x41414141)])),
        ("turned-fraction", exif([(0x0112, 5, 1, 0)])),
        ("xmp", b"http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation='77'" + b"<" * 9_000),
        ("mpf", b"MPF\0II*\0" + nonsense),
        ("photoshop", b"Photoshop 3.0\x008BIM\x03\xed\0\0\xff\xff\xff\xff" + nonsense),
    ):
        marker = 0xE2 if name[:3] in ("icc", "mpf") else 0xED if name == "photoshop" else 0xE1
        expected = "damaged" if name == "icc-none" else "read"
        yield made(f"{name}.jpg", head + segment(marker, words) + tail, expected)
    yield made("comments.jpg", head + segment(0xFE, b"x" * 100) * 50_000 + tail, "read")
    at = plain.index(b"IDAT") - 4
    for name, body in (
        (b"iCCP", b"p\0\0" + zlib.compress(nonsense)),
        (b"eXIf", nonsense),
        (b"eXIf", b"II*\0\xff\xff\xff\xff"),
        (b"eXIf", exif([(0x0112, 3, 1, 8), (0x8769, 4, 1, 8)])[6:]),
        (b"tEXt", b"Raw profile type exif\0\nexif\n99999999\nzz"),
        (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0tiff:Orientation>8"),
        (b"gAMA", bytes(4)),
        (b"cHRM", b"\xff" * 32),
        (b"pHYs", bytes(9)),
        (b"tRNS", b"\xff" * 300),
        (b"acTL", b"\xff" * 8),
        (b"ZZZZ", nonsense),
    ):
        broken = plain[:at] + chunk(name, body) + plain[at:]
        digest = hashlib.sha256(body).hexdigest()[:4]
        yield made(f"{name.decode()}-{digest}.png", broken, "read|damaged")
    yield made("palette-of-1.png", png(2, 1, b"\0\0\xff", chunk(b"PLTE", b"abc"), colour=3), "read|damaged")
    yield made("no-palette.png", png(2, 1, b"\0\0\xff", colour=3), "read|damaged")
    yield made("colour-5.png", png(2, 1, b"\0\0\xff", colour=5), "damaged")
    for bits, compression, colours in ((0, 0, 256), (255, 0, 2), (8, 0, 2**31), (8, 99, 256), (24, 3, 0), (16, 6, 0)):
        content = bmp(2, 2, bytes(16), bits=bits, compression=compression, colours=colours)
        yield made(f"bits-{bits}-{compression}-{colours}.bmp", content, "")
    for tag in (258, 259, 262, 277, 278, 279, 273, 284, 317, 338, 339):
        for value in (0, 7, 2**32 - 1):
            yield made(f"tag-{tag}-{value}.tif", grey_tiff(**{f"t{tag}": (4, 1, value)}), "")

    yield from _no_pictures(jpeg, plain, made)


def _no_pictures(jpeg: bytes, plain: bytes, made: Any) -> Iterator[Hostile]:
    """Other files under a picture's name, and pictures under another's."""
    page = b"<!DOCTYPE html><html><img src='data:image/png;base64," + base64.b64encode(plain) + b"'></html>"
    yield made("page.jpg", page, "HTML")
    yield made("page-with-a-mark.jpg", b"\xef\xbb\xbf\n \t" + page, "HTML")
    lolz = b'<?xml version="1.0"?><!DOCTYPE lolz [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]><svg>&b;</svg>'
    yield made("entities.svg", lolz, "SVG|XML")
    yield made("file.svg", b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>', "SVG")
    eps = encoded(_PLAIN.copy(), "EPS")
    yield made("drawing.eps", eps, "EPS")
    yield made("drawing.jpg", b"\xc5\xd0\xd3\xc6" + struct.pack("<7I", 32, len(eps), 0, 0, 0, 0, 0) + eps, "EPS")
    yield made("deletes.png", b"%!PS\n(x) deletefile (%pipe%id) (r) file\n", "EPS")
    yield made("document.jpg", b"%PDF-1.7\n" + jpeg, "PDF")
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr(zipfile.ZipInfo("a.jpg"), jpeg)
    outer = io.BytesIO()
    with zipfile.ZipFile(outer, "w") as archive:
        archive.writestr(zipfile.ZipInfo("inner.zip"), inner.getvalue())
        archive.writestr(zipfile.ZipInfo("zeros"), bytes(50_000_000), zipfile.ZIP_DEFLATED)
    yield made("archive-in-archive.jpg", outer.getvalue(), "archive")
    yield made("gzip-in-gzip.png", gzip.compress(gzip.compress(bytes(50_000_000), mtime=0), mtime=0), "archive")
    shard = io.BytesIO()
    with tarfile.TarFile(fileobj=shard, mode="w") as tar:
        member = tarfile.TarInfo("a.jpg")
        member.size = len(jpeg)
        tar.addfile(member, io.BytesIO(jpeg))
    yield made("shard.jpg", shard.getvalue(), "not a picture")
    yield made("pickle.png", b"\x80\x04\x95\x1a\0\0\0\0\0\0\0\x8c\x05posix\x8c\x06system\x93.", "not a picture")
    yield made("address.jpg", b"https://example.com/cat.jpg", "not a picture")
    yield made("zeros.jpg", bytes(100_000), "zeros")
    yield made("nothing.jpg", b"", "empty")
    yield made("program.gif", b"\x7fELF" + bytes(60), "not a picture")
    yield made("gif-with-a-script.gif", gif(1, 1) + b"/*';alert(1)//", "read|cut short")
    yield made("archive-behind.jpg", jpeg + inner.getvalue(), "read")
    yield made("page-behind.png", plain + page, "read")
    for kind, content in small_files().items():
        yield made(f"{kind}.txt", content, "read")  # a wrong ending is no reason to refuse
