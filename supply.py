"""What a wheel and an image of machinehub are made of: a bill of materials (CycloneDX) and the
notices of third parties, made while the wheel is built.

The Python packages are those of requirements-runtime.lock, which an image installs beside the
wheel. The JavaScript is in the wheel: in the guest's image, the page, and the client. The engine is
compiled from QuickJS-ng's source.
"""

from __future__ import annotations

import base64
import json
import re
from importlib import metadata
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import quote

ROOT: Final = Path(__file__).parent
FOLDER: Final = ROOT / "machinehub" / "legal"
BILL: Final = FOLDER / "sbom.cdx.json"
NOTICES: Final = FOLDER / "THIRD-PARTY-NOTICES.txt"
GUEST_PACKAGES: Final = (
    "xstate",
    "core-js",
    "fast-text-encoding",
    "abort-controller",
    "event-target-shim",
    "@esbuild/wasi-preview1",
)
"""Of what the guest is built with, these end in it."""
WORKSPACES: Final = ("clients/js", "clients/page")
"""Of the repository's npm packages, these end in the wheel."""
_SAME_LICENSE: Final = {"@esbuild/wasi-preview1": "../esbuild"}
"""Packages that come without the text, and another one of the same project that has it."""
_REQUIREMENT: Final = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)")
_HASH: Final = re.compile(r"--hash=sha256:([0-9a-f]{64})")
_LICENSE_FILE: Final = re.compile(r"(licen[cs]e|copying|notice|authors)[^/]*$", re.IGNORECASE)
_BY_CLASSIFIER: Final = {
    "MIT License": "MIT",
    "BSD License": "BSD-3-Clause",
    "Apache Software License": "Apache-2.0",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
}


class Part(NamedTuple):
    """One component, with the text of its licence as far as it comes with one."""

    name: str
    version: str
    url: str
    """A package URL (https://github.com/package-url/purl-spec)."""
    license: str
    """An SPDX expression."""
    hashes: list[dict[str, str]]
    text: str


def parts() -> list[Part]:
    found = [*_python(), *_page(), *_guest(), *_engine()]
    return sorted({part.url: part for part in found}.values(), key=lambda part: part.url)


def write() -> None:
    """Writes both files. What was built with other packages than the lock's is refused."""
    found = parts()
    FOLDER.mkdir(exist_ok=True)
    BILL.write_text(json.dumps(_bill(found), indent=1) + "\n")
    NOTICES.write_text(_notices(found))


def _bill(found: list[Part]) -> dict[str, Any]:
    own = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert own is not None
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": "machinehub",
                "name": "machinehub",
                "version": own[1],
                "licenses": [{"license": {"id": "MIT"}}],
            }
        },
        "components": [
            {
                "type": "library",
                "bom-ref": part.url,
                "name": part.name,
                "version": part.version,
                "purl": part.url,
                **({"licenses": [{"expression": part.license}]} if part.license else {}),
                **({"hashes": part.hashes} if part.hashes else {}),
            }
            for part in found
        ],
        "dependencies": [{"ref": "machinehub", "dependsOn": [part.url for part in found]}],
    }


def _notices(found: list[Part]) -> str:
    said = [
        "machinehub is under the MIT licence (LICENSE). It comes with, or is installed with, the",
        "following, each under its own licence.",
        "",
    ]
    for part in found:
        title = f"{part.name} {part.version}: {part.license}"
        said += ["=" * 80, title, "=" * 80, "", part.text, ""]
    return "\n".join(said)


def _python() -> list[Part]:
    """What requirements-runtime.lock pins, for Linux."""
    found = []
    for block in re.split(r"\n(?=[A-Za-z0-9])", (ROOT / "requirements-runtime.lock").read_text()):
        pinned = _REQUIREMENT.match(block)
        if pinned is None or "sys_platform == 'win32'" in block.splitlines()[0]:
            continue
        name, version = pinned.groups()
        hashes = [{"alg": "SHA-256", "content": each} for each in _HASH.findall(block)]
        license_, text = _of_distribution(name, version)
        found.append(Part(name, version, f"pkg:pypi/{name}@{version}", license_, hashes, text))
    return found


