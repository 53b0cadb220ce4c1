"""The README tried as a stranger would: on a bare Debian with Python, make and nothing else of ours. ``make test-clean-root``.

It needs root, debootstrap, and the machine's own sources of packages: apt's for the system, pip's for the libraries, as they are
configured here. Everything happens in a mount and process namespace of its own, so that whatever is mounted or started ends with
it, and the folder is removed from outside, where nothing is mounted.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.shell_blocks import URL, blocks, is_for_elsewhere

ROOT = Path(__file__).resolve().parents[2]
BARE = ("python3", "git", "curl", "ca-certificates")
"""To have the checkout, and to send something. What the README asks for is installed after it was seen to be missing."""
ASKED_FOR = {"make": r"make: not found", "python3-venv": r"python3(\.\d+)?-venv"}
"""Package -> what the failure without it has to say."""
HOME = "/srv/newcomer"
READY_SECONDS = 3600
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")


class CleanRoot:
    """A bare Debian in a folder, with a checkout in the home of a user ``newcomer``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkout = f"{HOME}/overread"

    def make(self) -> None:
        """Build the system from apt's first source on this machine, and clone the checkout into it."""
        targets = ["apt-get", "indextargets", "Created-By: Packages", "Component: main", "--format", "$(REPO_URI) $(CODENAME)"]
        codename = re.search(r"^VERSION_CODENAME=(\w+)", Path("/etc/os-release").read_text(), re.MULTILINE)
        assert codename, "this machine is no Debian"
        sources = [line.split() for line in subprocess.check_output(targets, text=True).splitlines()]
        mirror = next(uri for uri, suite in sources if suite == codename[1])
        command = ["debootstrap", "--variant=minbase", f"--include={','.join(BARE)}", codename[1], str(self.folder), mirror]
        with (self.folder.parent / "debootstrap.log").open("wb") as log:
            subprocess.run(command, check=True, stdout=log, stderr=log)
        for name in ("dev", "proc", "sys"):
            subprocess.run(["mount", "--rbind", f"/{name}", str(self.folder / name)], check=True)
        shutil.copy("/etc/resolv.conf", self.folder / "etc" / "resolv.conf")
        (self.folder / "etc" / "hosts").write_text("127.0.0.1 localhost\n")  # an installer writes it, debootstrap does not
        self._configure_pip()
        self.inside(f"useradd --create-home --home-dir {HOME} --shell /bin/sh newcomer", user="root")
        subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(self.folder) + self.checkout], check=True)
        self.inside(f"chown -R newcomer:newcomer {HOME}", user="root")

    def _configure_pip(self) -> None:
        """Give pip what it is configured with here, and the folders and files that this names."""
        listed = subprocess.check_output([sys.executable, "-m", "pip", "config", "list"], text=True)
        settings: dict[str, str] = {}
        for line in listed.splitlines():
            key, value = line.split("=", 1)
            settings[key.rpartition(".")[2]] = ast.literal_eval(value)  # of the environment last, as pip would have it
        lines = [f"{key} = {' '.join(value.split())}" for key, value in settings.items()]
        (self.folder / "etc" / "pip.conf").write_text("\n".join(["[global]", *lines, ""]))
        words = [word for value in settings.values() for word in value.split()]
        named = {Path(word) for word in words if word.startswith("/")}
        named |= {
            Path(word.removeprefix("file://")).parent for word in words if word.startswith("file:///")
        }  # files beside indexes
        for path in sorted({CERTIFICATES, *named}):
            inside = self.folder / path.relative_to("/")
            if path.is_dir():
                inside.mkdir(parents=True, exist_ok=True)
            elif path.exists():
                inside.parent.mkdir(parents=True, exist_ok=True)
                inside.touch()
            else:
                continue
            subprocess.run(["mount", "--bind", "-o", "ro", str(path), str(inside)], check=True)

    def command(self, script: str, user: str) -> list[str]:
        """Return the command that runs a script inside, with an environment that says nothing of this machine."""
        home = "/root" if user == "root" else HOME
        path = "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        proxies = [f"{name}={value}" for name, value in os.environ.items() if name.lower().endswith("_proxy")]
        environment = ["env", "-i", f"HOME={home}", f"PATH={path}", "LANG=C.UTF-8", *proxies]
        return ["chroot", f"--userspec={user}:{user}", str(self.folder), *environment, "sh", "-ec", script]

    def inside(self, script: str, user: str = "newcomer") -> subprocess.CompletedProcess[str]:
        """Run a script inside; fail if it does."""
        done = self.attempt(script, user)
        assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"
        return done

    def attempt(self, script: str, user: str = "newcomer") -> subprocess.CompletedProcess[str]:
        """Run a script inside, which may fail."""
        return subprocess.run(self.command(script, user), capture_output=True, text=True, check=False)

    def install(self, package: str) -> None:
        """Install a package of the system."""
        self.inside(f"apt-get -qq update && apt-get -qq install --no-install-recommends -y {package}", user="root")


