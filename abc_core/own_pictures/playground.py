"""One picture under many instructions: how alike its vectors are, how far each instruction moves it, and what it then finds.

(1) `explore` embeds; (2) `plot_explored` shows it. An instruction that the model does not understand moves the vector little, or to where
other such instructions move it; two wordings of one question should meet.
"""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np

from abc_core.figures.pages import show
from abc_core.figures.style import BLUE, GREY, INK, PALE, WIDTH, bare, drawn, wrap

ALONE = "(picture alone)"


def explore(embedder, picture, instructions: Sequence[str], captions: Sequence[str], top: int = 3) -> list[dict]:
    """Embed a picture alone and under each instruction, and find its nearest captions.

    Args:
        picture: a PIL picture or a path.
    Returns:
        one row for the picture alone, then one for each instruction: {instruction, moved: angle to the picture alone in degrees,
        similarity: [its cosine with each row], nearest: [(caption, cosine)], best first}.
    Raises:
        ValueError: no instruction, or no caption; and what `Embedder.embed` refuses.
    """
    if not instructions or not captions:
        raise ValueError(f"{len(instructions)} instructions and {len(captions)} captions; at least one of each is needed")
    alone = embedder.embed(images=[picture])
    q_emb = np.concatenate([alone, embedder.embed(images=[picture], instructions=[list(instructions)])])  # 1 + I, D
    similarity, scores = q_emb @ q_emb.T, embedder.score(q_emb, embedder.embed(texts=list(captions)))
    moved = np.degrees(2 * np.arcsin(np.linalg.norm(q_emb - alone, axis=1).clip(0, 2) / 2))  # exact for small angles, where arccos is not
    best = np.argsort(-scores, axis=1, kind="stable")[:, :top]
    return [
        {
            "instruction": text,
            "moved": float(moved[k]),
            "similarity": similarity[k].tolist(),
            "nearest": [(captions[j], float(scores[k, j])) for j in best[k]],
        }
        for k, text in enumerate([ALONE, *instructions])
    ]


@drawn
def plot_explored(picture, rows: Sequence[dict]):
    """The picture, the angle by which each instruction moves its vector, the cosines of all vectors, and the nearest caption of each.

    Args:
        picture: PIL. rows: of `explore`.
    """
    n, inches = len(rows), 2.6
    labels = ["\n".join(wrap(f"{k}  {row['instruction']}", inches)) for k, row in enumerate(rows)]
    tall = max(0.42, 0.16 * max(label.count("\n") + 1 for label in labels) + 0.06)  # inches a row
    fig = plt.figure(figsize=(WIDTH, 2.5 + tall * n + 0.7))
    upper, lower = fig.subfigures(2, 1, height_ratios=(2.5, tall * n + 0.7))
    left, right = upper.subplots(1, 2, width_ratios=(1, 1.15))
    show(left, picture, anchor="C")
    cosines = np.array([row["similarity"] for row in rows])
    right.imshow(cosines, cmap="Blues", vmin=min(0.0, float(cosines.min())), vmax=1)
    for i in range(n):
        for j in range(n):
            right.text(j, i, f"{cosines[i, j]:.2f}", ha="center", va="center", fontsize=6.5, color="white" if cosines[i, j] > 0.6 else INK)
    right.set(xticks=range(n), yticks=range(n), title="Cosine of each two vectors")
    right.grid(False)
    bare(right)
    bars, found = lower.subplots(1, 2, sharey=True, width_ratios=(1, 1.25))
    bars.barh(range(n), [row["moved"] for row in rows], color=[PALE] + [BLUE] * (n - 1), height=0.5)
    for k, row in enumerate(rows):
        bars.text(row["moved"] + 1, k, f"{row['moved']:.0f}°", va="center", fontsize=8)
        caption, score = row["nearest"][0]
        found.text(0, k, "\n".join(wrap(caption, inches - 0.75)), va="center", fontsize=8)
        found.text(1, k, f"{score:.2f}", va="center", ha="right", fontsize=8, color=GREY)
    bars.set(yticks=range(n), yticklabels=labels, ylim=(n - 0.4, -0.6), xlabel="degrees from the picture alone")
    bars.set_xlim(0, 1.18 * max(row["moved"] for row in rows) + 1)
    found.set(xlim=(0, 1), title="Nearest caption")
    found.axis("off")
    bare(bars)
    return fig
