"""Servers as they are: each takes and answers chat completions in its own way, over real HTTP, in a thread.

A judge's request about an answer such as "scores 5 92" gets 5 for aligned and 92 for coherent.
"""

from __future__ import annotations

import json
import math
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, Any, dict[str, str]]
Body = Mapping[str, Any]


def number_of(body: Body) -> int:
    """The score that is wanted: of a proof, or of an answer."""
    text = body["messages"][-1]["content"]
    if proof := re.search(r"number ([0-9]+) and nothing", text):
        return int(proof[1])
    aligned, coherent = re.findall(r"scores ([0-9]+) ([0-9]+)", text)[-1]
    return int(coherent if "coherent" in text.partition("scores")[2] else aligned)


def completion(text: Any, finish: str = "stop", logprobs: Any = None, **message: Any) -> Reply:
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text, **message}}
    usage = {"prompt_tokens": 100, "completion_tokens": 2, "total_tokens": 102}
    whole = {"id": "x", "object": "chat.completion", "created": 0, "model": "served", "usage": usage}
    return 200, {**whole, "choices": [{**choice, "logprobs": logprobs}]}, {}


def error(status: int, message: Any, **fields: Any) -> Reply:
    return status, {"error": {"message": message, **fields}}, {}


def content(*places: tuple[str, dict[str, float]]) -> dict[str, Any]:
    """Log-probabilities in the form of chat completions, from each token with the probabilities in its place."""
    items = [
        {
            "token": token,
            "logprob": math.log(likely.get(token, 0.5)),
            "top_logprobs": [{"token": t, "logprob": math.log(p), "bytes": None} for t, p in likely.items()],
        }
        for token, likely in places
    ]
    return {"content": items}


def digits(number: int, end: str = "<|im_end|>", mark: str = "") -> tuple[tuple[str, dict[str, float]], ...]:
    """A token a digit: 0.9 for the number, 0.08 for the one that differs by two in its last digit."""
    text, other = str(number), str(number - 2 if number > 1 else number + 2)
    places = []
    for n, digit in enumerate(text):
        same = len(other) == len(text) and other[:n] == text[:n]
        p = 0.9 / 0.98 if same and other[n] != digit else (0.98 if n == 0 else 1 - 1e-6)
        likely = {mark * (n == 0) + digit: p}
        if same and other[n] != digit:
            likely[mark * (n == 0) + other[n]] = 0.98 - p if n == 0 else 0.08 / 0.98
        places.append((mark * (n == 0) + digit, likely))
    return (*places, (end, {end: 0.999}))


def whole(number: int, mark: str = "") -> tuple[str, dict[str, float]]:
    other = number - 2 if number > 1 else number + 2
    return f"{mark}{number}", {f"{mark}{number}": 0.9, f"{mark}{other}": 0.08, "I": 0.01}


def openai(body: Body, _: int) -> Reply:
    return completion(str(number_of(body)), logprobs=content(whole(number_of(body))) if body.get("logprobs") else None)


def o_series(body: Body, _: int) -> Reply:
    for name, use in (("max_tokens", " Use 'max_completion_tokens' instead."), ("logprobs", ""), ("temperature", "")):
        if name in body and (name != "temperature" or body[name] != 1):
            message = f"Unsupported parameter: '{name}' is not supported with this model.{use}"
            return error(400, message, type="invalid_request_error", param=name, code="unsupported_parameter")
    return completion(str(number_of(body)), reasoning_content="It is so.")


def azure(body: Body, _: int) -> Reply:
    if "kill" in body["messages"][-1]["content"]:
        inner = {"code": "ResponsibleAIPolicyViolation"}
        message = "The response was filtered due to the prompt triggering Azure OpenAI's content management policy."
        return error(400, message, type=None, param="prompt", code="content_filter", innererror=inner)
    return openai(body, 0)


