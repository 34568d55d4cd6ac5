"""Every claim has a line, with a verdict by its rule or the reason why there is none; the figure shows verdicts by colour and mark."""

import matplotlib.pyplot as plt
import pytest

from abc_core.figures import style as figures
from abc_core.runs import paths
from abc_core.studies import claims, scoreboard
from abc_core.studies import study as studies
from abc_core.studies.claims import FAILS, HOLDS, UNTESTABLE, Claim, above, estimate

LOG = "08_ablations"


def claim(number, column="gain"):
    def decide(rows):
        return above(estimate(list(claims.by_seed(rows, "rank", "8", column).values())), 2.0)

    return Claim(number, "Rank | matters.", "Fig. 7", "above 2", decide, "points", f"{LOG}#rank")


def logged(*numbers, log=LOG):
    return {log: [{"study": "rank", "arm": "8", "seed": k, "gain": gain} for k, gain in enumerate(numbers)]}


def row(number, verdict, value=None, half=None, least=None, most=None, unit="points"):
    low, high = (None, None) if half is None else (value - half, value + half)
    return {"number": number, "value": value, "low": low, "high": high, "least": least, "most": most, "unit": unit, "verdict": verdict}


ROWS = [
    row(1, HOLDS, 53.37, 1.8, least=20.0, unit="% R@1"),
    row(2, FAILS, -1.25, 0.4, -2.0, 2.0),  # the number keeps its bounds, another part of the rule fails
    row(4, FAILS, 25.0, 3.0, most=20.0, unit="% of the full query"),
    row(17, HOLDS, 10.74, 0.0, 10.0, 12.0, unit="GB"),
    row(15, f"{UNTESTABLE}: no rows in the log of 08_ablations, which is a reason of more words than one line of the figure has room for"),
    row(16, f"{UNTESTABLE}: 1 of the 3 seeds that a verdict needs", 4.0),
]


def texts(fig):
    return [t for t in fig.findobj(plt.Text) if t.get_text().strip()]


def test_no_claim_is_judged_twice_and_each_is_on_the_list():
    numbers = [claim.number for claim in scoreboard.CLAIMS]
    assert len(set(numbers)) == len(numbers) and set(numbers) <= set(scoreboard.SHORT)
    assert list(scoreboard.SHORT) == list(range(1, 28))


def test_a_claim_is_decided_by_the_rows_of_its_log():
    rows = scoreboard.board(logged(5.0, 5.1, 5.2), [claim(12)])
    assert [r["number"] for r in rows] == list(range(1, 28))
    found = rows[11]
    assert (found["verdict"], found["seeds"], found["least"]) == (HOLDS, 3, 2.0) and found["value"] == pytest.approx(5.1)
    assert scoreboard.board(logged(1.0, 1.1, 1.2), [claim(12)])[11]["verdict"] == FAILS


def test_a_claim_without_a_study_or_a_log_says_so():
    rows = scoreboard.board({LOG: [], "05_resolution_study": [{"study": "x"}]}, [claim(12)])
    assert rows[11]["verdict"] == f"{UNTESTABLE}: no rows in the log of 08_ablations" and rows[11]["rule"] == "above 2"
    assert rows[0]["verdict"] == f"{UNTESTABLE}: no study of it"
    assert scoreboard.counted(rows) == {HOLDS: 0, FAILS: 0, UNTESTABLE: 27}


def test_committed_rows_join_only_where_they_are_wanted(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    place = {"study": "rank", "arm": "8", "commit": "c" * 40}
    studies.keep("thorough", LOG, [place | {"seed": k} for k in range(3)])
    own = [place | {"study": "ctrlbench", "seed": 0}]
    apart, joined = (scoreboard.gather(own, "default", committed) for committed in (False, True))
    assert apart[LOG] == [] and [r["seed"] for r in joined[LOG]] == [0, 1, 2]
    assert apart[scoreboard.OWN] == joined[scoreboard.OWN] == [own[0] | {"profile": "default"}]
    assert scoreboard.footer(joined) == f"runs of default, thorough · seeds 0 1 2 · commit {'c' * 10}"


def test_verdicts_are_told_by_colour_and_by_mark():
    fig = scoreboard.plot_scoreboard(ROWS)
    marks = [(t.get_text(), t.get_color()) for t in texts(fig) if t.get_text() in "✓✗?"]
    assert marks == [("✓", figures.GREEN), ("✗", figures.RED), ("✗", figures.RED), ("✓", figures.GREEN)] + [("?", figures.GREY)] * 2
    said = [t.get_text().replace("\n", " ") for t in texts(fig)]
    assert {"✓ 2 hold", "✗ 2 do not hold", "? 2 not testable on this profile", "53.4 ± 1.8", "> 20 % R@1", "10 to 12 GB"} <= set(said)
    assert "± 2 points *" in said and "< 20 % of the full query" in said
    assert "4.00 points · 1 of the 3 seeds that a verdict needs" in said


def test_no_text_runs_into_another_or_out_of_the_page():
    rows = [r | {"number": k} for k, r in zip(scoreboard.SHORT, ROWS * 5)]
    fig = scoreboard.plot_scoreboard(rows)
    fig.draw_without_rendering()
    boxes = [(t.get_text(), t.get_window_extent()) for t in texts(fig)]
    for i, (text, box) in enumerate(boxes):
        assert box.x0 >= 0 and box.x1 <= fig.bbox.x1 + 1, text
        for other, second in boxes[i + 1 :]:
            assert not box.padded(-2).overlaps(second.padded(-2)), (text, other)


def test_the_table_links_to_the_runs():
    lines = scoreboard.markdown(scoreboard.board(logged(5.0, 5.1, 5.2), [claim(12)])).splitlines()
    assert len(lines) == 2 + 27
    assert lines[13] == "| 12 | Rank / matters. | Fig. 7 | above 2 | 5.10 ± 0.25 | 3 | holds | [08](08_ablations.ipynb#rank) |"
