"""What does reading all of Visual Genome cost, and drawing four regions of each picture? Writes genome_at_size.csv.

Steps: (1) write a made-up folder of its size, 108,077 pictures (empty files) with 50 regions each; (2) a process of its own reads it with
`read_genome` and draws with `select_regions`; (3) print processor seconds of both, and the highest memory above that before the reading.

`python benchmarks/genome_at_size.py [--folder FOLDER] [--pictures 108077]`
"""

import argparse
import csv
import json
import random
import resource
import shutil
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from abc_core.data.karpathy import read_genome
from abc_core.instructions.regions import select_regions

WORDS = "the a man woman white black red blue green on in of with standing wearing next to large small tree sky grass car street"
REGIONS = 50  # of a picture, as in Visual Genome


def write(folder: Path, pictures: int) -> Path:
    """A folder in the layout of Visual Genome."""
    draw = random.Random(0)
    (folder / "VG_100K").mkdir(parents=True)
    with (folder / "region_descriptions.json").open("w") as described, (folder / "image_data.json").open("w") as measured:
        for image_id in range(1, pictures + 1):
            (folder / "VG_100K" / f"{image_id}.jpg").touch()
            regions = [_region(draw, image_id, REGIONS * image_id + k) for k in range(REGIONS)]
            start = "[" if image_id == 1 else ", "
            described.write(start + json.dumps({"id": image_id, "regions": regions}))
            about = {"image_id": image_id, "url": "", "width": 800, "height": 600, "coco_id": None, "flickr_id": None}
            measured.write(start + json.dumps(about))
        described.write("]")
        measured.write("]")
    return folder


def _region(draw: random.Random, image_id: int, region_id: int) -> dict:
    phrase = " ".join(draw.choices(WORDS.split(), k=draw.randint(3, 9)))
    box = {"x": draw.randint(0, 400), "y": draw.randint(0, 300), "width": draw.randint(10, 400), "height": draw.randint(10, 300)}
    return {"region_id": region_id, "image_id": image_id, "phrase": phrase} | box


def measure(folder: Path) -> dict:
    """One row of the table."""
    held, times = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, [time.process_time()]
    images, _ = read_genome(folder)
    times.append(time.process_time())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    select_regions(images)
    times.append(time.process_time())
    row = {"pictures": len(images), "regions": sum(len(image.regions) for image in images)}
    size = (folder / "region_descriptions.json").stat().st_size
    row |= {"file_mb": round(size / 1e6), "read_s": round(times[1] - times[0], 1), "select_s": round(times[2] - times[1], 1)}
    return row | {"read_mb": round((peak - held) / 1e3)}  # ru_maxrss is in KiB on Linux, 2 % less than a thousandth of a MB


def main() -> None:
    """Measure and write the table beside this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where to write 0.8 GB, and keep it; a temporary folder without")
    parser.add_argument("--pictures", type=int, default=108_077)
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp())
    made = folder / f"genome-{options.pictures}"
    try:
        if not made.exists():
            write(made, options.pictures)
        with ProcessPoolExecutor(1) as process:
            row = process.submit(measure, made).result()
    finally:
        if options.folder is None:
            shutil.rmtree(folder)
    print(row)
    with Path(__file__).with_suffix(".csv").open("w", newline="") as out:
        table = csv.DictWriter(out, row, lineterminator="\n")
        table.writeheader()
        table.writerow(row)


if __name__ == "__main__":
    main()
