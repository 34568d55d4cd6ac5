"""Mining, 7 of the 100 most similar captions below 0.95·s⁺, width 256: ours against sentence-transformers and a plain tiled loop.

Steps: (1) `corpus` draws unit vectors, a picture and its caption near each other, every other caption farther than 0.95·s⁺, so that
sentence-transformers' rule (the 100 most similar, then the threshold) and the paper's (threshold, then the 100) give the same pools;
(2) the pools of sampled queries are compared; (3) the three run in turn; (4) the same for the machine's own matrix product; (5) peak
memory, in processes of their own. Embeddings are given, so only the search is timed: sentence-transformers reads them from its cache.
"""

import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import side_by_side as side
import torch

from abc_core.config import MiningConfig
from abc_core.mining import hard_negatives as mining

WIDTH = 256
CONFIG = MiningConfig()  # ε 0.95, pool 100, 7 negatives
SAMPLED = 200
SIZES = ((4_096, 20_000), (2_048, 100_000))  # queries × candidates; the cost of a query does not depend on how many there are


def corpus(queries: int, candidates: int) -> tuple[np.ndarray, np.ndarray]:
    """float32[queries, 256] and float32[candidates, 256], unit vectors; candidate k is query k's own caption."""
    rng = np.random.default_rng(candidates)
    centres = rng.standard_normal((max(2, candidates // 50), WIDTH), dtype=np.float32)
    c = centres[rng.integers(0, len(centres), candidates)] + 1.2 * rng.standard_normal((candidates, WIDTH), dtype=np.float32)
    c /= np.linalg.norm(c, axis=1, keepdims=True)
    q = c[:queries] + 0.03 * rng.standard_normal((queries, WIDTH), dtype=np.float32)
    return q / np.linalg.norm(q, axis=1, keepdims=True), c


def ours(q: np.ndarray, c: np.ndarray, config=CONFIG) -> mining.Mined:
    """As notebook 01 mines."""
    return mining.mine(q, c, np.arange(len(q)), np.arange(len(c)), config)


def loop(q: np.ndarray, c: np.ndarray, negatives: int = CONFIG.negatives, tile: int = 1024) -> np.ndarray:
    """What one writes first: float32 scores of a tile of queries against all captions, the rest masked, topk, a draw."""
    rng, out, all_c = np.random.default_rng(0), [], torch.from_numpy(c).T.contiguous()
    for start in range(0, len(q), tile):
        scores = torch.from_numpy(q[start : start + tile]) @ all_c
        own = torch.arange(start, start + len(scores))
        positive = scores[torch.arange(len(own)), own][:, None]
        scores[scores > positive - (1 - CONFIG.epsilon) * positive.abs()] = -torch.inf
        scores[torch.arange(len(own)), own] = -torch.inf
        out += [rng.permutation(row)[:negatives] for row in scores.topk(CONFIG.pool, dim=1).indices.numpy()]
    return np.stack(out)


class Theirs:
    """sentence-transformers' `mine_hard_negatives`, its embeddings in its own cache, in n-tuples, as training takes them."""

    def __init__(self, folder: str, q: np.ndarray, c: np.ndarray):
        from datasets import Dataset
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.base.modules.input_module import InputModule

        class Given(InputModule):
            """Vectors by the text's number."""

            def preprocess(self, inputs, **_):
                return {"rows": torch.tensor([int(text[1:]) for text in inputs]), "queries": inputs[0][0] == "q"}

            def forward(self, features, **_):
                return features | {"sentence_embedding": torch.from_numpy(q if features["queries"] else c)[features["rows"]]}

            def save(self, *args, **_): ...

        self.model = SentenceTransformer(modules=[Given()], device="cpu", similarity_fn_name="dot")
        self.folder, n = folder, len(q)
        self.dataset = Dataset.from_dict({"q": [f"q{k}" for k in range(n)], "c": [f"c{k}" for k in range(n)]})
        self.corpus = [f"c{k}" for k in range(len(c))]

    def __call__(self, queries: int | None = None, **options):
        from sentence_transformers.util import mine_hard_negatives

        numbers = {"range_max": CONFIG.pool, "num_negatives": CONFIG.negatives, "sampling_strategy": "random"} | options
        rows = self.dataset if queries is None else self.dataset.select(range(queries))
        return mine_hard_negatives(
            rows, self.model, corpus=self.corpus, relative_margin=1 - CONFIG.epsilon, output_format="n-tuple", verbose=False,
            batch_size=65_536, cache_folder=self.folder, **numbers,
        )  # fmt: skip


def check(q: np.ndarray, c: np.ndarray, theirs: Theirs) -> None:
    """The pools of sampled queries are the same captions, but for scores that float32 cannot tell apart."""
    n = min(SAMPLED, len(q))
    pools = ours(q[:n], c, MiningConfig(negatives=CONFIG.pool)).indices
    found = theirs(n, num_negatives=CONFIG.pool, sampling_strategy="top")
    columns = [found[f"negative_{k}"] for k in range(1, CONFIG.pool + 1)]
    others = {
        "sentence-transformers": np.array([[int(text[1:]) for text in row] for row in zip(*columns)]),
        "the plain loop": loop(q[:n], c, CONFIG.pool),
    }
    for name, rows in others.items():
        for k, (mine, other) in enumerate(zip(pools, rows, strict=True)):
            odd = np.setxor1d(mine, other)
            worst = (c[mine] @ q[k]).min()
            if len(odd):
                side.nearly(c[odd] @ q[k], worst, 1e-6, f"query {k}: ours and {name} differ in {len(odd)} captions, whose scores")


def product(q: np.ndarray, c: np.ndarray) -> None:
    """The machine's matrix product of the same size in float32, tile by tile, and nothing else."""
    out, c = torch.empty(1024, 1024), torch.from_numpy(c)
    for rows in torch.from_numpy(q).split(1024):
        for columns in c.split(1024):
            torch.mm(rows, columns.T, out=out.view(-1)[: len(rows) * len(columns)].view(len(rows), len(columns)))


def bench(pairs: int = 3, toy: bool = False) -> list[dict]:
    """Rows of the table."""
    rows = []
    for n, m in ((300, 400),) if toy else SIZES:
        q, c = corpus(n, m)
        size, search = f"{n:,} × {m:,}", partial(ours, q, c)
        with tempfile.TemporaryDirectory() as folder:
            theirs = Theirs(folder, q, c)
            check(q, c, theirs)
            measured = side.alternate(search, theirs, pairs)
        name = "sentence-transformers mine_hard_negatives"
        rows.append(side.compare("mining", size, measured, name, ">= 3", "s"))
        measured = side.alternate(search, partial(loop, q, c), pairs)
        rows.append(side.compare("mining, loop", size, measured, "a plain tiled loop", "", "s"))
        measured = side.alternate(search, partial(product, q, c), pairs)
        rows.append(side.compare("mining, share of the product", size, measured, "float32 matrix product alone", ">= 0.6", "s"))
    few, many = (400, 4_000) if toy else (20_000, 200_000)
    measured = [tuple(side.peak_of("bench_mining", m, 128 if toy else 1024) for m in (many, few)) for _ in range(min(2, pairs))]
    size = f"{many:,} against {few:,} captions"
    return [*rows, side.compare("mining, memory", size, measured, "itself, a tenth of the captions", "<= 1.2", "MB")]


def peak(candidates: str, queries: str) -> None:
    """Memory of mining into a file, from mapped files."""
    candidates, queries = int(candidates), int(queries)
    with tempfile.TemporaryDirectory() as name:
        rng, folder = np.random.default_rng(0), Path(name)
        for part in ("q", "c"):
            x = np.lib.format.open_memmap(folder / f"{part}.npy", "w+", np.float32, (queries if part == "q" else candidates, WIDTH))
            for start in range(0, len(x), 4096):
                x[start : start + 4096] = rng.standard_normal(x[start : start + 4096].shape, dtype=np.float32) / WIDTH**0.5
            x.flush()

        def prepare():
            q, c = (np.load(folder / f"{part}.npy", mmap_mode="r") for part in ("q", "c"))
            mining.mine(q[:64], c[:200], np.arange(64), np.arange(200), CONFIG)
            return lambda: mining.mine_to_file(_fresh(folder), q, c, np.arange(len(q)), np.arange(len(c)), CONFIG)

        side.report_peak(prepare)


def _fresh(folder: Path) -> Path:
    """A file that is not there yet."""
    return folder / f"mined{len(list(folder.glob('mined*.npy')))}.npy"
