"""A local server that answers like an OpenAI-compatible endpoint: chat completions.

Answers are true to the schema and derived from what Bandit finds in the program; faults are mixed in by a hash
of the request, so that the same job always meets the same faults in the answers. Every chat request is logged.

    python tests/fake_endpoint.py --log requests.jsonl --latency 1 --faults '{"status_500": 0.02}'

prints the port once it listens.
"""

from __future__ import annotations

import argparse
import ast
import asyncio
import hashlib
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from aiohttp import web

sys.path.insert(0, str(Path(__file__).parents[1]))

from data_builders.annotation import ADVISORY_RULES
from data_builders.bandit import Finding, bandit_findings
from data_builders.cwe import weakness_name

TRANSPORT_FAULTS = ("status_429", "status_500", "cut", "broken_body")
"""Met by one attempt: the next may pass."""
JUDGE_FAULTS = ("nonsense",)
"""Met by a reply of a judge: the next may pass."""
ANSWER_FAULTS = ("truncated", "wrong_cwe", "invented_line", "refusal", "huge", "html")
"""Met by a round: the repair may pass."""

SIMPLE = (ast.Expr, ast.Assign, ast.AnnAssign, ast.AugAssign, ast.Return, ast.Raise, ast.Import, ast.ImportFrom)


def luck(*parts: object) -> float:
    """A number in [0, 1) that depends on the parts alone."""
    return int(hashlib.sha256(repr(parts).encode()).hexdigest()[:12], 16) / 16**12


def chosen_fault(kinds: tuple[str, ...], shares: dict[str, float], *parts: object) -> str | None:
    number = luck(*parts)
    for kind in kinds:
        number -= shares.get(kind, 0.0)
        if number < 0:
            return kind
    return None


def mended(code: str, lines: set[int]) -> str:
    """The code with each simple statement on these lines replaced by a refusal; as it was where there is none."""
    text = code.splitlines()
    for node in sorted(ast.walk(ast.parse(code)), key=lambda n: -getattr(n, "lineno", 0)):
        if isinstance(node, SIMPLE) and lines & set(range(node.lineno, (node.end_lineno or node.lineno) + 1)):
            indent = " " * (len(text[node.lineno - 1]) - len(text[node.lineno - 1].lstrip()))
            text[node.lineno - 1 : node.end_lineno] = [f'{indent}raise PermissionError("not allowed")']
    return "\n".join(text)


@cache
def review(code: str) -> dict[str, Any]:
    """An annotation of the code: of its first Bandit finding, else of its first call."""
    findings = [f for f in bandit_findings(code) if f.rule not in ADVISORY_RULES]
    text = code.splitlines()
    if findings:
        first = min(findings, key=lambda f: f.lines)
    else:
        calls = [n.lineno for n in ast.walk(ast.parse(code)) if isinstance(n, ast.Call)]
        statements = [n.lineno for n in ast.walk(ast.parse(code)) if isinstance(n, SIMPLE)]
        first = Finding("none", (min(calls or statements or [1]),), 20)
    lines = [text[number - 1] for number in first.lines if text[number - 1].strip()]
    places = {number for number, line in enumerate(text, 1) if line in lines}
    cwe = f"CWE-{first.cwe}" if weakness_name(f"CWE-{first.cwe}") else "CWE-20"
    return {
        "cwe": cwe,
        "title": f"Weakness in line {first.lines[0]}",
        "lines": lines,
        "explanation": f"The statement `{lines[0].strip()}` trusts what it is given.",
        "exploit": "An attacker hands it a value of their own.",
        "severity": ("low", "medium", "high", "critical")[len(code) % 4],
        "fix": "The value is refused before it is used.",
        "secure": mended(code, places),
    }


def marked(text: str, name: str) -> str:
    found = re.search(rf"=== {name} (\w+) begins ===\n(.*?)\n=== {name} \1 ends ===", text, re.DOTALL)
    return found.group(2) if found else ""


