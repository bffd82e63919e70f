"""The walls around a worker process, tried from inside: what somebody would find who got out of
wasmtime.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from machinehub.workers.process import Start, WorkerProcess
from machinehub.workers.scratch import remove
from sandbox import landlock, seccomp
from sandbox.protocol import frames, messages
from sandbox.protocol.ids import Slot, Ticket
from tests.support import CACHE, COUNTER, Client, running_hub, until

if TYPE_CHECKING:
    from collections.abc import Callable

INSIDE = """
import ctypes, errno, fcntl, json, mmap, os, resource, signal, socket, threading
from sandbox import worker
from sandbox.protocol import frames, messages
libc = ctypes.CDLL(None, use_errno=True)

def raw(name, *arguments):
    ctypes.set_errno(0)
    if getattr(libc, name)(*arguments) < 0:
        raise OSError(ctypes.get_errno(), name)

def tried(work):
    try:
        work()
        return "done"
    except OSError as error:
        return errno.errorcode[error.errno]

TRIES = {
%(tries)s
}

def inside(connection, _worker):
    connection.sendall(frames.encode([messages.Said(json.dumps({name: tried(work) for name, work in TRIES.items()}))]))

worker.serve = inside
worker.main()
"""


async def from_inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tries: dict[str, str], *, forge: bool = False
) -> tuple[dict[str, Any], int, list[tuple[str, bool, str]]]:
    """Runs `tries` (Python expressions) where a worker would begin to serve; what came of them, how
    the process ended, and its walls.
    """
    script = INSIDE % {
        "tries": "\n".join(
            f"    {name!r}: lambda: {expression}," for name, expression in tries.items()
        )
    }
    monkeypatch.setattr("machinehub.workers.process.COMMAND", ("-c", script))
    said: list[messages.Said] = []

    def hear(worker: WorkerProcess, heard: list[messages.ToHub]) -> None:
        for message in heard:
            if isinstance(message, messages.Ready):
                worker.walls = message.walls
            elif isinstance(message, messages.Said):
                said.append(message)

    worker = WorkerProcess(1, hear, lambda _worker: None)
    await worker.start(
        Start(cache=CACHE, kind="forge" if forge else "session", memory_bytes_max=2 * 1024**3)
    )
    assert worker.process is not None
    code = await worker.process.wait()
    await until(lambda: worker.lost)  # all that it sent has been heard
    return json.loads(said[0].text) if said else {}, code, worker.walls


COMMON = {
    "reading the password file": 'open("/etc/passwd")',
    "reading the hub's source": f"open({__file__!r})",
    "listing the root": 'os.listdir("/")',
    "another's memory": f'open("/proc/{os.getpid()}/mem", "rb")',
    "its own memory": 'open("/proc/self/mem", "r+b")',
    "writing to the temporary folder": 'open("/tmp/machinehub-escaped", "w")',
    "writing to the cache": f'open("{CACHE}/escaped.cwasm", "wb")',
    "a symbolic link": 'os.symlink("/etc", "/tmp/machinehub-link")',
    "a signal to the hub": "os.kill(os.getppid(), signal.SIGTERM)",
    "a signal to init": "os.kill(1, signal.SIGTERM)",
    "a signal to all": "os.kill(-1, 0)",
    "forking": "os.fork()",
    "another user": "os.setuid(0)",
    "more memory": 'raw("setrlimit", resource.RLIMIT_DATA, (ctypes.c_ulong * 2)(2**40, 2**40))',
    "memory to write and run": "mmap.mmap(-1, 4096, prot=mmap.PROT_WRITE | mmap.PROT_EXEC)",
    "passing descriptors": 'raw("sendmsg", 3, bytes(56), 0)',
    "a signal for the hub when something comes": "fcntl.fcntl(0, 8, os.getppid())",
    "which signal that is": "fcntl.fcntl(0, 10, signal.SIGKILL)",
    "a terminal's input": 'raw("ioctl", 0, 0x5412, b"x")',
    "changing the root": 'os.chroot("/")',
}
DEADLY = {
    "a socket": "socket.socket()",
    "a unix socket": "socket.socket(socket.AF_UNIX)",
    "a program": 'os.execv("/bin/sh", ["sh"])',
    "tracing": "libc.ptrace(16, os.getppid(), 0, 0)",
    "a namespace": "libc.unshare(0x10000000)",
    "the kernel's rings": "libc.syscall(425, 1, bytes(120))",
}


async def test_nothing_is_in_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the walls of a session worker: no file, no other process, no rights."""
    came, code, walls = await from_inside(
        tmp_path, monkeypatch, COMMON | {"the environment": "os.environ and libc.abort()"}
    )
    assert {name: what for name, what in came.items() if what not in ("EPERM", "EACCES")} == {
        "the environment": "done"
    }
    assert len(came) == len(COMMON) + 1
    assert code == 0
    assert [wall for wall in walls if not wall[1] and wall[0] != "own user"] == []
    assert not Path("/tmp/machinehub-escaped").exists()


