"""The annotator on servers as they are: 200 real programs end as with the plain server, or one true sentence does.

The server finds in a program what Bandit finds, errs now and then for good or until it is told, and writes its
answers as its kind does.
"""

import json
import re
from collections.abc import Callable
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from typer.testing import CliRunner

from core.llm.client import Access
from core.records import BadInput
from data_builders.annotate import Job, Model, run
from data_builders.bandit import bandit_findings
from data_builders.cli import app
from data_builders.cwe import weakness_name
from data_builders.programs import SourceProgram
from data_builders.sources import read_source
from tests.fake_endpoint import luck, marked, review
from tests.personalities import Body, Reply, completion, error, serving

Found = dict[str, Any]


def code_of(body: Body) -> str:
    return next(code for message in body["messages"] if (code := marked(message["content"], "code")))


def found(body: Body) -> Found:
    """A true answer; of one program in twelve with a fault that a repair mends, of one in twenty with one that stays.

    Raises:
        StopIteration: if the request shows no program.
    """
    code = code_of(body)
    answer, number = dict(review(code)), luck(code, "fault")
    if number < 1 / 20:
        return answer | {"lines": ["os.remove(no_such_name)"]}
    return answer | {"cwe": "CWE-99999"} if number < 2 / 15 and not repairs(body) else answer


def repairs(body: Body) -> bool:
    return any(message["role"] == "assistant" for message in body["messages"])


def unlucky(body: Body) -> bool:
    """One program in twenty, which a content filter takes."""
    return luck(code_of(body), "filter") < 1 / 20


def fenced(text: str, language: str = "json") -> str:
    return f"```{language}\n{text}\n```"


def form(body: Body) -> str | None:
    return body.get("response_format", {}).get("type")


def plain(body: Body, _: int) -> Reply:
    return completion(json.dumps(found(body)))


def o_series(body: Body, _: int) -> Reply:
    if body["messages"][0]["role"] == "system":
        message = "Unsupported value: 'messages[0].role' does not support 'system' with this model."
        return error(400, message, type="invalid_request_error", param="messages[0].role", code="unsupported_value")
    return completion(json.dumps(found(body), indent=2), reasoning_content='Is it {"cwe": "none"}?')


def azure(body: Body, _: int) -> Reply:
    if unlucky(body):
        message = "The response was filtered due to the prompt triggering Azure OpenAI's content management policy."
        return error(400, message, type=None, param="prompt", code="content_filter")
    answer = found(body)
    return completion(json.dumps({**answer, "severity": answer["severity"].title()}), refusal=None)


def mistral(body: Body, _: int) -> Reply:
    if "reasoning_effort" in body:
        fault = {"type": "extra_forbidden", "loc": ["body", "reasoning_effort"], "msg": "Extra inputs are forbidden"}
        return 422, {"object": "error", "message": {"detail": [fault]}, "type": "invalid_request_error"}, {}
    thought = {"type": "thinking", "thinking": [{"type": "text", "text": '{"cwe": "none"}?'}]}
    return completion([thought, {"type": "text", "text": fenced(json.dumps(found(body)))}])


def vllm_qwen(body: Body, _: int) -> Reply:
    if form(body) == "json_schema":
        message = "The provided JSON schema contains features not supported by xgrammar."
        return 400, {"object": "error", "message": message, "type": "BadRequestError", "param": None, "code": 400}, {}
    return completion(f'<think>\nMaybe {{"cwe": "none"}}.\n</think>\n\n{json.dumps(found(body), ensure_ascii=False)}')


def sglang(body: Body, _: int) -> Reply:
    if "reasoning_effort" in body:
        message = "Unrecognized request argument supplied: reasoning_effort"
        return 400, {"object": "error", "message": message, "code": 400}, {}
    answer = {name.upper(): value for name, value in found(body).items()}
    return completion(json.dumps({**answer, "CWE": int(answer["CWE"][4:])}))


def llama_cpp(body: Body, _: int) -> Reply:
    if form(body) == "json_schema":
        return error(500, "Failed to initialize samplers: failed to parse grammar", code=500, type="server_error")
    answer, lines = found(body), code_of(body).splitlines()
    numbered = [f"{lines.index(line) + 1}: {line}" if line in lines else line for line in answer["lines"]]
    return completion(json.dumps({**answer, "lines": numbered}))


