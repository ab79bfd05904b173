"""The package's page on PyPI: README.md with links that lead somewhere from there, and the project's URLs.

The address of the repository is not written down in it: URINGWS_REPOSITORY names it when a release is built, such as
https://github.com/OWNER/uringws. Without it the page has no links into the repository, rather than broken ones.
"""

import os
import re

VARIABLE = "URINGWS_REPOSITORY"

# A link or an image whose target is a file of the repository: neither a URL nor a heading of the same page.
FILE_LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?![a-z]+:|#)(?P<path>[^)\s]+)\)")


def repository() -> str | None:
    """The repository's address without a slash at its end, or None. Raises SystemExit for what is no web address."""
    address = os.environ.get(VARIABLE, "").rstrip("/")
    if address and not re.fullmatch(r"https://[^/\s]+/\S+", address):
        raise SystemExit(f"{VARIABLE}={address!r} is no address of a repository: give https://HOST/OWNER/NAME")
    return address or None


def description(readme: str, address: str | None) -> str:
    """The README with its links to files made absolute; without an address only their text is left."""

    def replace(match: re.Match[str]) -> str:
        if address is None:
            return "" if match["image"] else match["text"]
        view = "raw" if match["image"] else "blob"
        return f"{match['image']}[{match['text']}]({address}/{view}/HEAD/{match['path']})"

    return FILE_LINK.sub(replace, readme)


def project_urls(address: str | None) -> dict[str, str]:
    """The links beside the description."""
    if address is None:
        return {}
    return {
        "Repository": address,
        "Documentation": f"{address}/blob/HEAD/README.md",
        "Changelog": f"{address}/blob/HEAD/CHANGELOG.md",
        "Issues": f"{address}/issues",
    }
