"""What a file is: a picture that is read, one of a kind that is not, or something else; by its name and first bytes.

A kind is a short text: `PICTURE` (empty) for what is read, else a key of `KINDS`, which has the words for it. The scans
of folders, tar shards and lists of files all ask here, so that one file is the same thing everywhere.
"""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

from instdisc.data.decoding.formats import READ, format_of

PICTURE = ""
HEAD = 512  # bytes that tell what a file is


class Kind(NamedTuple):
    """The words for what is skipped: of one, of many, and what is said of one and of many."""

    one: str
    many: str
    why_one: str
    why_many: str


def _not_read(one: str, remedy: str, many: str = "") -> Kind:
    """What holds pictures that are not read. remedy: what to do with {it}."""
    one_is, many_are = (f"{verb} not read: {remedy.format(it=it)}" for verb, it in (("is", "it"), ("are", "them")))
    return Kind(one, many or one + "s", one_is, many_are)


def _told(one: str, many: str, why: str) -> Kind:
    return Kind(one, many, f"was {why}", f"were {why}")


_CONVERT = "convert {it} to JPEG or PNG"
NOT_READ: dict[str, Kind] = {
    "HEIC": _not_read("HEIC picture", "pip install 'instdisc[heif]', or convert {it} to JPEG"),
    "AVIF": _not_read("AVIF picture", _CONVERT),
    "JPEG XL": _not_read("JPEG XL picture", _CONVERT),
    "JPEG 2000": _not_read("JPEG 2000 picture", _CONVERT),
    "raw": _not_read("RAW picture", "develop {it} to JPEG or TIFF"),
    "Photoshop": _not_read("Photoshop picture", _CONVERT),
    "xcf": _not_read("GIMP or Krita picture", _CONVERT),
    "hdr": _not_read("EXR or HDR picture", _CONVERT),
    "rare": _not_read("picture of a rare format", _CONVERT, "pictures of rare formats"),
    "SVG": _not_read("SVG drawing", "render {it} as PNG"),
    "EPS": _not_read("EPS drawing", "render {it} as PNG"),
    "PDF": _not_read("PDF document", "render the pages of {it} as PNG"),
    "DICOM": _not_read("DICOM picture", "export {it} as PNG or TIFF"),
    "science": _not_read("file of a microscope, scanner or telescope", "export {it} as TIFF or PNG",
                         "files of microscopes, scanners or telescopes"),
    "video": _not_read("video", "take stills out of {it}, as with ffmpeg"),
    "archive": _not_read("compressed archive", "unpack {it}"),
}  # fmt: skip
_SAMPLE = "skipped: what has the same name up to its first dot is one sample in WebDataset, with one picture"
KINDS: dict[str, Kind] = NOT_READ | {
    "beside": _told("picture", "pictures", "skipped, which lie beside Parquet files or tar shards"),
    "parquet": _told("Parquet file", "Parquet files", "skipped, as there is more in the other files"),
    "tar": _told("tar file", "tar files", "skipped, as there is more in the other files"),
    "sample": _told("further picture of a sample", "further pictures of samples", _SAMPLE),
    "label": Kind("label (.cls, .json)", "labels (.cls, .json)", "fits no picture by its name",
                  "fit no picture by their names"),
    "cut": Kind("tar shard", "tar shards", "is cut short: only the samples before the break are there",
                "are cut short: only the samples before the break are there"),
    "link": _told("link to a picture that is there already", "links to pictures that are there already", "left out"),
    "dangling": _told("link to what is not in the shard", "links to what is not in the shard", "skipped"),
    "ours": _told("run folder or file of instdisc's own", "run folders and files of instdisc's own", "left out"),
    "system": _told("file or folder of a system's own", "files and folders of a system's own", "left out"),
    "software": _told("backup or preview that a program keeps", "backups and previews that programs keep", "left out"),
    "hidden": _told("hidden file or folder", "hidden files and folders (their names begin with a dot)", "left out"),
    "unopened": Kind("folder", "folders", "could not be opened and was skipped",
                     "could not be opened and were skipped"),
    "other": _told("file that is not a picture", "files that are not pictures", "skipped"),
}  # fmt: skip  # in this order they are told