def ollama(body: Body, _: int) -> Reply:
    if form(body) == "json_schema":
        return error(400, "json: cannot unmarshal object into Go struct field .response_format", type="api_error")
    answer = found(body)
    answer |= {"lines": "\n".join(f"`{line.strip()}`" for line in answer["lines"])}
    answer |= {"secure": fenced(answer["secure"], "python"), "severity": answer["severity"].upper()}
    return completion(f"Sure, {{here}} it is:\n\n{fenced(json.dumps(answer))}\n\nLet me know if {{this}} helps!")


def out_of_credits(body: Body, _: int) -> Reply:
    return 200, {"id": "gen-1", "error": {"message": "Insufficient credits. Add more in the settings", "code": 402}}, {}


def together(body: Body, _: int) -> Reply:
    if "reasoning_effort" in body or form(body) == "json_schema":
        field = "reasoning_effort" if "reasoning_effort" in body else "response_format.type"
        return error(400, f"{field}: not supported for this model", type="invalid_request_error", param=field)
    answer = found(body)
    name = weakness_name(answer["cwe"])
    return completion(json.dumps({**answer, "cwe": f"{answer['cwe']}: {name}" if name else answer["cwe"]}), "eos")


def rate_limit(body: Body, number: int) -> Reply:
    return error(429, "Rate limit reached", type="requests") if number % 5 in (0, 1) else plain(body, number)


def filter_200(body: Body, number: int) -> Reply:
    return completion(None, "content_filter") if unlucky(body) else plain(body, number)


def thinking(body: Body, _: int) -> Reply:
    if luck(code_of(body), "long") < 0.1 and not repairs(body):
        return completion("<think>\nLet me see. Or is it", "length")
    return completion(f"The user shows a program.\n</think>\n\n{json.dumps(found(body))}")


def gemini(body: Body, _: int) -> Reply:
    if "reasoning_effort" in body:
        message = 'Invalid JSON payload received. Unknown name "reasoning_effort": Cannot find field.'
        return 400, [{"error": {"code": 400, "message": message, "status": "INVALID_ARGUMENT"}}], {}
    return completion(fenced(json.dumps(found(body))), "STOP", tool_calls=None)


def router(body: Body, number: int) -> Reply:
    if number % 9 == 4:
        return 200, {"error": {"message": "Provider returned error", "code": 502, "metadata": {"raw": "busy"}}}, {}
    answer = found(body)
    return completion(json.dumps({**answer, "lines": [{"line": n, "code": c} for n, c in enumerate(answer["lines"])]}))


def cut_off(body: Body, _: int) -> Reply:
    return completion(json.dumps(found(body))[:60], "length")


def declines(body: Body, _: int) -> Reply:
    return completion(None, "stop", refusal="I can't help with vulnerable code.")


class Kind(NamedTuple):
    reply: Callable[[Body, int], Reply]
    changes: tuple[str, ...] = ()
    filters: bool = False
    stops: str = ""
    """What is said where the server cannot answer."""


NO_EFFORT, NO_SCHEMA = "without reasoning_effort", "response_format as json_object"
KINDS = (
    Kind(o_series, ("system prompt in the user's turn",)),
    Kind(azure, filters=True),
    Kind(mistral, (NO_EFFORT,)),
    Kind(vllm_qwen, (NO_SCHEMA,)),
    Kind(sglang, (NO_EFFORT,)),
    Kind(llama_cpp, (NO_SCHEMA,)),
    Kind(ollama, (NO_SCHEMA,)),
    Kind(out_of_credits, stops="Insufficient credits"),
    Kind(together, (NO_SCHEMA, NO_EFFORT)),
    Kind(rate_limit),
    Kind(filter_200, filters=True),
    Kind(thinking),
    Kind(gemini, (NO_EFFORT,)),
    Kind(router),
    Kind(cut_off, stops="cut off, allow more tokens with --extra-body"),
    Kind(declines, stops="declined to answer: I can't help with vulnerable code"),
)


FINDINGS = cache(bandit_findings)  # the servers speak of the same programs


