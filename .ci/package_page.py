"""README as it stands on the page of the package: there, links to files of the project lead nowhere.

hatchling calls this. With a public address they become absolute. Without one there is only their text.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

RELATIVE = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?!https?:|#)(?P<path>[^)]+)\)")


def package_page(readme: str, repository: str) -> str:
    """Return the text with no link to a file but absolute ones."""

    def absolute(link: re.Match[str]) -> str:
        if not repository:
            return "" if link["image"] else link["text"]
        kind = "raw" if link["image"] else "blob"
        return f"{link['image']}[{link['text']}]({repository}/{kind}/HEAD/{link['path']})"

    return RELATIVE.sub(absolute, readme)


class Page(MetadataHookInterface):
    """Says what pyproject.toml leaves to it: `readme` and `urls`."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set both."""
        repository = self.config["repository"]
        text = package_page((Path(self.root) / "README.md").read_text(), repository)
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
        metadata["urls"] = {"Repository": repository} if repository else {}