async def test_a_forge_has_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = COMMON | {
        "its own folder": 'open(__import__("tempfile").gettempdir() + "/x", "w").close()',
        "above its folder": 'os.listdir(__import__("tempfile").gettempdir() + "/..")',
    }
    came, code, _ = await from_inside(tmp_path, monkeypatch, tries, forge=True)
    assert {name: what for name, what in came.items() if what not in ("EPERM", "EACCES")} == {
        "its own folder": "done"
    }
    assert code == 0


@pytest.mark.parametrize("name", DEADLY)
async def test_what_no_worker_does_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    came, code, _ = await from_inside(tmp_path, monkeypatch, {name: DEADLY[name]})
    assert (came, code) == ({}, -signal.SIGSYS)


async def test_a_worker_is_walled_in(tmp_path: Path) -> None:
    async with running_hub(tmp_path, workers=1) as client:
        for pid in client.worker_pids():
            status = Path(f"/proc/{pid}/status").read_text()
            assert "NoNewPrivs:\t1" in status
            assert "Seccomp:\t2" in status
            assert "CapEff:\t0000000000000000" in status
            assert Path(f"/proc/{pid}/oom_score_adj").read_text().strip() == "500"
            if os.geteuid() == 0:  # other users may not look
                assert Path(f"/proc/{pid}/environ").read_bytes() == b""
                assert (
                    Path(f"/proc/{pid}/ns/net").readlink() != Path("/proc/self/ns/net").readlink()
                )
                descriptors = {
                    str(opened.readlink()).split(":")[0]
                    for opened in Path(f"/proc/{pid}/fd").iterdir()
                }
                assert descriptors <= {
                    "/dev/null",
                    "socket",
                    str(CACHE),
                    "/memfd:wasm-memory-image (deleted)",
                    "/memfd",
                }, descriptors


@pytest.mark.parametrize("missing", ["landlock", "seccomp", "both"])
async def test_a_kernel_that_refuses_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    """What stands in for a wall that the kernel has not."""
    broken = "".join(
        f"import errno; from sandbox import {name}\ndef refuse(**_): raise OSError(errno.ENOSYS, "
        f"'not in this kernel')\n{name}.{function} = refuse\n"
        for name, function in (("landlock", "restrict"), ("seccomp", "install"))
        if missing in (name, "both")
    )
    monkeypatch.setattr(sys.modules[__name__], "INSIDE", broken + INSIDE)
    came, _, walls = await from_inside(
        tmp_path, monkeypatch, {"reading the password file": 'open("/etc/passwd")'}
    )
    assert {
        name: detail for name, stands, detail in walls if not stands and name != "own user"
    } == {
        name: f"not in this kernel; instead: {instead}"
        for name, of, instead in (
            ("files", "landlock", "seccomp refuses to open files"),
            ("system calls", "seccomp", "nothing"),
        )
        if missing in (of, "both")
    }
    assert (
        came["reading the password file"]
        == {"landlock": "EPERM", "seccomp": "EACCES", "both": "done"}[missing]
    )


