"""Reading Markdown for test_docs.py: paragraphs, sentences, links, headings and commands.

python tests/prose.py README.md docs/results.md    # lines, longest paragraph and longest sentence of each
"""

import re
import sys
from pathlib import Path


def blocks(text: str) -> list[tuple[str, str]]:
    """The page in order as (kind, text): heading, code, fence (with its language in the first line), table, prose."""
    found, lines = [], text.splitlines()
    while lines:
        line, kind = lines.pop(0), "prose"
        if not line.strip():
            continue
        own = [line]
        if line.startswith("```"):
            while not lines[0].startswith("```"):
                own.append(lines.pop(0))
            lines.pop(0)
            kind = "fence"
        elif line.startswith("#"):
            kind = "heading"
        elif line.startswith("    "):
            while lines and (lines[0].startswith("    ") or not lines[0].strip()):
                own.append(lines.pop(0))
            kind = "code"
        else:
            kind = "table" if line.startswith("|") else "prose"
            while lines and lines[0].strip() and lines[0].startswith("|") == (kind == "table"):
                own.append(lines.pop(0))
        found.append((kind, "\n".join(own).rstrip()))
    return found


def paragraphs(text: str) -> list[str]:
    """Paragraphs and items of lists, without pictures."""
    parts = [part for kind, block in blocks(text) if kind == "prose" for part in re.split(r"\n(?=- |\d+\. )", block)]
    return [part for part in parts if not part.startswith("![")]


def sentences(text: str) -> list[str]:
    """Sentences of paragraphs and of table cells."""
    cells = [c for kind, block in blocks(text) if kind == "table" for c in re.split(r"(?<!\\)\|", block)]
    found = []
    for part in paragraphs(text) + cells:
        for sentence in re.split(
            r"(?<=[.!?])[)*]*\s+(?=[A-Z*`\d\[(])", part.replace("\n", " ").replace("et al. ", "et al ")
        ):
            sentence = re.sub(r"!?\[([^]]*)\]\([^)]*\)", r"\1", sentence)  # a link counts as its words
            found.append(re.sub(r"`[^`]*`", "code", sentence).strip())  # and a command as one
    return [sentence for sentence in found if sentence]


def words(sentence: str) -> int:
    return sum(bool(re.search(r"\w", word)) for word in sentence.split())


def anchors(text: str) -> set[str]:
    """GitHub's anchors of the page's headings."""
    titles = [block.lstrip("#").strip().lower() for kind, block in blocks(text) if kind == "heading"]
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in titles}


def links(text: str) -> list[str]:
    """Targets of the page's links and pictures outside of code."""
    return [
        t for kind, block in blocks(text) if kind in ("prose", "table") for t in re.findall(r"\]\(([^)\s]+)\)", block)
    ]


def commands(text: str) -> list[str]:
    """Command lines of the page's code blocks and tables, without comments, continued lines joined."""
    found = []
    for kind, block in blocks(text):
        if kind == "code":
            lines = [line.strip() for line in block.replace("\\\n", " ").splitlines()]
            found += [re.sub(r"\s+#\s.*", "", line) for line in lines if line and line[0] != "#"]
        if kind == "table":
            found += re.findall(r"`(python \S+\.py[^`]*|pip [^`]*)`", block)
    known = r"(([A-Z_]+=(\"[^\"]*\"|'[^']*'|\S+)\s+)*(benchmark/\w+\.sh|python\s)|pip |tensorboard )"
    return [re.sub(r"\s+", " ", line) for line in found if re.match(known, line)]


if __name__ == "__main__":
    for page in map(Path, sys.argv[1:]):
        text = page.read_text()
        longest = max(sentences(text), key=words)
        lines = max(part.count("\n") + 1 for part in paragraphs(text))
        print(f"{page}: {len(text.splitlines())} lines, paragraphs of {lines}, {words(longest)} words: {longest}")
