"""Manual pages from the pages in docs/, one for each command.

A command's page starts with its name, one sentence, and its synopsis as an indented block; its sections follow. The
sentence becomes NAME, the block SYNOPSIS, and the section "Interface" DESCRIPTION. A table becomes a list of its first
column's cells, because roff tables need a preprocessor. `python -m tools.manpages FOLDER` writes all pages below
FOLDER/man1 and FOLDER/man8.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from markdown_it import MarkdownIt
from markdown_it.tree import SyntaxTreeNode

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

CLIENT: Final = {"tailsrv-cat": 1, "tailsrv-put": 1}
"""The commands of the distribution tailsrv-client, with their section of the manual."""

DAEMONS: Final = {"tailsrv": 8, "tailsrv-collate": 8, "tailsrv-index": 8, "tailsrv-up": 1, "tailsrv-check": 1}
"""The commands of the distribution tailsrv."""

_SECTIONS: Final = {"Interface": "Description"}
_SPECIAL: Final = str.maketrans({"\\": r"\e", "-": r"\-", "'": r"\(aq", "`": r"\(ga", "^": r"\(ha", "~": r"\(ti"})


def manual_page(markdown: str, *, section: int, version: str) -> str:
    """Return the roff text of one command's page. Raises ValueError for a page without a name, sentence or synopsis."""
    nodes = SyntaxTreeNode(MarkdownIt("commonmark").enable("table").parse(markdown)).children
    kinds = [node.type for node in nodes[:3]]
    if kinds[:2] != ["heading", "paragraph"] or kinds[2:] not in (["code_block"], ["fence"]):
        raise ValueError(f"a command's page starts with its name, a sentence and its synopsis; this one has {kinds}")
    name = _plain(nodes[0])
    sentence = _plain(nodes[1])
    summary = sentence.partition(". ")[0].rstrip(".")
    lines = [
        f'.TH "{name.upper()}" "{section}" "" "tailsrv {version}" "tailsrv manual"',
        '.SH "NAME"',
        rf"{_text(name)} \- {_text(summary[:1].lower() + summary[1:])}",
        '.SH "SYNOPSIS"',
        *_code(nodes[2].content),
        '.SH "DESCRIPTION"',
        *_text(sentence).splitlines(),
    ]
    for node in nodes[3:]:
        if node.type == "heading" and _plain(node) in _SECTIONS:
            continue  # DESCRIPTION has begun with the text before it
        lines += _block(node)
    return "\n".join(lines) + "\n"


def write_pages(docs: Path, folder: Path, commands: Iterable[tuple[str, int]], version: str) -> list[Path]:
    """Write the pages of these commands below `folder`; return their paths. Raises ValueError for a malformed page."""
    written = []
    for name, section in commands:
        source = docs / f"{name}.md"
        try:
            text = manual_page(source.read_text(encoding="utf-8"), section=section, version=version)
        except ValueError as error:
            raise ValueError(f"cannot make a manual page from {source}: {error}") from None
        path = folder / f"man{section}" / f"{name}.{section}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        written.append(path)
    return written


def _block(node: SyntaxTreeNode) -> Iterator[str]:
    if node.type == "heading":
        title = _plain(node).translate(_SPECIAL).replace('"', r"\(dq")
        yield f'.SH "{title.upper()}"' if node.tag == "h2" else f'.SS "{title}"'
    elif node.type == "paragraph":
        yield ".PP"
        yield _inline(node)
    elif node.type in {"code_block", "fence"}:
        yield from _code(node.content)
    elif node.type in {"bullet_list", "ordered_list"}:
        for item in node.children:
            yield r'.IP "\(bu" 2'
            yield from _item(item)
    elif node.type == "table":
        yield from _table(node)
    else:
        for child in node.children:
            yield from _block(child)


def _item(item: SyntaxTreeNode) -> Iterator[str]:
    for place, child in enumerate(item.children):
        if child.type == "paragraph":
            if place:
                yield ".IP"
            yield _inline(child)
        else:
            yield ".RS 2"
            yield from _block(child)
            yield ".RE"


def _table(node: SyntaxTreeNode) -> Iterator[str]:
    rows = [list(row.children) for part in node.children for row in part.children]
    titles = [_inline(cell) for cell in rows[0]]
    for row in rows[1:]:
        first, *others = (_inline(cell) for cell in row)
        yield ".TP"
        yield first or r"\&"
        named = [(title, text) for title, text in zip(titles[1:], others, strict=True) if text]
        yield "\n.br\n".join(text if len(titles) == 2 else f"{title}: {text}" for title, text in named) or r"\&"


def _code(text: str) -> Iterator[str]:
    yield from (".PP", ".nf", ".RS 4")
    yield from map(_text, text.rstrip("\n").split("\n"))
    yield from (".RE", ".fi")


def _inline(node: SyntaxTreeNode) -> str:
    """The text of a block, with its marks; a link is its text."""
    return _guard("".join(map(_span, node.children)).strip())


def _span(node: SyntaxTreeNode) -> str:
    match node.type:
        case "text":
            return node.content.translate(_SPECIAL)
        case "code_inline":
            return rf"\fB{node.content.translate(_SPECIAL)}\fR"
        case "softbreak" | "hardbreak":
            return "\n"
        case "strong" | "em":
            inner = "".join(map(_span, node.children)).replace(r"\fR", r"\fB")
            return rf"\fB{inner}\fR" if node.type == "strong" else rf"\fI{inner}\fR"
        case _:
            return "".join(map(_span, node.children))


def _plain(node: SyntaxTreeNode) -> str:
    return "".join(
        " " if part.type == "softbreak" else part.content
        for part in node.walk()
        if part.type in {"text", "code_inline", "softbreak"}
    )


def _text(text: str) -> str:
    return _guard(text.translate(_SPECIAL))


def _guard(text: str) -> str:
    """A line that begins with a full stop would be a request to roff."""
    return re.sub(r"^\.", r"\\&.", text, flags=re.MULTILINE)


if __name__ == "__main__":
    root = Path(__file__).parent.parent
    found = re.search(r'^__version__ = "(.+)"$', (root / "tailsrv/__init__.py").read_text(), re.MULTILINE)
    if found is None:
        sys.exit("error: tailsrv/__init__.py has no line that begins with __version__")
    for page in write_pages(root / "docs", Path(sys.argv[1]), (CLIENT | DAEMONS).items(), found[1]):
        sys.stdout.write(f"{page}\n")