HOSTILE: dict[str, Callable[[int], list[messages.ToHub]]] = {
    "another session's result": lambda n: [
        messages.Done(Slot(n + 1), Ticket(1), b'[1,0,{"status":"active","context":{"stolen":1}}]')
    ],
    "an answer that nobody asked for": lambda n: (
        [messages.Done(Slot(n), Ticket(99), b"[1,0,null]")] * 3
    ),
    "a flood of checkpoints": lambda n: [messages.Frozen(Slot(n), b"x")] * 1000,
    "ready again, with another engine": lambda n: [messages.Ready("evil", "evil")],
    "words without end": lambda n: [messages.Said("words " * 100)] * 3,
    "a snapshot of a megabyte": lambda n: [
        messages.Done(Slot(n), Ticket(2), b'[1,0,{"value":"%b"}]' % (b"x" * 1_000_000))
    ],
    "an answer to another question": lambda n: [messages.Done(Slot(n), Ticket(0), b"")],
    "a price below nothing": lambda n: [
        messages.Done(Slot(n), Ticket(2), b"[1,0,null]", messages.Cost(-20, 0))
    ],
    "a code like a novel": lambda n: [messages.Failed(Slot(n), Ticket(2), "x" * 1000, "y", None)],
    "a hundred thousand timers": lambda n: [
        messages.Replayed(Slot(n), Ticket(2), b"null", False, [(0, [], [])] * 100_001, 1)
    ],
    "ten thousand messages": lambda n: [messages.Frozen(Slot(n), b"")] * 10_000,
    "what the forge says": lambda n: [messages.Built(Ticket(1), b"", b"{}", [], 1, 1)],
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_worker_that_was_taken_over_is_ended(hostile: Client, name: str) -> None:
    """Its frames are those of an honest worker, at the wrong time; others' sessions never notice,
    and its own live on elsewhere.
    """
    client = hostile
    machine = await client.deploy(COUNTER, name="victim")
    for session in ("a", "b"):
        assert (
            await client.http.post(f"/{machine}/{session}", json={"type": "increment"})
        ).status_code == 200
    before = (await client.http.get(f"/{machine}/b")).json()
    place = client.place(machine, "a")
    worker: Any = place.worker
    worker.data_received(frames.encode(HOSTILE[name](place.slot)))
    assert worker._killed
    answer = await client.http.post(f"/{machine}/a", json={"type": "increment"})
    assert answer.status_code == 200
    assert answer.json()["snapshot"]["context"]["count"] == answer.json()["seq"] - 1
    assert (await client.http.get(f"/{machine}/b")).json() == before
    assert client.hub.pool.engine_and_base[0] != "evil"


@pytest.fixture(scope="module", name="hostile")
def _hostile(client: Client) -> Client:
    return client


def test_the_filter_is_whole() -> None:
    """Every jump of the program stays inside it, on both processors, and the last word is a
    refusal.
    """
    for machine in ("x86_64", "aarch64"):
        for files in ("none", "read", "all"):
            program = seccomp._program(machine, files)
            for at, (code, yes, no, _) in enumerate(program):
                if code == seccomp._JUMP_IF:
                    assert at + 1 + max(yes, no) < len(program)
            assert program[-1] == (seccomp._RETURN, 0, 0, seccomp._ERRNO | 1)


def test_landlock_is_asked_for_its_version() -> None:
    """As the kernel itself says which of its modules are on."""
    try:
        is_on = "landlock" in Path("/sys/kernel/security/lsm").read_text().split(",")
    except OSError:  # not mounted here: the calls say it
        is_on = not isinstance(_landlock_refuses(), OSError)
    assert (landlock.version() > 0) == is_on


def _landlock_refuses() -> OSError | None:
    """What the kernel says to a question for Landlock's version (landlock(7))."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(444, None, 0, 1) < 0:
        return OSError(ctypes.get_errno(), "landlock_create_ruleset")
    return None


# --- a process for each machine -------------------------------------------------------------------


async def test_machines_may_have_workers_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No two of them share one; it ends when nobody needs it, and is there again when somebody
    does; its death is their own affair.
    """
    monkeypatch.setattr("machinehub.workers.pool.GROUP_IDLE_S", 0.2)
    async with running_hub(tmp_path, isolate_machines=True) as client:
        machines = [await client.deploy(COUNTER, name=name) for name in ("one", "two", "three")]

        async def counts() -> list[int]:
            answers = [
                await client.http.post(f"/{machine}/{session}", json={"type": "increment"})
                for machine in machines
                for session in "ab"
            ]
            return [answer.json()["snapshot"]["context"]["count"] for answer in answers]

        def homes() -> list[int]:
            found = []
            for machine in machines:
                workers = {
                    worker.number
                    for session in "ab"
                    if isinstance(worker := client.place(machine, session).worker, WorkerProcess)
                }
                found += list(workers)
            return found

        assert await counts() == [1] * 6
        before = homes()
        assert len(before) == len(set(before)) == 3
        victim: Any = client.place(machines[0], "a").worker
        victim.process.kill()
        assert await counts() == [2] * 6
        assert homes()[1:] == before[1:]
        client.hub.sessions.housekeeper.hibernate()
        await until(lambda: len(client.hub.pool._groups) <= 1)
        assert await counts() == [3] * 6
        assert not set(homes()) & set(before)


async def test_there_are_only_so_many_workers_of_machines_own(tmp_path: Path) -> None:
    from machinehub.limits import Limits

    async with running_hub(
        tmp_path, isolate_machines=True, limits=Limits(isolated_machines=2)
    ) as client:
        machines = [await client.deploy(COUNTER, name=name) for name in ("one", "two", "three")]
        codes = [
            (await client.http.post(f"/{machine}/s", json={"type": "increment"})).status_code
            for machine in machines
        ]
        assert codes == [200, 200, 503]
        assert (
            await client.http.post(f"/{machines[0]}/s", json={"type": "increment"})
        ).status_code == 200


async def test_a_worker_that_hangs_up_and_lives_on_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its place stayed empty for as long as it liked."""
    monkeypatch.setattr("machinehub.workers.process.END_S", 0.3)
    async with running_hub(tmp_path) as client:
        machine = await client.deploy(COUNTER)
        await client.http.post(f"/{machine}/s", json={"type": "increment"})
        worker = client.hub.pool.workers[0]
        assert worker.process is not None
        os.kill(worker.process.pid, signal.SIGSTOP)  # it cannot even notice
        assert worker._transport is not None
        worker._transport.abort()
        assert (await client.http.post(f"/{machine}/s", json={"type": "increment"})).json()[
            "snapshot"
        ]["context"] == {"count": 2}
        assert await asyncio.wait_for(worker.process.wait(), 60) == -signal.SIGKILL


def test_what_a_forge_leaves_behind_may_be_deep(tmp_path: Path) -> None:
    """Removing it failed in the middle of hearing that the forge was gone, which was then never
    replaced.
    """
    deep = tmp_path / "scratch"
    deep.mkdir()
    at = os.open(deep, os.O_RDONLY)
    for _ in range(1_300):
        os.mkdir("d", dir_fd=at)
        below = os.open("d", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)
    remove(deep)
    assert not deep.exists()
