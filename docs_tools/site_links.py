"""A hook of mkdocs: files of the repository that the pages link to become part of the site."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
ADDED = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    *(str(f.relative_to(ROOT)) for f in (ROOT / "benchmarks/results").iterdir()),
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files under their path in the repository."""
    for name in sorted(ADDED):
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """In the site the folder `docs` is the root: links out of it and into it lose this part."""
    if page.file.src_uri in ADDED:
        return re.sub(r"\]\(docs/", "](", markdown)
    return re.sub(r"\]\(\.\./", "](", markdown)
