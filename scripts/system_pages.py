"""Write what is known of each system into its page: paper, pairing, directions, departures, presets, options, measured figures.

A page of docs/pages/systems is written by hand but for its blocks, from ``<!-- facts: NAME -->`` to ``<!-- end of facts -->``.
The facts come from `translate.registry.SYSTEMS` (of the Expression Transformer, from `pretrain.recipes`), and figures from
docs/pages/measured.md: ``<!-- facts: measured SECTION -->``. So a page can't say otherwise.

    python scripts/system_pages.py            # after a change of a record, a preset, an option or a measured table
    python scripts/system_pages.py --check    # exit 1, with the names, where a page is behind
"""

import argparse
import ast
import dataclasses
import inspect
import re
import sys
import textwrap
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import tyro

from expresser.model.configuration import ExpresserConfig
from pretrain.recipes import RECIPES
from translate.registry import SYSTEMS
from translate.system import System

PAGES = Path(__file__).parent.parent / "docs" / "pages" / "systems"
MEASURED = PAGES.parent / "measured.md"
BLOCK = re.compile(r"(<!-- facts: (\w+)(?: ([\w-]+))? -->\n).*?(<!-- end of facts -->)", re.DOTALL)
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
NAMES = {"rna": "RNA", "atac": "ATAC", "protein": "proteins"}


def main() -> None:
    """Rewrites the pages, or says which are behind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 where a page is behind")
    check, behind = parser.parse_args().check, []
    for page in sorted(PAGES.glob("*.md")):
        there = page.read_text()
        fresh = with_facts(there, page.stem)
        if fresh != there:
            behind.append(page.name)
            if not check:
                page.write_text(fresh)
    if behind:
        print(f"{'behind' if check else 'written'}: {', '.join(behind)}")
    if behind and check:
        sys.exit("The code has changed: python scripts/system_pages.py")


def with_facts(text: str, page: str) -> str:
    """The page with each of its blocks as the code has it now. KeyError for a block that this page can't have."""

    def block(found: re.Match[str]) -> str:
        make = facts(page)[found[2]]
        text = make(found[3]) if found[3] else make()
        return f"{found[1]}\n{text}\n\n{found[4]}"

    return BLOCK.sub(block, text)


def facts(page: str) -> Mapping[str, Callable[..., str]]:
    """What can stand on a page (its name without .md), by the name of the block."""
    if page == "index":
        return {"overview": overview}
    if page == "expression_transformer":
        recipes = {name: make() for name, make in RECIPES.items()}
        return {
            "recipes": lambda: differences(recipes),
            "model": lambda: model_fields(ExpresserConfig),
            "measured": lambda section: measured(MEASURED.read_text(), section, "Expresser"),
        }
    kind = SYSTEMS[page]
    return {
        "record": lambda: record(kind),
        "departures": lambda: "\n".join(f"- {deviation}" for deviation in kind.published.deviations),
        "presets": lambda: differences(kind.presets),
        "options": lambda: options(kind.config_class),
        "measured": lambda section: measured(MEASURED.read_text(), section, kind.published.name),
    }


def measured(text: str, section: str, system: str) -> str:
    """Of a section of the page of measured figures (its anchor), the tables that name the system, less the rows of other systems.

    ValueError where there is no such section, or no such table.
    """
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)  # a comment of a command is no heading
    headings = list(HEADING.finditer(text))
    ends = [*(heading.start() for heading in headings[1:]), len(text)]
    sections = {anchor(heading[1]): (heading[1], text[heading.end() : end]) for heading, end in zip(headings, ends)}
    if section not in sections:
        raise ValueError(f"measured.md: no section {section!r}; there are {', '.join(sections)}.")
    title, body = sections[section]
    others = [kind.published.name for kind in SYSTEMS.values() if kind.published.name != system]
    found = []
    for table in re.findall(r"^(?:\|.*\n)+", body, re.MULTILINE):
        head, rule, *rows = table.splitlines()
        columns = [plain(column) for column in head.split("|")]
        if any(is_of(column, system) for column in columns):
            found.append(table.rstrip())
        elif any(is_of(plain(row.split("|")[1]), system) for row in rows):
            kept = [row for row in rows if not any(is_of(plain(row.split("|")[1]), other) for other in others)]
            found.append("\n".join([head, rule, *kept]))
    if not found:
        raise ValueError(f"measured.md: no table of section {section!r} names {system}.")
    return "\n\n".join(
        [f"From [{title}](../measured.md#{section}), which has the command and says what the figures are:", *found]
    )


def anchor(heading: str) -> str:
    """What Markdown makes of a heading in addresses."""
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower())


def plain(text: str) -> str:
    """A cell of a table without its bold type."""
    return text.replace("*", "").strip()


def is_of(text: str, system: str) -> bool:
    """Whether a row or column is of the system: its name comes first, as a whole word."""
    return re.match(rf"{re.escape(system)}\b", text) is not None


