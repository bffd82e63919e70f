"""Records the runs of all examples."""

from __future__ import annotations

import msgspec

from tests.runs import FOLDER, record
from tests.sandbox.sandboxes import Sandbox
from tests.support import EXAMPLES

sandbox = Sandbox()
for path in sorted(EXAMPLES.glob("*.ts")):
    run = record(sandbox, path)
    (FOLDER / f"{path.stem}.json").write_bytes(
        msgspec.json.format(msgspec.json.encode(run), indent=0).replace(b"\n,", b",\n") + b"\n"
    )
    print(path.stem, len(run.inputs), run.digest)
