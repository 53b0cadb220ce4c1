"""The documented reverse proxy, as it stands in deploy/nginx.conf, before one replica or several."""

from __future__ import annotations

import ssl
import subprocess
import time
from pathlib import Path

import httpx

from tests.conftest import ROOT
from tests.ports import free_port

CONFIGURATION = (ROOT / "deploy" / "nginx.conf").read_text()
NAME = "overread.example"


class Proxy:
    """nginx before replicas. ``careless`` is its configuration without what removes headers, and with nginx's own log."""

    def __init__(self, folder: Path, *backends: str, careless: bool = False) -> None:
        self.plain, self.port = free_port(), free_port()
        self.certificate = folder / "certificate.pem"
        subject = ["-subj", f"/CN={NAME}", "-addext", f"subjectAltName=DNS:{NAME},IP:127.0.0.1"]
        new = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject]
        made = [*new, "-keyout", str(folder / "key.pem"), "-out", str(self.certificate)]
        subprocess.run(made, check=True, capture_output=True)
        site = CONFIGURATION
        for old, new_text in {
            "listen 80;": f"listen 127.0.0.1:{self.plain};",
            "listen 443 ssl;": f"listen 127.0.0.1:{self.port} ssl;",
            "server 127.0.0.1:3000;": "\n".join(f"server {backend.removeprefix('http://')};" for backend in backends),
            "/etc/overread/tls/": f"{folder}/",
            "/var/log/nginx/": f"{folder}/",
            "client_max_body_size 64m;": "client_max_body_size 1m;",
        }.items():
            assert site.count(old) >= 1, old
            site = site.replace(old, new_text)
        if careless:
            site = "\n".join(line for line in site.splitlines() if "X-Auth-Request" not in line)
            site = site.replace("overread.log overread;", "overread.log;")
        (folder / "site.conf").write_text(site)
        temporary = "\n".join(
            f"{kind}_temp_path {folder}/temporary-{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        log = f"{folder}/error.log"
        main = f"daemon off; pid {folder}/nginx.pid; error_log {log}; events {{}}\nhttp {{ {temporary}\ninclude site.conf; }}\n"
        (folder / "nginx.conf").write_text(main)
        arguments = ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")]
        checked = subprocess.run([*arguments, "-t"], capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stderr
        assert "[warn]" not in checked.stderr
        self.folder = folder
        self._process = subprocess.Popen(arguments, stderr=subprocess.DEVNULL)
        context = ssl.create_default_context(cafile=str(self.certificate))
        self.client = httpx.Client(base_url=f"https://127.0.0.1:{self.port}", verify=context, timeout=60)
        end = time.monotonic() + 60
        while time.monotonic() < end:
            try:
                self.client.get("/healthz")
                return
            except httpx.TransportError:
                time.sleep(0.05)
        raise AssertionError("nginx does not answer")

    def close(self) -> None:
        self.client.close()
        self._process.terminate()
        self._process.wait(60)
