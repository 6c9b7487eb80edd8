"""Lines of the bridge's benchmark as Markdown: medians over seeds, and differences seed by seed."""

from collections import defaultdict
from statistics import median
from typing import Any

from _fits import score

# Direction, name, and whether more is better.
SCORES: tuple[tuple[str | None, str, bool], ...] = (
    ("atac_to_rna", "pearson_gene", True),
    ("rna_to_atac", "auroc_peak", True),
    ("rna_to_atac", "auprnorm_peak", True),
    (None, "foscttm", False),
)
COST = (None, "cpu_seconds")  # of the fit; on a machine with other work, seconds say little
SETTING = ("data", "share", "method")

Lines = list[dict[str, Any]]


def tables(lines: Lines) -> str:
    """All of it; what was skipped or failed at the end."""
    lines = [line | {"data": _data(line)} for line in lines]
    good = [line for line in lines if not {"skipped", "failed"} & set(line)]
    titled = {
        "Medians over seeds.": _medians(good),
        "Differences from the same system on the same cells: median over seeds [least, most].": _differences(good),
        "In how many cases (data set, share, system) all seeds say better : worse. By chance three seeds say each in an eighth.": (
            _counts(good)
        ),
        "Pretrained models: r on their own validation cells.": _models(good),
    }
    parts = [f"{title}\n\n{body}" for title, body in titled.items() if body]
    for word in ("skipped", "failed"):
        why = {(*(line[name] for name in SETTING), _way(line), line[word]): None for line in lines if word in line}
        parts += [
            f"{word}: {data}, share {share:g}, {method}, {way}: {reason}" for data, share, method, way, reason in why
        ]
    return "\n\n".join(parts)


def _data(line: dict[str, Any]) -> str:
    """Simulated data sets of several sizes are not one."""
    sizes = line["sizes"]
    return f"{line['data']} {sizes['genes']} x {sizes['peaks']}" if sizes else line["data"]


def _way(line: dict[str, Any]) -> str:
    return line["way"] if line["model"] in (None, "pretrained") else f"{line['way']}, {line['model']}"


def _medians(lines: Lines) -> str:
    rows: dict[tuple[Any, ...], Lines] = defaultdict(list)
    for line in lines:
        rows[(line["data"], line["share"], line["pairs"], line["method"], _way(line))].append(line)
    shown = [(direction, name) for direction, name, _ in SCORES] + [COST]
    names = [name for _, name in shown]
    out = [_row("data", "share", "pairs", "system", "way", "seeds", *names), "|---" * (6 + len(shown)) + "|"]
    for (data, share, pairs, method, way), some in rows.items():
        values = [[v for line in some if (v := score(line, *at)) is not None] for at in shown]
        cells = [f"{median(of):.3f}" if of else "" for of in values[:-1]]
        cells.append(f"{median(values[-1]):.3g}" if values[-1] else "")
        out.append(_row(data, f"{share:g}", pairs, method, way, len(some), *cells))
    return "\n".join(out)


def beside_others(lines: Lines) -> dict[tuple[Any, ...], list[tuple[dict[str, Any], dict[str, Any]]]]:
    """(data, share, system, way, against) → a line and the one it is held against, of each seed that has both.

    Every way, and every control, against no bridge; every way against the random model besides.
    """
    found = {(*(line[name] for name in SETTING), line["seed"], line["way"], line["model"]): line for line in lines}
    out: dict[tuple[Any, ...], list[tuple[dict[str, Any], dict[str, Any]]]] = defaultdict(list)
    for (*setting, seed, way, model), line in found.items():
        if model is None:
            continue
        against = {"none": ("none", None)}
        if model == "pretrained":
            against["random"] = (way, "random")
        for name, which in against.items():
            other = found.get((*setting, seed, *which))
            if other is not None:
                out[(*setting, _way(line), name)].append((line, other))
    return out


def _changes(pairs: list[tuple[dict[str, Any], dict[str, Any]]], direction: str | None, name: str) -> list[float]:
    both = [(score(line, direction, name), score(other, direction, name)) for line, other in pairs]
    return [a - b for a, b in both if a is not None and b is not None]


def _differences(lines: Lines) -> str:
    out = [
        _row("data", "share", "system", "way", "against", "seeds", *(name for _, name, _ in SCORES)),
        "|---" * (6 + len(SCORES)) + "|",
    ]
    for (data, share, method, way, against), pairs in beside_others(lines).items():
        cells = []
        for direction, name, _ in SCORES:
            some = _changes(pairs, direction, name)
            spread = f" [{min(some):+.3f}, {max(some):+.3f}]" if len(some) > 1 else ""
            cells.append(f"{median(some):+.3f}{spread}" if some else "")
        out.append(_row(data, f"{share:g}", method, way, against, len(pairs), *cells))
    return "\n".join(out) if len(out) > 2 else ""


def _counts(lines: Lines) -> str:
    found: dict[tuple[str, str], dict[str, list[int]]] = {}
    cases: dict[tuple[str, str], int] = defaultdict(int)
    for (*_, way, against), pairs in beside_others(lines).items():
        cases[way, against] += 1
        row = found.setdefault((way, against), {name: [0, 0] for _, name, _ in SCORES})
        for direction, name, more in SCORES:
            some = [change if more else -change for change in _changes(pairs, direction, name)]
            row[name][0] += bool(some) and min(some) > 0
            row[name][1] += bool(some) and max(some) < 0
    out = [_row("way", "against", "cases", *(name for _, name, _ in SCORES)), "|---" * (3 + len(SCORES)) + "|"]
    for (way, against), row in found.items():
        out.append(_row(way, against, cases[way, against], *(f"{better} : {worse}" for better, worse in row.values())))
    return "\n".join(out) if len(out) > 2 else ""


def _models(lines: Lines) -> str:
    """What the pretrained models learned: r on their own validation cells, beside the additive baseline's."""
    seen: dict[str, None] = {}
    for line in lines:
        if (encoder := line.get("encoder")) and encoder["valid"]["pearson"] is not None:
            additive = encoder["additive"]["pearson"]
            beside = "" if additive is None else f" (gene + cell additive {additive:.4f})"
            r = encoder["valid"]["pearson"]
            # Of simulated cells a model a seed; of real cells one.
            which = f"{line['data']}, seed {line['seed']}" if line["sizes"] else "real cells"
            seen[f"{which}: {encoder['cells']:,} cells, {encoder['genes']:,} genes, validation r {r:.4f}{beside}"] = (
                None
            )
    return "\n".join(f"* {words}" for words in seen)


def _row(*cells: Any) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"