def said(begin: float, what: str) -> None:
    """Print a line of what holds, with the seconds since the beginning."""
    print(f"{time.monotonic() - begin:6.0f} s  {what}", flush=True)


def try_readme(folder: Path) -> None:
    """Do what the README says in a new system in ``folder``; raises at the first thing that is not as it says."""
    begin = time.monotonic()
    system = CleanRoot(folder)
    system.make()
    said(begin, f"a bare system with {', '.join(BARE)}")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    serve = f"cd {system.checkout} && exec make serve PORT={port}"
    for package, needle in ASKED_FOR.items():
        done = system.attempt(serve)
        shown = [line for line in (done.stdout + done.stderr).splitlines() if re.search(needle, line)]
        assert done.returncode != 0, f"make serve does without {package}"
        assert shown, done.stdout + done.stderr
        said(begin, f"without {package}, make serve fails and says so: {shown[0].strip()}")
        system.install(package)
    started, file = time.monotonic(), folder.parent / "serve.log"
    with file.open("wb") as log:
        server = subprocess.Popen(system.command(serve, "newcomer"), stdout=log, stderr=log)
    ready = f"curl --silent --fail http://127.0.0.1:{port}/readyz"
    while system.attempt(ready).returncode != 0:
        assert server.poll() is None, file.read_text()[-4000:]
        assert time.monotonic() - started < READY_SECONDS, f"not ready: {file.read_text()[-4000:]}"
        time.sleep(1)
    said(begin, "make serve built its environment and is ready")
    answers = {}
    for block in blocks((ROOT / "README.md").read_text())[1:]:
        if not is_for_elsewhere(block):
            script = block.replace(URL, f"http://127.0.0.1:{port}")
            answers[block] = system.inside(f"cd {system.checkout}; . .venv/bin/activate\n{script}").stdout
            said(begin, f"as the README says: {block.split(chr(10))[0][:90]}")
    first = json.loads(next(iter(answers.values())).splitlines()[-1])
    assert (first["verdict"], [reason["code"] for reason in first["reasons"]]) == ("refuse", ["phantom"]), first
    objects = next(json.loads(shown) for block, shown in answers.items() if "model=nuclei" in block)
    assert objects["quantities"]["count"] > 0, objects
    said(begin, f"the drawn chest is refused as a phantom, and {objects['quantities']['count']} drawn nuclei are found")
    server.terminate()
    server.wait(60)


def main() -> int:
    """Run in a namespace of its own, and remove what it made; returns 0 if the README held."""
    if len(sys.argv) == 2:
        try_readme(Path(sys.argv[1]))
        return 0
    if os.geteuid() != 0 or shutil.which("debootstrap") is None:
        print("make test-clean-root needs root and the system package debootstrap", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="overread-clean-root-") as folder:
        (Path(folder) / "system").mkdir()
        own = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private", "--mount-proc"]
        done = subprocess.run([*own, sys.executable, "-m", "tests.clean_root.run", f"{folder}/system"], cwd=ROOT, check=False)
        return done.returncode


if __name__ == "__main__":
    sys.exit(main())
