"""Links between the documents lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path


def slug(heading: str) -> str:
    """The anchor that GitHub makes of a heading.

    It drops markup and punctuation, then joins the words with hyphens.
    """
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").replace("*", "").lower()
    return re.sub(r"[^\w\- ]", "", text).strip().replace(" ", "-")


def without_code(text: str) -> str:
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def anchors(path: Path) -> set[str]:
    return {slug(heading) for heading in re.findall(r"^#+ (.+)$", without_code(path.read_text()), re.MULTILINE)}


def test_relative_links_and_anchors_resolve(document, repository):
    text = re.sub(r"`[^`\n]*`", "", without_code(document.read_text()))
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (document.parent / name).resolve() if name else document
        if not path.is_relative_to(repository) or not path.exists():
            broken.append(f"{target}: no such file")
        elif anchor and anchor not in anchors(path):
            broken.append(f"{target}: no such heading")
    assert broken == []


def test_every_document_is_reached_from_the_readme(repository):
    readme = (repository / "README.md").read_text()
    pages = {path.relative_to(repository).as_posix() for path in (repository / "docs").glob("*.md")}
    pages |= {path.name for path in repository.glob("*.md")} - {"README.md"}
    assert [page for page in sorted(pages) if f"]({page})" not in readme] == []


def test_the_picture_is_a_picture(repository):
    data = (repository / "docs" / "images" / "status.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    assert width >= 1000
    assert height >= 600
