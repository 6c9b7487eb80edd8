"""Put a corpus on the hub, as a data set that `corpus pull`, `datasets.load_dataset` and people can read."""

import fnmatch
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from expresser.corpus.manifest import MANIFEST, features_of, read_manifest
from expresser.corpus.store import check_sizes
from expresser.errors import InputError
from expresser.hub_client import HUB_NAME, commit
from expresser.markdown import plain

_CARD = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True).from_string(
    """---
license: other
tags: [single-cell, {{ "scatac-seq" if features == "regions" else "scrna-seq" }}, expresser]
configs:
- config_name: default
  data_files: cells-*.arrow
---
# Corpus of {{ "{:,}".format(cells) }} cells x {{ "{:,}".format(genes) }} {{ features }}

Raw counts as memory-mapped Arrow shards, rows in a seeded random order over all sources. Id `{{ corpus_id }}`.

```
expresser corpus pull {{ repo }} --out corpus
expresser corpus info corpus
```
`genes.tsv` says what a token is, `obs.parquet` labels each `cell_id`, `manifest.json` holds checksums and the account
of what was read.

## Sources
| source | cells |
|---|---|
{% for source in sources %}
| {{ plain(source.name) }} | {{ "{:,}".format(source.cells) }} |
{% endfor %}
"""
)


def push_corpus(folder: str | Path, repo: str, *, revision: str | None = None, private: bool = False) -> str:
    """Upload the corpus in `folder` to the data set `repo` (org/name, made where missing); returns the commit's address.

    One commit holds all files: a reader of the branch sees the old corpus or the new one, never a mixture, and shards
    of an older corpus are removed with it. An upload that broke off is repeated by the same call; what the hub already
    has is not sent again. InputError where the hub refuses.
    """
    if not re.fullmatch(HUB_NAME, repo):
        raise InputError(
            f"{repo}: a push goes to a data set of the hub, org/name (--revision names a branch). For a bucket, a web server or "
            "another disk copy the folder with its own tools (aws s3 sync, rsync, cp -r), the manifest last: `corpus pull` "
            "reads it from there."
        )
    folder = Path(folder)
    manifest = read_manifest(folder)
    check_sizes(folder, manifest)
    names = [entry["file"] for entry in (manifest["genes"], manifest["obs"], *manifest["shards"])] + [MANIFEST]
    files: dict[str, Path | bytes] = {name: folder / name for name in names}
    return commit(
        repo,
        files | {"README.md": dataset_card(manifest, repo).encode()},
        repo_type="dataset",
        message=f"Corpus {manifest['corpus_id'][:12]}: {manifest['cells']:,} cells",
        stale=lambda name: fnmatch.fnmatch(name, "cells-*.arrow"),
        what="corpus",
        revision=revision,
        private=private,
    )


def dataset_card(manifest: dict[str, Any], repo: str) -> str:
    """The README.md of the data set."""
    return _CARD.render(
        repo=repo,
        cells=manifest["cells"],
        genes=manifest["genes"]["n"],
        features=features_of(manifest),
        plain=plain,
        corpus_id=manifest["corpus_id"],
        sources=manifest["sources"][:50],
    )
