"""Small folders in the public layouts, each with one good row beside whatever a test puts in; every function says what its reader said.

A word of the reader is either the error that it raises or its account of what it left out, as text.
"""

import io
import json
import os
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

from abc_core import checkpoint, config
from abc_core.ctrlbench import benchmark
from abc_core.data import genome, index
from abc_core.data import karpathy as readers
from abc_core.data.mined import SCHEMA, read_mined
from abc_core.data.mmeb import read_mmeb
from abc_core.data.pictures import open_image
from abc_core.instructions import replies
from abc_core.instructions.regions import read_instructed, read_instructions
from abc_core.jobs import stages as jobs
from abc_core.reproduce import profiles
from abc_core.runs import paths
from abc_core.runs import run as runlog
from abc_core.runs.arrays import fill

DEEP = "[" * 100_000  # lists in lists without end


def picture(path: Path, size=(30, 20)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "red").save(path)
    return path


def jpeg() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (30, 20), "red").save(file, "JPEG")
    return file.getvalue()


# --- pictures -------------------------------------------------------------------------------------------------------------------------


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG whose header states a size, with further chunks and no pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(b"\0" * 10)), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts)
    return b"\x89PNG\r\n\x1a\n" + body


def opened(folder: Path, content: bytes) -> str:
    (folder / "a.png").write_bytes(content)
    return str(open_image(folder / "a.png").size)


def opened_in_memory(folder: Path, size: tuple[int, int]) -> str:
    return str(open_image(Image.new("RGB", size)).size)


def opened_link(folder: Path, target: str) -> str:
    (folder / "a.png").symlink_to(target)
    return str(open_image(folder / "a.png").size)


# --- pairs ----------------------------------------------------------------------------------------------------------------------------


def table(folder: Path, line: bytes) -> str:
    picture(folder / "a.jpg")
    (folder / "Train_GCC-training.tsv").write_bytes(b"an owl\ta.jpg\n" + line + b"\n")
    return str(readers.read_pairs(folder)[1])


def linked_table(folder: Path) -> str:
    """A table beside a folder that is a link out of it."""
    picture(folder.with_name(folder.name + "-secret") / "b.jpg")
    (folder / "sub").symlink_to(folder.with_name(folder.name + "-secret"))
    return table(folder, b"a cup\tsub/b.jpg")


def member(name: str, content: bytes = b"x", **fields) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


def shard(folder: Path, *members, tail: bytes = b"", keep: int | None = None) -> str:
    with tarfile.open(folder / "cc-0000.tar", "w") as tar:
        for info, content in [member("good.jpg", jpeg()), member("good.txt", b"an owl"), *members]:
            tar.addfile(info, io.BytesIO(content))
    if tail or keep:
        raw = (folder / "cc-0000.tar").read_bytes()
        end = raw.index(bytes(1024)) // 512 * 512 if tail else keep
        (folder / "cc-0000.tar").write_bytes(raw[:end] + tail)
    return str(readers.read_pairs(folder)[1])


def long_names(count: int) -> bytes:
    """Headers that say "the next header's name follows", one after another."""
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 0
    return info.tobuf(tarfile.GNU_FORMAT) * count + bytes(10_240)


def mined(folder: Path, **columns) -> str:
    for name in ("a.jpg", "b.jpg"):
        picture(folder / name)
    rows = {"id": [0, 1], "url": ["", ""], "caption": ["an owl", "a cup"], "image": ["a.jpg", "b.jpg"], "negatives": [[1], [0]]}
    pq.write_table(pa.table(rows | columns), folder / "mined.parquet")
    return str(read_mined(folder / "mined.parquet", folder)[1])


def mined_damaged(folder: Path, at: float, checksum: bool = True) -> str:
    """A byte of a whole file of 3,000 rows, at a share of its length, is another."""
    picture(folder / "a.jpg")
    n = 3_000
    rows = [range(n), [""] * n, [f"caption {k}" for k in range(n)], ["a.jpg"] * n, [[(k + 1) % n] for k in range(n)]]
    pq.write_table(
        pa.table([pa.array(c, f.type) for c, f in zip(rows, SCHEMA)], SCHEMA), folder / "m.parquet", write_page_checksum=checksum
    )
    damage(folder / "m.parquet", at)
    return str(read_mined(folder / "m.parquet", folder)[1])


