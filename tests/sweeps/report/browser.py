"""A file opened in headless Chromium with the network cut, over the DevTools protocol."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"),
    *("--host-resolver-rules=MAP * ~NOTFOUND", "--window-size=1200,900", "--remote-debugging-port=0"),
)


class Browser:
    """`with Browser() as browser: browser.open(path); browser.value("1 + 1")`.

    `events` holds what the page did that a report must not do: console messages, exceptions, dialogs, and requests
    other than for the file itself.
    """

    def __enter__(self) -> Browser:
        assert CHROMIUM, "no chromium"
        self.events: list[tuple[str, Any]] = []
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        command = [CHROMIUM, *FLAGS, f"--user-data-dir={self._folder.name}", "about:blank"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._runner = asyncio.Runner()
        self._number = 0
        self._runner.run(self._connect())
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.run(self._session.close())
        self._runner.close()
        self._process.terminate()
        self._process.wait()
        self._folder.cleanup()

    def open(self, path: Path) -> None:
        """Loads a file, and waits until it has loaded."""
        self._runner.run(self._call("Page.navigate", url=path.resolve().as_uri()))
        while not self.value("document.readyState === 'complete' && location.protocol === 'file:'"):
            time.sleep(0.05)

    def value(self, script: str) -> Any:
        """What an expression in the page comes to; a promise is waited for.

        Raises:
            RuntimeError: if it throws.
        """
        result = self._runner.run(
            self._call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        )
        if "exceptionDetails" in result:
            raise RuntimeError(json.dumps(result["exceptionDetails"])[:1000])
        return result["result"].get("value")

    async def _connect(self) -> None:
        port = Path(self._folder.name) / "DevToolsActivePort"
        for _ in range(600):
            if port.is_file() and "\n" in port.read_text():
                break
            await asyncio.sleep(0.1)
        self._session = aiohttp.ClientSession()
        async with self._session.get(f"http://127.0.0.1:{port.read_text().splitlines()[0]}/json") as reply:
            target = next(page for page in await reply.json() if page["type"] == "page")
        self._socket = await self._session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0)
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self._call(f"{domain}.enable")

    async def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": parameters})
        while True:
            message = json.loads((await self._socket.receive(timeout=120)).data)
            if message.get("id") == self._number:
                if "error" in message:
                    raise RuntimeError(message["error"]["message"])
                result: dict[str, Any] = message["result"]
                return result
            await self._notice(message.get("method"), message.get("params", {}))

    async def _notice(self, method: str, its: dict[str, Any]) -> None:
        if method == "Page.javascriptDialogOpening":
            self.events.append(("dialog", its["message"]))
            self._number += 1
            answer = {"id": self._number, "method": "Page.handleJavaScriptDialog", "params": {"accept": False}}
            await self._socket.send_json(answer)
        elif method == "Runtime.consoleAPICalled":
            self.events.append(("console", its["args"]))
        elif method == "Runtime.exceptionThrown":
            self.events.append(("exception", its["exceptionDetails"]))
        elif method == "Log.entryAdded":
            self.events.append(("log", its["entry"]["text"]))
        elif method == "Network.requestWillBeSent" and not its["request"]["url"].startswith(
            ("file:", "data:image/svg+xml;")
        ):
            self.events.append(("request", its["request"]["url"]))
