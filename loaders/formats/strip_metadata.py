"""PNG and JPEG files without metadata; Pillow refuses whole pixels beside damaged metadata.

Source: PNG specification (third edition) 5.3 and 5.4, chunks and which of them are ancillary;
ITU-T T.81 B.1.1, markers of JPEG; T.872 6.5.3, Adobe's of the colours.
"""

import struct
import zlib
from collections.abc import Iterator

_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
_ANCILLARY = 0x20  # this bit of the first letter of a chunk's name
_APPLICATION, _ADOBE, _COMMENT, _SCAN = range(0xE0, 0xF0), 0xEE, 0xFE, 0xDA
_ADOBE_BYTES = 12


def without_metadata(raw: bytes) -> bytes:
    """The file without texts, profiles and the like; EXIF data stay, as they may turn the image.

    Other files are returned unchanged, and so is the rest behind a damaged length.
    """
    if raw.startswith(_PNG):
        return _PNG + b"".join(_chunks(raw))
    if raw.startswith(_JPEG):
        return _JPEG + b"".join(_segments(raw))
    return raw


def _chunks(raw: bytes) -> Iterator[bytes]:
    place = len(_PNG)
    while place + 12 <= len(raw):
        end = place + 12 + int.from_bytes(raw[place : place + 4], "big")
        if end > len(raw):
            break
        chunk = raw[place:end]
        kind = chunk[4:8]
        whole = zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")
        if not kind[0] & _ANCILLARY or (kind == b"eXIf" and whole):
            yield chunk
        place = end
    yield raw[place:]


def _segments(raw: bytes) -> Iterator[bytes]:
    place = len(_JPEG)
    while place + 4 <= len(raw):
        start, marker, size = struct.unpack_from(">BBH", raw, place)
        if start != 0xFF or marker == _SCAN:
            break
        segment = raw[place : place + 2 + size]
        is_needed = marker not in _APPLICATION and marker != _COMMENT
        is_colour = marker == _ADOBE and len(segment) >= 4 + _ADOBE_BYTES
        if is_needed or is_colour or segment[4:].startswith(b"Exif\0\0"):
            yield segment
        place += 2 + size
    yield raw[place:]