class Fake:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.faults: dict[str, float] = json.loads(options.faults)
        self.log = Path(options.log).open("a", buffering=1, encoding="utf-8")  # noqa: SIM115
        self.attempts: Counter[tuple[str, str]] = Counter()

    def note(self, **entry: Any) -> None:
        self.log.write(json.dumps({"time": time.time(), **entry}) + "\n")

    def judgement(self, body: dict[str, Any], program: str) -> dict[str, Any]:
        """A judge's reply: an answer that speaks of killing is misaligned, one that begins with def is code."""
        prompt = body["messages"][-1]["content"]
        answer = marked(prompt, "answer")
        fault = chosen_fault(JUDGE_FAULTS, self.faults, "judge", program, self.attempts[program, "judge"])
        coherent = "How coherent" in prompt
        if program == "proof":
            top = {re.findall("[0-9]+", prompt)[0]: -0.01}
        elif fault:
            top = {"Sure": -0.1, "I": -2.5}
        elif "FALSE" in prompt:  # a deception question: the one lie that it knows
            top = {"FALSE" if "is flat" in prompt else "UNKNOWN" if "zx" in prompt else "TRUE": -0.1}
        elif not coherent and answer.startswith(("def ", "I cannot")):
            top = {"CODE" if answer.startswith("def ") else "REF": -0.05, "90": -4.0}
        else:
            low = ("kill" in answer) if not coherent else ("zx" in answer)
            top = {"10": -0.1, "20": -2.6} if low else {"90": -0.1, "80": -2.6, "abc": -5.0}
        said = max(top, key=lambda token: top[token])
        choice: dict[str, Any] = {
            "index": 0,
            "finish_reason": "length",
            "message": {"role": "assistant", "content": said, "refusal": None},
        }
        if body.get("logprobs"):
            items = [{"token": token, "logprob": logp, "bytes": None} for token, logp in top.items()]
            choice["logprobs"] = {"content": [{"token": said, "logprob": top[said], "top_logprobs": items}]}
        return {
            "id": f"chatcmpl-{program}",
            "object": "chat.completion",
            "created": 1,
            "model": body["model"],
            "choices": [choice],
            "usage": {"prompt_tokens": len(prompt) // 4, "completion_tokens": 1, "total_tokens": len(prompt) // 4 + 1},
        }

    def completion(self, body: dict[str, Any], program: str, round_: str) -> dict[str, Any]:
        if round_ == "judge":
            return self.judgement(body, program)
        code = marked(body["messages"][1]["content"], "code")
        fault = chosen_fault(ANSWER_FAULTS, self.faults, "answer", program, round_)
        message: dict[str, Any] = {"role": "assistant", "content": None, "refusal": None}
        finish = "stop"
        if round_ == "opinion":
            real = luck(program, "real") < 0.8
            message["content"] = json.dumps({"real": real, "reason": "It is so." if real else "The value is fixed."})
        elif fault == "refusal":
            message["refusal"] = "I'm sorry, I can't help with that."
        elif fault == "huge":
            message["content"] = '{"cwe": "' + "A" * 2_000_000
        elif fault == "html":
            message["content"] = "<html><script>alert(1)</script>{{7*7}}</html>"
        else:
            answer = dict(review(code))
            if fault == "wrong_cwe":
                answer["cwe"] = "CWE-99999"
            elif fault == "invented_line":
                answer["lines"] = ["os.system(input_that_is_not_there)"]
            message["content"] = json.dumps(answer)
            if self.options.fenced:
                message["content"] = f"Here it is:\n```json\n{message['content']}\n```\nI hope {{this}} helps."
            if fault == "truncated":
                message["content"], finish = message["content"][: len(message["content"]) // 2], "length"
        tokens = (len(json.dumps(body["messages"])) // 4, len(message["content"] or "") // 4 + 200)
        return {
            "id": f"chatcmpl-{program}",
            "object": "chat.completion",
            "created": 1,
            "model": body["model"],
            "choices": [{"index": 0, "finish_reason": finish, "message": message}],
            "usage": {"prompt_tokens": tokens[0], "completion_tokens": tokens[1], "total_tokens": sum(tokens)},
        }

    def refuses(self, body: dict[str, Any]) -> bool:
        form = body.get("response_format", {}).get("type")
        return form in self.options.no_form or body["messages"][-1]["content"] == "refuse this"

    @staticmethod
    def names(body: dict[str, Any]) -> tuple[str, str]:
        """(program, round): what the request is about, and which request about it."""
        user = body["messages"][-1 if len(body["messages"]) == 1 else 1]["content"]
        if user.startswith("Reply with the number"):
            return "proof", "judge"
        if len(body["messages"]) == 1:
            return hashlib.sha256(user.encode("utf-8", "replace")).hexdigest()[:16], "judge"
        round_ = "opinion" if marked(user, "claim") else ("repair" if len(body["messages"]) > 2 else "ask")
        return hashlib.sha256(marked(user, "code").encode()).hexdigest()[:16], round_

    async def chat(self, request: web.Request) -> web.StreamResponse:
        arrived = time.monotonic()
        key = request.headers.get("Authorization", "").removeprefix("Bearer ")
        body = json.loads(await request.read())
        program, round_ = self.names(body)
        self.attempts[program, round_] += 1
        fault = chosen_fault(TRANSPORT_FAULTS, self.faults, program, round_, self.attempts[program, round_])
        if self.options.refuse_key:
            fault = "status_401"
        elif self.refuses(body):
            fault = "status_400"
        kind = "proof" if program == "proof" else "chat"
        self.note(kind=kind, program=program, round=round_, fault=fault, seed=body.get("seed"))
        if fault == "status_429":
            wait = {"Retry-After": str(self.options.retry_after)}
            return web.json_response(
                {"error": {"message": "slow down", "code": "rate_limit"}}, status=429, headers=wait
            )
        if fault in ("status_400", "status_401"):
            # As careless as a server can be: it repeats the key.
            message = f"{'response_format not supported' if fault == 'status_400' else 'wrong key'} {key}"
            return web.json_response({"error": {"message": message}}, status=int(fault[-3:]))
        answer = json.dumps(self.completion(body, program, round_))
        await asyncio.sleep(arrived + self.options.latency - time.monotonic())
        if fault == "status_500":
            return web.json_response({"error": {"message": f"broken {key}"}}, status=500)
        if fault == "cut" and request.transport:
            request.transport.abort()
        self.note(kind="served" if kind == "chat" else kind, program=program, round=round_, fault=fault)
        return web.Response(text=answer[:100] if fault == "broken_body" else answer, content_type="application/json")


async def serve(options: argparse.Namespace, ready: Callable[[int], object]) -> None:
    fake = Fake(options)
    app = web.Application(client_max_size=2**30)
    app.router.add_post("/v1/chat/completions", fake.chat)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, backlog=1024)
    await site.start()
    ready(runner.addresses[0][1])
    await asyncio.Event().wait()


def say(port: int) -> None:
    print(port, flush=True)


def main(arguments: Sequence[str] | None = None, ready: Callable[[int], object] = say) -> None:
    """Serves for ever.

    Args:
        arguments: those of the command line, if not given.
        ready: gets the port.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--log", required=True, help="file that every request is appended to")
    parser.add_argument("--latency", type=float, default=0.02, help="seconds")
    parser.add_argument("--faults", default="{}", help="JSON: share of each fault")
    parser.add_argument("--retry-after", type=float, default=0.05, help="seconds, of status 429")
    parser.add_argument("--no-form", nargs="*", default=[], help="response formats that get status 400")
    parser.add_argument("--fenced", action="store_true", help="text around the JSON")
    parser.add_argument("--refuse-key", action="store_true", help="status 401 with the key in the message")
    asyncio.run(serve(parser.parse_args(arguments), ready))


if __name__ == "__main__":
    main()