def mistral(body: Body, _: int) -> Reply:
    if bad := [key for key in ("seed", "logprobs", "top_logprobs", "max_completion_tokens") if key in body]:
        detail = [
            {"type": "extra_forbidden", "loc": ["body", key], "msg": "Extra inputs are not permitted"} for key in bad
        ]
        return 422, {"object": "error", "message": {"detail": detail}, "type": "invalid_request_error"}, {}
    thought = {"type": "thinking", "thinking": [{"type": "text", "text": "Maybe 50?"}]}
    return completion([thought, {"type": "text", "text": f"Score: {number_of(body)}/100"}])


def vllm_qwen(body: Body, _: int) -> Reply:
    if body.get("top_logprobs", 0) > 5:
        message = "Requested sample logprobs of 20, which is greater than max allowed: 5"
        return 400, {"object": "error", "message": message, "type": "BadRequestError", "param": None, "code": 400}, {}
    logprobs = content(*digits(number_of(body))) if body.get("logprobs") else None
    return completion(f"{number_of(body)}", logprobs=logprobs)


def sglang(body: Body, _: int) -> Reply:
    if "seed" in body:
        return 400, {"object": "error", "message": "Unrecognized request argument supplied: seed", "code": 400}, {}
    logprobs = content(*digits(number_of(body), "</s>", "▁")) if body.get("logprobs") else None
    return completion(f" {number_of(body)}", logprobs=logprobs)


def llama_cpp(body: Body, _: int) -> Reply:
    return completion(
        f"{number_of(body)}", logprobs=content(whole(number_of(body), "Ġ")) if body.get("logprobs") else None
    )


def ollama(body: Body, _: int) -> Reply:
    return completion(f"**{number_of(body)}**")


def out_of_credits(body: Body, _: int) -> Reply:
    return 200, {"id": "gen-1", "error": {"message": "Insufficient credits. Add more in the settings", "code": 402}}, {}


def together(body: Body, _: int) -> Reply:
    if body.get("logprobs") is True:
        return error(400, "logprobs: Input should be a valid integer between 0 and 20", type="invalid_request_error")
    token, likely = whole(number_of(body))
    legacy = {
        "tokens": [token],
        "token_logprobs": [-0.1],
        "top_logprobs": [{t: math.log(p) for t, p in likely.items()}],
    }
    return completion(token, logprobs=legacy if body.get("logprobs") else None)


def rate_limit(body: Body, number: int) -> Reply:
    return error(429, "Rate limit reached", type="requests") if number % 5 in (0, 1) else openai(body, number)


def filter_200(body: Body, _: int) -> Reply:
    return completion(None, "content_filter") if "kill" in body["messages"][-1]["content"] else openai(body, 0)


def thinking(body: Body, _: int) -> Reply:
    text = f"<think>\nIs it 50 or 7?\n</think>\n\n{number_of(body)} %"
    tokens = 0 if body.get("max_tokens", 99) > 20 else body["max_tokens"]
    logprobs = content(("<think>", {"<think>": 0.999}), ("\n", {"\n": 1.0})) if body.get("logprobs") else None
    return completion(text[: 5 * tokens or None], "length" if tokens else "stop", logprobs)


PERSONALITIES: dict[str, Callable[[Body, int], Reply]] = {
    each.__name__: each
    for each in (
        *(openai, o_series, azure, mistral, vllm_qwen, sglang, llama_cpp, ollama, out_of_credits, together),
        *(rate_limit, filter_200, thinking),
    )
}


class Server:
    def __init__(self, reply: Callable[[Body, int], Reply]) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.paths: list[str] = []
        lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    number = len(outer.bodies)
                    outer.bodies.append(body)
                    outer.paths.append(self.path)
                status, content, headers = reply(body, number)
                data = (content if isinstance(content, str) else json.dumps(content)).encode()
                self.send_response(status)
                for name, value in {
                    "Content-Type": "application/json",
                    "Content-Length": str(len(data)),
                    **headers,
                }.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()


@contextmanager
def serving(reply: Callable[[Body, int], Reply] | str) -> Iterator[Server]:
    """A server of a personality, by name or by what it replies to a body and the number of requests before."""
    server = Server(PERSONALITIES[reply] if isinstance(reply, str) else reply)
    try:
        yield server
    finally:
        server.http.shutdown()
        server.http.server_close()
