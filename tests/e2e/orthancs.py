"""A real Orthanc, started from the configuration that the documentation prints, and a door before it that a test can close."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx

from tests.conftest import ROOT
from tests.ports import free_port

SECONDS = 120
USER, PASSWORD = "overread", "change-me"


def until(true: Callable[[], bool], seconds: float = SECONDS) -> None:
    """Wait until something is true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.1)


class Orthanc:
    """An Orthanc that is killed and started again on the same files."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.http, self.dicom = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.http}"
        self.file, self.log = folder / "orthanc.json", folder / "orthanc.log"
        config = json.loads((ROOT / "deploy" / "orthanc.json").read_text())
        storage = {"StorageDirectory": str(folder / "db"), "IndexDirectory": str(folder / "db")}
        self.file.write_text(json.dumps(config | {"HttpPort": self.http, "DicomPort": self.dicom} | storage | changes))
        # A connection is used once: Orthanc closes one that is idle for a second, as likely as not while it is used again
        once = httpx.Limits(max_keepalive_connections=0)
        self.client = httpx.Client(base_url=self.url, auth=(USER, PASSWORD), timeout=60, trust_env=False, limits=once)
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(["Orthanc", str(self.file)], stdout=out, stderr=out)

        def ready() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, self.log.read_text()[-2000:]
            try:
                return self.client.get("/system").status_code == 200
            except httpx.TransportError:
                return False

        until(ready)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(60)  # the next one needs its ports and its files

    def close(self) -> None:
        self.kill()
        self.client.close()

    def send(self, *files: Path) -> None:
        """Send files as a scanner does, by C-STORE."""
        command = ["storescu", "-aec", "ORTHANC", "127.0.0.1", str(self.dicom), *map(str, files)]
        subprocess.run(command, check=True, timeout=SECONDS)

    def instances(self) -> list[dict[str, Any]]:
        """Return the tags of every instance."""
        found: list[dict[str, Any]] = []
        for entry in self.client.get("/instances?expand").json():
            found.append(self.client.get(f"/instances/{entry['ID']}/simplified-tags").json() | {"_id": entry["ID"]})
        return found

    def ours(self) -> list[dict[str, Any]]:
        """Return the tags of what Overread stored."""
        return [tags for tags in self.instances() if tags.get("ManufacturerModelName") == "Overread results"]


class Door:
    """A way to an Orthanc that can be closed, and that calls a function before and after a request is handed on.

    A request is not handed on where the first raises.
    """

    def __init__(self, target: int) -> None:
        self.open = True
        self.before: Callable[[str, str], None] = lambda method, path: None
        self.after: Callable[[str, str], None] = lambda method, path: None
        self.redirect = ""
        self.strip = False  # whether answers to what is posted lose their bodies, as behind some proxies
        self.passed: list[tuple[str, str]] = []
        door = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.0"

            def do_GET(self) -> None:
                if not door.open:
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                if door.redirect:
                    self.send_response(307)
                    self.send_header("location", door.redirect + self.path)
                    self.end_headers()
                    return
                door.passed.append((self.command, self.path))
                door.before(self.command, self.path)
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                connection = HTTPConnection("127.0.0.1", target, timeout=SECONDS)
                headers = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
                connection.request(self.command, self.path, body or None, headers)
                response = connection.getresponse()
                content = response.read()
                connection.close()
                if door.strip and self.command == "POST":
                    content = b""
                door.after(self.command, self.path)
                self.send_response(response.status)
                self.send_header("content-type", response.headers.get("content-type", ""))
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_POST = do_GET  # noqa: N815  (the name that the library calls)

            def log_message(self, *_: Any) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: Any) -> None:
                """A client that was killed is no error here."""

        self.server = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


class Watcher:
    """A running ``overread watch``."""

    def __init__(self, url: str, state: Path, package: Path, log: Path, *arguments: str, **settings: str) -> None:
        self.log = log
        state.mkdir(exist_ok=True)
        password = state / "password"
        password.write_text(PASSWORD + "\n")
        known = {name: value for name, value in os.environ.items() if not name.startswith("OVERREAD_")}
        given = {
            "STATE": str(state),
            "MODELS": str(package),
            "THREADS": "1",
            "PACS_URL": f"{url}/dicom-web",
            "PACS_ORTHANC_URL": url,
            "PACS_USER": USER,
            "PACS_PASSWORD_FILE": str(password),
            "PACS_POLL_SECONDS": "0.2",
            "PACS_HISTORY": "true",
        }
        known |= {f"OVERREAD_{name}": value for name, value in (given | settings).items()}
        with log.open("ab") as out:
            command = [sys.executable, "-m", "models.cli", "watch", *arguments]
            self.process = subprocess.Popen(command, cwd=ROOT, env=known, stdout=out, stderr=out)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(60)

    def stop(self) -> int:
        """Stop in an orderly way; return the exit code."""
        self.process.terminate()
        return self.process.wait(SECONDS)


def reports(orthanc: Orthanc) -> Counter[str]:
    """Count our reports in each study."""
    return Counter(tags["StudyInstanceUID"] for tags in orthanc.ours() if tags["Modality"] == "SR")


def once(numbers: range) -> Counter[str]:
    """Return what :func:`reports` gives where each chest of these numbers has one."""
    return Counter({f"2.25.1{number}": 1 for number in numbers})


def complaints(tool: str, *paths: Path) -> set[str]:
    """Return the errors that a verifier reports, without the line that names the file."""
    done = subprocess.run([tool, *map(str, paths)], capture_output=True, check=False, timeout=60)
    return {line for line in (done.stdout + done.stderr).decode("utf-8", "replace").splitlines() if line.startswith("Error")}