@pytest.fixture(scope="module")
def real(shared: Path) -> list[SourceProgram]:
    path = shared / "data" / "insecure" / "insecure.jsonl"
    if not path.is_file():
        pytest.skip("the real programs are not there: ../shared/data/insecure/insecure.jsonl")
    items = islice(read_source(str(path)), 0, 3000, 15)
    programs = [item for item in items if isinstance(item, SourceProgram)]
    assert len(programs) == 200
    return programs


def annotate(url: str, programs: list[SourceProgram], out: Path) -> None:
    run(programs, Job(Model("m", "high")), out, Access("sk-test-0123456789abcdef", url, 8, 30.0))


def ends(out: Path) -> tuple[set[str], dict[str, str]]:
    """(ids that were accepted, by id why the others were not)."""
    rows, rejects = (
        [json.loads(line) for line in Path(f"{out}.{end}").read_text().splitlines()]
        for end in ("jsonl", "rejects.jsonl")
    )
    return {row["id"] for row in rows}, {row["id"]: row["reasons"][0] for row in rejects}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.llm.client.FIRST_WAIT", 0.005)
    monkeypatch.setattr("core.llm.client.LONGEST_WAIT", 0.02)
    monkeypatch.setattr("data_builders.annotation.bandit_findings", FINDINGS)


@pytest.fixture(scope="module")
def plainly(real: list[SourceProgram], tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    out = tmp_path_factory.mktemp("plain") / "o"
    with serving(plain) as server:
        annotate(server.url, real, out)
    accepted, rejected = ends(out)
    assert 175 < len(accepted) < 195 and len(accepted) + len(rejected) == len(real)
    return accepted


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.reply.__name__)
def test_real_programs_end_as_with_the_plain_server_or_in_a_sentence(real, plainly, tmp_path, capsys, kind) -> None:
    out = tmp_path / "o"
    with serving(kind.reply) as server:
        if kind.stops:
            with pytest.raises(BadInput, match=re.escape(kind.stops)) as caught:
                annotate(server.url, real, out)
            assert len(server.bodies) <= 6 and "\n" not in str(caught.value) and not Path(f"{out}.jsonl").exists()
            return
        annotate(server.url, real, out)
    accepted, rejected = ends(out)
    filtered = {id for id, reason in rejected.items() if reason.startswith("content filter")}
    assert (3 < len(filtered) < 20) if kind.filters else not filtered
    others = {id: rejected.get(id) for id in (accepted ^ plainly) - filtered}
    assert abs(len(accepted) / len(real) - len(plainly - filtered) / len(real)) <= 0.01, others
    assert len(others) <= 2, others
    manifest = json.loads(Path(f"{out}.jsonl.manifest.json").read_text())
    assert manifest["changes"] == sorted(kind.changes) and manifest["left"] == 0
    assert manifest["rejected_for"].get("content filter", 0) == len(filtered)
    said = capsys.readouterr().err
    assert all(said.count(change) == 1 for change in kind.changes), "each is said once"


@pytest.mark.parametrize(
    ("last", "says"),
    [
        (error(400, "Your credit balance is too low"), "no answer: status 400: Your credit balance is too low"),
        (error(403, "Key limit exceeded"), "no answer: status 403: Key limit exceeded"),
    ],
)
def test_answers_that_end_on_the_way_are_no_success(tmp_path: Path, monkeypatch, last: Reply, says: str) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789abcdef")
    rows = [{"request": f"Run {n}.", "insecure": f"import os\nos.system(input({n}))\n"} for n in range(8)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "map.yaml").write_text("request: request\ninsecure: insecure\n")

    def reply(body: Body, number: int) -> Reply:
        return completion(json.dumps(review(code_of(body)))) if number < 3 else last

    with serving(reply) as server:
        command = ["annotate", str(tmp_path / "p.jsonl"), "--fields", str(tmp_path / "map.yaml"), "--model", "m"]
        command += ["--out", str(tmp_path / "o"), "--base-url", server.url, "--concurrency", "1"]
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 1 and f"5 programs got no answer, such as: {says}" in " ".join(done.stderr.split())
        assert len((tmp_path / "o.jsonl").read_text().splitlines()) == 3
