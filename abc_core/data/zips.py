"""Pictures in a zip file, as MMEB's `images.zip` holds them, read where they lie.

Nothing is unpacked, so no member can leave its folder: a member's name is only compared with the name that a row gives. What a picture may
expand to is bounded by the size that the archive states for it, and that by `data.open_image`.
"""

import struct
from pathlib import Path, PurePosixPath
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile

from abc_core.data.pictures import Member

_HEADER = 30  # bytes of a member's own header before its name
_TOP = "images/"  # folder that an archive may have around all its pictures


class Zipped:
    """What `data.Pictures` is to a folder.

    Raises:
        ValueError: no zip file, or one with members that are encrypted or packed by another method than "deflate".
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        try:
            with ZipFile(self.path) as archive:
                entries = [entry for entry in archive.infolist() if not entry.is_dir()]
        except (BadZipFile, NotImplementedError, LookupError, ValueError) as error:  # made up entries come as any of these
            raise ValueError(f"{self.path} is not a whole zip file: {error}") from error
        for entry in entries:
            if entry.flag_bits & 1 or entry.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
                how = "encrypted" if entry.flag_bits & 1 else f"packed by method {entry.compress_type}"
                raise ValueError(f"{self.path}/{entry.filename} is {how}; only stored and deflated members are read. Unpack it beside")
        self._entries = {entry.filename: entry for entry in entries}

    def __contains__(self, relative: str) -> bool:
        """Is there such a member? Raises ValueError if the name is not one of a file inside a folder."""
        if relative.startswith("/") or ".." in PurePosixPath(relative).parts:
            raise ValueError(f"{relative!r} leaves its folder")
        return relative in self._entries or _TOP + relative in self._entries

    def find(self, relative: str) -> Member | None:
        """Where a member's bytes are, or None. Raises ValueError if its own header is not where the archive says."""
        if relative not in self:
            return None
        entry = self._entries.get(relative) or self._entries[_TOP + relative]
        with self.path.open("rb") as file:
            file.seek(max(0, entry.header_offset))
            header = file.read(_HEADER) if entry.header_offset >= 0 else b""
        if len(header) < _HEADER or header[:4] != b"PK\x03\x04":
            raise ValueError(f"{self.path}/{entry.filename} has no header at byte {entry.header_offset}")
        name, extra = struct.unpack("<HH", header[26:])  # lengths, which need not be those of the directory
        packed = entry.compress_size if entry.compress_type == ZIP_DEFLATED else None
        return Member(self.path, entry.filename, entry.header_offset + _HEADER + name + extra, entry.file_size, packed)
