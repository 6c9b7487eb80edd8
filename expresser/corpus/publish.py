"""Put a corpus on the hub, as a data set that `corpus pull`, `datasets.load_dataset` and people can read."""

import fnmatch
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from expresser.corpus.manifest import MANIFEST, features_of, read_manifest
from expresser.corpus.places import HUB_NAME
from expresser.corpus.store import check_sizes
from expresser.errors import InputError

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
| {{ source.name | replace("|", " ") }} | {{ "{:,}".format(source.cells) }} |
{% endfor %}
"""
)


def push_corpus(folder: str | Path, repo: str, *, revision: str | None = None, private: bool = False) -> str:
    """Upload the corpus in `folder` to the data set `repo` (org/name, made where missing); returns the commit's address.

    One commit holds all files: a reader of the branch sees the old corpus or the new one, never a mixture, and shards
    of an older corpus are removed with it. An upload that broke off is repeated by the same call; what the hub already
    has is not sent again. InputError where the hub refuses.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

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
    api = HfApi()
    try:
        api.create_repo(repo, repo_type="dataset", private=private or None, exist_ok=True)
        if revision is not None:
            api.create_branch(repo, branch=revision, repo_type="dataset", exist_ok=True)
        there = api.list_repo_files(repo, repo_type="dataset", revision=revision)
        operations: list[Any] = [CommitOperationAdd(name, str(folder / name)) for name in names]
        operations.append(CommitOperationAdd("README.md", dataset_card(manifest, repo).encode()))
        stale = [name for name in there if fnmatch.fnmatch(name, "cells-*.arrow") and name not in names]
        operations += [CommitOperationDelete(name) for name in stale]
        done = api.create_commit(
            repo,
            operations,
            commit_message=f"Corpus {manifest['corpus_id'][:12]}: {manifest['cells']:,} cells",
            repo_type="dataset",
            revision=revision,
        )
    except Exception as error:  # the client's own, those of its HTTP library, RuntimeError where a file did not go up
        raise InputError(
            f"{repo}: the hub did not take the corpus ({type(error).__name__}: {error}). Is the name org/name, are you "
            "logged in (`hf auth login`, or HF_TOKEN), and may you write there?"
        ) from error
    return str(done.commit_url)


def dataset_card(manifest: dict[str, Any], repo: str) -> str:
    """The README.md of the data set."""
    return _CARD.render(
        repo=repo,
        cells=manifest["cells"],
        genes=manifest["genes"]["n"],
        features=features_of(manifest),
        corpus_id=manifest["corpus_id"],
        sources=manifest["sources"][:50],
    )
