"""Shared by tests of several rooms; out of test_mmeb."""

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

CLASSIFY = "<|image_1|>\nRepresent the given image for classification\n"


ASK = "<|image_1|>\nRepresent the given image with the following question: {}\n"


def picture(path, colour="red"):
    """Save a picture of one colour; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), colour).save(path)
    return path


def write(folder, name, rows):
    """A set of (text, picture, candidates) in MMEB's columns; a text may be a pair, instruction and text, as in V2."""
    (folder / name).mkdir(parents=True, exist_ok=True)
    columns = {"qry_img_path": [row[1] for row in rows], "tgt_text": [row[2] for row in rows]}
    columns["tgt_img_path"] = [None if row[2] is None else [""] * len(row[2]) for row in rows]
    if isinstance(rows[0][0], tuple):
        columns |= {"qry_inst": [row[0][0] for row in rows], "qry_text": [row[0][1] for row in rows]}
    else:
        columns["qry_text"] = [row[0] for row in rows]
    path = folder / name / "test-00000-of-00001.parquet"
    pq.write_table(pa.table(columns), path)
    return path