# Read where their decoders are installed; in the order in which the indices of folders have them.
_OPTIONAL = tuple(reversed([format.name for format in READ.values() if format.installed is not None]))
_PICTURE_ENDINGS = " ".join(format.endings for format in READ.values() if format.installed is None)
_ENDINGS = {  # of what is not read; "raw" alone is known by name, since many begin as a TIFF does
    **{name: READ[name].endings for name in _OPTIONAL},
    "JPEG XL": "jxl",
    "JPEG 2000": "jp2 j2k jpf jpx jpm j2c jpc jph",
    "raw": "3fr arw cr2 cr3 crw dcr dng erf fff gpr iiq k25 kdc mef mos mrw nef nrw orf pef raf raw rw2 rwl sr2 srf "
    "srw x3f",
    "Photoshop": "psd psb",
    "xcf": "xcf kra ora clip",
    "hdr": "exr hdr",
    "rare": "tga pcx ico icns cur dds qoi sgi ppm pgm pbm pnm pam",
    "SVG": "svg svgz",
    "EPS": "eps ai ps",
    "PDF": "pdf",
    "DICOM": "dcm dicom",
    "science": "czi nd2 lif oib oif vsi mrxs fits fit nii mrc",
    "video": "mp4 m4v mov avi mkv webm mpg mpeg wmv flv mts m2ts 3gp 3g2 mxf vob ogv insv lrv",
    "archive": "zip 7z rar gz tgz bz2 tbz xz txz zst",
    "parquet": "parquet pq",
    "tar": "tar",
}
_FORMATS = {"JPEG XR": "rare", "JPEG-LS": "rare", "GIMP": "xcf", "EXR": "hdr", "HDR": "hdr", "FITS": "science"}
_FORMATS |= {kind: kind for kind in NOT_READ}  # name of a format in formats.py -> kind

_FILES_OF_SYSTEMS = frozenset(
    b"thumbs.db ehthumbs.db ehthumbs_vista.db desktop.ini .ds_store .localized icon\r .directory .nomedia .apdisk "
    b"synoindex_media_info zbthumbnail.info .picasa.ini picasa.ini".split(b" ")
)
_FOLDERS_OF_SYSTEMS = frozenset(
    b"@eadir|@tmp|@recycle|@recently-snapshot|.@__thumb|#recycle|#snapshot|$recycle.bin|recycler|recycled|"
    b"system volume information|lost+found|lost.dir|found.000|__macosx|.appledouble|.trash|.trashes|.fseventsd|"
    b".spotlight-v100|.temporaryitems|.documentrevisions-v100|.thumbnails|.ipynb_checkpoints|__pycache__|.picasaoriginals"
    .split(b"|")
)  # fmt: skip
_SYSTEMS_BEGIN = (b"._", b".trash-", b".nfs", b".fuse_hidden")
_OF_OURS = frozenset((b"train.lock", b"quarantine.csv", b"instances.arrow"))  # a run that has just been started
_PREVIEWS = (b".lrdata", b".cocatalogdb", b".rcc")
_BACKUP = re.compile(
    rb"\.(%s|%s)(_original\d*|~|\.(bak|backup|orig|old|tmp|temp|part|partial|crdownload|download|!ut))\Z"
    % (_PICTURE_ENDINGS.replace(" ", "|").encode(), " ".join(_ENDINGS.values()).replace(" ", "|").encode()),
    re.IGNORECASE,
)


def is_picture(head: bytes) -> bool:
    """Whether the first bytes (32 will do) are those of a picture of a format that is read here."""
    format = format_of(head)
    if format is None or format.refusal or (format.name in _OPTIONAL and format.name not in kinds_read()):
        return False
    # "BM" begins many a text; the length of the second header of a bitmap is one of few.
    return format.name != "BMP" or int.from_bytes(head[14:18], "little") in (12, 16, 40, 52, 56, 64, 108, 124)


