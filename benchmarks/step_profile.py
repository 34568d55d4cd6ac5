"""Where the time of a step goes: attention, matrix products, other operations, optimizer, data, Python; step_profile.csv and .png.

Steps: (1) a step of stage 1 and one of stage 2 run under torch.profiler, after one that is not counted; (2) an operation's own time is
put down to the first of `PARTS` whose pattern its name, or that of a caller's range, matches; what no operation accounts for is Python.
The profiler itself takes time, most of it from small operations, so shares are of the profiled step.
"""

import re
from unittest import mock

import bench
import bench_models
import bench_stage1
import bench_stage2
import matplotlib.pyplot as plt
import seaborn as sns
import side_by_side as side
import torch
from torch.profiler import ProfilerActivity, profile, record_function

from abc_core import prompts
from abc_core.figures import style as figures

PARTS = {  # pattern of an operation or of a range that it runs in
    "optimizer": r"Optimizer\.step|clip_grad",
    "data": r"step: data",
    "attention": r".*(scaled_dot_product|flash_attention).*",
    "matrix products": r"aten::(mm|addmm|bmm|baddbmm|_addmm_activation)|mkldnn::.*",
    "Python": r"step: all",
}
REST = "other operations"  # element-wise, copies, sums


def parts(step) -> dict[str, float]:
    """Milliseconds of each part of one call."""

    def marked(function, name):
        def wrapper(*args, **kwargs):
            with record_function(name):
                return function(*args, **kwargs)

        return wrapper

    from transformers import Qwen2VLImageProcessor

    step()
    clip, words, read = torch.nn.utils.clip_grad_norm_, prompts.Prompts._words, Qwen2VLImageProcessor.__call__
    with (
        mock.patch.object(torch.nn.utils, "clip_grad_norm_", marked(clip, "clip_grad")),
        mock.patch.object(prompts.Prompts, "_words", marked(words, "step: data")),
        mock.patch.object(Qwen2VLImageProcessor, "__call__", marked(read, "step: data")),
        profile(activities=[ProfilerActivity.CPU]) as seen,
        record_function("step: all"),
    ):
        step()
    out = dict.fromkeys([*PARTS, REST], 0.0)
    for event in seen.events():
        out[_part(event)] += event.self_cpu_time_total / 1000
    return out


def _part(event) -> str:
    names, caller = [event.name], event.cpu_parent
    while caller is not None:
        names.append(caller.name)
        caller = caller.cpu_parent
    for part, pattern in list(PARTS.items())[:3]:  # whatever runs inside them
        if any(re.match(pattern, name) for name in names):
            return part
    return next((part for part, pattern in PARTS.items() if re.match(pattern, event.name)), REST)


def measure(toy: bool) -> list[dict]:
    """A row for each stage, arithmetic and part."""
    from dataclasses import replace

    rows = []
    for bf16, arithmetic in bench_models.ARITHMETICS:
        one = bench_stage1.our_step(2 if toy else bench_stage1.PICTURES, replace(bench_stage1.CONFIG, bf16=bf16))
        two = bench_stage2.our_step(2 if toy else bench_stage2.IMAGES, replace(bench_stage2.CONFIG, bf16=bf16))[0]
        for stage, step in (("stage 1", one), ("stage 2", two)):
            took = parts(step)
            name = f"{stage}, {arithmetic}"
            about = {"threads": torch.get_num_threads(), "versions": side.versions()}
            rows += [{"work": name, "part": k, "ms": v, "share": v / sum(took.values()), **about} for k, v in took.items()]
            print(name, " · ".join(f"{k} {v / sum(took.values()):.0%}" for k, v in took.items()), flush=True)
    return rows


@figures.drawn
def plot(rows: list[dict], says: str = "share of a profiled step's time, per cent of it written inside"):
    """A bar for each step, or other work, cut into parts."""
    works, names = (list(dict.fromkeys(row[k] for row in rows)) for k in ("work", "part"))
    fig, axis = plt.subplots(figsize=(figures.WIDTH, 0.9 + 0.42 * len(works)))
    left = dict.fromkeys(works, 0.0)
    for part, colour in zip(names, sns.color_palette("colorblind", len(names))):
        ink = "white" if sum(colour) < 2.2 else figures.INK
        for row in (row for row in rows if row["part"] == part):
            y, share = works[::-1].index(row["work"]), float(row["share"])
            axis.barh(y, share, left=left[row["work"]], color=colour, height=0.66, edgecolor="white", label=part if y == 0 else None)
            if share > 0.04:
                axis.text(left[row["work"]] + share / 2, y, f"{100 * share:.0f}", ha="center", va="center", fontsize=8, color=ink)
            left[row["work"]] += share
    totals = {work: sum(float(row["ms"]) for row in rows if row["work"] == work) for work in works}
    axis.set_yticks(range(len(works)), [f"{work}\n{totals[work] / 1000:.2f} s" for work in works[::-1]])
    axis.set(xlim=(0, 1), xlabel=says)
    figures.per_cent(axis.xaxis)
    axis.grid(axis="y", visible=False)
    fig.legend(loc="outside upper center", ncols=len(names))
    return fig


def main(toy: bool = False) -> None:
    """Measure, write, draw."""
    rows = measure(toy)
    fig = plot(rows)
    if not toy:
        side.write(rows, side.FOLDER / "step_profile.csv")
        bench.save(fig, "step_profile", f"one profiled step each, {rows[0]['threads']} thread(s) · {rows[0]['versions']}")
