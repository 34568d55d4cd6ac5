"""Instructions from a model: nothing is asked twice, nothing is lost, every region is accounted for, and the key stays where it is."""

import _thread
import json
import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import openai
import pytest
import tiny
from lying_server import LyingServer, cuts, hangs, honest, instruction, picture, refuses, says, sends
from PIL import Image

from abc_core.backbone import make_bidirectional
from abc_core.config import InstructConfig
from abc_core.data.karpathy import Region
from abc_core.instructions import generate as module
from abc_core.instructions.ask import Pace, Server
from abc_core.instructions.generate import PROMPT, generate, plan
from abc_core.instructions.regions import read_instructions
from abc_core.instructions.replies import Answer, AnswerCache, Question, instruction_of, judge
from abc_core.jobs.stages import InstructJob
from abc_core.miniature.backbone.answers import Backbone, answer_all

KEY = "sk-this-must-never-be-seen"
local = pytest.mark.allow_hosts(["127.0.0.1"])


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """A key, and a client that waits for hundredths of a second."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(openai._base_client, "INITIAL_RETRY_DELAY", 0.01)


def regions_in(folder: Path, captions: list[str], each: int = 4) -> list[Region]:
    """A region for every caption, `each` of them in a picture of 60 × 40 pixels."""
    rng, out = np.random.default_rng(0), []
    for k, caption in enumerate(captions):
        image = folder / f"{k // each}.png"
        if not image.exists():
            Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(image)
        out.append(Region(image, k // each, k, caption, 0, 0, 10, 10))
    return out


@pytest.fixture
def regions(tmp_path):
    """Eight regions of two pictures."""
    return regions_in(tmp_path, [f"caption number {k}" for k in range(8)])


def ask(server, regions, tmp_path, concurrent=4, give_up=20, prices=(0.0, 0.0), report=print, **options):
    """`generate` against a server of this machine, in `tmp_path`."""
    asked = Server("model", server.url, concurrent, **{"retries": 2, "pause": 0.02, "timeout": 20} | options)
    return generate(regions, asked, tmp_path / "instructions.jsonl", tmp_path / "cache.jsonl", prices, give_up, report)


def adds_up(account) -> dict[str, int]:
    """The counts, once they are checked."""
    counts = account.counts
    assert counts["regions"] == counts["unreadable picture"] + counts["from cache"] + counts["asked"]
    rest = counts["kept"] + counts["refusal"] + counts["empty"] + counts["repeats the caption"] + counts["failed"]
    assert counts["from cache"] + counts["asked"] == rest
    assert {rule: len(names) for rule, names in account.left_out.items()} == {k: counts[k] for k in account.left_out}
    return counts


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n")


# --- an honest server -------------------------------------------------------------------------------------------------------------


@local
def test_every_region_gets_the_instruction_that_the_server_gave_for_its_caption(regions, tmp_path):
    with LyingServer() as server:
        counts = adds_up(ask(server, regions, tmp_path))
    assert counts["kept"] == counts["asked"] == len(server.requests) == 8
    table, skipped = read_instructions(tmp_path / "instructions.jsonl")
    assert table == {(r.image_id, r.region_id): {"generated": [instruction(r.caption)]} for r in regions} and not skipped.counts
    assert list(table) == [(r.image_id, r.region_id) for r in regions]


@local
def test_the_request_is_the_papers_prompt_at_temperature_0_with_the_picture_made_small(regions, tmp_path):
    with LyingServer() as server:
        ask(server, regions[:1], tmp_path, max_side=30)
    (request,) = server.requests
    assert (request["model"], request["temperature"]) == ("model", 0)
    said = "Given this image, provide a user prompt where the following caption would be a reasonable answer: caption number 0. "
    assert request["messages"][0]["content"][1]["text"] == said + "Only return the prompt."
    assert picture(request).size == (30, 20)
    assert server.keys == {f"Bearer {KEY}"}


@local
def test_no_more_calls_are_under_way_than_stated(regions, tmp_path):
    with LyingServer(seconds=0.05) as server:
        ask(server, regions, tmp_path, concurrent=3)
    assert server.most_at_once == 3


@local
def test_a_second_call_asks_nothing_and_writes_the_same(regions, tmp_path):
    with LyingServer() as server:
        ask(server, regions, tmp_path)
        first = (tmp_path / "instructions.jsonl").read_bytes()
        counts = adds_up(ask(server, regions, tmp_path))
    assert (counts["asked"], counts["from cache"], len(server.requests)) == (0, 8, 8)
    assert (tmp_path / "instructions.jsonl").read_bytes() == first


@local
def test_a_question_that_two_regions_share_is_asked_once_and_another_picture_or_model_asks_anew(tmp_path):
    regions = regions_in(tmp_path, ["a cup"] * 5)  # the fifth is in another picture
    with LyingServer() as server:
        counts = adds_up(ask(server, regions, tmp_path))
        assert (counts["asked"], counts["from cache"], counts["kept"], len(server.requests)) == (2, 3, 5, 2)
        other = Server("another model", server.url)
        generate(regions, other, tmp_path / "instructions.jsonl", tmp_path / "cache.jsonl")
        assert len(server.requests) == 4
        Image.new("RGB", (60, 40), "red").save(regions[0].image)
        assert adds_up(ask(server, regions, tmp_path))["asked"] == 1


@local
def test_tokens_are_counted_and_priced_for_the_calls_that_were_made(regions, tmp_path):
    with LyingServer() as server:
        ask(server, regions[:3], tmp_path)
        account = ask(server, regions, tmp_path, prices=(2.5, 10.0))
    assert account.tokens == (5000, 100)
    assert account.dollars == pytest.approx((5000 * 2.5 + 100 * 10) / 1e6)
    assert "tokens in 5,000 · out 100 · $0.01" in str(account)


@local
def test_progress_says_how_many_are_done_and_how_long_the_rest_takes(regions, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PAUSE", 0)
    said = []
    with LyingServer() as server:
        ask(server, regions, tmp_path, report=said.append, prices=(1.0, 1.0))
    assert len(said) == 8 and said[-1] == "8 of 8 asked · 0 failed · $0.01 · 0 s left"


# --- a plan -----------------------------------------------------------------------------------------------------------------------


def test_a_plan_contacts_nothing_and_counts_by_rule_of_thumb(regions, tmp_path):
    server = Server("model", "http://127.0.0.1:9/v1")  # sockets are forbidden in this test
    planned = plan(regions, server, tmp_path / "cache.jsonl", prices=(2.5, 10.0))
    prompt = len(PROMPT.format(regions[0].caption)) // 4
    assert (planned["regions"], planned["calls"], planned["from cache"]) == (8, 8, 0)
    assert (planned["tokens in"], planned["tokens out"]) == (8 * (765 + prompt), 200)  # two by two tiles: 85 + 4 · 170
    assert planned["dollars"] == pytest.approx((planned["tokens in"] * 2.5 + 200 * 10) / 1e6, abs=1e-4)
    assert not (tmp_path / "cache.jsonl").exists()


@local
def test_a_plan_counts_what_the_cache_lacks_at_the_tokens_that_calls_really_took(regions, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    more = [*regions, regions[0]._replace(image=tmp_path / "absent.png")]
    with LyingServer() as server:
        ask(server, regions[:3], tmp_path)
        planned = plan(more, Server("model", server.url), tmp_path / "cache.jsonl")
        assert len(server.requests) == 3
    assert planned == {
        "regions": 9, "unreadable picture": 1, "from cache": 3, "calls": 5, "tokens in": 5000, "tokens out": 100, "dollars": 0.0,
    }  # fmt: skip


# --- a server that misbehaves -----------------------------------------------------------------------------------------------------

PASSING = {
    "429": refuses(429),
    "429 with Retry-After": refuses(429, retry_after="0.1"),
    "500": refuses(500),
    "a hang": hangs,
    "a cut connection": cuts,
    "malformed JSON": sends(b'{"choices": [{"mess'),
    "a page in place of JSON": sends(b"<html>busy</html>", kind="text/html"),
    "no choice": sends({"choices": []}),
    "an error under status 200": sends({"error": {"message": "busy"}}),
    "a list": sends([1, 2]),
    "a content that is no text": says([{"type": "text"}]),
}


def patience(trouble: str) -> float:
    """Seconds: short where waiting is the test, and else so long that a busy machine is not taken for a hanging server."""
    return 0.5 if trouble == "a hang" else 20


@local
@pytest.mark.parametrize("trouble", PASSING)
def test_trouble_that_passes_costs_one_more_request_and_nothing_else(trouble, regions, tmp_path):
    with LyingServer({regions[2].caption: [PASSING[trouble]]}) as server:
        counts = adds_up(ask(server, regions, tmp_path, timeout=patience(trouble)))
    assert counts["kept"] == 8 and counts["failed"] == 0
    assert server.asked == {r.caption: 1 + (r is regions[2]) for r in regions}


@local
@pytest.mark.parametrize("trouble", PASSING)
def test_trouble_that_stays_fails_one_region_which_is_named_and_asked_again(trouble, regions, tmp_path):
    with LyingServer({regions[2].caption: [PASSING[trouble]] * 3}) as server:
        account = ask(server, regions, tmp_path, timeout=patience(trouble))
        assert (adds_up(account)["kept"], account.counts["failed"]) == (7, 1)
        assert account.left_out["failed"][0].startswith("picture 0 region 2: ")
        assert account.left_out["failed"][0] in str(account)
        assert server.asked[regions[2].caption] == 3  # two retries
        counts = adds_up(ask(server, regions, tmp_path))
    assert (counts["asked"], counts["from cache"], counts["kept"], len(server.requests)) == (1, 7, 8, 11)


@local
def test_a_429_that_one_call_meets_halts_all_of_them_for_as_long_as_the_server_asks(tmp_path):
    regions = regions_in(tmp_path, [f"caption {k}" for k in range(40)])
    with LyingServer({"caption 9": [refuses(429, retry_after="0.5")]}, seconds=0.02) as server:
        assert adds_up(ask(server, regions, tmp_path))["kept"] == 40
    refused = next(at for at, caption in server.arrived if caption == "caption 9")
    after = [at - refused for at, _ in server.arrived if at > refused]
    assert len(after) >= 30 and sum(seconds < 0.49 for seconds in after) <= 8  # the others that were under way, and not the rest


def test_after_a_429_requests_leave_apart_and_come_closer_with_every_success():
    pace, answered = Pace(pause=0.1), type("Response", (), {"status_code": 200, "headers": {}})

    def apart() -> float:
        pace.wait()
        started = time.monotonic()
        pace.wait()
        return time.monotonic() - started

    assert apart() < 0.05
    for _ in range(5):
        pace.halt()  # one burst
    assert pace._gap == pytest.approx(0.002)
    started = time.monotonic()
    pace.wait()
    assert 0.05 < time.monotonic() - started < 0.15
    pace._gap = 0.05
    assert apart() >= 0.049
    for _ in range(100):
        pace.heed(answered)
    assert pace._gap < 0.003


# --- rules ------------------------------------------------------------------------------------------------------------------------


@local
def test_answers_are_left_out_by_rule_and_all_of_them_are_in_the_cache(regions, tmp_path):
    told = [
        says(None), says("  "), says("''"), says(None, refusal="I cannot help with that."), says("I’m sorry, but no."),
        says("", finish="content_filter"), says("Is it CAPTION number 6?"),
    ]  # fmt: skip
    with LyingServer({r.caption: [lie] for r, lie in zip(regions, told)}) as server:
        account = ask(server, regions, tmp_path)
        counts = adds_up(account)
        assert counts["kept"] == 1 and counts["empty"] == 3 and counts["refusal"] == 3 and counts["repeats the caption"] == 1
        assert "picture 1 region 6: 'Is it CAPTION number 6?'" in str(account)
        assert lines(tmp_path / "cache.jsonl") == 8
        ask(server, regions, tmp_path)
        assert len(server.requests) == 8


@pytest.mark.parametrize(
    ("said", "caption", "rule"),
    [
        ("What is on the table?", "a red cup", None),
        ("A red cup.", "a  Red CUP", "repeats the caption"),
        ("Where is the a red cup?", "a red cup", "repeats the caption"),
        ("Where is the a red cups?", "a red cup", None),  # words, not letters
        ("Where is the red cup?", "red cup", None),  # two words may well be asked about
        ("red cup", "red cup", "repeats the caption"),
        ("What is ａ red cup here?", "a red cup", "repeats the caption"),  # a wide letter
        ("...", "a red cup", "empty"),
        ("Sorry, I can't do that", "a red cup", "refusal"),
        ("“I can’t see it.”", "a red cup", "refusal"),
        ("Describe what cannot be reached", "a red cup", None),
    ],
)
def test_the_rules_are_what_they_say(said, caption, rule):
    assert judge(Answer(said), caption) == rule


def test_quotation_marks_around_the_whole_are_taken_off_and_no_others():
    bare = ['"What is it?"', " “What is it?”\n", "What is it?"]
    assert {instruction_of(Answer(text)) for text in bare} == {"What is it?"}
    for text in ('"A" or "B"', '"', 'What\'s "it"?'):
        assert instruction_of(Answer(text)) == text


@local
def test_pictures_that_cannot_be_read_are_counted_and_cost_no_call(regions, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    more = [*regions, regions[0]._replace(image=tmp_path / "broken.png"), regions[0]._replace(image=tmp_path / "absent.png")]
    with LyingServer() as server:
        account = ask(server, more, tmp_path)
    assert (adds_up(account)["unreadable picture"], account.counts["kept"], len(server.requests)) == (2, 8, 8)
    assert "broken.png" in str(account) and "absent.png" in str(account)


# --- when to stop -----------------------------------------------------------------------------------------------------------------


@local
@pytest.mark.parametrize(
    ("lie", "sentence"),
    [
        (refuses(401, f"Incorrect API key provided: {KEY}"), "answered with status 401: is OPENAI_API_KEY right"),
        (refuses(403), "answered with status 403"),
        (refuses(404), "does it have the model 'model'"),
        (refuses(429, code="insufficient_quota"), "the account is used up"),
        (refuses(429, retry_after="3600"), "it asks to wait 3,600 s"),
    ],
)
def test_what_no_other_call_can_get_past_stops_at_once_in_a_clear_sentence(lie, sentence, tmp_path):
    regions = regions_in(tmp_path, [f"caption {k}" for k in range(40)])
    with LyingServer({None: [honest, honest] + [lie] * 100}) as server, pytest.raises(RuntimeError, match=sentence) as raised:
        ask(server, regions, tmp_path, concurrent=2)
    assert KEY not in str(raised.value)
    assert len(server.requests) <= 2 + 2 * 3  # two honest ones; two under way, of up to three attempts
    assert lines(tmp_path / "cache.jsonl") == 2
    assert not (tmp_path / "instructions.jsonl").exists()


@local
def test_many_failures_in_a_row_stop_the_call_and_the_old_file_stays(tmp_path):
    regions = regions_in(tmp_path, [f"caption {k}" for k in range(40)])
    (tmp_path / "instructions.jsonl").write_text("old")
    lies = {None: [refuses(400, "bad luck")] * 100}
    with LyingServer(lies) as server, pytest.raises(RuntimeError, match=r"5 of 40 done: 5 calls in a row failed.*bad luck.*kept"):
        ask(server, regions, tmp_path, concurrent=2, give_up=5)
    assert len(server.requests) <= 5 + 2
    assert (tmp_path / "instructions.jsonl").read_text() == "old"


@local
def test_a_file_without_any_instruction_is_not_written(regions, tmp_path):
    with LyingServer({None: [says("")] * 8}) as server, pytest.raises(ValueError, match=r"no instruction is left for any of 8 regions"):
        ask(server, regions, tmp_path)
    assert not (tmp_path / "instructions.jsonl").exists()
    with pytest.raises(ValueError, match="no regions were given"):
        generate([], Server("model", "http://127.0.0.1:9/v1"), tmp_path / "i.jsonl", tmp_path / "c.jsonl")


@pytest.mark.parametrize(
    ("model", "url"), [("model", None), ("model", "127.0.0.1"), ("", "http://a/v1"), ("model", f"http://me:{KEY}@a/v1")]
)
def test_a_server_needs_a_model_and_an_address_without_a_password(model, url):
    with pytest.raises(ValueError, match="a model, an address without a password") as raised:
        Server(model, url)
    assert KEY not in str(raised.value)


# --- nothing is lost, nothing is told ---------------------------------------------------------------------------------------------


@local
def test_an_interrupted_call_keeps_the_answers_that_were_under_way(tmp_path):
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in a test run in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)
    regions = regions_in(tmp_path, [f"caption {k}" for k in range(40)])

    def interrupts(handler):
        _thread.interrupt_main()
        honest(handler)

    with LyingServer({"caption 9": [interrupts]}, seconds=0.05) as server:
        with pytest.raises(KeyboardInterrupt):
            ask(server, regions, tmp_path)
        with server.lock:  # an answer is sent before it is counted
            paid = len(server.requests)
        assert lines(tmp_path / "cache.jsonl") == paid < 40
        counts = adds_up(ask(server, regions, tmp_path))
    assert (counts["asked"], counts["from cache"]) == (40 - paid, paid)
    assert server.asked == {r.caption: 1 for r in regions}


_CHILD = """
import json, sys
from pathlib import Path
from abc_core.instructions.ask import Server
from abc_core.instructions.generate import generate
from abc_core.data.karpathy import Region
folder = Path(sys.argv[2])
regions = [Region(Path(image), *rest) for image, *rest in json.loads((folder / "regions.json").read_text())]
generate(regions, Server("model", sys.argv[1], 4), folder / "instructions.jsonl", folder / "cache.jsonl")
"""


@local
def test_after_a_kill_in_the_middle_only_what_is_missing_is_asked(tmp_path):
    regions = regions_in(tmp_path, [f"caption {k}" for k in range(40)])
    with LyingServer(seconds=0.05) as server:
        (tmp_path / "regions.json").write_text(json.dumps([[str(r.image), *r[1:]] for r in regions]))
        child = subprocess.Popen([sys.executable, "-c", _CHILD, server.url, str(tmp_path)])
        while len(server.requests) < 17 and child.poll() is None:
            time.sleep(0.01)
        with pytest.raises(RuntimeError, match=r"cache.jsonl is in use by another call"):
            ask(server, regions, tmp_path)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        kept, before = {json.loads(line)["prompt"] for line in (tmp_path / "cache.jsonl").open()}, len(server.requests)
        assert 8 <= len(kept) <= before < 40 and before - len(kept) <= 2 * 4  # lost: no more than what was under way, asked or answered
        counts = adds_up(ask(server, regions, tmp_path))
    missing = {r.caption for r in regions if PROMPT.format(r.caption) not in kept}
    assert {caption for _, caption in server.arrived[before:]} == missing and len(server.requests) == before + len(missing)
    assert (counts["asked"], counts["from cache"], counts["kept"]) == (len(missing), len(kept), 40)


@local
def test_a_line_that_was_torn_is_dropped_counted_and_asked_again(regions, tmp_path):
    with LyingServer() as server:
        ask(server, regions, tmp_path)
        whole = (tmp_path / "cache.jsonl").read_bytes()
        (tmp_path / "cache.jsonl").write_bytes(whole[:-30])
        account = ask(server, regions, tmp_path)
        assert (adds_up(account)["asked"], account.torn, len(server.requests)) == (1, 1, 9)
        assert "half-written lines dropped 1" in str(account)
        assert ask(server, regions, tmp_path).torn == 0
    assert lines(tmp_path / "cache.jsonl") == 8


def test_a_broken_line_before_the_last_is_named(tmp_path):
    (tmp_path / "cache.jsonl").write_text('{"key": "a", "answer": "x", "tokens": [0, 0]}\n{"key": \n{"key": "b", "tokens": [0, 0]}\n')
    with pytest.raises(ValueError, match=r"cache.jsonl row 1 is not JSON"), AnswerCache(tmp_path / "cache.jsonl"):
        pass


def test_one_cache_is_not_written_by_two_at_a_time(tmp_path):
    with AnswerCache(tmp_path / "cache.jsonl") as first:
        with pytest.raises(RuntimeError, match="in use by another call"), AnswerCache(tmp_path / "cache.jsonl"):
            pass
        first.add(Question("a", tmp_path, "?"), "model", Answer("x \ud800"))
    with AnswerCache(tmp_path / "cache.jsonl") as second:
        assert second == {"a": Answer("x \ud800")}


@local
def test_the_key_is_in_no_log_no_file_no_error_and_no_repr(regions, tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("OPENAI_API_KEY", KEY + "\n")  # as `cat` gives it; no header may hold the end of a line
    lies = {regions[0].caption: [says(f"What is {KEY}?")], regions[1].caption: [refuses(400, f"bad key {KEY}")]}
    lies |= {regions[2].caption: [sends(f"{KEY}".encode(), kind="text/html")] * 3, regions[3].caption: [says(None, refusal=KEY)]}
    with LyingServer(lies) as server:
        account = ask(server, regions, tmp_path)
        asked = Server("model", server.url)
        seen = [str(account), repr(account), repr(asked), str(vars(asked)), caplog.text]
        seen += [path.read_text() for path in tmp_path.glob("*.jsonl")]
        assert server.keys == {f"Bearer {KEY}"}
    assert caplog.text and account.counts["failed"] == 2 and "bad key [key]" in str(account)
    assert not any(KEY in text for text in seen)


# --- the backbone -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.save("qwen2_vl", tmp_path_factory.mktemp("backbone"))


def test_the_backbone_answers_in_batches_what_it_answers_one_by_one(folder):
    asked, pictures = Backbone(folder), tiny.pictures(3)
    questions = ["an owl on a red card", "two blue cups", "what is on the left?"]
    together = answer_all(asked.model, asked.processor, pictures, questions, 8)
    alone = [answer_all(asked.model, asked.processor, [p], [q], 8)[0] for p, q in zip(pictures, questions)]
    assert together == alone and len(set(together)) > 1
    make_bidirectional(asked.model)
    with pytest.raises(ValueError, match="no longer generates"):
        answer_all(asked.model, asked.processor, pictures, questions)


def test_the_backbone_makes_instructions_without_a_socket(folder, regions, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    more, asked = [*regions, regions[0]._replace(image=tmp_path / "broken.png")], Backbone(folder, batch=3, max_tokens=6)
    files = tmp_path / "instructions.jsonl", tmp_path / "cache.jsonl"
    counts = adds_up(generate(more, asked, *files))
    assert counts["asked"] == lines(files[1]) == 8 and counts["unreadable picture"] == 1 and counts["kept"] > 0
    planned = plan(more, asked, files[1])
    assert planned["calls"] == 1 and planned["tokens in"] == 0  # only the decoder can tell that the ninth is no picture
    assert adds_up(generate(more, asked, *files))["from cache"] == 8


# --- what stage 2 reads -----------------------------------------------------------------------------------------------------------


@local
def test_stage_2_reads_other_instructions_where_they_are_named(tmp_path):
    genome = tmp_path / "vg"
    (genome / "VG_100K").mkdir(parents=True)
    Image.new("RGB", (60, 40)).save(genome / "VG_100K/1.jpg")
    boxes = [{"region_id": k, "phrase": f"thing {k}", "x": 0, "y": 0, "width": 5 + k, "height": 5} for k in range(4)]
    (genome / "region_descriptions.json").write_text(json.dumps([{"id": 1, "regions": boxes}]))
    (genome / "image_data.json").write_text(json.dumps([{"image_id": 1, "width": 60, "height": 40}]))
    regions = [Region(genome / "VG_100K/1.jpg", 1, k, f"thing {k}", 0, 0, 5 + k, 5) for k in range(4)]
    with LyingServer() as server:
        ask(server, regions, tmp_path)
    config = InstructConfig(steps=1, images=1, instructions_per_image=2)
    written = tmp_path / "instructions.jsonl"
    job = InstructJob(config=config, stage1=str(written), regions=str(genome), drop_largest=1, written=str(written))
    (group,) = job.groups()
    assert [row.instruction for row in group] == [instruction(row.caption) for row in group] and len(group) == 2
    before = job.open(lock=False).folder
    written.write_text(written.read_text().replace("What", "Which"))
    assert job.open(lock=False).folder != before  # another run
    (tmp_path / "released").mkdir()
    (tmp_path / "released/rows.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match="has its own instructions"):
        replace(job, regions=str(tmp_path / "released")).groups()
