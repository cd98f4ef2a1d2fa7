# SPDX-License-Identifier: MIT
"""Configuration of the site that tools/docs.sh builds out of docs/*.md and what antsibull-docs renders.

The pages are written to be read on GitHub and in the package, so they link to files by their place in the repository.
Here such a link becomes one to the page about that file, or to the repository where there is none.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from docutils import nodes  # type: ignore[import-untyped]

ROOT = Path(os.environ["HOMEGPT_ROOT"])
_GALAXY = (ROOT / "galaxy.yml").read_text(encoding="utf-8")


def _galaxy(key: str) -> str:
    found = re.search(rf"^{key}: (\S+)$", _GALAXY, re.MULTILINE)
    assert found, key
    return found.group(1)


project = "homegpt.vllm"
author = copyright = "HomeGPT"
version = release = _galaxy("version")
repository = _galaxy("repository")

extensions = ["myst_parser", "sphinx_antsibull_ext"]
myst_heading_anchors = 3

html_theme = "sphinx_rtd_theme"
html_title = f"{project} {version}"
html_theme_options = {"navigation_depth": 2, "collapse_navigation": False, "version_selector": False}
html_static_path = [str(ROOT / "tools/site/static")]
html_css_files = ["site.css"]
html_show_sphinx = html_show_copyright = html_copy_source = html_show_sourcelink = False
html_use_index = False
pygments_style = "default"
highlight_language = "yaml+jinja"
# What the modules' pages refer to in Ansible's own documentation. It is not looked up: there may be no network.
ANSIBLE = "https://docs.ansible.com/projects/ansible/latest/"
LABELS = {
    "common_return_values": "reference_appendices/common_return_values.html",
    "ansible_configuration_settings": "reference_appendices/config.html",
    "action_plugins": "plugins/action.html",
}

# The hand-written pages in the order of the navigation. On GitHub docs/index.md is a table of them.
PAGES = (
    "start",
    "inventory",
    "switch",
    "fleet",
    "manager",
    "gateway",
    "awx",
    "failure-modes",
    "vllm-versions",
    "security",
    "sizing",
    "moving",
    "homegpt",
    "architecture",
)

LINK = re.compile(r"(\]\()\.\./([^)#]+)(#[^)]*)?(\))")
ABOUT = (
    (re.compile(r"plugins/modules/(\w+)\.py"), r"collections/\1_module.rst"),
    (re.compile(r"roles/(\w+)/README\.md"), r"collections/\1_role.rst"),
)


def _place(match: re.Match[str]) -> str:
    path, anchor = match.group(2), match.group(3) or ""
    if not (ROOT / path).exists():
        raise ValueError(f"a page links to {path}, which does not exist")
    for pattern, page in ABOUT:
        if pattern.fullmatch(path):
            return f"{match.group(1)}{pattern.sub(page, path)}{match.group(4)}"
    kind = "tree" if (ROOT / path).is_dir() else "blob"
    return f"{match.group(1)}{repository}/{kind}/main/{path}{anchor}{match.group(4)}"


def _relink(app: Any, docname: str, source: list[str]) -> None:
    del app
    if not docname.startswith("collections/"):
        source[0] = LINK.sub(_place, source[0])
    if docname == "index":
        pages = "\n".join((*PAGES, "Modules, roles and filters <collections/index>"))
        source[0] += f"\n```{{toctree}}\n:hidden:\n:maxdepth: 2\n\n{pages}\n```\n"


def _ansible(app: Any, env: Any, node: Any, content: Any) -> Any:
    del app, env
    if node.get("reftype") != "ref" or node["reftarget"] not in LABELS:
        return None
    # What refers by a label alone has no text of its own but the label.
    return nodes.reference("", "", content, refuri=ANSIBLE + LABELS[node["reftarget"]], internal=False)


def setup(app: Any) -> None:
    """Have Sphinx rewrite what links leave the pages."""
    app.connect("source-read", _relink)
    app.connect("missing-reference", _ansible)