def damage(path: Path, at: float) -> None:
    raw = bytearray(path.read_bytes())
    raw[int(at * len(raw))] ^= 1
    path.write_bytes(raw)


def not_text(*texts: bytes) -> pa.Array:
    """A column of strings that are not UTF-8."""
    ends = np.cumsum([0, *map(len, texts)]).astype(np.int32)
    return pa.Array.from_buffers(pa.string(), len(texts), [None, pa.py_buffer(ends.tobytes()), pa.py_buffer(b"".join(texts))])


# --- annotations ----------------------------------------------------------------------------------------------------------------------


def visual_genome(folder: Path, region: dict | None = None, measured=None, described=None) -> str:
    picture(folder / "VG_100K" / "1.jpg")
    box = {"phrase": "an owl", "x": 0, "y": 0, "width": 9, "height": 9}
    rows = [{"id": 1, "regions": [{"region_id": 1} | box, {"region_id": 2} | box | (region or {})]}]
    (folder / "region_descriptions.json").write_text(described or json.dumps(rows))
    (folder / "image_data.json").write_text(json.dumps([{"image_id": 1, "width": 30, "height": 20} | (measured or {})]))
    return str(genome.read_genome(folder)[1])


def karpathy(folder: Path, content: str | None = None, **entry) -> str:
    good = {"filename": picture(folder / "1.jpg").name, "split": "test", "sentences": [{"raw": "an owl"}]}
    (folder / "dataset_coco.json").write_text(content or json.dumps({"images": [good, good | entry]}))
    return str(readers.read_karpathy(folder / "dataset_coco.json")[1])


def instructions(folder: Path, **row) -> str:
    row = {"image_id": 1, "region_id": 1, "kind": "content", "instructions": ["what"]} | row
    (folder / "instructions.jsonl").write_text(json.dumps(row) + "\n")
    return str(read_instructions(folder / "instructions.jsonl")[1])


