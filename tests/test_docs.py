"""Nothing described is unexecuted, and nothing executed is undescribed: the README against the program."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest
from fastapi.routing import APIRoute
from starlette.routing import Route, WebSocketRoute

import app

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
ROUTES = [route for route in app.app.routes if isinstance(route, (Route, WebSocketRoute))]


def table(heading: str) -> list[list[str]]:
    """The rows of the first table under a heading of the README, each a list of cells."""
    section = README.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = [line.strip("| ") for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.split(" | ")] for row in rows[2:]]


def blind(path: str) -> str:
    """A path without the names of its parameters: `/api/order/{id}` and `/api/order/{order_id:int}` are one."""
    return re.sub(r"\{[^}]*\}", "{}", path)


def served() -> set[tuple[str, str]]:
    """(method, path) of all that the app serves."""
    found = set()
    for route in ROUTES:
        if route.path == "/docs/oauth2-redirect":  # a part of Swagger UI, not a page of its own
            continue
        methods = {"WebSocket"} if isinstance(route, WebSocketRoute) else set(route.methods or ())
        if not isinstance(route, APIRoute):  # Starlette's own routes add HEAD to GET
            methods -= {"HEAD"}
        found |= {(method, blind(route.path)) for method in methods}
    return found


def top_level() -> set[str]:
    """What stands in the root and isn't ignored; folders end with a slash, and empty ones don't count, as for git."""
    lines = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    ignored = [".git", *(line.strip("/") for line in lines if line and not line.startswith("#"))]
    return {
        path.name + "/" * path.is_dir()
        for path in ROOT.iterdir()
        if not any(fnmatch(path.name, pattern) for pattern in ignored)
        and (path.is_file() or any(each.is_file() for each in path.rglob("*")))
    }


def files_section() -> set[str]:
    """The names in the README's tree."""
    tree = README.partition("\n## Files\n")[2].split("```")[1]
    return {line.split()[0] for line in tree.splitlines() if line}


def links() -> Iterator[tuple[str, str]]:
    """(page, target) of every relative link, as test ids have them."""
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                yield str(page.relative_to(ROOT)), target


def test_every_route_is_in_the_readme() -> None:
    """The table of endpoints has every method and path that is served, and no other."""
    described = {(method, blind(path)) for [(method, path)] in (re.findall(r"^`(\w+) (/\S*)`", row[0]) for row in
                 table("Endpoints"))}  # fmt: skip
    assert described == served()


def test_every_route_that_is_named_exists() -> None:
    """Wherever the README names a method and a path, they are served."""
    named = re.findall(r"`(GET|HEAD|POST|PUT|PATCH|DELETE|WebSocket) (/[^\s`?]*)", README)
    assert {(method, blind(path)) for method, path in named} <= served()


def test_every_address_that_is_named_exists() -> None:
    """Every address in an example has a path that is served."""
    paths = set(re.findall(r"(?:https?|wss?)://127\.0\.0\.1:8000(/[^\s?\"'>`]*)", README))
    assert "/api/order" in paths
    assert not [path for path in paths if not any(route.path_regex.match(path) for route in ROUTES)]


def test_every_setting_is_in_the_readme() -> None:
    """The table of settings has every variable with its default, and no other."""
    described = {row[0].strip("`"): row[1] for row in table("Settings")}
    defaults = {f"BISTRO92_{name.upper()}": known.default for name, known in app.Settings.model_fields.items()}
    assert described == {
        name: f"`{str(default).lower() if isinstance(default, bool) else default}`" if default != "" else
        "(same origin only)" for name, default in defaults.items()
    }  # fmt: skip


def test_every_setting_that_is_named_exists() -> None:
    """Wherever the README names a variable, it is one."""
    named = set(re.findall(r"\bBISTRO92_[A-Z_]+", README))
    assert named <= {f"BISTRO92_{name.upper()}" for name in app.Settings.model_fields}


def test_every_error_code_is_in_the_readme() -> None:
    """The table of errors has every code with its status, and no other."""
    described = {row[1].strip("`"): int(row[0]) for row in table("Errors")}
    assert described == {code: status for code, (status, _) in app.CODES.items()}


def test_every_error_that_is_named_exists() -> None:
    """Wherever the README names a status with a code, they belong together."""
    named = re.findall(r"\b(\d{3}) `([a-z_]+)`", README)
    assert named
    assert not [(status, code) for status, code in named if app.CODES.get(code, (0, ""))[0] != int(status)]


def test_every_file_is_in_the_readme() -> None:
    """The tree has every file and folder of the top level, and no other."""
    assert files_section() == top_level()


def test_every_make_target_that_is_named_exists() -> None:
    """Wherever the README says `make something`, the Makefile can, and it names all that the Makefile offers."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"^(?:.*`)?make ([a-z-]+)", README, re.MULTILINE))
    named |= set(re.findall(r"`make ([a-z-]+)", README))
    assert named == targets


def test_every_decision_is_listed() -> None:
    """The list of decisions has every page."""
    folder = ROOT / "docs" / "decisions"
    listed = set(re.findall(r"\]\((\d{4}-[a-z0-9-]+\.md)\)", (folder / "README.md").read_text(encoding="utf-8")))
    assert listed == {path.name for path in folder.glob("[0-9]*.md")}


@pytest.mark.parametrize(("page", "target"), sorted(set(links())))
def test_every_link_leads_somewhere(page: str, target: str) -> None:
    """A relative link names a file, and a heading of that file where it names one."""
    path, _, heading = target.partition("#")
    file = ((ROOT / page).parent / path) if path else ROOT / page
    assert file.exists()
    if heading:
        headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
        assert heading in {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_lines_are_short(page: Path) -> None:
    """Pages are read in terminals, too: at most 120 characters a line, but for the rows of a table."""
    lines = page.read_text(encoding="utf-8").splitlines()
    assert [number for number, line in enumerate(lines, 1) if len(line) > 120 and not line.startswith("|")] == []
