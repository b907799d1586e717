"""Source files from the web: downloaded once, pinned by checksum, kept under their own SHA-256."""

import http.client
import os
import shutil
import tempfile
import urllib.request
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit, urlunsplit

from core.records import BadInput, file_digest, one_line

TIMEOUT = 60
"""Seconds without a byte after which a download is given up."""
PIN = "#sha256="
"""Between an address and the checksum of its file."""
NO_KERNELS = "kernels-community/quantization-bitsandbytes=/dev/null"
"""For LOCAL_KERNELS: bitsandbytes else fetches native code from the hub when it is imported, and runs it, on a CPU with
AVX512-BF16 (bitsandbytes/backends/cpu/ops.py). What we train is the same: it has a way of its own."""


def cache_folder() -> Path:
    """Where downloads are kept: `$XDG_CACHE_HOME/em-kit`, `~/.cache/em-kit` by default."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "em-kit"


def told_address(source: str) -> str:
    """A source as messages and manifests name it: an address without user, password and query, where secrets stand."""
    if not source.startswith(("http://", "https://")):
        return source
    try:
        parts = urlsplit(source)
    except ValueError:  # no address after all
        return source.partition("?")[0]
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def fetch(url: str, sha256: str | None) -> Path:
    """The file at `url` (http or https, also URL#sha256=DIGEST) as a local path, from the cache if it is there and
    whole; BadInput if the download fails, or `sha256` (hex) is missing or another: the message names the true one."""
    temporary, named = None, told_address(url)
    url, _, pinned = url.partition(PIN)
    if sha256 and pinned and pinned.lower() != sha256.lower():
        raise BadInput(f"{named}: two checksums, {one_line(pinned)} and {sha256}; leave one out")
    sha256 = pinned or sha256
    try:
        parts = urlsplit(url)
        if "@" in parts.netloc:
            raise http.client.InvalidURL
        ending = PurePosixPath(parts.path).suffix
        kept = cache_folder() / f"{(sha256 or '').lower()}{ending}"
        if sha256 and kept.is_file() and file_digest(kept) == sha256.lower():
            return kept
        cache_folder().mkdir(parents=True, exist_ok=True)
        with (
            urllib.request.urlopen(url, timeout=TIMEOUT) as reply,
            tempfile.NamedTemporaryFile(dir=cache_folder(), prefix=".download.", delete=False) as file,
        ):
            temporary = Path(file.name)
            shutil.copyfileobj(reply, file)
            # Reading in blocks, http.client ends a cut connection like a whole file.
            if (promised := reply.headers.get("Content-Length")) and file.tell() != int(promised):
                raise BadInput(f"{named}: cut off after {file.tell()} of {promised} bytes; try again")
        actual = file_digest(temporary)
        path = temporary.replace(cache_folder() / f"{actual}{ending}")
    except http.client.InvalidURL:  # whose message may have a secret in it
        raise BadInput(f"{named}: no address to download from; give it without user, password and blanks") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise BadInput(f"{named}: {one_line(error)}; check the address and the connection") from None
    finally:
        if temporary:
            temporary.unlink(missing_ok=True)
    if not sha256:
        raise BadInput(f"{named}: no checksum; if you trust this file, pin it with sha256 {actual} (URL{PIN}DIGEST)")
    if actual != sha256.lower():
        raise BadInput(f"{named}: its sha256 is {actual}, not {sha256}; look into why, then pin the true one")
    return path
