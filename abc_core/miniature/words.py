"""How the embedded world says things: captions, questions and answers, in trained-on and held-out wordings.

A region's *meaning* is (object, colour, shape); everything here turns meanings and places into English. Wordings are
split: `TRAIN` templates are used by every training set, `HELD_OUT` templates only by tests. Held-out templates use known words
in new sentences, so that a failure is one of phrasing, not of vocabulary (a test checks both).
"""

import hashlib

COLOURS = {
    "red": (222, 45, 48), "orange": (250, 146, 36), "yellow": (250, 220, 60), "green": (66, 168, 74), "turquoise": (60, 200, 196),
    "blue": (52, 96, 214), "purple": (140, 70, 178), "pink": (250, 150, 196), "brown": (140, 92, 56), "white": (250, 250, 248),
}  # fmt: skip
SHAPES = ("card", "disc", "diamond")
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

CAPTIONS = (
    "{an_obj} on {a_card}",
    "{an_obj} sitting on {a_card}",
    "{a_card} with {an_obj} on it",
    "{a_card} showing {an_obj}",
    "{an_obj} in front of {a_card}",
    "{an_obj} placed on {a_card}",
    "{a_card} behind {an_obj}",
)

# Question type -> templates. {x} is what the question refers to: a card ("red disc"), a place ("top left") or an object ("owl").
TRAIN = {
    "content": (
        "What is on the {x}?", "What can be seen on the {x}?", "Name the thing on the {x}.", "Which object is on the {x}?",
        "What do you see on the {x}?", "Tell me what is on the {x}.", "Look at the {x}. What is on it?", "What is the {x} showing?",
        "What sits on the {x}?", "Which thing was placed on the {x}?",
    ),
    "place": (
        "What is in the {x}?", "What can be seen in the {x}?", "Name the thing in the {x}.", "Which object is in the {x}?",
        "What do you see in the {x}?", "Tell me what is in the {x}.", "Look at the {x}. What is there?",
        "What is the picture showing in the {x}?", "What sits in the {x}?", "Which thing was placed in the {x}?",
    ),
    "property": (
        "What is the {x} on?", "What is behind the {x}?", "Which colour and shape is behind the {x}?", "What was the {x} placed on?",
        "Tell me what the {x} is on.", "Look at the {x}. What is behind it?", "What does the {x} sit on?", "Name what is behind the {x}.",
    ),
    "neighbour": (
        "What is {x}?", "Which object is {x}?", "Name the thing {x}.", "Tell me what is {x}.", "What do you see {x}?",
        "What can be seen {x}?", "Which thing was placed {x}?",
    ),
    "size": (
        "What is the largest thing?", "Which object is the largest?", "Name the largest object in the picture.",
        "What is on the largest one?", "Tell me what the biggest thing is.", "What can be seen on the biggest one?",
    ),
    "look": (
        "Which colour and shape is in the {x}?", "What colour and shape do you see in the {x}?", "Tell me the colour and shape in the {x}.",
    ),
    "where": ("Where is the {x}?", "Where can the {x} be seen?", "Tell me where the {x} is.", "In which place is the {x}?"),
    "count": ("How many {x} are there?", "How many {x} can you see?", "Tell me how many {x} there are.", "What is the number of {x}?"),
}  # fmt: skip
HELD_OUT = {
    "content": (
        "What does the {x} show?", "Which object do you see on the {x}?", "Can you name the object on the {x}?",
        "What was placed on the {x}?",
    ),
    "place": (
        "What does the {x} of the picture show?", "Which object do you see in the {x}?", "Can you name the object in the {x}?",
        "What was placed in the {x}?",
    ),
    "property": ("What can be seen behind the {x}?", "Tell me which colour and shape the {x} is on.", "What do you see behind the {x}?"),
    "neighbour": ("What sits {x}?", "Which object do you see {x}?", "Can you name the object {x}?"),
    "size": ("Which thing is the largest in the picture?", "Can you name the biggest object?", "What is the biggest thing you see?"),
    "look": ("What is the colour and shape in the {x}?",),
    "where": ("In which place can the {x} be seen?",),
    "count": ("Can you tell me how many {x} there are?",),
}  # fmt: skip
DESCRIBE = ("{q} Describe it.", "{q} Describe it with its colour and shape.")  # asks for the whole caption instead of a name
OPENINGS = ("", "", "", "a picture of ", "there is ", "we see ", "a photo of ")

ROWS = {1: ("",), 2: ("top", "bottom"), 3: ("top", "middle", "bottom")}
COLUMNS = {1: ("",), 2: ("left", "right"), 3: ("left", "middle", "right")}
SYNONYMS = {"top": ("top", "upper"), "bottom": ("bottom", "lower"), "middle": ("middle", "centre")}


def article(noun: str) -> str:
    """"owl" -> "an owl"."""
    return ("an " if noun[0] in "aeiou" and not noun.startswith(("eu", "ewe", "ufo", "uni")) else "a ") + noun


def caption(meaning: tuple[str, str, str], wording: int | None = None) -> str:
    """The caption of one region: ("owl", "red", "disc"), 0 -> "an owl on a red disc"; without a number in the meaning's own wording."""
    obj, colour, shape = meaning
    number = own_number([meaning]) if wording is None else wording
    return CAPTIONS[number % len(CAPTIONS)].format(an_obj=article(obj), a_card=article(f"{colour} {shape}"))


def own_number(meanings: list[tuple[str, str, str]]) -> int:
    """A number that meanings always have, whatever their shapes: what is equal is said in equal words, so that duplicates can be told."""
    said = "/".join(f"{obj} {colour}" for obj, colour, _ in meanings)
    return int.from_bytes(hashlib.sha256(said.encode()).digest()[:4], "big")


def join(parts: list[str]) -> str:
    """["a", "b", "c"] -> "a, b and c"."""
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def place(cell: tuple[int, int], grid: tuple[int, int], wording: int = 0) -> str:
    """The name of a grid cell: (0, 2) of (3, 3) -> "top right"; wording 1 -> "upper right"; the centre is "middle"."""
    row, col = ROWS[grid[0]][cell[0]], COLUMNS[grid[1]][cell[1]]
    words = [row] if row == col else [w for w in (row, col) if w]
    if not words:
        return "middle"
    return " ".join(SYNONYMS.get(w, (w,))[wording % len(SYNONYMS.get(w, (w,)))] for w in words)


def neighbour(obj: str, step: tuple[int, int]) -> str:
    """Where something is, seen from `obj`: ("owl", (0, 1)) -> "to the right of the owl"."""
    return {(0, 1): "to the right of", (0, -1): "to the left of", (1, 0): "below", (-1, 0): "above"}[step] + f" the {obj}"
