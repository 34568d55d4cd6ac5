"""The data card of a built CtrlBench: card.json in words, as README.md in the form of a Hugging Face data set."""

import json

SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"))  # the names that are used there


def markdown(card: dict) -> str:
    """The README.md of a benchmark's folder; see `ctrlbench.build` for the keys of `card`."""
    size = next((name for below, name in SIZES if card["queries"] < below), "n>100K")
    head = {"pretty_name": card["name"], "license": "other", "license_name": json.dumps(card["licence"]), "language": "en"}
    lines = ["---", *(f"{key}: {value}" for key, value in head.items())]
    lines += ["task_categories: [text-retrieval]", f"size_categories: ['{size}']", "configs:", "- config_name: default"]
    lines += ["  data_files: ctrlbench.parquet", "---", "", f"# {card['name']}", ""]
    lines += [
        f"{card['queries']:,} instructions about {card['images']:,} pictures, {card['per_image']} for each. An instruction and its picture "
        f"ask for one caption among the {card['queries']:,} captions of all pictures. A system that ignores instructions finds at most "
        f"1 in {card['per_image']} first. Scores are R@1, R@5 and R@10, ties counted against the system.",
        "",
        f"- Source of pictures and captions: {card['source']}",
        f"- Licence of the source: {card['licence']}",
        f"- Fingerprint of the rows: `{card['fingerprint']}`",
        "",
        "The pictures are not part of this folder; `image` is their path in the source, below the folder `folder` of card.json.",
        "",
        "## How it was built",
        "",
        f"After Sec. 3.2 and 4.4 of the ABC paper, with the seed {card['seed']}: the {card['drop_largest']} largest boxes of each picture "
        f"(width × height) are dropped, and {card['per_image']} of the others drawn, each with an instruction. No two captions of the set "
        "are equal in Unicode NFKC, with white space as single spaces and no regard to case. Instructions are compared alike.",
        "",
        *_table("pictures", card["pictures"]),
        *_table("regions", card["regions"]),
        *_table("kind of instruction", card["kinds"]),
        "## What training saw of it",
        "",
    ]
    shared, near = card["shared_with_training"], card["near_duplicates"]
    if shared is None:
        lines += ["It was not compared with any training data.", ""]
    else:
        lines += [f"Compared with the texts of {card['training_pictures']:,} training pictures:", "", *_table("shared", shared)]
    lines += [
        "Near-duplicates have the same words without articles, punctuation and order. They were counted, and none was removed: "
        f"{near['within']:,} captions have one in the benchmark, {near['with_training']:,} in training.",
        "",
        *(f"- “{_inline(one)}” · “{_inline(other)}”" for one, other in near["examples"]),
    ]
    lines += ["", "## Columns", "", *(f"- `{name}`: {text}" for name, text in COLUMNS.items()), ""]
    return "\n".join(lines)


COLUMNS = {
    "image_id, image, region_id": "the picture, its path, and the region of it that is asked for",
    "x, y, width, height": "its box in pixels, from the top left",
    "kind, instruction": "the question and its type",
    "wordings": "all wordings of the question that training never saw, `instruction` among them",
    "caption": "the right answer, and a candidate for all other rows",
    "gold": "the row of the right caption",
}


def _table(title: str, counts: dict[str, int]) -> list[str]:
    """A Markdown table of counts with their sum."""
    rows = [f"| {_inline(name)} | {count:,} |" for name, count in counts.items()]
    return [f"| {title} | number |", "| --- | ---: |", *rows, f"| together | {sum(counts.values()):,} |", ""]


def _inline(text: str) -> str:
    """A text that stays on its line and in its cell."""
    return " ".join(text.split()).replace("|", "\\|").replace("`", "'").replace("<", "&lt;")
