"""What this machine has and lacks, looked at before it is needed: packages, accelerator, threads, memory, disk, hub, extras."""

from collections.abc import Callable, Sequence

from expresser.doctor.finding import Finding as Finding

_MARKS = {"ok": "✓", "note": "·", "warning": "!", "broken": "✗"}


def examine(*, timeout: float = 5.0, say: Callable[[str], None] = lambda what: None) -> list[Finding]:
    """Everything the doctor looks at, in the order in which it is shown.

    Parameters
    ----------
    timeout
        Seconds that the hub is given to answer.
    say
        Told what is being looked at.
    """
    from expresser.doctor import machine, packages
    from expresser.doctor.accelerator import accelerator, look
    from expresser.doctor.hub import hub

    say("packages")
    found = [packages.ours(), packages.python(), *packages.required()]
    say("accelerator")
    seen = look()
    found += accelerator(seen)
    found += machine.threads(None if seen is None else seen["threads"])
    say("memory and disk")
    found += [machine.memory(), *machine.disk()]
    say("hub")
    found += hub(timeout)
    say("extras")
    version = packages.installed("deepspeed")
    error = None if version is None else dict(packages.importing(["deepspeed"]))["deepspeed"]
    found += [machine.compilers(), machine.deepspeed(version, error)]
    return [*found, *packages.extras()]


def in_words(found: Sequence[Finding]) -> str:
    """The findings under their headings, and a last line that sums up."""
    lines: list[str] = []
    width = max(len(each.name) for each in found)
    for i, each in enumerate(found):
        if i == 0 or each.group != found[i - 1].group:
            lines += [*([""] if lines else []), each.group]
        lines.append(f"  {_MARKS[each.state]} {each.name:<{width}}  {each.found}")
        if each.advice:
            lines.append(f"    {'':<{width}}  → {each.advice}")
    broken = [each.name for each in found if each.state == "broken"]
    warned = [each.name for each in found if each.state == "warning"]
    last = "Everything that is needed works."
    if broken:
        last = f"Broken: {', '.join(broken)}."
    if warned:
        last += f" Look at: {', '.join(warned)}."
    return "\n".join([*lines, "", last])