def released(folder: Path, **region) -> str:
    picture(folder / "1.jpg")
    good = {"id": 1, "image": 1, "instruction": "what", "phrase": "an owl", "x": 0, "y": 0, "width": 9, "height": 9}
    lines = [{"0": good, "1": good}, {"0": good, "1": good | region}]
    (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(read_instructed(folder)[1])


def mmeb(folder: Path, **row) -> str:
    picture(folder / "images" / "a.jpg")
    good = {"qry_text": "<|image_1|> what?", "qry_img_path": "a.jpg", "tgt_text": ["an owl", "a cup"], "tgt_img_path": ["", ""]}
    (folder / "GQA").mkdir()
    pq.write_table(pa.Table.from_pylist([good, good | row]), folder / "GQA" / "test-0.parquet")
    return str(read_mmeb(folder, "GQA", "vqa")[1])


def zipped(folder: Path, damage=None, name: str = "a.jpg") -> str:
    """MMEB's pictures in a zip file of which `damage` changes the bytes; its row asks for `name`."""
    with zipfile.ZipFile(folder / "images.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.jpg", jpeg())
    if damage:
        (folder / "images.zip").write_bytes(damage((folder / "images.zip").read_bytes()))
    good = {"qry_text": "what?", "qry_img_path": name, "tgt_text": ["an owl", "a cup"], "tgt_img_path": ["", ""]}
    (folder / "GQA").mkdir()
    pq.write_table(pa.Table.from_pylist([good, good | {"qry_img_path": "a.jpg"}]), folder / "GQA" / "test-0.parquet")
    return str(read_mmeb(folder, "GQA", "vqa")[1])


def newer_zip(raw: bytes) -> bytes:
    """The archive's own list asks for a reader of another century."""
    at = raw.rindex(b"PK\x01\x02")
    return raw[: at + 6] + b"\xff\x00" + raw[at + 8 :]


def card(folder: Path, content: str) -> str:
    (folder / benchmark.FILE).touch()
    (folder / benchmark.CARD).write_text(content)
    return str(benchmark.load(folder))


# --- files of the project's own -------------------------------------------------------------------------------------------------------


def weights(folder: Path, at: float | None = None, keep: float = 1.0, content: bytes | None = None) -> str:
    """A checkpoint with a byte changed at a share of its length, cut off, or of other content."""
    import torch

    path = folder / "last.safetensors"
    checkpoint.save(path, {"weight": torch.arange(4096.0)}, step=3)
    if at is not None:
        damage(path, at)
    raw = path.read_bytes()
    path.write_bytes(raw[: int(keep * len(raw))] if content is None else content)
    return str(checkpoint.load(path)[1])


def lies(shape: list[int], stop: int = 16, size: int = 16) -> bytes:
    """A safetensors file whose header states a shape, and that the numbers end at byte `stop`; it has `size` bytes of them."""
    header = json.dumps({"w": {"dtype": "F32", "shape": shape, "data_offsets": [0, stop]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(size)


def cache(folder: Path, line: str) -> str:
    (folder / "cache.jsonl").write_text(line + "\n")
    return str(replies.read_answers(folder / "cache.jsonl"))


def log(folder: Path, line: bytes) -> str:
    (folder / "metrics.jsonl").write_bytes(b'{"step": 0}\n' + line + b"\n")
    return str(runlog.Run(folder).rows())


def embeddings(folder: Path, name: str, content: bytes) -> str:
    """A file of rows, finished, of which one of the two parts is replaced."""
    path, row = folder / "rows.npy", np.dtype((np.float32, (3,)))
    make = lambda rows: np.ones((rows.stop - rows.start, 3), np.float32)  # noqa: E731
    fill(path, 20, row, make, 4)
    (folder / name).write_bytes(content)
    return str(fill(path, 20, row, make, 4).sum())


def index_damaged(folder: Path, name: str, content: bytes) -> str:
    """An index one of whose files is replaced is made anew: the account of a table that is read twice."""
    table(folder, b"a cup\tgone.jpg")
    newest = max(paths.RUNS.glob("index-*/account.json"), key=os.path.getmtime)
    (newest.parent / name).write_bytes(content)
    assert [pair.caption for pair in readers.read_pairs(folder)[0]] == ["an owl"]
    return f"read anew: {readers.read_pairs(folder)[1]}"


def parquet_file(folder: Path, content: bytes) -> str:
    (folder / "a.parquet").write_bytes(content)
    return str(index.parquet(folder / "a.parquet"))


# --- parameters -----------------------------------------------------------------------------------------------------------------------


def stage1(folder: Path, **values) -> str:
    return str(config.PretrainConfig.from_mapping(values, "params/x/02.yaml"))


def job(folder: Path, text: str) -> str:
    (folder / "job.yaml").write_text(text)
    return str(jobs.read_job(folder / "job.yaml"))


def profile(folder: Path, text: bytes, other: bytes | None = None) -> str:
    """A notebook with `steps = 3` under the profile "mine", and another one, "theirs"."""
    cells = [{"cell_type": "code", "metadata": {"tags": ["parameters"]}, "source": 'profile = "default"\nsteps = 3'}]
    (folder / "notebooks").mkdir()
    (folder / "notebooks" / "00_x.ipynb").write_text(json.dumps({"cells": cells}))
    for name, content in (("mine", text), ("theirs", other)):
        if content is not None:
            (folder / "params" / name).mkdir(parents=True)
            (folder / "params" / name / "00_x.yaml").write_bytes(content)
    before, paths.ROOT = paths.ROOT, folder
    try:
        return str(profiles.parameters(folder / "notebooks" / "00_x.ipynb", "mine"))
    finally:
        paths.ROOT = before


BOMB = yaml.safe_dump({"steps": "x"}) + "".join(f"a{k}: &a{k} [{', '.join([f'*a{k - 1}' if k else 'x'] * 9)}]\n" for k in range(9))
