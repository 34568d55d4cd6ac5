"""Bad inputs by name, each with the sentence that it must produce: an error, or the reader's account of what it left out.

Whatever is wrong is said with its file, row and value; nothing is unpacked, followed or run, and nothing is changed silently.
"""

import re
import tarfile
import zlib

import made_up as bad
import pyarrow as pa
import pytest

HALF = "\ud800"  # half a character, as JSON can spell it
HUGE = 10**400

# name -> (what is done in an empty folder, the sentence)
TABLE = {
    # pictures
    "a PNG of 50,000 × 50,000 pixels in 80 bytes": (
        lambda at: bad.opened(at, bad.png(50_000, 50_000)),
        r"a\.png: Image size \(2500000000 pixels\) exceeds limit",
    ),
    "a PNG of 9,000 × 9,000 pixels": (
        lambda at: bad.opened(at, bad.png(9_000, 9_000)),
        r"9000 x 9000 pixels are more than the limit of 50,000,000",
    ),
    "a picture of one line": (
        lambda at: bad.opened_in_memory(at, (20_000, 2)),
        "one side of 20000 x 2 pixels is more than 200 times the other",
    ),
    "a picture without pixels": (lambda at: bad.opened_in_memory(at, (0, 5)), "one side of 0 x 5 pixels is more than 200 times the other"),
    "a PNG whose comment expands to 100 MB": (
        lambda at: bad.opened(at, bad.png(3, 3, (b"zTXt", b"c\0\0" + zlib.compress(bytes(10**8))))),
        r"a\.png is not a whole picture.*too large",
    ),
    "a PNG that ends after its header": (lambda at: bad.opened(at, bad.png(30, 20)), r"a\.png is not a whole picture in one of JPEG, PNG"),
    "a PostScript program with the name of a picture": (
        lambda at: bad.opened(at, b"%!PS-Adobe-3.0 EPSF-3.0\n"),
        r"a\.png is not a whole picture",
    ),
    "an empty file with the name of a picture": (lambda at: bad.opened(at, b""), r"a\.png is not a whole picture"),
    "a link to a file that is no picture": (lambda at: bad.opened_link(at, "/etc/passwd"), r"a\.png is not a whole picture"),
    "a link to nothing": (lambda at: bad.opened_link(at, "nowhere"), r"No such file or directory: '.*a\.png'"),
    "a link to itself": (lambda at: bad.opened_link(at, "a.png"), r"Too many levels of symbolic links: '.*a\.png'"),
    # tables of pairs
    "a row that climbs out of the folder": (
        lambda at: bad.table(at, b"a cup\t../../etc/x.jpg"),
        r"path leaves the folder.*\n.*row 1: '\.\./\.\./etc/x\.jpg'",
    ),
    "a row with an absolute path": (lambda at: bad.table(at, b"a cup\t/etc/passwd"), r"path leaves the folder.*\n.*row 1: '/etc/passwd'"),
    "a row that leaves through a link": (bad.linked_table, r"path leaves the folder.*\n.*row 1: 'sub/b\.jpg'"),
    "a row with a null character in its path": (
        lambda at: bad.table(at, b"a cup\tb\0/a.jpg"),
        r"path leaves the folder.*\n.*row 1: 'b\\x00/a\.jpg'",
    ),
    "a row with a web address": (lambda at: bad.table(at, b"a cup\thttp://x/a.jpg"), "picture is a web address, not a downloaded file"),
    "a row that is not UTF-8": (lambda at: bad.table(at, b"\xff\xfe\ta.jpg"), "1 x not UTF-8"),
    "a row of three columns": (lambda at: bad.table(at, b"a\tb\tc"), "3 columns instead of 2"),
    "a caption of white space from all over Unicode": (lambda at: bad.table(at, "\u2003\u00a0\u3000\ta.jpg".encode()), "empty caption"),
    # shards
    "a member that climbs out": (lambda at: bad.shard(at, bad.member("../b.jpg"), bad.member("../b.txt")), r"2 x path leaves the folder"),
    "a member with an absolute name": (lambda at: bad.shard(at, bad.member("/b.jpg")), r"path leaves the folder.*\n.*row 2: '/b\.jpg'"),
    "a member that is a symbolic link": (
        lambda at: bad.shard(at, bad.member("b.jpg", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd")),
        r"member that is no plain file.*\n.*'b\.jpg'",
    ),
    "a member that is a hard link": (
        lambda at: bad.shard(at, bad.member("b.jpg", b"", type=tarfile.LNKTYPE, linkname="good.jpg")),
        r"member that is no plain file.*\n.*'b\.jpg'",
    ),
    "a member that is a device": (lambda at: bad.shard(at, bad.member("b.jpg", b"", type=tarfile.CHRTYPE)), "member that is no plain file"),
    "a member's name that runs backwards": (lambda at: bad.shard(at, bad.member("b\u202egpj.txt")), "name that cannot be printed"),
    "a member of minus 1,536 bytes": (
        lambda at: bad.shard(at, bad.member("b.jpg", pax_headers={"size": "-1536"})),
        r"shard breaks off here.*\n.*row 2: 'b\.jpg'",
    ),
    "a member of a yottabyte": (lambda at: bad.shard(at, bad.member("b.jpg", pax_headers={"size": "9" * 24})), "shard breaks off here"),
    "headers that announce headers without end": (lambda at: bad.shard(at, tail=bad.long_names(3_000)), "shard breaks off here"),
    "a caption of a megabyte": (lambda at: bad.shard(at, bad.member("b.txt", bytes(10**6))), "caption of more than 65,536 bytes"),
    "a caption that is not UTF-8": (lambda at: bad.shard(at, bad.member("b.txt", b"\xff")), "not UTF-8"),
    "a truncated shard": (lambda at: bad.shard(at, bad.member("b.jpg", bytes(9_000)), keep=5_000), "shard breaks off here"),
    # mined pairs
    "a negative that is no row": (lambda at: bad.mined(at, negatives=[[7], [0]]), r"row 0: negative 7 is not a row of this file of 2 rows"),
    "a negative of 64 bits": (
        lambda at: bad.mined(at, negatives=pa.array([[2**63], [0]], pa.list_(pa.uint64()))),
        "negative 9223372036854775808 is not a row of this file",
    ),
    "a mined picture out of the folder": (lambda at: bad.mined(at, image=["../a.jpg", "b.jpg"]), r"path leaves the folder"),
    "a caption column that is not UTF-8": (
        lambda at: bad.mined(at, caption=bad.not_text(b"\xff", b"a")),
        r"mined\.parquet is damaged: .*UTF8.*; get it again",
    ),
    "a Parquet file with one bit turned": (lambda at: bad.mined_damaged(at, 0.5), r"m\.parquet is damaged: .*CRC check.*; get it again"),
    "a Parquet file of others with bytes that cannot be unpacked": (
        lambda at: bad.mined_damaged(at, 0.5, checksum=False),
        r"m\.parquet is damaged: .*; get it again|m\.parquet row \d+: negative",
    ),
    "a file that only ends in .parquet": (lambda at: bad.parquet_file(at, b"PAR1 PAR1"), r"a\.parquet is not a Parquet file"),
    # Visual Genome
    "a box without end": (
        lambda at: bad.visual_genome(at, {"width": float("inf")}),
        r"box without end.*\n.*row 0, region 1: \(0, 0, inf, 9\)",
    ),
    "a box at no number": (lambda at: bad.visual_genome(at, {"x": float("nan")}), "box wholly outside its picture"),
    "a box of negative width": (lambda at: bad.visual_genome(at, {"width": -9}), "box without area"),
    "a box of no width": (lambda at: bad.visual_genome(at, {"height": float("nan")}), "box without area"),
    "a box of 400 digits": (lambda at: bad.visual_genome(at, {"width": HUGE}), "row 0, region 1: a number is out of range"),
    "a box that says true": (lambda at: bad.visual_genome(at, {"x": True}), "row 0, region 1: 'x' is missing or of a wrong type: True"),
    "a region number of 70 bits": (lambda at: bad.visual_genome(at, {"region_id": 2**70}), "row 0, region 1: a number is out of range"),
    "half a character in a phrase": (lambda at: bad.visual_genome(at, {"phrase": f"an owl{HALF}"}), "phrase that is not Unicode"),
    "a picture of no width": (lambda at: bad.visual_genome(at, measured={"width": 0}), "row 0: a picture of 0 x 20 pixels"),
    "lists in lists without end": (
        lambda at: bad.visual_genome(at, described=bad.DEEP),
        r"region_descriptions\.json is not JSON: .*recursion",
    ),
    "a list that breaks off": (
        lambda at: bad.visual_genome(at, described='[{"id": 1, "regi'),
        r"region_descriptions\.json is not JSON: record 0",
    ),
    # Karpathy splits
    "a filename that climbs out": (lambda at: bad.karpathy(at, filename="../x.jpg"), r"path leaves the folder.*\n.*row 1: '\.\./x\.jpg'"),
    "a filepath that climbs out": (lambda at: bad.karpathy(at, filepath="../..", filename="x.jpg"), "path leaves the folder"),
    "a filename of 5,000 letters": (lambda at: bad.karpathy(at, filename="x" * 5_000), "missing picture"),
    "half a character in a sentence": (
        lambda at: bad.karpathy(at, sentences=[{"raw": HALF}]),
        r"sentence that is not Unicode.*\n.*row 1: '\\ud800'",
    ),
    "a sentence that is a number": (lambda at: bad.karpathy(at, sentences=[{"raw": 7}]), "row 1: 'raw' is missing or of a wrong type: 7"),
    "a split that is a list of lists without end": (lambda at: bad.karpathy(at, bad.DEEP), r"dataset_coco\.json is not JSON: .*recursion"),
    "a split that is a number": (lambda at: bad.karpathy(at, "7"), r"dataset_coco\.json: 'images' is missing or of a wrong type: 7"),
    # instructions
    "half a character in an instruction": (
        lambda at: bad.instructions(at, instructions=[HALF]),
        r"instruction that is not Unicode.*\n.*row 0: '\\ud800'",
    ),
    "an instruction that is a number": (lambda at: bad.instructions(at, instructions=[7]), "row 0: an instruction should be a text, not 7"),
    "a region number that is a text": (
        lambda at: bad.instructions(at, region_id="1"),
        "row 0: 'region_id' is missing or of a wrong type: '1'",
    ),
    "a released box of 400 digits": (lambda at: bad.released(at, x=HUGE), r"box without end.*\n.*row 1: .*inf"),
    "a released box at no number": (lambda at: bad.released(at, y=float("nan")), "box without end"),
    "a released picture that climbs out": (lambda at: bad.released(at, image="../1"), r"row 1, region 1: 'image' is no number: '\.\./1'"),
    "a released number of 5,000 digits": (lambda at: bad.released(at, id="9" * 5_000), "row 1, region 1: 'id' is no number: '999"),
    "half a character in a released phrase": (lambda at: bad.released(at, phrase=HALF), "instruction or phrase that is not Unicode"),
    # MMEB
    "a question about a picture outside": (
        lambda at: bad.mmeb(at, qry_img_path="../a.jpg"),
        r"path leaves the folder.*\n.*row 1: '\.\./a\.jpg'",
    ),
    "a question that is a placeholder alone": (lambda at: bad.mmeb(at, qry_text="<|image_1|>"), "no question"),
    "a member of the zip file that climbs out": (lambda at: bad.zipped(at, name="../a.jpg"), "path leaves the folder"),
    "a zip file for another reader": (
        lambda at: bad.zipped(at, bad.newer_zip),
        r"images\.zip is not a whole zip file: zip file version 25\.5",
    ),
    "a truncated zip file": (lambda at: bad.zipped(at, lambda raw: raw[:-30]), r"images\.zip is not a whole zip file"),
    "a zip file whose members begin before it": (
        lambda at: bad.zipped(at, lambda raw: raw[40:]),
        r"images\.zip/a\.jpg has no header at byte -40",
    ),
    "a benchmark's card that is a list": (lambda at: bad.card(at, "[]"), r"ctrlbench\.parquet is not a Parquet file"),
    # weights
    "a checkpoint with one bit turned": (lambda at: bad.weights(at, at=0.5), r"last\.safetensors is damaged: what it holds has the digest"),
    "a truncated checkpoint": (lambda at: bad.weights(at, keep=0.5), r"last\.safetensors is not a checkpoint of this project"),
    "weights that state more numbers than they have": (
        lambda at: bad.weights(at, content=bad.lies([1_000_000], stop=4_000_000)),
        r"last\.safetensors is not a checkpoint of this project",
    ),
    "weights of a shape that is not their size": (
        lambda at: bad.weights(at, content=bad.lies([5])),
        r"last\.safetensors is not a checkpoint",
    ),
    "weights whose shape multiplies beyond 64 bits": (
        lambda at: bad.weights(at, content=bad.lies([2**32, 2**32, 2**32])),
        r"last\.safetensors is not a checkpoint of this project",
    ),
    "weights whose header never ends": (
        lambda at: bad.weights(at, content=b"\xff" * 64),
        r"last\.safetensors is not a checkpoint of this project",
    ),
    # the project's own files
    "a cached answer that is a number": (
        lambda at: bad.cache(at, '{"key": "a", "answer": 7, "tokens": [1, 2]}'),
        r"cache\.jsonl row 0: a text or nothing, and two numbers of tokens",
    ),
    "a cached answer of three numbers": (
        lambda at: bad.cache(at, '{"key": "a", "answer": "b", "tokens": [1, 2, 3]}'),
        r"cache\.jsonl row 0: a text or nothing, and two numbers",
    ),
    "a broken line in the cache": (lambda at: bad.cache(at, '{"key": "a", "ans\n{}'), r"cache\.jsonl row 0 is not JSON"),
    "a row of the log that is a list": (lambda at: bad.log(at, b"[1]"), r"metrics\.jsonl row 1 is not JSON, or no object: b'\[1\]'"),
    "a row of the log that is not UTF-8": (lambda at: bad.log(at, b"\xff"), r"metrics\.jsonl row 1 is not JSON, or no object: b'\\xff'"),
    "embeddings whose record is cut off": (
        lambda at: bad.embeddings(at, "rows.done", b"\1" * 5),
        r"rows\.done is damaged: 5 marks of 20 rows, up to 1\. Delete it to begin anew",
    ),
    "embeddings whose record has other marks": (
        lambda at: bad.embeddings(at, "rows.done", b"\7" * 20),
        r"rows\.done is damaged: 20 marks of 20 rows, up to 7",
    ),
    "embeddings that are cut off": (
        lambda at: bad.embeddings(at, "rows.npy", b"\x93NUMPY"),
        r"rows\.npy is damaged: .* Delete it to begin anew",
    ),
    "pickled objects in the place of embeddings": (lambda at: bad.embeddings(at, "rows.npy", b"\x80\x04N." * 9), r"rows\.npy is damaged"),
    "an index whose account breaks off": (
        lambda at: bad.index_damaged(at, "account.json", b'{"said": {'),
        "read anew: .*(\n.*)*missing picture",
    ),
    "an index whose account is a list": (lambda at: bad.index_damaged(at, "account.json", b"[]"), "read anew: .*(\n.*)*missing picture"),
    "an index whose rows are cut off": (lambda at: bad.index_damaged(at, "pairs.arrow", b"ARROW1"), "read anew: .*(\n.*)*missing picture"),
    # parameters
    "a learning rate of 400 digits": (
        lambda at: bad.stage1(at, learning_rate=HUGE),
        r"02\.yaml: PretrainConfig\.learning_rate is out of range: a whole number of 1329 bits",
    ),
    "a seed of 32 bits": (
        lambda at: bad.stage1(at, seed=2**31),
        r"PretrainConfig\.seed is out of range: .* where 2,147,483,647 is the largest",
    ),
    "a learning rate that is no number": (
        lambda at: bad.stage1(at, learning_rate=float("nan")),
        r"learning_rate = nan is out of range; it must lie in \(0, inf\)",
    ),
    "a learning rate that is a text": (
        lambda at: bad.stage1(at, learning_rate="1e-4"),
        r"learning_rate = '1e-4' is of type str.*\(a YAML number has no quotes",
    ),
    "a LoRA that is a list": (
        lambda at: bad.stage1(at, lora=[64, 128]),
        r"PretrainConfig\.lora = \[64, 128\] is of type list; expected LoraConfig",
    ),
    "a parameter that nobody knows": (
        lambda at: bad.stage1(at, __class__="x"),
        r"PretrainConfig does not have __class__; its fields are steps",
    ),
    "a job that is empty": (lambda at: bad.job(at, ""), r"job\.yaml: job = None is no job of this package"),
    "a job that would run a program": (
        lambda at: bad.job(at, "!!python/object/apply:os.system [ls]"),
        r"job\.yaml is not YAML: could not determine a constructor",
    ),
    "a job without numbers": (lambda at: bad.job(at, MINE), r"job\.yaml: MiningConfig needs names and values, not None"),
    "a job with a name too many": (
        lambda at: bad.job(at, MINE + "\nconfig: {}\nminer: a\npairs: b\nx: 1"),
        r"job\.yaml: .*unexpected keyword argument 'x'",
    ),
    "a profile that is not UTF-8": (lambda at: bad.profile(at, b"steps: \xff"), r"mine/00_x\.yaml is not YAML"),
    "a profile that multiplies itself": (lambda at: bad.profile(at, bad.BOMB.encode()), r"mine/00_x\.yaml: steps = 'x' is of type str"),
    "a profile whose base is a list": (
        lambda at: bad.profile(at, b"base: [theirs]"),
        r"mine/00_x\.yaml: base = \['theirs'\] is of type list",
    ),
    "profiles whose bases run in a circle": (
        lambda at: bad.profile(at, b"base: theirs", b"base: mine"),
        r"theirs/00_x\.yaml: base = 'mine' is the profile itself again",
    ),
    "a profile whose base climbs out": (
        lambda at: bad.profile(at, b"base: ../../etc"),
        r"'\.\./\.\./etc' leaves its folder|unknown profile '\.\./\.\./etc'",
    ),
}

MINE = "job: abc_core.jobs.stages.MineJob"


@pytest.mark.parametrize("name", TABLE)
def test_a_bad_input_produces_its_sentence(name, tmp_path, runs):
    work, sentence = TABLE[name]
    try:
        said = work(tmp_path)
    except (ValueError, OSError) as error:
        said = str(error)
    assert re.search(sentence, said), said


def test_there_are_fifty_and_no_two_are_alike():
    assert len(TABLE) >= 50 and len({sentence for _, sentence in TABLE.values()}) > len(TABLE) / 2