@functools.cache
def kinds_read() -> tuple[str, ...]:
    """The kinds of `NOT_READ` that this installation reads all the same; a scan's word on others holds for these."""
    return tuple(kind for kind in _OPTIONAL if (installed := READ[kind].installed) is not None and installed())


@functools.cache
def _kinds_of_endings() -> dict[bytes, str]:
    """Ending -> kind. What this installation can read is a picture by its name too."""
    known = {ending.encode(): PICTURE for ending in _PICTURE_ENDINGS.split()}
    for kind, endings in _ENDINGS.items():
        found = PICTURE if kind in kinds_read() else kind
        known |= {ending.encode(): found for ending in endings.split()}
    return known


def read_anew() -> None:
    """Look again which decoders are installed."""
    kinds_read.cache_clear()
    _kinds_of_endings.cache_clear()


def unusual_endings() -> list[bytes]:
    """The endings of `kinds_read`."""
    return [ending.encode() for kind in kinds_read() for ending in _ENDINGS[kind].split()]


def has_picture_name(name: bytes) -> bool:
    """Whether a name ends as those of pictures do."""
    return _kinds_of_endings().get(name[name.rfind(b".") + 1 :].lower()) == PICTURE


def kind_of_name(name: bytes) -> str | None:
    """The kind of a file by the last part of its path; None where the name does not tell."""
    if not name.startswith(b"."):
        kind = _kinds_of_endings().get(name[name.rfind(b".") + 1 :].lower())
        if kind is not None:
            return kind
    return _kind_of_rare_name(name)


def _kind_of_rare_name(name: bytes) -> str | None:
    lower = name.lower()
    if lower in _FILES_OF_SYSTEMS or lower.startswith(_SYSTEMS_BEGIN):
        return "system"
    if lower in _OF_OURS:
        return "ours"
    if name.startswith(b"."):
        return "hidden"
    return "software" if _BACKUP.search(name) else None


def kind_of_folder(name: bytes) -> str | None:
    """Why a folder is left out by its name; None for one that is looked into."""
    lower = name.lower()
    if lower in _FOLDERS_OF_SYSTEMS or lower.startswith(_SYSTEMS_BEGIN):
        return "system"
    if lower.endswith(_PREVIEWS):
        return "software"
    return "hidden" if name.startswith(b".") else None


def is_systems(name: str) -> bool:
    """Whether a file or folder is a system's own, so that a folder with nothing else is empty."""
    return "system" in (kind_of_name(name.encode(errors="replace")), kind_of_folder(name.encode(errors="replace")))


def is_sure(kind: str | None) -> bool:
    """Whether a kind that the name tells needs no look at the content: HEIC may be the name of a JPEG."""
    return kind is not None and (kind not in NOT_READ or kind == "raw")


def kind_of_content(by_name: str | None, head: bytes) -> str:
    """The kind of a file by its first `HEAD` bytes, where its name, which tells `by_name`, is not enough."""
    if is_picture(head):
        return PICTURE
    format = format_of(head)
    told = "" if format is None or format.name == "archive" else format.name  # an .odt is none to unpack
    return _FORMATS.get(told) or by_name or "other"


def sentence_of(kind: str, count: int) -> str:
    """ "20 HEIC pictures are not read: convert them to JPEG", without a full stop."""
    words = KINDS.get(kind, KINDS["other"])
    return f"1 {words.one} {words.why_one}" if count == 1 else f"{count:,} {words.many} {words.why_many}"


def reason_of(kind: str) -> str:
    """The same of one file, for the list of what was not read."""
    words = KINDS.get(kind, KINDS["other"])
    article = "an" if words.one[:1] in "aeioAEIO" else "a"
    return f"{article} {words.one} {words.why_one}"
