"""Hooks of mkdocs: pages that lie outside of ``docs/``, and links that lead there.

Sources link to each other by relative paths, as they lie in the repository, so that the links work where the files are
read. On the site, a link to a page or figure of the site becomes a link to that page. A link to any other file of the
repository becomes its name, or a link to ``repo_url`` where mkdocs.yml has one.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[2]
OUTSIDE = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md", "csrc/README.md": "csrc.md"}
RESULTS = "bench/results"
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(([^()\s]+)\)")
CODE = re.compile(r"(^```.*?^```|`[^`\n]+`(?!\]\())", re.MULTILINE | re.DOTALL)


def on_files(files, config):
    """Add the pages and figures of :data:`OUTSIDE` and :data:`RESULTS`."""
    for path, name in _outside().items():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Point every relative link to where its target is on the site."""
    sources = {name: path for path, name in _outside().items()}
    here = sources.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    return LINK.sub(lambda match: _link(match, here, page.file.src_uri, config, files), markdown)


def _outside() -> dict[str, str]:
    """Files outside of ``docs/`` that belong to the site: their names there, by path in the repository."""
    results = {f"{RESULTS}/{each.name}": f"results/{each.name}" for each in sorted((ROOT / RESULTS).glob("*.*"))}
    return OUTSIDE | {path: name for path, name in results.items() if path.endswith((".md", ".png"))}


def _link(match: re.Match, here: str, page: str, config, files) -> str:
    image, text, target = match.groups()
    path, _, anchor = target.partition("#")
    if not path or ":" in path:
        return match[0]

    source = os.path.normpath(os.path.join(os.path.dirname(here), path))
    name = _outside().get(source) or source.removeprefix("docs/")
    if source == "README.md":
        name = "index.md"
    if files.get_file_from_path(name) is not None and (source.startswith("docs/") or name != source):
        target = os.path.relpath(name, os.path.dirname(page) or ".") + (f"#{anchor}" if anchor else "")
        return f"{image}[{text}]({target})"
    if not (ROOT / source).exists():
        return match[0]  # mkdocs tells that it is not there
    if config.repo_url:
        return f"{image}[{text}]({config.repo_url.rstrip('/')}/blob/HEAD/{source})"
    return text if "`" in text or text == source else f"{text} (`{source}`)"
