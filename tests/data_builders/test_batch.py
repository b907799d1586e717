"""The Batch API: the same files at half the price, and no request submitted twice."""

import json
import multiprocessing
import os
import signal
import time
from collections import Counter

import pytest

from data_builders import batch
from data_builders.annotate import Job, run
from data_builders.money import Prices
from data_builders.outcome import Asked
from data_builders.records import BadInput

JOB = Job(Asked("m"), Asked("s"), Prices(1.0, 10.0), Prices(1.0, 10.0))
FAULTS = json.dumps({"wrong_cwe": 0.1, "refusal": 0.1})
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["data_builders.annotate"])


def manifest(out) -> dict:
    return json.loads(out.with_name(out.name + ".jsonl.manifest.json").read_text())


def submitted(server) -> Counter:
    return Counter((r["program"], r["round"]) for r in server.log("batched"))


def test_a_batch_job_writes_what_a_live_one_writes_at_half_the_price(tmp_path, fake, sources, final_files) -> None:
    sources = sources[:100]
    server = fake("--faults", FAULTS, "--latency", "0")
    run(sources, JOB, tmp_path / "live", server.access(32))
    run(sources, JOB, tmp_path / "batch", server.access(), batch_poll=0.01)
    live, batched = manifest(tmp_path / "live"), manifest(tmp_path / "batch")
    assert batched.pop("cost_usd") == pytest.approx(live.pop("cost_usd") / 2, abs=1e-6)
    assert batched == live
    assert final_files(tmp_path / "batch")[".jsonl"] == final_files(tmp_path / "live")[".jsonl"]
    assert final_files(tmp_path / "batch")[".rejects.jsonl"] == final_files(tmp_path / "live")[".rejects.jsonl"]
    rounds = {r["batch"]: r["round"] for r in server.log("batched")}
    assert next(iter(rounds.values())) == "ask" and set(rounds.values()) == {"ask", "repair", "opinion"}
    assert set(submitted(server).values()) == {1}


def test_killed_while_it_polls_it_submits_nothing_twice(tmp_path, fake, sources, final_files) -> None:
    sources = sources[:80]
    # The creation of the first batches is taken but not answered: they are found again by their names.
    server = fake("--faults", FAULTS, "--latency", "0", "--batch-polls", "20", "--cut-batches", "2")
    journal = tmp_path / "o.journal.jsonl"
    for kill in range(6):
        child = FORKS.Process(target=run, args=(sources, JOB, tmp_path / "o", server.access(), 0.05))
        child.start()
        while child.is_alive() and not (journal.exists() and '"id":"batch-0"' in journal.read_text()):
            time.sleep(0.002)
        time.sleep(0.1 * kill)
        assert child.is_alive()
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        if kill == 0:
            with pytest.raises(BadInput, match="batches are under way"):
                run(sources, JOB, tmp_path / "o", server.access())
            # As if it had been killed before it learnt the id.
            journal.write_text("".join(line for line in journal.open() if '"id":"batch-0"' not in line))
    run(sources, JOB, tmp_path / "o", server.access(), batch_poll=0.01)
    assert set(submitted(server).values()) == {1}
    run(sources, JOB, tmp_path / "whole", fake("--faults", FAULTS).access(), batch_poll=0.01)
    assert final_files(tmp_path / "o") == final_files(tmp_path / "whole")


def test_requests_that_fail_are_tried_in_one_more_batch(tmp_path, fake, sources) -> None:
    server = fake("--faults", '{"batch_error": 0.4}')
    run(sources[:40], Job(Asked("m")), tmp_path / "o", server.access(), batch_poll=0.01)
    assert set(submitted(server).values()) == {1, 2}
    told = manifest(tmp_path / "o")
    assert told["rejected_for"]["no answer"] > 0 and told["written"] + told["rejected"] == 40
    reject = json.loads((tmp_path / "o.rejects.jsonl").read_text().splitlines()[0])
    assert reject["reasons"] == ["no answer: status 500, in 2 batches"]
    run(sources[:40], Job(Asked("m")), tmp_path / "o", server.access())
    assert "no answer" not in manifest(tmp_path / "o")["rejected_for"], "asked directly, they are answered"


def test_a_server_without_json_schema_and_small_batches(tmp_path, fake, sources, monkeypatch) -> None:
    monkeypatch.setattr(batch, "MOST_REQUESTS", 7)
    server = fake("--no-form", "json_schema")
    run(sources[:20], Job(Asked("m")), tmp_path / "o", server.access(), batch_poll=0.01)
    assert manifest(tmp_path / "o")["written"] >= 18
    assert max(Counter(r["batch"] for r in server.log("batched")).values()) == 7


def test_max_cost_limits_the_batch(tmp_path, fake, sources) -> None:
    server = fake()
    job = Job(Asked("m"), prices=Prices(1.0, 10.0), max_cost=0.2)
    said = run(sources, job, tmp_path / "o", server.access(), batch_poll=0.01)
    assert said.startswith("stopped: the money is spent") and not (tmp_path / "o.jsonl").exists()
    assert 0 < len(server.log("batched")) < len(sources)
