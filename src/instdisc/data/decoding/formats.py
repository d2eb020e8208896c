"""What a file is, by its first bytes: a format that is read, one that is known and not read, or nothing known.

    format = format_of(head)                # 32 bytes tell most; DICOM needs 132, text a few more

Names decide nothing here. What begins like a TIFF may still be a camera's raw file: decoding/tiff.py looks into it.
A format more that is read is a function that opens it, and a line with it in `_SIGNATURES`.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass

from PIL import BmpImagePlugin, GifImagePlugin, ImageFile, JpegImagePlugin, PngImagePlugin
from PIL import WebPImagePlugin as WebpImagePlugin

from instdisc.data.decoding.heif import has_avif, has_heic, open_avif, open_heic
from instdisc.data.decoding.tiff import TiffFile


@dataclass(frozen=True)
class Format:
    """name: as people say it. refusal: how the sentence "the file ..." goes on; empty where the format is read.

    Of those that are read: opened: reads the header, and the pixels by its `load`. endings: of names, in lower case.
    installed: whether the decoder is there, of one that may be missing.
    """

    name: str
    refusal: str = ""
    opened: Callable[[io.BytesIO], ImageFile.ImageFile] | None = None
    endings: str = ""
    installed: Callable[[], bool] | None = None


_HEIC = rb"(hei[cmsx]|hev[cmsx]|mif[12]|msf1|miaf)"
_RAW = "is a camera's raw file ({}), which is not read: develop it to JPEG or TIFF"


def _not_read(what: str, remedy: str = "convert it to JPEG or PNG") -> str:
    return f"is {what}, which is not read: {remedy}"


# The decoder classes are called directly: Image.open would first try a list of formats, and refuses pictures by a
# process-wide limit of its own before decode.py could compare the header with the caller's cap.
_SIGNATURES: tuple[tuple[re.Pattern[bytes], Format], ...] = tuple(
    (re.compile(pattern, re.DOTALL), format)
    for pattern, format in (
        (rb"\xff\xd8\xff\xf7", Format("JPEG-LS", _not_read("a JPEG-LS picture"))),
        (rb"\xff\xd8\xff", Format("JPEG", opened=JpegImagePlugin.JpegImageFile, endings="jpg jpeg jpe jfif")),
        (rb"\x89PNG\r\n\x1a\n", Format("PNG", opened=PngImagePlugin.PngImageFile, endings="png")),
        (rb"RIFF....WEBP", Format("WebP", opened=WebpImagePlugin.WebPImageFile, endings="webp")),
        (rb"GIF8[79]a", Format("GIF", opened=GifImagePlugin.GifImageFile, endings="gif")),
        (rb"BM", Format("BMP", opened=BmpImagePlugin.BmpImageFile, endings="bmp dib")),
        (rb"II\*\0....CR\x02", Format("raw", _RAW.format("CR2"))),
        (rb"(II\*\0|MM\0\*)(IIII|MMMM)", Format("raw", _RAW.format("IIQ"))),
        (rb"II\*\0|MM\0\*|II\+\0|MM\0\+", Format("TIFF", opened=TiffFile, endings="tif tiff")),
        (
            rb"....ftyp(avif|avis|(mif1|msf1|miaf).{4}([^\0]{4})*?avi[fs])",
            Format("AVIF", opened=open_avif, endings="avif avifs", installed=has_avif),
        ),
        (
            rb"....ftyp" + _HEIC,
            Format("HEIC", opened=open_heic, endings="heic heif hif heics heifs", installed=has_heic),
        ),
        (rb"....ftypcrx ", Format("raw", _RAW.format("CR3"))),
        (rb"II\x1a\0\0\0HEAPCCDR", Format("raw", _RAW.format("CRW"))),
        (rb"FUJIFILMCCD-RAW", Format("raw", _RAW.format("RAF"))),
        (rb"IIR[OS]|MMOR", Format("raw", _RAW.format("ORF"))),
        (rb"IIU\0", Format("raw", _RAW.format("RW2"))),
        (rb"FOVb", Format("raw", _RAW.format("X3F"))),
        (rb"\0MRM", Format("raw", _RAW.format("MRW"))),
        (rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n", Format("JPEG XL", _not_read("a JPEG XL picture"))),
        (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", Format("JPEG 2000", _not_read("a JPEG 2000 picture"))),
        (rb"II\xbc", Format("JPEG XR", _not_read("a JPEG XR picture"))),
        (rb".{128}DICM", Format("DICOM", _not_read("a DICOM file", "export its picture to PNG or TIFF"))),
        (
            rb"....(ftyp|moov|mdat|wide|pnot)|\x1aE\xdf\xa3|RIFF....AVI |\0\0\x01[\xb3\xba]|FLV\x01|0&\xb2u\x8ef\xcf",
            Format("video", "is a video, not a picture: take single pictures out of it, for example with ffmpeg"),
        ),
        (rb"8BPS|8BPB", Format("Photoshop", _not_read("a Photoshop file"))),
        (rb"gimp xcf", Format("GIMP", _not_read("a GIMP picture"))),
        (rb"\x76\x2f\x31\x01", Format("EXR", _not_read("an EXR picture"))),
        (rb"#\?RADIANCE", Format("HDR", _not_read("an HDR picture"))),
        (rb"SIMPLE  =", Format("FITS", _not_read("a FITS file", "export its picture to PNG or TIFF"))),
        (rb"%!PS|\xc5\xd0\xd3\xc6", Format("EPS", _not_read("an EPS drawing"))),
        (rb"%PDF", Format("PDF", "is a PDF document, not a picture")),
        (rb"PK\x03\x04|\x1f\x8b|7z\xbc\xaf|Rar!", Format("archive", "is a compressed archive, not a picture")),
    )
)
READ = {format.name: format for _, format in _SIGNATURES if format.opened is not None}
_TEXTS: tuple[tuple[re.Pattern[bytes], Format], ...] = tuple(
    (re.compile(pattern, re.DOTALL | re.IGNORECASE), Format(name, refusal))
    for pattern, name, refusal in (
        (
            rb"version https://git-lfs",
            "pointer",
            "is a Git LFS pointer, not the picture itself: run `git lfs pull`",
        ),
        (rb"(<\?xml.*)?<svg", "SVG", _not_read("an SVG drawing")),
        (rb"<!doctype html|<html|<head", "HTML", "is a web page (HTML), not a picture"),
        (rb"<\?xml|[\[{]\s*\"", "text", "is a text file (XML or JSON), not a picture"),
        (rb"%!PS", "EPS", _not_read("an EPS drawing")),
        (rb"%PDF", "PDF", "is a PDF document, not a picture"),
    )
)


def format_of(head: bytes) -> Format | None:
    """The format that these first bytes begin, None where they begin nothing that is known."""
    head = head[:4096]
    for signature, format in _SIGNATURES:
        if signature.match(head):
            return format
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    for signature, format in _TEXTS:
        if signature.match(text):
            return format
    return Format("zeros", "holds nothing but zeros") if head and not head.strip(b"\0") else None