def _of_distribution(name: str, version: str) -> tuple[str, str]:
    try:
        installed = metadata.distribution(name)
    except metadata.PackageNotFoundError:  # built without it: `make wheel` has it
        return "", ""
    if installed.version != version:
        raise RuntimeError(f"{name} {installed.version} is installed, the lock has {version}")
    about = installed.metadata
    license_ = about.get("License-Expression")
    if not license_:
        named = [
            each.rpartition(" :: ")[2]
            for each in about.get_all("Classifier") or []
            if each.startswith("License ::")
        ]
        spdx = sorted({_BY_CLASSIFIER[each] for each in named if each in _BY_CLASSIFIER})
        license_ = " OR ".join(spdx) or about.get("License", "").strip()
    if not license_:
        raise RuntimeError(f"{name} does not say what its licence is")
    texts = [
        Path(str(file.locate())).read_text(errors="replace").strip()
        for file in installed.files or []
        if ".dist-info" in str(file) and _LICENSE_FILE.search(str(file))
    ]
    return license_, "\n\n".join(texts)


def _page() -> list[Part]:
    """What the page and the client need when they run, and what that needs in turn. What the
    example apps need is in the same lock file, and not in the wheel."""
    locked = json.loads((ROOT / "package-lock.json").read_text())["packages"]
    found: dict[str, Part] = {}
    ahead = [(place, name) for place in WORKSPACES for name in _needs(locked[place])]
    while ahead:
        place, name = ahead.pop()
        path = _resolved(locked, place, name)
        if path is None or path in found or locked[path].get("link"):
            continue
        found[path] = _npm(name, locked[path], ROOT / path)
        ahead += [(path, needed) for needed in _needs(locked[path])]
    return list(found.values())


def _needs(about: dict[str, Any]) -> list[str]:
    return [*about.get("dependencies", {}), *about.get("peerDependencies", {})]


def _resolved(locked: dict[str, Any], place: str, name: str) -> str | None:
    """The package that `import "name"` means for a file in `place`: in the nearest node_modules.
    None for an optional peer that nobody installed."""
    while place:
        path = f"{place}/node_modules/{name}"
        if path in locked:
            return path
        place = place.rpartition("/")[0]
    return f"node_modules/{name}" if f"node_modules/{name}" in locked else None


def _guest() -> list[Part]:
    guest = ROOT / "sandbox" / "guest"
    locked = json.loads((guest / "package-lock.json").read_text())["packages"]
    return [
        _npm(name, locked[f"node_modules/{name}"], guest / "node_modules" / name)
        for name in GUEST_PACKAGES
    ]


def _npm(name: str, about: dict[str, Any], folder: Path) -> Part:
    algorithm, _, digest = about["integrity"].partition("-")
    hashes = [
        {
            "alg": algorithm.upper().replace("SHA", "SHA-"),
            "content": base64.b64decode(digest).hex(),
        }
    ]
    with_text = (folder.parent / _SAME_LICENSE[name]) if name in _SAME_LICENSE else folder
    texts = [
        file.read_text(errors="replace").strip()
        for file in sorted(with_text.iterdir())
        if file.is_file() and _LICENSE_FILE.search(file.name)
    ]
    version = about["version"]
    url = f"pkg:npm/{quote(name, safe='/')}@{version}"
    return Part(name, version, url, about["license"], hashes, "\n\n".join(texts))


def _engine() -> list[Part]:
    pinned = (ROOT / "sandbox" / "guest" / "engine" / "source.lock").read_text()
    found = re.search(r"^([A-Za-z0-9._-]+)==([^\s\\]+)", pinned, re.MULTILINE)
    assert found is not None
    name, version = found.groups()
    hashes = [{"alg": "SHA-256", "content": each} for each in _HASH.findall(pinned)]
    text = (ROOT / "sandbox" / "guest" / "dist" / "quickjs.LICENSE").read_text().strip()
    return [Part(name, version, f"pkg:pypi/{name}@{version}", "MIT", hashes, text)]


if __name__ == "__main__":
    write()
