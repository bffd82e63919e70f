"""Runs the steps of the Dockerfile without Docker: `make image-check`, as root, on Debian.

Each stage gets a clean Debian root, made by mmdebstrap, in which its instructions are executed; the
last one's command is then started as its user, and must become healthy, take a deployment and an
event, and end when it is told to. What a container is besides (its network, its filter of system
calls) is not tried here.

A computer behind a proxy that opens TLS has certificates of its own: where SSL_CERT_FILE names
them, the roots trust them too, as a build behind that proxy would have to.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
INSTRUCTIONS = {
    *("FROM", "RUN", "COPY", "ENV", "WORKDIR", "USER"),
    *("EXPOSE", "VOLUME", "HEALTHCHECK", "CMD"),
}
HEALTHY_WITHIN_S = 120
COUNTER = REPOSITORY / "examples" / "counter.ts"


@dataclass
class Stage:
    """One FROM of a Dockerfile, and what its instructions have made of it."""

    root: Path
    environment: dict[str, str] = field(default_factory=dict)
    folder: str = "/"
    user: str = "root"
    health: str = ""
    command: list[str] = field(default_factory=list)

    def execute(self, command: list[str]) -> list[str]:
        """The command line that runs `command` in this root, as this stage's user."""
        mounts = "mount -t proc proc proc && mount --rbind /dev dev && mount --rbind /sys sys"
        inside = ["env", "-i", *(f"{key}={value}" for key, value in self.environment.items())]
        changed = ["chroot", f"--userspec={self.user}", str(self.root), *inside]
        shell = f"cd {shlex.quote(self.folder)} && exec {shlex.join(command)}"
        script = (
            f"cd {shlex.quote(str(self.root))} && {mounts} && exec {shlex.join(changed)} "
            f"/bin/sh -c {shlex.quote(shell)}"
        )
        return [
            "unshare",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child=TERM",
            "/bin/sh",
            "-c",
            script,
        ]


def instructions(text: str) -> list[tuple[str, str]]:
    """(instruction, arguments) of a Dockerfile; continued lines are joined."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ").splitlines()
    found = [tuple(line.strip().split(None, 1)) for line in joined if line.strip()]
    for name, *_ in found:
        if name not in INSTRUCTIONS:
            raise SystemExit(f"the Dockerfile uses {name}, which this script does not know")
    return [(name, rest) for name, rest in found]


def new_root(folder: Path, image: str) -> Stage:
    """A clean root for `debian:<suite>-slim`."""
    name, _, suite = image.partition(":")
    if name != "debian":
        raise SystemExit(f"only images of Debian can be made here, not {image}")
    suite = suite.removesuffix("-slim")
    print(f"== mmdebstrap {suite}", flush=True)
    command = ["mmdebstrap", "--variant=minbase", "--quiet", suite, str(folder)]
    subprocess.run(command, check=True)
    shutil.copy("/etc/resolv.conf", folder / "etc" / "resolv.conf")
    stage = Stage(folder, {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"})
    certificates = os.environ.get("SSL_CERT_FILE")
    if certificates:
        inside = "/etc/build-certificates.pem"
        shutil.copy(certificates, folder / inside.lstrip("/"))
        names = ("SSL_CERT_FILE", "PIP_CERT", "NODE_EXTRA_CA_CERTS", "npm_config_cafile")
        stage.environment |= dict.fromkeys(names, inside)
    return stage


def copy_context(stage: Stage, target: str) -> None:
    """`COPY . target`: what git knows of the working tree. (.dockerignore leaves out the rest, and
    a little more.)
    """
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=REPOSITORY, check=True, capture_output=True).stdout
    into = stage.root / target.lstrip("/")
    for name in names.decode().split("\0"):
        if name and (REPOSITORY / name).is_file():
            (into / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, into / name)


def build(folder: Path) -> Stage:
    """Executes all stages; the last one."""
    stages: dict[str, Stage] = {}
    stage = Stage(folder)
    for name, rest in instructions((REPOSITORY / "Dockerfile").read_text()):
        match name:
            case "FROM":
                image, *alias = rest.split()
                stage = new_root(folder / f"stage-{len(stages)}", image)
                stages[alias[1] if alias else str(len(stages))] = stage
            case "RUN":
                print(f"== RUN {rest}", flush=True)
                subprocess.run(stage.execute(["/bin/sh", "-c", rest]), check=True)
            case "COPY" if rest.startswith("--from="):
                source, what, where = rest.removeprefix("--from=").split()
                copied = stages[source].root / what.lstrip("/")
                shutil.copytree(copied, stage.root / where.lstrip("/"), symlinks=True)
            case "COPY":
                copy_context(stage, stage.folder)
            case "ENV":
                key, _, value = rest.partition("=")
                stage.environment[key] = value
            case "WORKDIR":
                stage.folder = rest
                (stage.root / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
            case "USER":
                stage.user = rest
            case "HEALTHCHECK":
                stage.health = rest.partition("CMD ")[2]
            case "CMD":
                stage.command = json.loads(rest)
            case _:  # EXPOSE and VOLUME are for whoever runs it
                pass
    return stage


def use(stage: Stage) -> None:
    """Starts the image's command, and does what a first user would."""
    stage.environment["MACHINEHUB_TOKEN"] = token = "mh_for-this-check-only"  # noqa: S105 - made up
    stage.environment["MACHINEHUB_HOST"] = "127.0.0.1"  # the network is the computer's own
    print(f"== CMD {stage.command}", flush=True)
    hub = subprocess.Popen(stage.execute(stage.command), start_new_session=True)
    try:
        deadline = time.monotonic() + HEALTHY_WITHIN_S
        check = stage.execute(["/bin/sh", "-c", stage.health])
        while subprocess.run(check, stderr=subprocess.DEVNULL, check=False).returncode != 0:
            if hub.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("the hub does not become healthy")
            time.sleep(1)
        upload = {"name": "counter", "entry": "c.ts", "files": {"c.ts": COUNTER.read_text()}}
        deployed = call("/api/v1/deployments", upload, token)
        path = deployed["machine"]["url"].split("/", 3)[3]
        answer = call(f"/{path}/s1", {"type": "increment"}, "")
        if answer["snapshot"]["context"] != {"count": 1}:
            raise SystemExit(f"the counter says {answer}")
        subprocess.run(stage.execute(["machinehub", "doctor"]), check=True)
    finally:
        # `unshare` itself ignores it; the hub is the other process of the group.
        os.killpg(hub.pid, signal.SIGTERM)
        code = hub.wait(timeout=60)
    if code != 0:
        raise SystemExit(f"the hub ended with {code} when it was told to end")


def call(path: str, body: dict[str, object], token: str) -> dict[str, dict[str, str]]:
    request = urllib.request.Request(
        f"http://127.0.0.1:8787{path}",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json", "Authorization": f"Bearer {token}"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310 - always http
        answer: dict[str, dict[str, str]] = json.load(response)
        return answer


def main() -> None:
    if os.geteuid() != 0 or shutil.which("mmdebstrap") is None:
        raise SystemExit("this needs root and mmdebstrap: apt-get install mmdebstrap")
    with tempfile.TemporaryDirectory(prefix="machinehub-image-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        use(build(folder))
    print("the image builds, runs as its own user, becomes healthy and serves", flush=True)


if __name__ == "__main__":
    sys.exit(main())
