"""Give the site the repository's own layout, so that a link works on both."""

import subprocess
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
ENDINGS = (".md", ".png", ".svg", ".json", ".yaml", ".csv", ".txt", ".ipynb", "LICENSE")  # no code


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Replace the files of docs/ by all pages of the checkout, and by what they link to."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    pages = [File.generated(config, name, abs_src_path=str(ROOT / name))
             for name in names.splitlines()
             if name.endswith(ENDINGS)]  # fmt: skip
    theme = [file for file in files if not file.src_uri.endswith(".md")]
    return Files([*theme, *pages])