def record(kind: type[System]) -> str:
    """Paper, what it needs, where it goes."""
    published = kind.published
    rows = {
        "System": f"{published.name}, on the command line `{kind.__name__.lower()}`",
        "Paper": f"{published.reference} [doi:{published.doi}](https://doi.org/{published.doi})",
        "Needs": published.pairing,
        "Gives": gives(kind),
        "Choose it for": published.choose,
        "Presets": ", ".join(f"`{preset}`" for preset in kind.presets),
    }
    head, *others = (f"| {label} | {cell(text)} |" for label, text in rows.items())
    return "\n".join([head, "|---|---|", *others])


def gives(kind: type[System]) -> str:
    """Its directions, or what it embeds."""
    if kind.embeds:
        return ", ".join(f"an embedding of {NAMES[a]}, and {NAMES[b]} imputed" for a, b in kind.published.directions)
    return ", ".join(f"{NAMES[a]} to {NAMES[b]}" for a, b in kind.published.directions if a != b)


def overview() -> str:
    """All systems in one table, and the Expression Transformer, which has no record."""
    rows = ["| system | needs | gives | choose it for |", "|---|---|---|---|"]
    for name, kind in SYSTEMS.items():
        published = kind.published
        rows.append(
            f"| [{published.name}]({name}.md) | {published.pairing} | {gives(kind)} | {cell(published.choose)} |"
        )
    rows.append(
        "| [Expression Transformer](expression_transformer.md) | RNA, any number of studies | gene embeddings, cell embeddings, "
        "imputation; a start for the others | RNA alone, and questions about genes. |"
    )
    return "\n".join(rows)


def differences(configurations: Mapping[str, Any]) -> str:
    """The settings in which named configurations (dataclasses of one kind) differ, one a row."""
    flat = {name: dict(settings(configuration)) for name, configuration in configurations.items()}
    keys = list(dict.fromkeys(key for values in flat.values() for key in values if key != "name"))
    rows = [f"| setting | {' | '.join(f'`{name}`' for name in flat)} |", "|---" * (len(flat) + 1) + "|"]
    for key in keys:
        values = [shown(of[key]) if key in of else "–" for of in flat.values()]
        if len(set(values)) > 1:
            rows.append(f"| `{key}` | {' | '.join(values)} |")
    return "\n".join(rows)


def settings(configuration: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Each field that is no dataclass itself, named by its path."""
    for field in dataclasses.fields(configuration):
        value, path = getattr(configuration, field.name), f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value):
            yield from settings(value, f"{path}.")
        else:
            yield path, value


def options(config: type[Any]) -> str:
    """What ``--config.…`` takes: option, default, meaning."""
    rows = ["| option | default | what it is |", "|---|---|---|"]
    rows += [f"| `--config.{path}` | {shown(value)} | {cell(text)} |" for path, value, text in described(config())]
    return "\n".join(rows)


def described(configuration: Any, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """Path, default and text of each option of a configuration that the command line has."""
    hints = typing.get_type_hints(type(configuration), include_extras=True)
    said = {
        name: text for parent in reversed(type(configuration).__mro__[:-1]) for name, text in written(parent).items()
    }
    for field in dataclasses.fields(configuration):
        value, path = getattr(configuration, field.name), f"{prefix}{field.name.replace('_', '-')}"
        if tyro.conf.Suppress in getattr(hints[field.name], "__metadata__", ()):
            continue
        if dataclasses.is_dataclass(value):
            yield from described(value, f"{path}.")
        else:
            yield path, value, said.get(field.name, "")


def written(cls: type[Any]) -> dict[str, str]:
    """What stands in the source of a dataclass about its own fields: the string below, or the comment beside."""
    if not dataclasses.is_dataclass(cls):
        return {}
    source = textwrap.dedent(inspect.getsource(cls))
    lines, found, last = source.splitlines(), {}, ""
    (body,) = (node.body for node in ast.parse(source).body if isinstance(node, ast.ClassDef))
    for node in body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            last, line = node.target.id, lines[(node.end_lineno or node.lineno) - 1]
            found[last] = line.split("# ", 1)[1] if "# " in line else ""
        elif last and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            found[last] = inspect.cleandoc(str(node.value.value))
    return found


def model_fields(config: type[ExpresserConfig]) -> str:
    """Choices of the Expression Transformer and their defaults, without those that transformers adds."""
    docs = inspect.cleandoc(config.__doc__ or "").split("----------\n", 1)[1]
    rows = ["| field | default | what it is |", "|---|---|---|"]
    for names, text in re.findall(r"^(\w[\w, ]*)\n((?:    .*\n?)+)", docs, re.MULTILINE):
        defaults = ", ".join(shown(getattr(config, name)) for name in names.split(", "))
        rows.append(
            f"| {', '.join(f'`{name}`' for name in names.split(', '))} | {defaults} | {cell(inspect.cleandoc(text))} |"
        )
    return "\n".join(rows)


def shown(value: Any) -> str:
    """A value as one would type it."""
    if isinstance(value, tuple):
        return " ".join(map(shown, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "none"
    return f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else cell(str(value))


def cell(text: str) -> str:
    """Text that can stand in a table."""
    return " ".join(text.split()).replace("``", "`").replace("|", r"\|")


if __name__ == "__main__":
    main()
